"""The scripted engine, with a file that says which answers it finished, written before their ends go out.

``--finished PATH`` comes first; the rest is as for ``tests/scripted_engine.py``. A script with ``"nonce": "…"`` leaves
that word as a line in the file. The file outlives the engine, so that a test knows what a killed one had done.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import scripted_engine
from tests.scripted.answer import Answer


def record_to(path: str) -> None:
    """Have every answer with a nonce recorded in ``path``, one write a line, shared among engines."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    finish = Answer.finish_stream

    async def finish_stream(answer: Answer) -> None:
        nonce = answer.how.get("nonce")
        if nonce:
            os.write(descriptor, f"{nonce}\n".encode())
        await finish(answer)

    Answer.finish_stream = finish_stream  # type: ignore[method-assign]


if __name__ == "__main__":
    assert sys.argv[1] == "--finished"
    record_to(sys.argv[2])
    del sys.argv[1:3]
    scripted_engine.main()
