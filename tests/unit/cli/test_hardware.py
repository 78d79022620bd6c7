"""What the machine has, and the one step that would use its GPU."""

from pathlib import Path

import pytest

from stentor.runtime import hardware
from stentor.runtime.hardware import Gpu, choose_gpu_step, find_hardware, parse_nvidia

H200 = Gpu("NVIDIA", "NVIDIA H200", 143771, True, "nvidia-smi")


def test_the_machine_is_described():
    found = find_hardware()
    assert found.cores >= 1
    assert 0 < found.available_mib <= found.memory_mib
    assert found.cpu


def test_the_drivers_list_is_read():
    assert parse_nvidia("NVIDIA H200, 143771\nTesla, T4, [N/A]\n\n") == [
        H200,
        Gpu("NVIDIA", "Tesla, T4", None, True, "nvidia-smi"),
    ]


def test_without_a_gpu_nothing_is_asked_for():
    assert choose_gpu_step((), None) == "No GPU found; models run on the processor."


def test_a_usable_gpu_names_one_step():
    assert "set STENTOR_ENGINE_BIN to a llama-server built for CUDA" in choose_gpu_step((H200,), None)


def test_an_engine_that_is_set_is_named():
    assert "/opt/llama-server uses it" in choose_gpu_step((H200,), Path("/opt/llama-server"))


def test_a_gpu_without_rights_names_that_step():
    gpu = Gpu("AMD", "AMD graphics", None, False, "/dev/dri/renderD128")
    assert "groups video and render" in choose_gpu_step((gpu,), None)


def test_a_driver_that_hangs_or_fails_is_no_gpu(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(hardware, "_DRM", tmp_path)
    assert all(gpu.evidence != "nvidia-smi" for gpu in hardware.find_gpus())


@pytest.mark.parametrize(("vendor", "name"), [("0x1002", "AMD"), ("0x8086", "Intel")])
def test_render_nodes_of_the_kernel_are_seen(monkeypatch, tmp_path, vendor, name):
    device = tmp_path / "drm" / "renderD128" / "device"
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n")
    (device / "mem_info_vram_total").write_text(str(8 << 30))
    monkeypatch.setattr(hardware, "_DRM", tmp_path / "drm")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = [gpu for gpu in hardware.find_gpus() if gpu.vendor == name]
    assert found[0].memory_mib == 8192
