"""The mock engine: answers chat completions in llama-server's shapes as fast as the machine can.

Run as a file (`python bench/mock.py --port N`), so it imports nothing of this repository.

- default: execs nginx in the foreground, which answers every request with one JSON body, or with `--sse` one SSE body;
- `--paced`: execs `bench.paced`, which writes every SSE frame on its own, as an engine does a token at a time.

The process pins itself to `--core`: Stentor starts its engines itself, and the mock must not run on the measured core.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from string import Template

HERE = Path(__file__).resolve().parent
MODEL = "mock"
CREATED = 1_700_000_000
PROMPT_TOKENS = 24
TEXT = "Bronze| voices| carry| far|,| and| one| clear| voice| is| worth| a| whole| loud| choir|."
WORDS = tuple(TEXT.split("|"))
NGINX_ID = "chatcmpl-$request_id"


class ConfigTemplate(Template):
    """`@{name}` is replaced; nginx keeps its own `$name`."""

    delimiter = "@"


def usage(completion_tokens: int) -> dict[str, object]:
    return {
        "completion_tokens": completion_tokens,
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": PROMPT_TOKENS + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def answer_json(answer_id: str, model: str = MODEL) -> str:
    """One whole `chat.completion` object."""
    message = {"role": "assistant", "content": "".join(WORDS)}
    answer = {
        "choices": [{"finish_reason": "stop", "index": 0, "message": message}],
        "created": CREATED,
        "model": model,
        "system_fingerprint": "b0-mock",
        "object": "chat.completion",
        "usage": usage(len(WORDS)),
        "id": answer_id,
    }
    return json.dumps(answer, separators=(",", ":"))


def frame(answer_id: str, model: str, choices: list[dict[str, object]], **more: object) -> str:
    """One SSE frame with its empty line."""
    chunk = {
        "choices": choices,
        "created": CREATED,
        "id": answer_id,
        "model": model,
        "system_fingerprint": "b0-mock",
        "object": "chat.completion.chunk",
        **more,
    }
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"


def choice(delta: dict[str, object], finish_reason: str | None = None) -> list[dict[str, object]]:
    return [{"finish_reason": finish_reason, "index": 0, "delta": delta}]


def answer_frames(answer_id: str, tokens: int, *, with_usage: bool, model: str = MODEL) -> list[str]:
    """Role chunk, one chunk a token, finish chunk, usage chunk when asked for, `[DONE]`."""
    frames = [frame(answer_id, model, choice({"role": "assistant", "content": None}))]
    frames += [frame(answer_id, model, choice({"content": WORDS[i % len(WORDS)]})) for i in range(tokens)]
    frames.append(frame(answer_id, model, choice({}, "stop")))
    if with_usage:
        frames.append(frame(answer_id, model, [], usage=usage(tokens)))
    frames.append("data: [DONE]\n\n")
    return frames


def nginx_string(text: str) -> str:
    """`text` as a quoted nginx parameter; `$request_id` in it stays a variable."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def mock_folder(port: int) -> Path:
    """Where nginx's configuration for `port` lies; git ignores it."""
    return HERE.parent / "build" / "bench" / f"mock-{port}"


def exec_nginx(port: int, *, sse: bool) -> None:
    """Replaces this process by one single-process nginx. Never returns."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    folder = mock_folder(port)
    folder.mkdir(parents=True, exist_ok=True)
    body = "".join(answer_frames(NGINX_ID, len(WORDS), with_usage=True)) if sse else answer_json(NGINX_ID)
    config = ConfigTemplate((HERE / "config" / "mock.nginx.conf").read_text()).substitute(
        folder=folder,
        port=port,
        content_type="text/event-stream" if sse else "application/json",
        body=nginx_string(body),
    )
    (folder / "nginx.conf").write_text(config)
    os.execv(nginx, [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf")])


def exec_paced(port: int) -> None:
    """Replaces this process by the frame-by-frame mock. Never returns."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    os.execve(sys.executable, [sys.executable, "-m", "bench.paced", str(port)], environment)


def main() -> None:
    parser = argparse.ArgumentParser(description="mock engine for the benchmark")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--core", type=int, help="pin the mock to this core")
    parser.add_argument("--sse", action="store_true", help="answer one SSE body instead of JSON")
    parser.add_argument("--paced", action="store_true", help="write every SSE frame on its own")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    if arguments.paced:
        exec_paced(arguments.port)
    exec_nginx(arguments.port, sse=arguments.sse)


if __name__ == "__main__":
    main()
