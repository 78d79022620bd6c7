"""A request for what is said in an uploaded file."""

from typing import Literal

from stentor.flows.ask import Ask


class HearingAsk(Ask):
    """A checked request for a transcript. ``path`` is the upload, ``form`` the response format."""

    __slots__ = ("form", "granularities", "language", "max_s", "path", "prompt", "surface", "task", "temperature")

    def __init__(self, surface: str, task: Literal["transcribe", "translate"], path: str, max_s: float) -> None:
        self.surface = surface
        self.task = task
        self.path = path
        self.max_s = max_s
        self.needs = ("translation",) if task == "translate" else ("transcription",)
        self.kind = "completion"
        self.fields = {}
        self.model = self.language = self.prompt = ""
        self.form = "json"
        self.temperature: float | None = None
        self.granularities: frozenset[str] = frozenset({"segment"})
        self.stream = self.include_usage = False
        # Nothing is generated as far as is known by now: the engine has to look first.
        self.output_asked = 0
        self.answers = 1
        self.input_bound = self.media = self.prefix = 0
        self.images = ()
        self.keep_s = None

    @property
    def endpoint(self) -> str:
        return self.surface
