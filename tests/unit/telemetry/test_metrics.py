"""The numbers that a scrape shows are the numbers that requests left behind."""

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stentor.core.books import Close, Grant, Outcome, Settled, Usage
from stentor.core.ids import InstanceId, ModelId, RequestId
from stentor.telemetry.metrics import METRICS, Metrics

USAGE = Usage(input_tokens=10, cached_tokens=3, output_tokens=5)


def grant(model: str = "m", *, queued_us: int = 0) -> Grant:
    return Grant(
        request_id=RequestId("r"), attempt=1, model=ModelId(model), instance=InstanceId("i"), generation=1, url="",
        token="", upstream_model="", engine="llama", output_cap=10, context_size=100, queued_us=queued_us,
    )  # fmt: skip


def close(outcome: Outcome = "completed", **more: int) -> Close:
    return Close(request_id=RequestId("r"), attempt=1, outcome=outcome, usage=Usage(), **more)  # type: ignore[arg-type]


def settled(cost_nano: int = 0, absorbed_nano: int = 0, usage: Usage = USAGE) -> Settled:
    return Settled(cost_nano=cost_nano, absorbed_nano=absorbed_nano, usage=usage)


def read(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return read(metrics).get((name, frozenset(labels.items())))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("1.2.3")


def test_counts_requests_by_how_they_ended(metrics: Metrics) -> None:
    metrics.observe_closed(grant(), "/v1/chat/completions", close(), settled())
    metrics.observe_closed(grant(), "/v1/chat/completions", close(), settled())
    metrics.observe_closed(grant(), "/v1/chat/completions", close("cancelled"), settled())
    metrics.observe_closed(grant("other"), "/v1/completions", close("failed"), settled())
    name = "stentor_requests_closed_total"
    chat = {"engine": "llama", "endpoint": "/v1/chat/completions"}
    assert value(metrics, name, model="m", outcome="completed", **chat) == 2
    assert value(metrics, name, model="m", outcome="cancelled", **chat) == 1
    assert value(metrics, name, model="other", outcome="failed", engine="llama", endpoint="/v1/completions") == 1


def test_sums_what_was_settled_not_what_was_claimed(metrics: Metrics) -> None:
    claimed = Close(RequestId("r"), 1, "completed", Usage(input_tokens=999))
    metrics.observe_closed(grant(), "/v1/completions", claimed, settled(cost_nano=120, absorbed_nano=7))
    metrics.observe_closed(grant(), "/v1/chat/completions", close("cancelled"), settled(cost_nano=30))
    assert value(metrics, "stentor_input_tokens_total", model="m") == 20
    assert value(metrics, "stentor_cached_tokens_total", model="m") == 6
    assert value(metrics, "stentor_output_tokens_total", model="m") == 10
    assert value(metrics, "stentor_cost_nano_usd_total", model="m") == 150
    assert value(metrics, "stentor_absorbed_nano_usd_total", model="m") == 7
    assert value(metrics, "stentor_usage_estimated_total", model="m") == 0


def test_counts_estimated_usage(metrics: Metrics) -> None:
    metrics.observe_closed(grant(), "/v1/completions", close(), settled(usage=Usage(estimated=True)))
    assert value(metrics, "stentor_usage_estimated_total", model="m") == 1


def test_histograms_put_each_time_into_its_bucket(metrics: Metrics) -> None:
    for latency_us in (9_999, 10_000, 10_001, 700_000_000):
        metrics.observe_closed(grant(), "e", close(latency_us=latency_us), settled())
    labels = {"model": "m", "endpoint": "e"}
    assert value(metrics, "stentor_request_latency_seconds_bucket", le="0.01", **labels) == 2
    assert value(metrics, "stentor_request_latency_seconds_bucket", le="0.05", **labels) == 3
    assert value(metrics, "stentor_request_latency_seconds_bucket", le="600.0", **labels) == 3
    assert value(metrics, "stentor_request_latency_seconds_bucket", le="+Inf", **labels) == 4
    assert value(metrics, "stentor_request_latency_seconds_count", **labels) == 4
    assert value(metrics, "stentor_request_latency_seconds_sum", **labels) == pytest.approx(700.03)


def test_a_time_that_was_not_measured_is_not_counted(metrics: Metrics) -> None:
    metrics.observe_closed(grant(), "e", close(), settled())
    metrics.observe_closed(grant(), "e", close(first_token_us=20_000, overhead_us=150), settled())
    assert value(metrics, "stentor_first_token_seconds_count", model="m") == 1
    assert value(metrics, "stentor_overhead_seconds_count", endpoint="e") == 1
    assert value(metrics, "stentor_overhead_seconds_bucket", endpoint="e", le="0.0001") == 0
    assert value(metrics, "stentor_overhead_seconds_bucket", endpoint="e", le="0.0002") == 1


def test_queue_wait_comes_from_the_grant(metrics: Metrics) -> None:
    metrics.observe_closed(grant(queued_us=2_000_000), "e", close(), settled())
    assert value(metrics, "stentor_queue_wait_seconds_sum", model="m") == 2.0


def test_counts_refusals(metrics: Metrics) -> None:
    metrics.observe_refused("/v1/chat/completions", "overloaded")
    metrics.observe_refused("/v1/chat/completions", "overloaded")
    name = "stentor_requests_refused_total"
    assert value(metrics, name, endpoint="/v1/chat/completions", code="overloaded") == 2


def test_watched_values_are_read_at_each_scrape(metrics: Metrics) -> None:
    depth = {("m",): 3, ("n",): 0}
    metrics.watch("stentor_queue_depth", lambda: depth.items())
    metrics.watch("stentor_open_requests", lambda: 5)
    metrics.watch("stentor_instances", lambda: [(("m", "ready"), 2), (("m", "failed"), 1)])
    assert value(metrics, "stentor_queue_depth", model="m") == 3
    depth["m",] = 4
    assert value(metrics, "stentor_queue_depth", model="m") == 4
    assert value(metrics, "stentor_open_requests") == 5
    assert value(metrics, "stentor_instances", model="m", state="failed") == 1


def test_watching_an_undeclared_metric_is_refused(metrics: Metrics) -> None:
    with pytest.raises(KeyError):
        metrics.watch("stentor_surprise", lambda: 1)


def test_tells_the_version_and_the_process(metrics: Metrics) -> None:
    seen = read(metrics)
    assert any(name == "stentor_build_info" and ("version", "1.2.3") in labels for name, labels in seen)
    assert seen["process_resident_memory_bytes", frozenset()] > 1_000_000


def test_two_sets_of_metrics_know_nothing_of_each_other() -> None:
    one, two = Metrics(), Metrics()
    one.observe_refused("/v1/completions", "overloaded")
    name = "stentor_requests_refused_total"
    assert value(two, name, endpoint="/v1/completions", code="overloaded") is None


def test_the_exposition_declares_every_metric_once(metrics: Metrics) -> None:
    text = metrics.render().decode()
    for spec in METRICS:
        assert text.count(f"# TYPE {spec.name} {spec.kind}\n") == 1
        assert f"# HELP {spec.name} {spec.help}\n" in text


def test_odd_label_values_stay_one_sample(metrics: Metrics) -> None:
    metrics.watch("stentor_engines_restarted_total", lambda: [(('a"b\\c\nd',), 1)])
    assert value(metrics, "stentor_engines_restarted_total", model='a"b\\c\nd') == 1


def test_declarations_keep_the_house_rules() -> None:
    assert len({spec.name for spec in METRICS}) == len(METRICS)
    for spec in METRICS:
        assert spec.name.startswith("stentor_")
        assert spec.help.endswith(".")
        assert (spec.kind == "counter") == spec.name.endswith("_total")
        assert bool(spec.buckets) == (spec.kind == "histogram")
        assert list(spec.buckets) == sorted(spec.buckets)
        assert not {"key", "key_id", "user", "user_id", "request_id", "project"} & set(spec.labels)


def test_counting_a_request_costs_next_to_nothing(metrics: Metrics) -> None:
    ended, paid, given = close(latency_us=20_000, first_token_us=5_000, overhead_us=300), settled(100), grant()
    costs_us = []
    for _ in range(5):
        before = time.thread_time()
        for _ in range(2_000):
            metrics.observe_closed(given, "/v1/chat/completions", ended, paid)
        costs_us.append((time.thread_time() - before) / 2_000 * 1e6)
    assert min(costs_us) < 6
