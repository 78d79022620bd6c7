"""One instance from start to end: ready means it answered, death is seen at once, nothing is tried for ever."""

import asyncio
import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from engine_harness import fake, give, instance_of, list_children, refused_with, take, until

from stentor.core.errors import Refused
from stentor.core.ids import ModelId
from stentor.runtime import procfs

FAKE = ModelId("fake")


async def test_cold_start_leads_to_a_place_on_a_ready_instance(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake())
    assert scheduler.try_acquire(FAKE, 0) is None
    place = await take(scheduler, "fake")
    card = await instance_of(scheduler, "fake")
    assert (card.state, card.generation, card.running) == ("ready", 1, 1)
    assert place.url == f"http://127.0.0.1:{card.port}"
    give(scheduler, place)
    assert scheduler.try_acquire(FAKE, 0) is not None


async def test_fifty_cold_requests_start_one_process(make_scheduler: Any, tmp_path: Path) -> None:
    note = tmp_path / "starts"
    scheduler = make_scheduler(fake("fake", "--start-delay", "0.3", "--note", str(note), parallel=8))

    async def one(number: int) -> str:
        place = await take(scheduler, "fake", key=f"k{number % 5}")
        await asyncio.sleep(0.005)
        give(scheduler, place)
        return place.url

    urls = await asyncio.gather(*(one(number) for number in range(50)))
    assert len(urls) == 50
    assert len(set(urls)) == 1
    assert len(note.read_text().splitlines()) == 1
    assert scheduler.count_running() == 0
    assert scheduler.count_waiting() == 0


async def test_a_silent_start_is_given_up_after_the_stall_time(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("fake", "--hang", "start"), start_stall_s=0.6)
    began = time.monotonic()
    with pytest.raises(Refused, match="stalled while starting") as refusal:
        await take(scheduler, "fake")
    assert refusal.value.code == "model_unavailable"
    assert 0.5 < time.monotonic() - began < 15


async def test_a_slow_start_that_talks_is_not_given_up(make_scheduler: Any) -> None:
    """Each try is slower than the time allowed for silence, so that none could end well if its words didn't count."""
    options = ("--start-delay", "1.6", "--talk")
    scheduler = make_scheduler(fake("fake", *options), start_stall_s=0.6, breaker_failures=1000)
    async with asyncio.timeout(60):
        while True:  # a pause of the whole process is silence, too
            with contextlib.suppress(Refused):
                give(scheduler, await take(scheduler, "fake"))
                return


async def test_a_start_that_talks_for_ever_ends_at_the_limit(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("fake", "--start-delay", "60", "--talk"), start_max_s=0.8)
    with pytest.raises(Refused, match="not ready within"):
        await take(scheduler, "fake")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--hang", "canary"), "gave no answer within"),
        (("--rubbish",), "something else than the JSON"),
        (("--canary-status", "500"), "answered with status 500"),
    ],
)
async def test_healthy_but_useless_is_not_ready(make_scheduler: Any, options: tuple[str, ...], words: str) -> None:
    short = {"canary_timeout_s": 0.5, "start_stall_s": 0.5}
    scheduler = make_scheduler(fake("fake", *options), **short, breaker_failures=1000)
    refusal = await refused_with(scheduler, "fake", "does not answer a one-token request")
    assert words not in refusal.message
    assert words in (await instance_of(scheduler, "fake")).reason


async def test_an_engine_without_canary_is_ready_when_healthy(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("fake", "--rubbish", canary=False))
    assert (await take(scheduler, "fake")).generation == 1


async def test_death_at_start_answers_everyone_who_waits_without_the_engines_words(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("fake", "--start-delay", "0.2", "--die", "3"))
    answers = await asyncio.gather(*(take(scheduler, "fake") for _ in range(5)), return_exceptions=True)
    assert all(isinstance(answer, Refused) and answer.code == "model_unavailable" for answer in answers)
    assert "exit status 3" in str(answers[0])
    assert "told to die" not in str(answers[0])
    card = await instance_of(scheduler, "fake")
    assert "told to die" in card.reason
    assert any("told to die" in line for line in card.log_tail)


async def test_a_failed_start_is_tried_again_by_itself(make_scheduler: Any, tmp_path: Path) -> None:
    scheduler = make_scheduler(fake("fake", "--die", "3", "--once", str(tmp_path / "once")))
    with pytest.raises(Refused):
        await take(scheduler, "fake")
    assert (await take(scheduler, "fake")).generation == 2
    tail = (await instance_of(scheduler, "fake")).log_tail
    assert tail.index("error: told to die") < tail.index("--- start 2 ---")


async def test_crash_loop_ends_and_says_so_at_once(make_scheduler: Any, tmp_path: Path) -> None:
    note = tmp_path / "starts"
    scheduler = make_scheduler(fake("fake", "--die", "3", "--note", str(note)), breaker_failures=3)
    with pytest.raises(Refused):
        await take(scheduler, "fake")
    await until(lambda: len(note.read_text().splitlines()) == 3)
    await until(lambda: next(iter(scheduler._instances.values())).process.breaker.is_open)
    await asyncio.sleep(0.3)
    began = time.monotonic()
    with pytest.raises(Refused, match="could not be started") as refusal:
        await take(scheduler, "fake")
    assert time.monotonic() - began < 10.0
    assert (refusal.value.retry_after_s or 0) > 20
    assert len(note.read_text().splitlines()) == 3
    assert (await scheduler.list_models())[0].state == "failed"


async def test_an_explicit_start_tries_a_broken_model_again(make_scheduler: Any, tmp_path: Path) -> None:
    once = tmp_path / "once"
    scheduler = make_scheduler(fake("fake", "--die", "65", "--once", str(once)))
    once.with_suffix(".hold").touch()
    with pytest.raises(Refused):
        await take(scheduler, "fake")
    with pytest.raises(Refused, match="exit status 65"):
        await take(scheduler, "fake")
    await scheduler.start(FAKE)
    assert (await instance_of(scheduler, "fake")).state == "ready"


async def test_half_open_tries_once_after_the_pause(make_scheduler: Any, tmp_path: Path) -> None:
    options = ("--die", "65", "--once", str(tmp_path / "once"))
    scheduler = make_scheduler(fake("fake", *options), breaker_open_s=0.4)
    with pytest.raises(Refused):
        await take(scheduler, "fake")
    await until(lambda: scheduler.count_idle_places() > 0)


async def test_a_killed_engine_is_replaced_and_old_releases_are_ignored(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake())
    old = await take(scheduler, "fake")
    card = await instance_of(scheduler, "fake")
    os.kill(card.pid, signal.SIGKILL)
    await until(lambda: scheduler.try_acquire(FAKE, 0) is None)
    fresh = await take(scheduler, "fake")
    assert (fresh.instance, fresh.generation) == (old.instance, old.generation + 1)
    give(scheduler, old)
    assert scheduler.count_running() == 1
    give(scheduler, fresh)
    assert scheduler.count_running() == 0
    assert (await instance_of(scheduler, "fake")).restarts == 1


async def test_who_waits_when_an_engine_falls_is_served_by_its_successor(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake(parallel=1))
    await take(scheduler, "fake")
    waiting = asyncio.create_task(take(scheduler, "fake"))
    await until(lambda: scheduler.count_waiting() == 1)
    os.kill((await instance_of(scheduler, "fake")).pid, signal.SIGKILL)
    assert (await waiting).generation == 2


async def test_a_suspect_that_answers_the_canary_goes_on(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake())
    place = await take(scheduler, "fake")
    give(scheduler, place, suspect=True)
    assert scheduler.try_acquire(FAKE, 0) is None
    assert (await take(scheduler, "fake")).generation == place.generation


async def test_who_has_just_answered_the_canary_is_not_doubted_again_at_once(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake())
    give(scheduler, await take(scheduler, "fake"), suspect=True)
    process = next(iter(scheduler._instances.values())).process
    await until(lambda: not process.checking)
    for doubted in (False, True):
        give(scheduler, await take(scheduler, "fake"), suspect=True)
        assert process.checking is doubted
        process.trusted_until_s = 0.0


async def test_a_suspect_that_hangs_is_replaced(make_scheduler: Any, tmp_path: Path) -> None:
    options = ("--hang-canary-after", "1", "--once", str(tmp_path / "once"))
    scheduler = make_scheduler(fake("fake", *options), canary_timeout_s=0.4)
    place = await take(scheduler, "fake")
    give(scheduler, place, suspect=True)
    assert (await take(scheduler, "fake")).generation == place.generation + 1


async def test_stop_waits_for_running_work_then_ends_the_child(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake(), drain_s=60.0)
    place = await take(scheduler, "fake")
    stopping = asyncio.create_task(scheduler.stop(FAKE))
    await asyncio.sleep(0.1)
    assert (await instance_of(scheduler, "fake")).state == "draining"
    assert not stopping.done()
    give(scheduler, place)
    await asyncio.wait_for(stopping, 30)
    card = await instance_of(scheduler, "fake")
    assert (card.state, card.pid) == ("stopped", None)
    assert "fake engine ends" in card.log_tail


async def test_a_request_during_a_stop_starts_the_model_again(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("fake", "--stop-delay", "0.4"), drain_s=10.0)
    place = await take(scheduler, "fake")
    stopping = asyncio.create_task(scheduler.stop(FAKE))
    await asyncio.sleep(0.05)
    during_drain = asyncio.create_task(take(scheduler, "fake"))
    await asyncio.sleep(0.05)
    give(scheduler, place)
    await asyncio.sleep(0.2)
    during_stop = asyncio.create_task(take(scheduler, "fake"))
    await stopping
    assert {(await during_drain).generation, (await during_stop).generation} == {2}


async def test_sigkill_ends_an_engine_that_ignores_sigterm(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("fake", "--ignore-term"), stop_grace_s=0.3)
    give(scheduler, await take(scheduler, "fake"))
    pid = (await instance_of(scheduler, "fake")).pid
    await scheduler.stop(FAKE)
    assert procfs.find_stat(pid) is None


async def test_what_an_engine_started_itself_ends_with_it(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("fake", "--grandchild"))
    give(scheduler, await take(scheduler, "fake"))
    pid = (await instance_of(scheduler, "fake")).pid
    await until(lambda: len(procfs.list_group(pid)) == 2)
    await scheduler.stop(FAKE)
    await until(lambda: procfs.list_group(pid) == [])


async def test_stop_during_a_start_ends_it(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("fake", "--hang", "start"))
    others = {stat.pid for stat in list_children()}
    starting = asyncio.create_task(scheduler.start(FAKE))
    await until(lambda: any(stat.pid not in others for stat in list_children()))
    await scheduler.stop(FAKE)
    with pytest.raises(Refused, match="stopped"):
        await starting


async def test_children_see_no_secret_of_ours(make_scheduler: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("STENTOR_MASTER_KEY", "canary-of-the-master-key")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "64")
    dump = tmp_path / "env.json"
    spec = fake("fake", "--dump-env", str(dump), env={"MY_PORT": "at ${PORT}"})
    scheduler = make_scheduler(spec)
    await take(scheduler, "fake")
    seen = json.loads(dump.read_text())
    assert "canary-of-the-master-key" not in seen.values()
    assert not any(name.startswith(("LLAMA_ARG_", "STENTOR_MASTER")) for name in seen)
    assert seen["MY_PORT"] == f"at {(await instance_of(scheduler, 'fake')).port}"


async def test_log_keeps_the_last_two_hundred_lines(make_scheduler: Any) -> None:
    spec = fake(canary=False)
    noisy = ("/bin/sh", "-c", 'i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); done; exec "$@"', "sh")
    scheduler = make_scheduler(type(spec)(id="fake", engine="command", command=(*noisy, *spec.command), canary=False))
    await take(scheduler, "fake")
    tail = (await instance_of(scheduler, "fake")).log_tail
    assert len(tail) == 200
    assert "line 399" in tail
    assert "line 0" not in tail
