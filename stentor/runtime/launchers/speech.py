"""The engines for speech: ``stentor.engines.<kind>`` in a child, configured by one line on its stdin."""

import sys
from collections.abc import Mapping
from importlib.util import find_spec

import msgspec

from stentor.runtime.launchers.base import Launch, LaunchOrder, LaunchRefused, choose_environment, new_token
from stentor.runtime.speech import SPEECH_LIBRARIES

# Threads of libraries that take their number from the environment alone; hubs are for sources, never for engines.
_QUIET = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}


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
                self._environment, {**_QUIET, "OMP_NUM_THREADS": str(order.threads), **spec.env}
            ),
            stdin=msgspec.json.encode(config) + b"\n",
            token=token,
            places=order.places,
            context_size=order.ctx,
        )
