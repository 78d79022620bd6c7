"""Many at once: memory stays flat, money bounds it, and a core is left for others."""

import concurrent.futures
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stentor.runtime.offers import OFFERS
from tests.kinds.models import fetch
from tests.serving import model_table
from tests.speech import clips
from tests.speech.conftest import TRANSCRIPTIONS, Hearing, start

MIB = 1 << 20


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Hearing]:
    """A server for large uploads."""
    fetch(OFFERS["whisper-tiny.en"].source)
    yield from start(
        tmp_path,
        model_table(id="tiny", source="whisper-tiny.en", parallel=4, threads=1),
        AUDIO_MAX_MB="60",
        AUDIO_MAX_S="60",
    )


def send_blank(gate: Hearing, size_mib: int) -> int:
    """Upload that many MiB of a WAV file whose sound is too long; the status of the answer."""
    mark = "b" * 30
    head = f'--{mark}\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--{mark}\r\n'
    head += 'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    content = clips.wav([])[:40] + b"\xff\xff\xff\xff"
    tail = f"\r\n--{mark}--\r\n".encode()
    block = bytes(MIB)
    connection = gate.server.connect(120)
    try:
        connection.putrequest("POST", TRANSCRIPTIONS)
        connection.putheader("Authorization", f"Bearer {gate.key}")
        connection.putheader("Content-Type", f"multipart/form-data; boundary={mark}")
        connection.putheader("Content-Length", str(len(head) + len(content) + size_mib * MIB + len(tail)))
        connection.endheaders(head.encode() + content)
        for _ in range(size_mib):
            connection.send(block)
        connection.send(tail)
        return connection.getresponse().status
    finally:
        connection.close()


def most_resident(process: psutil.Process, stop: threading.Event) -> int:
    """The most memory that a process has in use until told to stop."""
    most = 0
    while not stop.wait(0.02):
        most = max(most, process.memory_info().rss)
    return most


@pytest.mark.parametrize(
    ("uploads", "size_mib"), [(8, 50), pytest.param(50, 50, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]
)
def test_uploads_lie_on_the_disk_and_not_in_memory(roomy: Hearing, uploads: int, size_mib: int) -> None:
    send_blank(roomy, 2)
    process = psutil.Process(roomy.server.pid)
    before = process.memory_info().rss
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(uploads + 1) as threads:
        watching = threads.submit(most_resident, process, stop)
        try:
            statuses = list(threads.map(lambda _: send_blank(roomy, size_mib), range(uploads)))
        finally:
            stop.set()
        grown = watching.result() - before
    assert set(statuses) == {400}  # too long: each was received whole and measured
    # A few MiB each on their way, whatever their size.
    assert grown < (24 + 4 * uploads) * MIB, f"{grown / MIB:.0f} MiB more for {uploads} uploads"
    roomy.check_spool()


def test_balance_and_limits_are_for_what_the_sound_is(gate: Hearing) -> None:
    second_nano = 10_000_000
    price = {"model": "tiny", "input_nano": 0, "output_nano": 0, "audio_second_nano": second_nano * 1_000_000}
    gate.admin("POST", "/pricing", price)
    try:
        user = gate.make_user(tier="payg", balance_nano=10 * second_nano)
        key = gate.make_key(user["id"])["key"]
        sound = clips.speak(clips.SENTENCES[0]).read_bytes()
        first = gate.hear(sound, key=key)
        assert first.status == 200
        cost = gate.event(first.request_id)["cost_nano"]
        assert cost == gate.event(first.request_id)["audio_ms"] * second_nano // 1000
        assert gate.balance(user["id"]) == 10 * second_nano - cost
        refused = gate.hear(clips.wav(clips.silence(20.0)), key=key)
        assert refused.status == 402
        assert refused.json()["error"]["code"] == "insufficient_balance"
        event = gate.event(refused.request_id)
        assert (event["status"], event["reason"], event["cost_nano"]) == ("failed", "insufficient_balance", 0)
        assert gate.balance(user["id"]) == 10 * second_nano - cost
    finally:
        gate.admin("POST", "/pricing", {**price, "audio_second_nano": 0})


def test_threads_of_an_engine_are_bounded(gate: Hearing) -> None:
    """Four at once on an engine with one thread take no more than one core, so that chat has the other."""
    gate.hear(clips.wav(clips.silence(1.0)))
    engine = psutil.Process(gate.slot("tiny")["pid"])
    sound = clips.wav(clips.join(clips.SENTENCES[:8], 0.3))
    before, began = sum(engine.cpu_times()[:2]), time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: gate.hear(sound), range(4)))
    used, spent = sum(engine.cpu_times()[:2]) - before, time.monotonic() - began
    assert {answer.status for answer in answers} == {200}
    assert used <= 1.15 * spent + 0.5
