"""Real engines under many clients: one start for all, a death among streams, two models in turns, cached prompts.

The models are tiny ones with made-up weights, so that loading and answering is real and quick; the last test is the
starter model's. What is measured is printed.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine.tiny_gguf import write_tiny_gguf
from tests.kinds.models import CACHE, STARTER, fetch
from tests.serving import Server, model_table

LONG = 16_000  # tokens of an answer that outlasts any test, of a model with so many numbers that change nothing:
IDLE = 120_000  # ten tokens of ten answers take a processor some 20 ms


def tiny_model(folder: Path, name: str, **fields: Any) -> str:
    """A ``[[models]]`` table of a real model that loads at once."""
    path = folder / f"{name}.gguf"
    if not path.exists():
        write_tiny_gguf(path)
    return model_table(**{"id": name, "source": f"file:{path}", "ctx": 2048, "parallel": 4, "threads": 1, **fields})


def body(model: str, text: str, tokens: int, **fields: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "logit_bias": {"2": -100},  # of a tiny model: the end
        **fields,
    }


def models(server: Server) -> dict[str, dict[str, Any]]:
    rows = server.ask("GET", "/admin/api/models").json()["data"]
    return {row["id"]: row for row in rows}


def instances(server: Server) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = server.ask("GET", "/admin/api/system").json()["slots"]
    return [row for row in rows if row["id"]]


def metric(server: Server, name: str) -> dict[str, float]:
    """The samples of a metric, by their labels as written."""
    lines = server.ask("GET", "/metrics").body.decode().splitlines()
    found = [line.removeprefix(name).rpartition(" ") for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    return {labels: float(number) for labels, _, number in found}


class Stream:
    """A streamed chat on a connection of its own, read by a thread."""

    def __init__(self, server: Server, asked: dict[str, Any]) -> None:
        self.frames: list[float] = []
        self.ended_well = False
        self.instance = ""
        self.status = 0
        self.first = threading.Event()
        self.over = threading.Event()
        self._server, self._asked = server, asked
        self._connection = server.connect(60)
        self.began_s = time.monotonic()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        connection = self._connection
        headers = {"Authorization": f"Bearer {self._server.key}"}
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/v1/chat/completions", json.dumps({**self._asked, "stream": True}), headers)
            response = connection.getresponse()
            self.status = response.status
            self.instance = response.headers.get("x-stentor-instance", "")
            for line in response:
                if line.startswith(b"data: {"):
                    self.frames.append(time.monotonic())
                    if b'"content"' in line:
                        self.first.set()
                self.ended_well = self.ended_well or line.startswith(b"data: [DONE]")
        connection.close()
        self.first.set()
        self.over.set()

    def hang_up(self) -> None:
        """Leave in the middle of the answer, and wait until that is done."""
        with contextlib.suppress(OSError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        assert self.over.wait(30)


def wait_for(condition: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until ``condition`` held."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < timeout_s, "it never came true"
        time.sleep(0.02)
    return time.monotonic() - began_s


def test_fifty_cold_requests_start_one_engine(tmp_path: Path) -> None:
    with Server(tmp_path, tiny_model(tmp_path, "cold"), "--admin-key") as server:
        assert models(server)["cold"]["state"] == "cold"
        with ThreadPoolExecutor(50) as pool:
            answers = list(
                pool.map(
                    lambda number: server.ask("POST", "/v1/chat/completions", body("cold", f"say {number}", 8)),
                    range(50),
                )
            )
        assert [answer.status for answer in answers] == [200] * 50
        assert {answer.headers["x-stentor-instance"] for answer in answers} == {"cold#1"}
        assert [(each["id"], each["generation"]) for each in instances(server)] == [("cold#1", 1)]
    assert server.log.count(b'"engine_started"') == 1  # its log is whole once it ended


def test_a_killed_engine_takes_only_its_own_of_twenty_streams_along(tmp_path: Path) -> None:
    """Half of the streams outlast the test, however quick the machine is; the others end by themselves."""
    write_tiny_gguf(tmp_path / "pair.gguf", 2 * LONG, idle=IDLE)
    config = tiny_model(tmp_path, "pair", instances=2, parallel=10, ctx=LONG + 1000, preload=True)
    with Server(tmp_path, config, "--admin-key") as server:
        wait_for(lambda: models(server)["pair"]["ready_instances"] == 2, 60)
        pids = {each["id"]: each["pid"] for each in instances(server)}
        streams = [Stream(server, body("pair", f"say {number}", (LONG, 100)[number % 2])) for number in range(20)]
        for stream in streams:
            assert stream.first.wait(60)
        long, short = streams[::2], streams[1::2]
        assert not any(stream.over.is_set() for stream in long)
        victim = long[0].instance
        began_s = time.monotonic()
        os.kill(pids[victim], signal.SIGKILL)
        wait_for(lambda: whole_again(server, "pair", victim), 60)
        healed_s = time.monotonic() - began_s
        hit = [stream for stream in long if stream.instance == victim]
        spared = [stream for stream in long if stream.instance != victim]
        for stream in hit + short:
            assert stream.over.wait(60)
        seen = [len(stream.frames) for stream in spared]
        wait_for(lambda: all(len(stream.frames) > count for stream, count in zip(spared, seen, strict=True)), 60)
        assert not any(stream.over.is_set() for stream in spared)
        for stream in spared:
            stream.hang_up()
        failed = [stream for stream in hit + short if not stream.ended_well]
        print(f"killed 1 of 2: {len(failed)} of 20 streams failed, whole again after {healed_s:.2f} s")
        assert set(hit) <= set(failed)
        assert {stream.instance for stream in failed} == {victim}
        assert len(failed) <= 10
        assert server.ask("POST", "/v1/chat/completions", body("pair", "say on", 4)).status == 200


def whole_again(server: Server, model: str, instance: str) -> bool:
    """Whether ``instance`` was started anew and all of the model's are ready."""
    started = {each["id"]: each["generation"] for each in instances(server)}
    return started.get(instance, 0) > 1 and models(server)[model]["ready_instances"] == 2


def serve_in_turns(folder: Path, configs: dict[str, str], clients: int, turns: int) -> None:
    """Have two models, of which one alone fits, asked alternately by ``clients`` at once; prints swaps and waits."""
    first = next(iter(configs.values()))
    settings = {"QUEUE_TIMEOUT_S": "300", "MODEL_CACHE": str(CACHE)}
    (folder / "alone").mkdir()
    with Server(folder / "alone", first, "--admin-key", **settings) as server:
        name = next(iter(configs))
        assert server.ask("POST", "/v1/chat/completions", body(name, "hello", 1)).status == 200
        planned = instances(server)[0]["planned_bytes"]
    limit_mib = int(planned * 1.6) >> 20
    waits: dict[str, list[float]] = {}
    settings["MEMORY_LIMIT_MB"] = str(limit_mib)
    with Server(folder, "".join(configs.values()), "--admin-key", **settings) as server:

        def client(number: int) -> list[int]:
            statuses = []
            for turn in range(turns):
                model = tuple(configs)[(number + turn) % 2]
                began_s = time.monotonic()
                asked = body(model, f"say {turn}", 8)
                answer = server.ask("POST", "/v1/chat/completions", asked, wait_s=600)
                statuses.append(answer.status)
                waits.setdefault(answer.headers["x-stentor-instance"], []).append(time.monotonic() - began_s)
            return statuses

        began_s = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            results = list(pool.map(client, range(clients)))
        took_s = time.monotonic() - began_s
        swaps = metric(server, "stentor_engines_unloaded_total")
        ports = {each["id"]: each["port"] for each in instances(server)}
    assert [status for statuses in results for status in statuses] == [200] * clients * turns
    assert len(waits) == 2
    print(f"{clients * turns} requests in {took_s:.1f} s, {limit_mib} MiB for models of {planned >> 20} MiB each")
    for instance, seconds in sorted(waits.items()):
        cuts = statistics.quantiles(seconds, n=20)
        sent_away = sum(count for labels, count in swaps.items() if f'"{instance.partition("#")[0]}"' in labels)
        print(
            f"{instance} (port {ports[instance]}): {len(seconds)} answers, swapped out {sent_away:.0f} times, waits: "
            f"median {cuts[9]:.2f} s, 95 % {cuts[18]:.2f} s, longest {max(seconds):.2f} s"
        )
    assert sum(swaps.values()) >= 2


def test_two_models_that_do_not_fit_together_serve_twenty_clients_in_turns(tmp_path: Path) -> None:
    serve_in_turns(tmp_path, {name: tiny_model(tmp_path, name) for name in ("first", "second")}, 20, 10)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_two_real_models_that_do_not_fit_together_serve_twenty_clients_in_turns(tmp_path: Path) -> None:
    """SmolLM2 twice, under two names."""
    table = f'[[models]]\nsource = "{STARTER}"\nctx = 2048\nparallel = 4\nid = '
    serve_in_turns(tmp_path, {name: f'{table}"{name}"\n' for name in ("first", "second")}, 20, 10)


class Conversation:
    """One that is led turn by turn; its beginning is like no other's."""

    def __init__(self, server: Server, number: int) -> None:
        self.cached = 0
        self.instances: list[str] = []
        self._server, self._number = server, number
        rules = f"{number} {'abcd'[number] * 9} " * 24
        self._said = [{"role": "system", "content": rules}]

    def ask(self) -> None:
        """One more turn."""
        turn = len(self._said) // 2
        self._said.append({"role": "user", "content": f"question {turn} of {self._number} " * 3})
        asked = {"model": "talk", "messages": self._said, "max_tokens": 12, "temperature": 0}
        answer = self._server.ask("POST", "/v1/chat/completions", asked)
        self.cached += answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        self.instances.append(answer.headers["x-stentor-instance"])
        self._said.append({"role": "assistant", "content": f"answer {turn}"})


def replay(folder: Path, count: int) -> tuple[int, list[set[str]]]:
    """Cached tokens of four conversations of six turns over ``count`` instances, and where each was answered.

    The first turns share the instances out: two are had while all are idle, two while the first instance is busy with
    a long answer. The others are led at the same time.
    """
    path = write_tiny_gguf(folder / "talk.gguf", 2 * LONG, idle=20_000)
    fields = {"instances": count, "parallel": 8, "ctx": LONG + 1000, "preload": True}
    with Server(folder / f"n{count}", tiny_model(path.parent, "talk", **fields), "--admin-key") as server:
        wait_for(lambda: models(server)["talk"]["ready_instances"] == count, 60)
        conversations = [Conversation(server, number) for number in range(4)]
        for conversation in conversations[:2]:
            conversation.ask()
        holder = Stream(server, body("talk", "hold on", LONG))
        assert holder.first.wait(60)
        for conversation in conversations[2:]:
            conversation.ask()
        assert not holder.over.is_set()
        holder.hang_up()
        wait_for(lambda: all(each["running"] == 0 for each in instances(server)), 60)

        def lead(conversation: Conversation) -> None:
            for _ in range(5):
                conversation.ask()

        with ThreadPoolExecutor(len(conversations)) as pool:
            list(pool.map(lead, conversations))
        return sum(each.cached for each in conversations), [set(each.instances) for each in conversations]


def test_conversations_find_their_cached_beginning_over_two_instances(tmp_path: Path) -> None:
    for count in (1, 2):
        (tmp_path / f"n{count}").mkdir()
    (alone, _), (pair, homes) = replay(tmp_path, 1), replay(tmp_path, 2)
    print(f"cached tokens: {alone} on one instance, {pair} on two ({pair / alone:.0%})")
    assert homes in ([{one}, {one}, {other}, {other}] for one, other in (("talk#1", "talk#2"), ("talk#2", "talk#1")))
    assert alone > 1_000
    assert pair >= 0.9 * alone


@pytest.fixture
def starter(tmp_path: Path) -> Any:
    fetch(STARTER)
    config = f'[[models]]\nid = "starter"\nsource = "{STARTER}"\nctx = 2048\n'
    with Server(tmp_path, config, "--admin-key", MODEL_CACHE=str(CACHE), DEFAULT_THREADS="1") as server:
        yield server


def test_a_cold_model_says_its_first_word_each_time_it_is_started(starter: Server) -> None:
    """How soon is measured by ``python -m bench --only stentor cold``: here other things may run beside it."""
    for number in range(2):
        stream = Stream(starter, body("starter", f"Say hello {number}.", 4))
        assert stream.first.wait(120)
        assert stream.over.wait(120)
        assert stream.ended_well
        assert stream.frames
        assert starter.ask("POST", "/admin/api/models/starter/stop").status == 200
        assert models(starter)["starter"]["state"] == "cold"
    assert [each["generation"] for each in instances(starter)] == [2]
