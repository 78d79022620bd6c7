"""Plays a script: as a stream, or as one JSON object."""

import asyncio
import json
import os
from typing import Any

from tests.scripted.ask import Ask
from tests.scripted.script import Json, step_deltas
from tests.scripted.shapes import Shapes, error_body
from tests.scripted.wire import ScriptedEndError, Wire

RUBBISH = b"\x00\x01<html>this is neither events nor JSON \xff\xfe</html>\n\n"


async def wait_for_file(path: str) -> None:
    while not os.path.exists(path):
        await asyncio.sleep(0.02)


class Answer:
    """Plays one script, as a stream or as one JSON object."""

    def __init__(self, ask: Ask, wire: Wire, model: str) -> None:
        self.ask = ask
        self.wire = wire
        self.how = ask.script
        self.shapes = Shapes(ask, model)
        self.calls = 0

    async def play(self) -> None:
        status = int(self.how.get("status", 200))
        await self.reach("before_headers")
        if "exceed_context" in self.how:
            await self.refuse_context(*self.how["exceed_context"])
        elif status != 200:
            message, kind = self.how.get("message", "scripted failure"), self.how.get("type", "server_error")
            await self.send_json(self.how.get("body", error_body(status, message, kind)), status)
        elif self.ask.stream:
            await self.stream()
        else:
            await self.collect()

    async def refuse_context(self, prompt: int, context: int) -> None:
        text = f"request ({prompt} tokens) exceeds the available context size ({context} tokens), try increasing it"
        more = {"n_prompt_tokens": prompt, "n_ctx": context}
        await self.send_json(error_body(400, text, "exceed_context_size_error", **more), 400)

    async def send_json(self, value: Any, status: int = 200) -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value, separators=(",", ":")).encode()
        if self.how.get("rubbish"):
            data = RUBBISH
        if self.wire.packer:
            self.wire.head(status, "application/json; charset=utf-8")
            await self.wire.send(data)
            await self.wire.end()
            return
        self.wire.head(status, "application/json; charset=utf-8", len(data))
        await self.reach("after_headers")
        half = len(data) // 2
        await self.wire.send(data[:half], chunked=False)
        await self.reach("mid_finish")
        await self.wire.send(data[half:], chunked=False)

    async def reach(self, point: str) -> None:
        step = self.how.get("at", {}).get(point)
        if step is not None:
            await self.act({step: True} if isinstance(step, str) else step)

    async def act(self, step: Json) -> None:
        """A step that says nothing: silence, noise, or an end."""
        if "sleep" in step:
            await asyncio.sleep(step["sleep"])
        elif "until" in step:
            await wait_for_file(step["until"])
        elif "heard" in step:
            await self.wire.connection.wait_heard()
        elif "hang" in step:
            await self.wire.connection.wait_left()
        elif "die" in step:
            os._exit(1)
        elif "close" in step or "reset" in step:
            raise ScriptedEndError("reset" if "reset" in step else "close")
        elif self.ask.stream:
            await self.make_noise(step)

    async def make_noise(self, step: Json) -> None:
        """What only a stream can hold."""
        if "ping" in step:
            await self.wire.send(b": ping\n\n" * int(step["ping"]))
        elif "raw" in step:
            await self.wire.send(step["raw"].encode())
        elif "frame" in step:
            await self.wire.frame(step["frame"])
        elif "half" in step:
            await self.wire.frame(self.shapes.piece(0, {"content": step["half"]}), half=True)

    async def stream(self) -> None:
        self.wire.head(200, "text/event-stream")
        await self.reach("after_headers")
        if self.how.get("rubbish"):
            await self.wire.send(RUBBISH)
            await self.wire.end()
            return
        if self.ask.chat:
            for index in range(self.ask.choices):
                await self.wire.frame(self.shapes.piece(index, {"role": "assistant", "content": None}))
        for step in self.how["do"]:
            if "error" in step:
                error = step["error"]
                known = error if isinstance(error, dict) else error_body(500, str(error), "server_error")["error"]
                await self.wire.frame({"error": known})
                await self.wire.end()
                return
            if not await self.speak(step):
                break
        await self.finish_stream()

    async def speak(self, step: Json) -> bool:
        """Stream one step's tokens; False when the cap is reached."""
        await self.act(step)
        for delta in step_deltas(step, self.calls):
            await asyncio.sleep(step.get("delay_s", 0))
            for index in range(self.ask.choices):
                await self.wire.frame(self.shapes.piece(index, delta))
            if self.shapes.count(delta):
                return False
        self.calls += 1 if "call" in step else len(step.get("calls", ()))
        return True

    async def finish_stream(self) -> None:
        usage_apart = self.ask.chat and self.ask.include_usage and self.how.get("usage") is not False
        await self.reach("before_finish")
        if self.how.get("finish") is not False:
            for index in range(self.ask.choices):
                chunk = self.shapes.piece(index, {}, self.shapes.finish_reason())
                if not usage_apart and index == self.ask.choices - 1:
                    chunk |= self.shapes.measures() if not self.ask.chat else self.shapes.timings()
                await self.wire.frame(chunk, half="mid_finish" in self.how.get("at", {}))
        await self.reach("before_usage")
        if usage_apart:
            chunk = self.shapes.chunk() | self.shapes.measures()
            await self.wire.frame(chunk, half="mid_usage" in self.how.get("at", {}))
        await self.reach("before_done")
        if self.how.get("done") is not False:
            await self.wire.frame("[DONE]")
        await self.reach("before_end")
        await self.wire.end()

    async def collect(self) -> None:
        for step in self.how["do"]:
            if "error" in step:
                error = step["error"]
                known = {"error": error} if isinstance(error, dict) else error_body(500, str(error), "server_error")
                await self.send_json(known, 500)
                return
            await self.act(step)
            capped = False
            for delta in step_deltas(step, self.calls):
                await asyncio.sleep(step.get("delay_s", 0))
                self.shapes.said.append(delta)
                capped = self.shapes.count(delta)
                if capped:
                    break
            self.calls += 1 if "call" in step else len(step.get("calls", ()))
            if capped:
                break
        await self.send_json(self.shapes.whole())
