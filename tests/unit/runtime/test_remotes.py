"""Remote models: places, queue, provider, circuit; no process, no slot."""

import asyncio

import pytest

from stentor.core.errors import Refused
from stentor.core.ids import KeyId, ModelId
from stentor.runtime.catalogue import Catalogue
from stentor.runtime.remote_spec import RemotePrice, RemoteSpec
from stentor.runtime.remotes import Provider, Remotes
from stentor.runtime.spec import InvalidModel, ModelSpec, describe_served, validate_spec

FREE = RemotePrice(input=0, output=0)
BIG = ModelId("big")


def remote_model(model: str = "big", parallel: int = 2, **remote: object) -> ModelSpec:
    fields = {"price": FREE, "base_url": "http://10.0.0.5:8000/v1", **remote}
    return ModelSpec(id=model, engine="remote", parallel=parallel, remote=RemoteSpec(**fields))  # type: ignore[arg-type]


def remotes(spec: ModelSpec, *providers: tuple[str, Provider]) -> Remotes:
    async def well(_address: object) -> str:
        return ""

    made = Remotes(queue_max=8)
    made.connect(dict(providers).get, well)
    made.add([spec])
    return made


async def acquire(made: Remotes, spec: ModelSpec, timeout_s: float = 60.0):  # type: ignore[no-untyped-def]
    return await made.acquire(describe_served(spec, 8192), KeyId("k"), timeout_s)


async def test_as_many_places_as_it_may_run_and_the_rest_wait_in_line() -> None:
    spec = remote_model()
    made = remotes(spec)
    first, second = made.try_acquire(BIG), made.try_acquire(BIG)
    assert first is not None
    assert second is not None
    assert first.url == "http://10.0.0.5:8000/v1"
    assert made.try_acquire(BIG) is None
    waiting = asyncio.create_task(acquire(made, spec))
    await asyncio.sleep(0.01)
    assert made.waiting_by_model() == {BIG: 1}
    made.release(first.instance, first.generation)
    place = await waiting
    assert place.queued_us > 0
    with pytest.raises(Refused) as caught:
        await acquire(made, spec, 0.02)
    assert caught.value.code == "overloaded"
    assert made.running_by_model() == {BIG: 2}


async def test_a_cancelled_wait_holds_nothing() -> None:
    spec = remote_model(parallel=1)
    made = remotes(spec)
    place = made.try_acquire(BIG)
    assert place is not None
    waiting = asyncio.create_task(acquire(made, spec))
    await asyncio.sleep(0)
    made.release(place.instance, place.generation)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert made.running_by_model() == {BIG: 0}
    assert made.try_acquire(BIG) is not None


async def test_failures_open_the_circuit_and_everybody_who_waits_is_told() -> None:
    spec = remote_model(parallel=1)
    made = remotes(spec)
    place = made.try_acquire(BIG)
    assert place is not None
    waiting = asyncio.create_task(acquire(made, spec))
    await asyncio.sleep(0)
    for _ in range(5):
        made.report(BIG, False, 0.0)
    made.release(place.instance, place.generation)
    for ask in (waiting, acquire(made, spec)):
        with pytest.raises(Refused) as caught:
            await ask
        assert caught.value.code == "model_unavailable"
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s > 5
    assert not made.is_available(BIG)
    assert made.describe(describe_served(spec, 1), 0).state == "failed"


async def test_an_upstream_that_wants_to_be_left_alone_is() -> None:
    made = remotes(remote_model())
    made.report(BIG, False, 30.0)
    assert made.try_acquire(BIG) is None
    with pytest.raises(Refused) as caught:
        await acquire(made, remote_model())
    assert 25 < (caught.value.retry_after_s or 0) <= 30


async def test_credentials_come_from_the_provider_of_that_name_and_kind() -> None:
    spec = remote_model(base_url="", provider="acme")
    provider = Provider("openai", "https://api.acme.example/v1/", "s3cret")
    assert "s3cret" not in repr(provider)
    place = remotes(spec, ("acme", provider)).try_acquire(BIG)
    assert place is not None
    assert (place.url, place.token) == ("https://api.acme.example/v1", "s3cret")
    for others in ((), (("acme", Provider("anthropic", "https://a.example", "x")),)):
        made = remotes(spec, *others)
        assert made.try_acquire(BIG) is None
        with pytest.raises(Refused, match="no provider 'acme'"):
            await acquire(made, spec)


async def test_stopping_and_starting_toggle_it() -> None:
    made = remotes(remote_model())
    made.set_enabled(BIG, False)
    assert made.try_acquire(BIG) is None
    made.set_enabled(BIG, True)
    assert made.try_acquire(BIG) is not None


async def test_a_place_of_a_replaced_model_changes_nothing() -> None:
    made = remotes(remote_model())
    old = made.try_acquire(BIG)
    made.add([remote_model(parallel=1)])
    new = made.try_acquire(BIG)
    assert old is not None
    assert new is not None
    made.release(old.instance, old.generation)
    assert made.running_by_model() == {BIG: 1}


async def test_it_is_looked_after_while_nobody_asks() -> None:
    looked = asyncio.Event()
    problem = "it refuses the credential"

    async def look(_address: object) -> str:
        looked.set()
        return problem

    spec = remote_model()
    made = Remotes(queue_max=8)
    made.connect(lambda _: None, look)
    made.add([spec])
    task = asyncio.create_task(made.run())
    async with asyncio.timeout(30):
        await looked.wait()
        while not made.describe(describe_served(spec, 1), 0).reason:
            await asyncio.sleep(0.01)
    task.cancel()
    assert made.describe(describe_served(spec, 1), 0).reason == problem


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"price": RemotePrice()}, "must be known"),
        ({"price": RemotePrice(input=1.0)}, "must be known"),
        ({"base_url": ""}, "neither base_url nor provider"),
        ({"base_url": "ftp://x"}, "must begin with"),
        ({"base_url": "http://user:pw@x/"}, "credentials"),
    ],
)
def test_a_definition_that_cannot_work_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidModel, match=words) as caught:
        validate_spec(remote_model(**fields))
    assert "pw" not in str(caught.value)


def test_prices_are_nano_usd_per_million() -> None:
    price = RemotePrice(input=2.5, output=10, cached=1.25, request=0.001)
    assert price.amounts() == {
        "input_nano": 2_500_000_000,
        "output_nano": 10_000_000_000,
        "cached_nano": 1_250_000_000,
        "request_nano": 1_000_000 * 1_000_000,
        "character_nano": 0,
        "audio_second_nano": 0,
    }


def test_a_remote_model_is_never_guessed() -> None:
    catalogue = Catalogue([remote_model("gpt-large")])
    for name in ("", "auto", "large"):
        with pytest.raises(Refused):
            catalogue.resolve(name, frozenset())
    assert catalogue.resolve("gpt-large", frozenset()).remote is not None
