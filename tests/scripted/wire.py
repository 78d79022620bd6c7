"""The answer's bytes on their way out."""

import asyncio
import http.client
import json
import zlib
from typing import Any, Protocol

from tests.scripted.script import Json


class ScriptedEndError(Exception):
    """The script ends the connection here: ``how`` is "close" or "reset"."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class ClientLeftError(Exception):
    """The client's connection went away while the script was silent."""


class Line(Protocol):
    """What an answer needs of its connection."""

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None: ...

    async def wait_left(self) -> None:
        """Raises ClientLeftError once the client's connection went away."""

    async def wait_heard(self) -> None:
        """Return once the client's process has taken all that was written."""

    def count_frame(self) -> None: ...


class Wire:
    """The answer's bytes on their way out, cut and packed as the script wants."""

    def __init__(self, connection: Line, how: Json) -> None:
        self.connection = connection
        self.how = how
        self.separator = b"\r\n\r\n" if how.get("crlf") else b"\n\n"
        self.packer = zlib.compressobj(wbits=31) if how.get("gzip") else None
        self.held: list[bytes] = []

    def head(self, status: int, content_type: str, length: int | None = None) -> None:
        reason = http.client.responses.get(status, "Unknown")
        lines = [f"HTTP/1.1 {status} {reason}", "Server: llama.cpp"]
        lines.append(f"Content-Type: {self.how.get('content_type', content_type)}")
        lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
        lines += ["Content-Encoding: gzip"] if self.packer else []
        lines += [f"{name}: {value}" for name, value in self.how.get("headers", {}).items()]
        self.connection.write("\r\n".join([*lines, "", ""]).encode())

    async def send(self, data: bytes, *, chunked: bool = True) -> None:
        if self.packer:
            data = self.packer.compress(data) + self.packer.flush(zlib.Z_SYNC_FLUSH)
        if self.how.get("whole"):
            self.held.append(data)
            return
        size = int(self.how.get("piece", 0)) or len(data) or 1
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            self.connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await self.connection.drain()
            if "piece" in self.how:
                await asyncio.sleep(float(self.how.get("piece_delay_s", 0)))

    async def frame(self, value: Any, *, half: bool = False) -> None:
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        data = b"data: " + text.encode() + self.separator
        if half:
            await self.send(data[: len(data) // 2])
            raise ScriptedEndError("close")
        self.connection.count_frame()
        await self.send(data)

    async def end(self) -> None:
        rest = b"".join(self.held) + (self.packer.flush() if self.packer else b"")
        if rest:
            self.connection.write(b"%x\r\n%b\r\n" % (len(rest), rest))
        self.connection.write(b"0\r\n\r\n")
        await self.connection.drain()
