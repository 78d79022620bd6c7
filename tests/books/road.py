"""The way to a database, which can be made long, or closed: a proxy for TCP on a thread of its own."""

import asyncio
import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Road:
    """Listens on ``port`` and passes everything on to ``target``, each piece ``delay_s`` later. A context manager."""

    def __init__(self, target: int) -> None:
        self.delay_s = 0.0
        self.standing = False  # takes connections and bytes, and passes nothing on
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._carry, sock=self._socket))
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there: asyncio.StreamWriter | None = None
        with contextlib.suppress(OSError, asyncio.CancelledError):  # cancelled when the road ends
            back, there = await asyncio.open_connection("127.0.0.1", self._target)
            both = [asyncio.create_task(self._pass_on(*way)) for way in ((reader, there), (back, writer))]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in both:
                    task.cancel()
        for end in (writer, there):
            if end is not None:
                end.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await asyncio.sleep(self.delay_s)
                while self.standing:
                    await asyncio.sleep(0.05)
                writer.write(data)
                await writer.drain()
