"""The command line: every command is a thin function over settings and the parts below."""

import sys

from stentor.core.lazy import load

EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line and end the process with its status.

    Loading it takes half a second, and whoever presses Ctrl-C meanwhile is spared a traceback.
    """
    try:
        load("stentor.cli.root").main()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
