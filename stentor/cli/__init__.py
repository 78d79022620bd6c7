"""The command line: every command is a thin function over settings and the parts below."""

from stentor.cli.root import main

__all__ = ["main"]
