"""An engine that hears and misbehaves as the prompt of a stream says: ``python scripted_line.py PORT LOG``.

It notes what it got in ``LOG``, a line of JSON for each stream: the orders, and how many bytes of sound.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

FINAL = '{"event":"final","text":"so it is","audio_ms":999999,"output_tokens":3}'
PARTIAL = '{"event":"partial","text":"so it","stable":2,"heard_s":0.1}'
AT_THE_END = {
    "rubbish": "<html>",
    "large": '{"event":"partial","text":"' + "x" * (1 << 20) + '","stable":0,"heard_s":1}',
    "fails": '{"event":"error","code":"broken","message":"no luck"}',
    "refuses": '{"event":"error","code":"too_long","message":"too long"}',
    "uncounted": FINAL.replace("3}", "null}"),
}


class Engine:
    def __init__(self, log: Path) -> None:
        self._log = log
        self._seen: set[str] = set()

    async def listen(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        begin = json.loads((await socket.receive()).data)
        do = begin["prompt"].split()
        noted = {"prompt": begin["prompt"], "orders": [], "bytes": 0}
        if "once" in do and begin["prompt"] in self._seen:
            do = []
        self._seen.add(begin["prompt"])
        try:
            await self._talk(socket, do, noted)
        finally:
            with self._log.open("a") as file:
                file.write(json.dumps(noted) + "\n")
        return socket

    async def _talk(self, socket: web.WebSocketResponse, do: list[str], noted: dict[str, Any]) -> None:
        if "deaf" in do:
            await asyncio.sleep(3600)
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                noted["bytes"] += len(message.data)
                for said in while_hearing(do, is_first=noted["bytes"] == len(message.data)):
                    await socket.send_str(said)
                if "die" in do:
                    return
                continue
            noted["orders"].append(json.loads(message.data)["type"])
            for name in do:
                if name == "bytes":
                    await socket.send_bytes(b"final")
                elif name in AT_THE_END:
                    await socket.send_str(AT_THE_END[name])
            if "silent" not in do:
                await socket.send_str(FINAL)


def while_hearing(do: list[str], *, is_first: bool) -> list[str]:
    """What is said to a frame of sound."""
    flood = [json.dumps({"event": "wake_word", "name": "x", "probability": 1, "sample": at}) for at in range(3000)]
    return [PARTIAL] * ("partial" in do and is_first) + flood * ("flood" in do)


def main() -> None:
    engine = Engine(Path(sys.argv[2]))
    app = web.Application()
    app.router.add_get("/v1/listen", engine.listen)

    async def health(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    app.router.add_get("/health", health)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, shutdown_timeout=0.1)


if __name__ == "__main__":
    main()
