"""What passes through the books is told: always if it is unusual, else where the log is to say everything."""

import json
import os
from typing import Any

import pytest

from stentor.control.observed import ObservedBooks
from stentor.core.books import Close, Grant, Open, Settled, Usage
from stentor.core.errors import StoreUnavailable
from stentor.core.ids import InstanceId, KeyId, ModelId, RequestId
from stentor.telemetry.logs import Log
from stentor.telemetry.metrics import Metrics
from stentor.telemetry.settings import TelemetrySettings

PATH = "/v1/chat/completions"


class Agreeing:
    """Books that settle everything, or nothing."""

    def __init__(self) -> None:
        self.broken = False

    async def open(self, ask: Open, owner: str = "") -> Grant:
        return Grant(ask.request_id, ask.attempt, ModelId("m"), InstanceId("m#1"), 1, "", "", "", "llama", 10, 100)

    def begin_close(self, end: Close) -> None:
        """Nothing is begun: every close takes the long way."""

    async def close(self, end: Close) -> Settled:
        if self.broken:
            raise StoreUnavailable("the disk is full")
        return Settled(7, 0, Usage(4, 0, 2))


async def told(level: str, outcome: Any, *, broken: bool = False) -> tuple[list[dict[str, Any]], str]:
    """The log and the metrics of one request that ends so."""
    read_end, write_end = os.pipe()
    log = Log(TelemetrySettings(log_level=level, log_format="json"), fd=write_end)
    metrics, behind = Metrics(), Agreeing()
    books = ObservedBooks(behind, metrics, log)  # type: ignore[arg-type]
    grant = await books.open(Open(RequestId("r"), 1, KeyId("k"), PATH, "m", 5))
    end = Close(grant.request_id, 1, outcome, Usage(), latency_us=2500)
    behind.broken = broken
    if broken:
        with pytest.raises(StoreUnavailable):
            await books.close(end)
    else:
        await books.close(end)
    log.close()
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        return [json.loads(line) for line in pipe], metrics.render().decode()


async def test_an_ordinary_request_is_told_only_at_the_level_debug() -> None:
    assert (await told("INFO", "completed"))[0] == []
    [line] = (await told("DEBUG", "completed"))[0]
    assert (line["event"], line["level"], line["request_id"]) == ("request_closed", "debug", "r")
    assert (line["latency_ms"], line["input_tokens"], line["cost_nano"]) == (2.5, 4, 7)


async def test_a_failed_request_is_always_told() -> None:
    [line] = (await told("INFO", "failed"))[0]
    assert (line["event"], line["level"], line["instance"]) == ("request_failed", "warning", "m#1")


async def test_an_answer_that_could_not_be_booked_is_counted() -> None:
    _, metrics = await told("INFO", "completed", broken=True)
    assert f'stentor_requests_refused_total{{code="store_unavailable",endpoint="{PATH}"}} 1.0' in metrics
