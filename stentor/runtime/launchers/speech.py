"""The engines for speech: ``stentor.engines.<kind>`` in a child, configured by one line on its stdin."""

import sys
from collections.abc import Mapping
from importlib.util import find_spec

import msgspec

from stentor.runtime.launchers.base import Launch, LaunchOrder, LaunchRefused, choose_environment, new_token
from stentor.runtime.spec import SPEECH_LIBRARIES

# What libraries take from the environment alone.
_LIBRARIES = {
    "HF_HUB_OFFLINE": "1",  # hubs are for sources, never for engines
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc: what was freed is kept for the next request. To give back and fetch the large pieces each time costs
    # whisper-base 164,000 page faults for a clip of ten seconds, a sixth of the time that it takes in all.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}


class SpeechLauncher:
    """Launcher of ``whisper``, ``sense_voice``, ``listen``, ``piper``, ``kokoro`` and ``tone``."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    async def prepare(self, order: LaunchOrder) -> Launch:
        """The child for ``order``. Raises LaunchRefused when its library isn't installed."""
        spec = order.spec
        library = SPEECH_LIBRARIES[spec.engine]
        if library and find_spec(library) is None:
            raise LaunchRefused(
                f"Model '{spec.id}' needs the optional extra '{spec.engine}', which is not installed. Run: "
                f"pip install 'stentor[{spec.engine}]'",
                public=f"its engine is not installed; the operator must run pip install 'stentor[{spec.engine}]'",
            )
        token = new_token()
        config = {
            "model_path": str(order.weights or ""),
            "alias": spec.upstream_model or spec.id,
            "port": order.port,
            "token": token,
            "threads": order.threads,
            "places": order.places,
        }
        return Launch(
            argv=(sys.executable, "-P", "-m", f"stentor.engines.{spec.engine}"),
            environment=choose_environment(
                self._environment, {**_LIBRARIES, "OMP_NUM_THREADS": str(order.threads), **spec.env}
            ),
            stdin=msgspec.json.encode(config) + b"\n",
            token=token,
            places=order.places,
            context_size=order.ctx,
        )
