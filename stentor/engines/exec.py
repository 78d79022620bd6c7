"""The parent-death launcher: ``python -m stentor.engines.exec <expected-ppid> -- program argument…``.

Asks the kernel to kill this process when the thread that started it ends, makes sure that the parent is still there
(it may have died before the request was in force), leads a process group of its own, and becomes the program. The
request survives execve; children of the program do not inherit it, which is why engines fork nothing.
"""

import ctypes
import os
import signal
import sys

EXIT_USAGE = 64
EXIT_NO_PROGRAM = 127
EXIT_PARENT_GONE = 143
_PR_SET_PDEATHSIG = 1
_SCRUBBED_PREFIX = "LLAMA_ARG_"


def _die_with_parent(expected_parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        _fail(EXIT_USAGE, f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != expected_parent:
        _fail(EXIT_PARENT_GONE, f"parent {expected_parent} is gone")


def _lead_own_group() -> None:
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)


def _fail(status: int, problem: str) -> None:
    sys.stderr.write(f"error: {problem}\n")
    sys.stderr.flush()
    os._exit(status)


def main(arguments: list[str]) -> None:
    """Become the program named after ``--``; returns only by ending the process."""
    if len(arguments) < 3 or arguments[1] != "--" or not arguments[0].isdigit():
        _fail(EXIT_USAGE, "usage: python -m stentor.engines.exec <expected-ppid> -- program argument…")
    _lead_own_group()
    _die_with_parent(int(arguments[0]))
    program = arguments[2:]
    environment = {name: text for name, text in os.environ.items() if not name.startswith(_SCRUBBED_PREFIX)}
    try:
        os.execvpe(program[0], program, environment)  # noqa: S606 - the operator's program, started without a shell
    except OSError as problem:
        _fail(EXIT_NO_PROGRAM, f"cannot run {program[0]}: {problem.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
