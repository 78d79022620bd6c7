"""Spans of requests to engines, after OpenTelemetry's conventions for generative AI.

A span is what the conventions call inference: operation, models, token counts, how it ended; never a message, a key or
a user. Without an endpoint in the settings the tracer does nothing and OpenTelemetry is not even imported; with one,
the extra ``stentor[otel]`` is needed.
"""

from types import ModuleType
from typing import Any, Protocol

from stentor.core.books import Close, Grant, Settled
from stentor.core.errors import StentorError
from stentor.core.lazy import load
from stentor.telemetry.scrub import scrub_text
from stentor.telemetry.settings import TelemetrySettings

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/api/chat": "chat",
    "/api/generate": "chat",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
    "/chat": "chat",
}
_SHUTDOWN_MS = 2000


class Span(Protocol):
    """One attempt under way: exactly one of the two methods is called, once."""

    def end(self, grant: Grant, end: Close, settled: Settled) -> None:
        """The attempt reached an engine and was settled."""
        ...

    def refuse(self, code: str) -> None:
        """The attempt ended before it had a grant; ``code`` is the contract's error code."""
        ...


class Tracer(Protocol):
    """Makes spans."""

    def start(self, endpoint: str, model: str, *, stream: bool, traceparent: str | None) -> Span:
        """Begin the span of a request for ``model``, under the caller's span where ``traceparent`` (W3C) names one."""
        ...

    def close(self) -> None:
        """Send what waits, for two seconds at most."""
        ...


class NoSpan:
    """A span that nobody looks at."""

    def end(self, grant: Grant, end: Close, settled: Settled) -> None:
        """Nothing."""

    def refuse(self, code: str) -> None:
        """Nothing."""


class NoTracer:
    """The tracer of a server whose operator wants no traces."""

    _span = NoSpan()

    def start(self, endpoint: str, model: str, *, stream: bool, traceparent: str | None) -> Span:
        """Always the same span."""
        return self._span

    def close(self) -> None:
        """Nothing."""


class _OtelSpan:
    def __init__(self, span: Any, api: ModuleType) -> None:
        self._span = span
        self._api = api

    def end(self, grant: Grant, end: Close, settled: Settled) -> None:
        usage = settled.usage
        attributes: dict[str, Any] = {
            "gen_ai.provider.name": grant.engine,
            "gen_ai.response.model": grant.model,
            "gen_ai.response.id": end.request_id,
            "gen_ai.request.max_tokens": grant.output_cap,
            "gen_ai.usage.input_tokens": usage.input_tokens,
            "gen_ai.usage.output_tokens": usage.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            "stentor.outcome": end.outcome,
            "stentor.attempt": end.attempt,
            "stentor.instance": grant.instance,
            "stentor.queued_ms": grant.queued_us / 1000,
            "stentor.cost_nano_usd": settled.cost_nano,
        }
        if usage.reasoning_tokens:
            attributes["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
        if end.first_token_us is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = end.first_token_us / 1e6
        self._span.set_attributes(attributes)
        if end.outcome == "failed":
            self._fail(end.reason or "failed")
        self._span.end()

    def refuse(self, code: str) -> None:
        self._fail(code)
        self._span.end()

    def _fail(self, kind: str) -> None:
        self._span.set_attribute("error.type", kind)
        self._span.set_status(self._api.Status(self._api.StatusCode.ERROR))


class OtelTracer:
    """Spans through OpenTelemetry's SDK, sent in batches by a thread of its own.

    ``provider`` is an ``opentelemetry.sdk.trace.TracerProvider``; :func:`open_tracer` makes the usual one.
    """

    def __init__(self, provider: Any) -> None:
        self._api = load("opentelemetry.trace")
        self._propagator = load("opentelemetry.trace.propagation.tracecontext").TraceContextTextMapPropagator()
        self._provider = provider
        self._tracer = provider.get_tracer("stentor")

    def start(self, endpoint: str, model: str, *, stream: bool, traceparent: str | None) -> Span:
        """Begin a CLIENT span named ``<operation> <model>``; a malformed ``traceparent`` starts a trace of its own."""
        operation = OPERATIONS.get(endpoint, "generate_content")
        model = scrub_text(model)  # what the client wrote, before anything was resolved
        parent = self._propagator.extract({"traceparent": traceparent}) if traceparent else None
        span = self._tracer.start_span(
            f"{operation} {model}",
            context=parent,
            kind=self._api.SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.request.model": model,
                "gen_ai.request.stream": stream,
                "http.route": endpoint,
            },
        )
        return _OtelSpan(span, self._api)

    def close(self) -> None:
        """Send what waits, for two seconds at most."""
        self._provider.force_flush(_SHUTDOWN_MS)
        self._provider.shutdown()


def open_tracer(settings: TelemetrySettings, version: str) -> Tracer:
    """The tracer that the settings ask for. Raises StentorError where the extra is not installed."""
    if not settings.otel_endpoint:
        return NoTracer()
    try:
        sdk, export = load("opentelemetry.sdk.trace"), load("opentelemetry.sdk.trace.export")
        resources = load("opentelemetry.sdk.resources")
        otlp = load("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as missing:
        raise StentorError(
            f"otel_endpoint is set to {settings.otel_endpoint}, but OpenTelemetry is not installed ({missing.name}). "
            'Install it with: pip install "stentor[otel]"'
        ) from missing
    resource = resources.Resource.create({"service.name": settings.otel_service_name, "service.version": version})
    provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = otlp.OTLPSpanExporter(endpoint=f"{settings.otel_endpoint.rstrip('/')}/v1/traces", timeout=5)
    provider.add_span_processor(export.BatchSpanProcessor(exporter))
    return OtelTracer(provider)
