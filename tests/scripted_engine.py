"""An OpenAI-shaped engine that does exactly what a test tells it to, misbehaviour included.

Run as ``python tests/scripted_engine.py --port N``; a test may also use :class:`EngineProcess`. The shapes of answers
and errors are those of llama.cpp's server (in xllamacpp 2026.10.11549).

The last user message (or ``prompt`` of ``/v1/completions``) is the script, where it is a JSON object; :func:`script`
writes one. Any other text is answered with a short sentence. ``do`` is a list of steps, played in order::

    {"say": "some words", "delay_s": 0.01}    content, a token a word, each after ``delay_s``
    {"tokens": 40, "delay_s": 0.01}           forty tokens of content
    {"think": "hm"}                           reasoning_content
    {"call": "f", "arguments": {…} | "raw"}   a tool call, in fragments of ``fragment`` (default 5) characters
    {"calls": [{"call": …}, …]}               several tool calls, their fragments interleaved
    {"huge": 1000000}                         one token of so many bytes
    {"sleep": 1.5}  {"ping": 2}               silence; comment lines ``: ping``
    {"raw": "text"}  {"frame": {…}}           bytes as they are; any JSON value as one SSE frame
    {"half": "text"}                          half of a content frame, then the connection closes
    {"close": true}  {"reset": true}          end of the connection without an end of the answer (FIN, RST)
    {"until": "/a/path"}                      silence until that file exists
    {"heard": true}                           silence until the client's process has read what was said so far
    {"hang": true}  {"die": true}             silence until the client leaves; the process exits with status 1
    {"error": "text" | {…}}                   an error frame, after which the stream ends without ``[DONE]``

Beside ``do``:

``usage``        {"prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"}: overrides; false: no usage
                 and no timings
``finish``       the finish_reason; false: no finish frame
``done``         false: no ``[DONE]``
``status``       answer with this status and ``body`` (default: llama-server's error object with ``message``, ``type``)
``exceed_context``  [n_prompt_tokens, n_ctx]: the 400 that llama-server answers to too long a prompt
``at``           {point: step} at before_headers, after_headers, before_finish, mid_finish, before_usage, mid_usage,
                 before_done, before_end; a step is "close", "reset", "hang", "die" or {"sleep": s}
``content_type``, ``headers``  of the answer
``rubbish``      true: bytes that are neither SSE nor JSON, under the usual content type
``crlf``         true: frames separated by CRLF CRLF
``piece``        write in pieces of so many bytes, each with a turn of the event loop (and ``piece_delay_s``) between
``whole``        true: the whole stream in one write
``gzip``         true: compressed
``ignore_cap``   true: do not stop at max_tokens
``once``         true: the second request with the same script is answered with a short sentence

Other routes: ``GET /health``, ``GET /v1/models``, ``GET /log`` (every request received: see :class:`Entry`),
``DELETE /log``, ``GET /state`` (requests now running, and the most at once), ``POST /control`` (keys ``health``: a
status or "hang", ``default``: the script for messages without one). With ``STENTOR_ENGINE_TOKEN`` set, or a token
from ``--api-key-file`` or ``--token-stdin``, all but /health, /log, /state and /control need it as bearer token.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.scripted.connection import Connection, Engine
from tests.scripted.process import EngineProcess
from tests.scripted.script import DEFAULT_TEXT, Json, script

__all__ = ["DEFAULT_TEXT", "EngineProcess", "Json", "script"]


async def serve(engine: Engine, options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, (lambda: None) if options.ignore_sigterm else stopped.set)
    server = await loop.create_server(lambda: Connection(engine), options.host, options.port)
    print(f"ready http://{options.host}:{server.sockets[0].getsockname()[1]}", flush=True)
    timeout = options.exit_after_s or None
    try:
        async with asyncio.timeout(timeout):
            await stopped.wait()
    except TimeoutError:
        os._exit(options.exit_status)
    os._exit(0)


def read_token(options: argparse.Namespace) -> str | None:
    if options.token_stdin:
        return sys.stdin.readline().strip() or None
    if options.api_key_file:
        with open(options.api_key_file, encoding="utf-8") as file:
            return file.read().strip() or None
    return os.environ.get("STENTOR_ENGINE_TOKEN") or None


def main() -> None:
    parser = argparse.ArgumentParser(description="An engine that does what its requests tell it to.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0: any free port, printed on stdout")
    parser.add_argument("--model", default="scripted", help="the id in /v1/models")
    parser.add_argument("--ctx", type=int, default=8192, help="longer prompts are refused as llama-server does")
    parser.add_argument("--script", help="file with the JSON script for messages that hold none")
    parser.add_argument("--load-s", type=float, default=0.0, help="answer 503 Loading model for so long")
    parser.add_argument("--load-until", help="answer 503 Loading model until this file exists")
    parser.add_argument("--exit-after-s", type=float, default=0.0, help="exit by itself after so long")
    parser.add_argument("--exit-status", type=int, default=1)
    parser.add_argument("--fail", help="print this and exit with --exit-status at once")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--token-stdin", action="store_true", help="the first line of stdin is the bearer token")
    parser.add_argument("--api-key-file", help="a file that holds the bearer token")
    options = parser.parse_args()
    if options.fail:
        print(options.fail, file=sys.stderr, flush=True)
        sys.exit(options.exit_status)
    engine = Engine(options, read_token(options))
    if options.script:
        with open(options.script, encoding="utf-8") as file:
            engine.default = {"do": [{"say": DEFAULT_TEXT}], **json.load(file)}
    asyncio.run(serve(engine, options))


if __name__ == "__main__":
    main()
