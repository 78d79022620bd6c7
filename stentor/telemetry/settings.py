"""What an operator may set about logs and traces."""

import msgspec

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "pretty", "json")


class TelemetrySettings(msgspec.Struct, frozen=True):
    """Logs on stderr, and traces where ``otel_endpoint`` is set.

    ``log_level`` is one of :data:`LEVELS` in any case, ``log_format`` one of :data:`FORMATS`
    (``auto``: pretty on a terminal, JSON lines otherwise). ``log_queue_max`` is the
    number of lines that may wait for a slow stderr before further ones are dropped and counted. ``otel_endpoint`` is
    the base address of an OpenTelemetry collector that speaks OTLP over HTTP (``http://127.0.0.1:4318``); it needs the
    extra ``stentor[otel]``. Raises ValueError naming the value that can't be.
    """

    log_level: str = "INFO"
    log_format: str = "auto"
    log_queue_max: int = 10_000
    otel_endpoint: str = ""
    otel_service_name: str = "stentor"

    def __post_init__(self) -> None:
        if self.log_level.lower() not in LEVELS:
            raise ValueError(f"log_level is {self.log_level!r}; use one of {', '.join(LEVELS)}")
        if self.log_format not in FORMATS:
            raise ValueError(f"log_format is {self.log_format!r}; use one of {', '.join(FORMATS)}")
        if self.log_queue_max < 1:
            raise ValueError(f"log_queue_max is {self.log_queue_max}; use at least 1")
        if self.otel_endpoint and not self.otel_endpoint.startswith(("http://", "https://")):
            raise ValueError(f"otel_endpoint is {self.otel_endpoint!r}; it must start with http:// or https://")
