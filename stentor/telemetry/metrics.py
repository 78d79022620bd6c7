"""Every metric of the server: declared once, counted in plain integers, read when somebody asks.

``Metrics`` lives in the process that owns the books and on its event loop, so one scrape sees all gateway workers.
``observe_closed`` runs once a request and does nothing but add integers to accumulators that one dictionary look-up
finds; labels, buckets and text are made at scrape time. Labels hold models, endpoints, codes and states, which the
house chooses; never a key, a user, or anything a client wrote.
"""

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from stentor.core.books import Close, Grant, Settled

Kind = Literal["counter", "gauge", "histogram"]
Samples = Iterable[tuple[tuple[str, ...], float]]

_FAST_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
_WAIT_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_LONG_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class MetricSpec(msgspec.Struct, frozen=True):
    """One metric. Histograms are in seconds, with ``buckets`` as upper bounds; counters end in ``_total``."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec(
        "stentor_requests_closed_total",
        "counter",
        "Requests that reached an engine, by how they ended.",
        ("model", "engine", "endpoint", "outcome"),
    ),
    MetricSpec(
        "stentor_requests_refused_total",
        "counter",
        "Requests refused by a rule, or that could not be booked, by code.",
        ("endpoint", "code"),
    ),
    MetricSpec(
        "stentor_request_latency_seconds",
        "histogram",
        "From the request's arrival to the end of its answer.",
        ("model", "endpoint"),
        _LONG_S,
    ),
    MetricSpec(
        "stentor_first_token_seconds",
        "histogram",
        "From the request's arrival to the first token of its answer.",
        ("model",),
        _WAIT_S,
    ),
    MetricSpec(
        "stentor_overhead_seconds",
        "histogram",
        "Time that the server adds to a request: all but the queue and the engine.",
        ("endpoint",),
        _FAST_S,
    ),
    MetricSpec("stentor_queue_wait_seconds", "histogram", "Time in a model's queue.", ("model",), _WAIT_S),
    MetricSpec("stentor_input_tokens_total", "counter", "Prompt tokens, cached ones included.", ("model",)),
    MetricSpec("stentor_cached_tokens_total", "counter", "Prompt tokens that the engine had cached.", ("model",)),
    MetricSpec("stentor_output_tokens_total", "counter", "Generated tokens.", ("model",)),
    MetricSpec("stentor_usage_estimated_total", "counter", "Requests whose tokens had to be estimated.", ("model",)),
    MetricSpec("stentor_cost_nano_usd_total", "counter", "Charged, in nano-USD.", ("model",)),
    MetricSpec(
        "stentor_absorbed_nano_usd_total", "counter", "Used beyond what could be charged, in nano-USD.", ("model",)
    ),
    MetricSpec(
        "stentor_engines_restarted_total", "counter", "Engine processes started again after a failure.", ("model",)
    ),
    MetricSpec(
        "stentor_engines_unloaded_total",
        "counter",
        "Instances sent away: idle (unused for long), room (idle, room was needed), swap (busy, drained for others).",
        ("model", "cause"),
    ),
    MetricSpec("stentor_memory_planned_bytes", "gauge", "Memory set aside for engines, by model.", ("model",)),
    MetricSpec("stentor_room_waiting", "gauge", "Instances that wait for a slot or for memory."),
    MetricSpec("stentor_queue_depth", "gauge", "Requests waiting for a place, by model.", ("model",)),
    MetricSpec("stentor_running_requests", "gauge", "Places in use, by model.", ("model",)),
    MetricSpec("stentor_instances", "gauge", "Engine processes, by state.", ("model", "state")),
    MetricSpec("stentor_open_requests", "gauge", "Requests with a reservation that is not settled yet."),
    MetricSpec("stentor_store_problem", "gauge", "1 while the database can't be written, else 0."),
    MetricSpec("stentor_store_writer_queue", "gauge", "Writes waiting for the next commit."),
    MetricSpec("stentor_receipt_log_leaves", "gauge", "Entries of the receipt log."),
    MetricSpec("stentor_receipt_log_waiting", "gauge", "Settled requests and receipts without an entry yet."),
    MetricSpec("stentor_receipt_log_leading", "gauge", "1 on the node that numbers the log's entries, else 0."),
    MetricSpec("stentor_receipt_leaves_appended_total", "counter", "Entries that this server has numbered."),
    MetricSpec("stentor_receipt_checkpoint_timestamp_seconds", "gauge", "When this server last signed a checkpoint."),
    MetricSpec(
        "stentor_cache_lookups_total",
        "counter",
        "Look-ups in the shared cache: hit, miss, failed, or skipped after a failure.",
        ("outcome",),
    ),
    MetricSpec("stentor_log_events_dropped_total", "counter", "Log events dropped because stderr was too slow."),
    MetricSpec("stentor_log_fields_dropped_total", "counter", "Log fields dropped because they are not allow-listed."),
    MetricSpec("stentor_build_info", "gauge", "1, with the server's version as label.", ("version", "python")),
)  # fmt: skip


class _Tally:
    """A counter's value."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class _Spread:
    """A histogram's counts: one a bucket, one beyond the last, and the sum in µs."""

    __slots__ = ("bounds_us", "counts", "sum_us")

    def __init__(self, bounds_us: tuple[int, ...]) -> None:
        self.bounds_us = bounds_us
        self.counts = [0] * (len(bounds_us) + 1)
        self.sum_us = 0

    def observe(self, value_us: int) -> None:
        self.counts[bisect_left(self.bounds_us, value_us)] += 1
        self.sum_us += value_us


class _ModelTallies:
    """All that is counted by model alone."""

    __slots__ = ("absorbed", "cached", "cost", "estimated", "first_token", "input", "output", "queue_wait")

    def __init__(self, metrics: "Metrics", model: str) -> None:
        labels = (model,)
        self.input = metrics.tally("stentor_input_tokens_total", labels)
        self.cached = metrics.tally("stentor_cached_tokens_total", labels)
        self.output = metrics.tally("stentor_output_tokens_total", labels)
        self.estimated = metrics.tally("stentor_usage_estimated_total", labels)
        self.cost = metrics.tally("stentor_cost_nano_usd_total", labels)
        self.absorbed = metrics.tally("stentor_absorbed_nano_usd_total", labels)
        self.first_token = metrics.spread("stentor_first_token_seconds", labels)
        self.queue_wait = metrics.spread("stentor_queue_wait_seconds", labels)


class _Row:
    """The accumulators that one closed request adds to."""

    __slots__ = ("closed", "latency", "model", "overhead")

    def __init__(self, metrics: "Metrics", grant: Grant, endpoint: str, outcome: str) -> None:
        self.closed = metrics.tally("stentor_requests_closed_total", (grant.model, grant.engine, endpoint, outcome))
        self.latency = metrics.spread("stentor_request_latency_seconds", (grant.model, endpoint))
        self.overhead = metrics.spread("stentor_overhead_seconds", (endpoint,))
        self.model = metrics.model_tallies(grant.model)


class Metrics(Collector):
    """The server's metrics; also the collector that its own registry reads. One thread only: the event loop's."""

    def __init__(self, version: str = "") -> None:
        self._specs = {spec.name: spec for spec in METRICS}
        self._tallies: dict[str, dict[tuple[str, ...], _Tally]] = {}
        self._spreads: dict[str, dict[tuple[str, ...], _Spread]] = {}
        self._callbacks: dict[str, Callable[[], Samples | float]] = {}
        self._models: dict[str, _ModelTallies] = {}
        self._rows: dict[tuple[str, str, str], _Row] = {}
        for spec in METRICS:
            self._tallies[spec.name] = {}
            self._spreads[spec.name] = {}
            if spec.kind == "counter" and not spec.labels:
                self.tally(spec.name, ())
        build = [((version, platform.python_version()), 1.0)]
        self.watch("stentor_build_info", lambda: build)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    # ── while requests run

    def observe_closed(self, grant: Grant, endpoint: str, end: Close, settled: Settled) -> None:
        """Count one closed attempt: how it ended, how long it took, what it used and cost."""
        row = self._rows.get((grant.model, endpoint, end.outcome))
        if row is None:
            row = self._rows[grant.model, endpoint, end.outcome] = _Row(self, grant, endpoint, end.outcome)
        row.closed.value += 1
        row.latency.observe(end.latency_us)
        if end.overhead_us is not None:
            row.overhead.observe(end.overhead_us)
        model = row.model
        if end.first_token_us is not None:
            model.first_token.observe(end.first_token_us)
        model.queue_wait.observe(grant.queued_us)
        usage = settled.usage
        model.input.value += usage.input_tokens
        model.cached.value += usage.cached_tokens
        model.output.value += usage.output_tokens
        model.estimated.value += usage.estimated
        model.cost.value += settled.cost_nano
        model.absorbed.value += settled.absorbed_nano

    def observe_refused(self, endpoint: str, code: str) -> None:
        """Count one request that a rule refused; ``code`` is the contract's error code."""
        self.tally("stentor_requests_refused_total", (endpoint, code)).value += 1

    # ── at scrape time

    def watch(self, name: str, read: Callable[[], Samples | float]) -> None:
        """Let ``read`` give the values of metric ``name`` at each scrape: a number, or pairs of label values and a
        number (``[(("smollm2", "ready"), 1)]``), labels in the order of the declaration.

        Raises KeyError for a metric that is not in :data:`METRICS`. ``read`` must be quick and must not raise.
        """
        self._callbacks[self._specs[name].name] = read

    def render(self) -> bytes:
        """The text exposition, format 0.0.4."""
        return generate_latest(self._registry)

    def describe(self) -> Iterator[Metric]:
        """Names for the registry's duplicate check, without reading anything."""
        return (_FAMILIES[spec.kind](spec.name, spec.help, labels=spec.labels) for spec in METRICS)

    def collect(self) -> Iterator[Metric]:
        """All metrics as prometheus_client's families."""
        for spec in METRICS:
            if spec.kind == "histogram":
                yield self._collect_histogram(spec)
            else:
                yield self._collect_values(spec)

    def _collect_values(self, spec: MetricSpec) -> Metric:
        family = (CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily)(
            spec.name, spec.help, labels=spec.labels
        )
        samples: dict[tuple[str, ...], float] = {
            labels: tally.value for labels, tally in self._tallies[spec.name].items()
        }
        read = self._callbacks.get(spec.name)
        if read is not None:
            value = read()
            samples.update([((), value)] if isinstance(value, (int, float)) else value)
        for labels, number in samples.items():
            family.add_metric(labels, number)
        return family

    def _collect_histogram(self, spec: MetricSpec) -> Metric:
        family = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
        for labels, spread in self._spreads[spec.name].items():
            total, buckets = 0, []
            for bound, count in zip((*spec.buckets, "+Inf"), spread.counts, strict=True):
                total += count
                buckets.append((str(bound), total))
            family.add_metric(labels, buckets, spread.sum_us / 1e6)
        return family

    # ── accumulators

    def tally(self, name: str, labels: tuple[str, ...]) -> _Tally:
        """The counter ``name`` for these label values, made on first use."""
        return self._tallies[name].setdefault(labels, _Tally())

    def spread(self, name: str, labels: tuple[str, ...]) -> _Spread:
        """The histogram ``name`` for these label values, made on first use."""
        known = self._spreads[name].get(labels)
        if known is None:
            bounds = tuple(round(bound * 1e6) for bound in self._specs[name].buckets)
            known = self._spreads[name][labels] = _Spread(bounds)
        return known

    def model_tallies(self, model: str) -> _ModelTallies:
        """What is counted by model alone, made on first use."""
        known = self._models.get(model)
        if known is None:
            known = self._models[model] = _ModelTallies(self, model)
        return known


_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
