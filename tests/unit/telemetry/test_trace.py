"""Spans follow OpenTelemetry's conventions for generative AI and carry nothing private."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from stentor.core.books import Close, Grant, Outcome, Settled, Usage
from stentor.core.errors import StentorError
from stentor.core.ids import InstanceId, ModelId, RequestId
from stentor.telemetry import trace
from stentor.telemetry.settings import TelemetrySettings
from stentor.telemetry.trace import NoTracer, OtelTracer, open_tracer
from tests.collector import collecting

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
GRANT = Grant(
    request_id=RequestId("0192-r"), attempt=1, model=ModelId("smollm2"), instance=InstanceId("smollm2.1"), generation=1,
    url="http://127.0.0.1:4801", token="engine-token", upstream_model="m", engine="llama", output_cap=64,
    context_size=100, queued_us=1500,
)  # fmt: skip
SETTLED = Settled(
    cost_nano=42,
    absorbed_nano=0,
    usage=Usage(input_tokens=10, cached_tokens=3, output_tokens=5, reasoning_tokens=2),
)


def close(outcome: Outcome = "completed", reason: str = "", first_token_us: int | None = 250_000) -> Close:
    return Close(RequestId("0192-r"), 1, outcome, Usage(), reason=reason, first_token_us=first_token_us)


class Recorder:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = OtelTracer(provider)

    def only_span(self) -> ReadableSpan:
        [span] = self.exporter.get_finished_spans()
        return span


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    yield made
    made.tracer.close()


def test_a_chat_becomes_an_inference_span(recorder: Recorder) -> None:
    recorder.tracer.start("/v1/chat/completions", "smol", stream=True, traceparent=None).end(GRANT, close(), SETTLED)
    span = recorder.only_span()
    assert span.name == "chat smol"
    assert span.kind is SpanKind.CLIENT
    assert span.parent is None
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llama",
        "gen_ai.request.model": "smol",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 64,
        "gen_ai.response.model": "smollm2",
        "gen_ai.response.id": "0192-r",
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "gen_ai.usage.reasoning.output_tokens": 2,
        "http.route": "/v1/chat/completions",
        "stentor.attempt": 1,
        "stentor.cost_nano_usd": 42,
        "stentor.instance": "smollm2.1",
        "stentor.outcome": "completed",
        "stentor.queued_ms": 1.5,
    }


def test_every_gen_ai_attribute_is_one_of_the_conventions(recorder: Recorder) -> None:
    recorder.tracer.start("/v1/chat/completions", "m", stream=True, traceparent=None).end(GRANT, close(), SETTLED)
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    used = {name for name in recorder.only_span().attributes or {} if name.startswith("gen_ai.")}
    assert used <= known


@pytest.mark.parametrize(("endpoint", "operation"), sorted(trace.OPERATIONS.items()))
def test_operations_are_those_of_the_conventions(recorder: Recorder, endpoint: str, operation: str) -> None:
    recorder.tracer.start(endpoint, "m", stream=False, traceparent=None).end(GRANT, close(), SETTLED)
    known = {member.value for member in gen_ai_attributes.GenAiOperationNameValues}
    assert operation in known
    assert (recorder.only_span().attributes or {})["gen_ai.operation.name"] == operation


def test_a_traceparent_makes_the_span_a_child(recorder: Recorder) -> None:
    recorder.tracer.start("/v1/completions", "m", stream=False, traceparent=PARENT).end(GRANT, close(), SETTLED)
    span = recorder.only_span()
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize("broken", ["", "00-zz", "hello", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 5000])
def test_a_broken_traceparent_starts_a_trace_of_its_own(recorder: Recorder, broken: str) -> None:
    recorder.tracer.start("/v1/completions", "m", stream=False, traceparent=broken).end(GRANT, close(), SETTLED)
    assert recorder.only_span().parent is None


def test_a_failure_marks_the_span_with_its_reason(recorder: Recorder) -> None:
    span = recorder.tracer.start("/v1/completions", "m", stream=False, traceparent=None)
    span.end(GRANT, close("failed", "engine_died", first_token_us=None), SETTLED)
    ended = recorder.only_span()
    assert ended.status.status_code is StatusCode.ERROR
    assert (ended.attributes or {})["error.type"] == "engine_died"
    assert "gen_ai.response.time_to_first_chunk" not in (ended.attributes or {})


def test_a_client_that_leaves_is_no_error(recorder: Recorder) -> None:
    span = recorder.tracer.start("/v1/completions", "m", stream=False, traceparent=None)
    span.end(GRANT, close("cancelled"), SETTLED)
    assert recorder.only_span().status.status_code is StatusCode.UNSET


def test_a_refusal_ends_the_span_with_its_code(recorder: Recorder) -> None:
    recorder.tracer.start("/v1/completions", "m", stream=False, traceparent=None).refuse("overloaded")
    ended = recorder.only_span()
    assert (ended.attributes or {})["error.type"] == "overloaded"
    assert ended.status.status_code is StatusCode.ERROR


def test_no_span_carries_the_engines_token(recorder: Recorder) -> None:
    recorder.tracer.start("/v1/completions", "m", stream=False, traceparent=None).end(GRANT, close(), SETTLED)
    assert "engine-token" not in recorder.only_span().to_json()


def test_a_model_name_that_is_none_is_scrubbed_and_cut(recorder: Recorder) -> None:
    asked = "sk-" + "aB3dE6gH9" * 5 + "x" * 5000
    recorder.tracer.start("/v1/completions", asked, stream=False, traceparent=None).refuse("model_not_found")
    span = recorder.only_span()
    assert "aB3dE6" not in span.to_json()
    assert len(span.name) < 400


def test_without_an_endpoint_nothing_is_traced() -> None:
    tracer = open_tracer(TelemetrySettings(), "1.0")
    assert isinstance(tracer, NoTracer)
    one = tracer.start("/v1/completions", "m", stream=False, traceparent=PARENT)
    assert one is tracer.start("/v1/chat/completions", "n", stream=True, traceparent=None)
    one.end(GRANT, close(), SETTLED)
    one.refuse("overloaded")
    tracer.close()


def test_with_an_endpoint_spans_are_exported_there() -> None:
    with collecting() as collector:
        settings = TelemetrySettings(otel_endpoint=f"{collector.url}/", otel_service_name="house")
        tracer = open_tracer(settings, "1.0")
        tracer.start("/v1/completions", "smol", stream=False, traceparent=PARENT).end(GRANT, close(), SETTLED)
        tracer.close()
    [(path, body)] = collector.received
    sent = ExportTraceServiceRequest.FromString(body)
    assert path == "/v1/traces"
    assert sent.resource_spans[0].scope_spans[0].spans[0].name == "text_completion smol"
    resource = {each.key: each.value.string_value for each in sent.resource_spans[0].resource.attributes}
    assert (resource["service.name"], resource["service.version"]) == ("house", "1.0")


def test_a_server_without_traces_never_imports_opentelemetry() -> None:
    code = (
        "import sys; from stentor.telemetry.trace import open_tracer; "
        "from stentor.telemetry.settings import TelemetrySettings; open_tracer(TelemetrySettings(), '1'); "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(StentorError, match=r"stentor\[otel\]"):
        open_tracer(TelemetrySettings(otel_endpoint="http://127.0.0.1:4318"), "1.0")
