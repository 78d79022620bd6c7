"""Real servers on one set of books, alone or several, on SQLite or PostgreSQL, and a storm of requests on them."""

import asyncio
import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from stentor.flows.ask import TOKENS_OF_TEMPLATE, TOKENS_PER_MESSAGE
from tests.http.harness import CHAT, Gate, price, until
from tests.scripted_engine import script
from tests.serving import Server, scripted_model

PARALLEL = 200
PROMPT, OUTPUT = 1000, 50  # what one request of the storm reserves, and uses
TOKENS = PROMPT + OUTPUT
COST = price(PROMPT, OUTPUT)
MASTER_KEY = "5e" * 32  # nodes that share books share the master key
DECIDED_S = 60.0


class Told:
    """What became of one request: its status, its id, the refusal's code, and whether it came whole."""

    def __init__(self, node: int) -> None:
        self.node = node
        self.status = 0
        self.request_id = ""
        self.code = ""
        self.whole = False
        self.problem = ""

    def __repr__(self) -> str:
        return f"Told({vars(self)})"

    def read(self, status: int, body: bytes, *, stream: bool) -> None:
        """Read an answer that came to its end."""
        self.status = status
        if status != 200:
            self.code = json.loads(body)["error"]["code"]
        elif stream:
            self.whole = body.endswith(b"data: [DONE]\n\n")
        else:
            self.whole = len(json.loads(body)["choices"][0]["message"]["content"].split()) > 0


def exact_body(gate_file: Path, *, stream: bool) -> bytes:
    """A request whose answer waits for a file and then uses exactly what was reserved for it."""
    usage = {"prompt_tokens": PROMPT, "completion_tokens": OUTPUT}
    text = script({"until": str(gate_file)}, {"tokens": OUTPUT}, usage=usage)
    fields = {"model": "scripted", "messages": [{"role": "user", "content": text}], "max_tokens": OUTPUT}
    data = json.dumps({**fields, "stream": stream}).encode()
    size = PROMPT - TOKENS_PER_MESSAGE - TOKENS_OF_TEMPLATE  # a byte counts as a token at most
    assert len(data) <= size
    return data.ljust(size)


class Storm:
    """Many requests at once; none of the admitted ends before :meth:`let_go`. ``nodes``: whom they ask, in turns."""

    def __init__(self, folder: Path, nodes: Sequence[Gate], key: str) -> None:
        self.told: list[Told] = []
        self._nodes = nodes
        self._engines = [gate.engine() for gate in nodes]
        self._key = key
        self._file = folder / f"go-{uuid.uuid4().hex}"
        self._asks: list[asyncio.Task[None]] = []

    async def run(self, count: int = PARALLEL) -> None:
        """Ask, wait until all are decided, and let the admitted end."""
        self.begin(count)
        try:
            await self.wait_decided()
        finally:
            await self.let_go()

    def begin(self, count: int) -> None:
        """Ask."""
        self._asks = [asyncio.create_task(self._ask(number)) for number in range(count)]

    async def wait_decided(self) -> None:
        """Until each is refused, or held by an engine."""
        async with asyncio.timeout(DECIDED_S):
            while sum(ask.done() for ask in self._asks) + await asyncio.to_thread(self._held) < len(self._asks):
                await asyncio.sleep(0.02)

    async def let_go(self) -> None:
        """Have the engines answer, and wait until all is over."""
        self._file.touch()
        await asyncio.gather(*self._asks)

    def _held(self) -> int:
        return sum(engine.running() for engine in self._engines)

    async def _ask(self, number: int) -> None:
        told = Told(number % len(self._nodes))
        self.told.append(told)
        stream = number % 4 < 2
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self._nodes[told.node].port}{CHAT}"
        timeout = aiohttp.ClientTimeout(total=2 * DECIDED_S)
        body = exact_body(self._file, stream=stream)
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.post(url, data=body) as response,
        ):
            told.request_id = response.headers["x-request-id"]
            told.read(response.status, await response.read(), stream=stream)

    @property
    def admitted(self) -> list[Told]:
        return [told for told in self.told if told.status == 200]

    @property
    def refusals(self) -> Counter[tuple[int, str]]:
        """Status and code of each refusal."""
        return Counter((told.status, told.code) for told in self.told if told.status != 200)


class Deployment:
    """Servers that share one set of books, each with an admin's hands (:class:`Gate`)."""

    def __init__(self, folder: Path, nodes: list[Gate]) -> None:
        self.folder = folder
        self.nodes = nodes

    @property
    def first(self) -> Gate:
        return self.nodes[0]

    async def storm(self, key: str, count: int = PARALLEL) -> Storm:
        """A storm on all nodes that is over."""
        storm = Storm(self.folder, self.nodes, key)
        await storm.run(count)
        return storm

    def make_payer(self, balance_nano: int) -> dict[str, Any]:
        """A prepaid user without rates."""
        return self.first.make_user(tier="flood", balance_nano=balance_nano)

    def check(self) -> None:
        """Nothing runs, nothing stays reserved, and the books agree with themselves."""
        for gate in self.nodes:
            until(lambda gate=gate: gate.metric("stentor_open_requests"), lambda count: count == 0, DECIDED_S)
            gate.check_books()


def _settings(workers: int, url: str, schema: str) -> dict[str, str]:
    settings = {"GATEWAY_WORKERS": str(workers), "DURABILITY": "process", "HF_ENDPOINT": "http://127.0.0.1:9"}
    settings["MASTER_KEY"] = MASTER_KEY
    if url:
        settings |= {"DATABASE_URL": url, "DATABASE_SCHEMA": schema, "DATABASE_POOL_SIZE": "2"}
        settings["DATABASE_TIMEOUT_S"] = "30"  # a busy machine isn't a lost database
    return settings


@contextlib.contextmanager
def deploy(folder: Path, *, workers: int = 1, nodes: int = 1, url: str = "", **more: str) -> Iterator[Deployment]:
    """Start ``nodes`` servers, each with a data folder and ports of its own; with ``url`` on one PostgreSQL schema."""
    schema = f"books_{uuid.uuid4().hex[:12]}"
    gates: list[Gate] = []
    with contextlib.ExitStack() as stack:
        for number in range(nodes):
            mine = folder / f"node-{number}"
            mine.mkdir()
            words = ("--admin-key",) if number == 0 else ()
            settings = {**_settings(workers, url, schema), **more}
            server = Server(mine, scripted_model(), *words, slots=2, **settings)
            if gates:
                server.key = gates[0].key
            stack.enter_context(server)
            gates.append(Gate(server))
        gates[0].admin("POST", "/tiers", {"id": "flood", "prepaid": True})
        yield Deployment(folder, gates)
    for gate in gates:
        assert b"request_crashed" not in gate.server.log, gate.server.log.decode(errors="replace")
