"""What the authority tells a new worker first."""

import msgspec

from stentor.egress.settings import EgressSettings
from stentor.http.gateway import HttpSettings
from stentor.telemetry.settings import TelemetrySettings


class WorkerHello(msgspec.Struct, array_like=True):
    """All that a worker needs to know, with the one secret it needs; it goes over a socket that only the two hold."""

    http: HttpSettings
    telemetry: TelemetrySettings
    pepper: bytes
    egress: EgressSettings = EgressSettings()
