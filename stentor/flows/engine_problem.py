"""What our own engines say when they refuse: ``{"error": {code, message}}``."""

import msgspec


class EngineProblem(msgspec.Struct, frozen=True):
    """Why an engine can't serve a request; both empty where it gave no reason that can be read."""

    code: str = ""
    message: str = ""


class _Body(msgspec.Struct):
    error: EngineProblem = EngineProblem()


_decode = msgspec.json.Decoder(_Body).decode


def read_problem(body: bytes) -> EngineProblem:
    """The problem in an error answer."""
    try:
        return _decode(body).error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return EngineProblem()
