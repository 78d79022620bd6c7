"""What the log is told of engines: one line per change of state, without the engine's own words."""

from stentor.core.scheduler import InstanceState
from stentor.runtime.process import EngineProcess
from stentor.runtime.roster import RosterEntry
from stentor.telemetry.logs import Level, Log

_NAMES: dict[InstanceState, tuple[str, Level]] = {
    "starting": ("engine_started", "info"),
    "ready": ("engine_ready", "info"),
    "draining": ("engine_draining", "info"),
    "stopping": ("engine_stopping", "debug"),
    "stopped": ("engine_stopped", "info"),
    "failed": ("engine_failed", "warning"),
}


class Journal:
    """Writes to ``log``; None writes nothing."""

    def __init__(self, log: Log | None) -> None:
        self._log = log
        self._said: dict[str, tuple[InstanceState, int, bool]] = {}

    def note_change(self, process: EngineProcess) -> None:
        """Say that a process entered another state, or is doubted."""
        now = (process.state, process.generation, process.checking)
        if self._log is None or self._said.get(process.instance) == now:
            return
        before = self._said.get(process.instance)
        self._said[process.instance] = now
        if before is not None and before[:2] == now[:2]:
            self._say("engine_doubted" if process.checking else "engine_answered", "info", process)
            return
        name, level = _NAMES[process.state]
        self._say(name, level, process)

    def note_departure(self, model: str, instance: str, cause: str, reason: str) -> None:
        """Say that an instance must leave, and for what."""
        if self._log is not None:
            self._log.event("engine_evicted", model=model, instance=instance, action=cause, reason=reason)

    def note_forgotten(self, model: str, problem: OSError) -> None:
        """Say that the next boot won't know what an operator wanted."""
        if self._log is not None:
            self._log.event("model_forgotten", level="warning", model=model, cause=problem)

    def note_swept(self, entries: list[RosterEntry]) -> None:
        """Say which processes of an earlier server were ended."""
        for entry in entries:
            if self._log is not None:
                self._log.event("engine_swept", level="warning", instance=entry.instance, pid=entry.pid)

    def _say(self, name: str, level: Level, process: EngineProcess) -> None:
        assert self._log is not None
        failure = process.failure if process.state == "failed" else None
        self._log.event(
            name,
            level=level,
            model=process.spec.id,
            instance=process.instance,
            generation=process.generation,
            port=process.port or None,
            pid=process.pid,
            reason=failure.public if failure else (process.doubt if process.state == "ready" else "") or None,
            delay_s=round(process.pause_s, 1) if failure else None,
        )
