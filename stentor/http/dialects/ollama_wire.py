"""Shapes of Ollama's API on the wire, for the OpenAPI document and its tests."""

import msgspec

from stentor.http.wire import Json


class OllamaChatRequest(msgspec.Struct, omit_defaults=True):
    """A conversation to answer. Streamed unless ``stream`` is false.

    ``keep_alive`` is how long the model stays loaded once it is idle: seconds, or a duration as ``5m``; 0 unloads it,
    below 0 keeps it. The operator's settings bound it.
    """

    model: str
    messages: list[Json] = []
    stream: bool | None = None
    format: str | Json | None = None
    options: Json | None = None
    tools: list[Json] | None = None
    think: bool | str | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class OllamaGenerateRequest(msgspec.Struct, omit_defaults=True):
    """A prompt to answer; ``raw`` leaves the model's chat template out."""

    model: str
    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = None
    raw: bool | None = None
    stream: bool | None = None
    format: str | Json | None = None
    options: Json | None = None
    think: bool | str | None = None
    keep_alive: float | str | None = None


class OllamaAnswer(msgspec.Struct, omit_defaults=True):
    """The last line of an answer, or all of it. Durations are nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: str = ""
    message: Json | None = None
    response: str | None = None
    thinking: str | None = None
    logprobs: list[Json] | None = None
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0


class OllamaEmbedRequest(msgspec.Struct, omit_defaults=True):
    """Texts to turn into vectors. Too long a text is refused, whatever ``truncate`` says."""

    model: str
    input: str | list[str]
    dimensions: int | None = None
    truncate: bool | None = None
    keep_alive: float | str | None = None


class OllamaEmbeddings(msgspec.Struct):
    """One vector a text."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaOldEmbedRequest(msgspec.Struct, omit_defaults=True):
    """One text to turn into a vector."""

    model: str
    prompt: str
    keep_alive: float | str | None = None


class OllamaOldEmbedding(msgspec.Struct):
    """Its vector."""

    embedding: list[float]


class OllamaDetails(msgspec.Struct):
    """Of what the model is made, as its file says; empty where that isn't known (yet)."""

    parent_model: str = ""
    format: str = "gguf"
    family: str = ""
    families: list[str] | None = None
    parameter_size: str = ""
    quantization_level: str = ""


class OllamaTag(msgspec.Struct):
    """A model that the key may use. ``size`` in bytes (0: not known yet); ``digest`` changes with its source."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails


class OllamaTags(msgspec.Struct):
    """All of them."""

    models: list[OllamaTag]


class OllamaRunning(OllamaTag):
    """A model that is loaded; ``size`` is the memory of its largest process in bytes.

    ``expires_at`` is when it is unloaded if nobody asks it any more; the year 9999: not for being idle.
    """

    expires_at: str
    size_vram: int
    context_length: int


class OllamaProcesses(msgspec.Struct):
    """What is loaded."""

    models: list[OllamaRunning]


class OllamaShowRequest(msgspec.Struct, omit_defaults=True):
    """Which model; ``name`` is the older word."""

    model: str = ""
    name: str = ""


class OllamaModel(msgspec.Struct):
    """What the model can do, and in ``model_info`` the tokens per request: ``{architecture}.context_length``."""

    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: Json
    capabilities: list[str]
    modified_at: str


class OllamaVersion(msgspec.Struct):
    """The version of Ollama's API that is spoken here, not Stentor's."""

    version: str


class OllamaError(msgspec.Struct):
    """Errors of Ollama's paths, in answers and in streams; ``code`` names the rule, ``details`` are its numbers."""

    error: str
    code: str
    details: Json = {}
