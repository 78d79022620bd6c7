"""An operator's own program, told its port through ``${PORT}`` in its arguments or environment."""

import shutil
from collections.abc import Mapping

from stentor.runtime.launchers.base import Launch, LaunchOrder, LaunchRefused, choose_environment

_PORT = "${PORT}"


class CommandLauncher:
    """Launcher of ``engine = "command"``. The program is run as it is, without a shell."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    async def prepare(self, order: LaunchOrder) -> Launch:
        """The child for ``order``. Raises LaunchRefused when the program isn't there."""
        spec = order.spec
        port = str(order.port)
        argv = tuple(text.replace(_PORT, port) for text in spec.command)
        environment = choose_environment(
            self._environment, {name: text.replace(_PORT, port) for name, text in spec.env.items()}
        )
        if shutil.which(argv[0], path=environment.get("PATH")) is None:
            raise LaunchRefused(
                f"Model '{spec.id}': the program '{argv[0]}' of its command is not there or not executable. "
                "Install it or write its full path.",
                public="the program that serves it is not installed",
            )
        return Launch(argv=argv, environment=environment, places=order.places)
