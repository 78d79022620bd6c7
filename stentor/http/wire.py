"""Shapes on the wire, for the OpenAPI document and its tests. The hot path reads and writes the same shapes raw."""

from typing import Any, Literal

import msgspec

Json = dict[str, Any]


class ChatMessage(msgspec.Struct, omit_defaults=True):
    """One message; ``content`` is a text or a list of parts (``text``, ``image_url``, ``input_audio``)."""

    role: str
    content: str | list[Json] | None = None
    name: str | None = None
    tool_calls: list[Json] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct):
    """``include_usage``: send one more frame with the tokens before the end."""

    include_usage: bool = False


class ChatCompletionRequest(msgspec.Struct, omit_defaults=True):
    """A conversation to answer. Further sampling fields of llama.cpp are passed on."""

    model: str
    messages: list[ChatMessage]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Json | list[Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: Json | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    user: str | None = None


class CompletionRequest(msgspec.Struct, omit_defaults=True):
    """A text to continue. ``prompt`` is a text, a list of one text, or token numbers."""

    model: str
    prompt: str | list[Any]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    logprobs: int | bool | None = None


class PromptTokensDetails(msgspec.Struct):
    """Part of ``prompt_tokens`` that came from the engine's cache."""

    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct):
    """Part of ``completion_tokens`` that were thoughts, where the engine says so."""

    reasoning_tokens: int = 0


class CompletionUsage(msgspec.Struct, omit_defaults=True):
    """What the answer used, exactly as it was booked."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = None


class AnswerMessage(msgspec.Struct, omit_defaults=True):
    """The model's message."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[Json] | None = None


class ChatChoice(msgspec.Struct, omit_defaults=True):
    """One of ``n`` answers."""

    index: int
    message: AnswerMessage
    finish_reason: str | None
    logprobs: Json | None = None


class ChatCompletion(msgspec.Struct, omit_defaults=True):
    """A whole answer."""

    id: str | None
    object: Literal["chat.completion"]
    created: int | None
    model: str | None
    choices: list[ChatChoice]
    usage: CompletionUsage
    system_fingerprint: str | None = None
    timings: Json | None = None


class TextChoice(msgspec.Struct):
    """One of ``n`` continuations."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: Json | None = None


class Completion(msgspec.Struct, omit_defaults=True):
    """A whole continuation."""

    id: str | None
    object: Literal["text_completion"]
    created: int | None
    model: str | None
    choices: list[TextChoice]
    usage: CompletionUsage
    system_fingerprint: str | None = None
    timings: Json | None = None


class InputUsage(msgspec.Struct):
    """What a request without output used, exactly as it was booked."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingRequest(msgspec.Struct, omit_defaults=True):
    """``input`` is a text, a list of texts, or token numbers (one list or several), 2,048 at most; with the ability
    ``image`` also objects with ``text``, ``image``, or ``content`` (parts of a message). ``dimensions`` shortens the
    vectors of models with the ability ``dimensions``."""

    model: str
    input: str | list[Any] | Json
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class Embedding(msgspec.Struct):
    """One vector: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(msgspec.Struct):
    """One vector an input, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: InputUsage


class RerankRequest(msgspec.Struct, omit_defaults=True):
    """``documents`` are texts or objects with a ``text``, 1,024 at most; ``top_n`` are the best of them."""

    model: str
    query: str
    documents: list[str | Json]
    top_n: int | None = None
    return_documents: bool = False


class RankedDocument(msgspec.Struct, omit_defaults=True):
    """``index`` in the request's list; a higher score is a better answer. Scores of two models can't be compared."""

    index: int
    relevance_score: float
    document: Json | None = None


class Ranking(msgspec.Struct):
    """The documents, best first."""

    id: str
    object: Literal["list"]
    model: str
    results: list[RankedDocument]
    usage: InputUsage


class TokenizeRequest(msgspec.Struct, omit_defaults=True):
    """``input`` (or ``content``) is the text; ``add_special`` adds what the model puts around a prompt, ``with_pieces``
    the text of each token."""

    model: str
    input: str | None = None
    content: str | None = None
    add_special: bool = False
    with_pieces: bool = False


class Tokens(msgspec.Struct, omit_defaults=True):
    """``pieces`` are texts, or bytes where a token is a part of a character."""

    object: Literal["list"]
    model: str
    tokens: list[int]
    count: int
    usage: InputUsage
    pieces: list[str | list[int]] | None = None


class TranscriptionForm(msgspec.Struct):
    """The fields of the form; ``file`` is the sound: wav, mp3, ogg, webm, flac or m4a, whatever its name.

    ``timestamp_granularities[]`` (``word``, ``segment``) goes with ``verbose_json``; ``stream`` with json and text.
    ``keywords[]`` become part of the prompt; ``chunking_strategy`` (``auto``, ``server_vad``) changes nothing.
    """

    file: bytes
    model: str
    language: str = ""
    prompt: str = ""
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    temperature: float = 0.0
    stream: bool = False
    timestamp_granularities: tuple[Literal["word", "segment"], ...] = ("segment",)
    keywords: tuple[str, ...] = ()
    chunking_strategy: str = "auto"


class DurationUsage(msgspec.Struct):
    """Seconds of sound, rounded up."""

    seconds: int
    type: Literal["duration"] = "duration"


class TranscriptionSegment(msgspec.Struct):
    """One stretch of speech; times in seconds, the figures are the recognizer's."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class TranscriptionWord(msgspec.Struct):
    """One word and when it was said, in seconds."""

    word: str
    start: float
    end: float


class Transcription(msgspec.Struct, omit_defaults=True):
    """What was said; with ``verbose_json`` also when."""

    text: str
    usage: DurationUsage
    task: Literal["transcribe", "translate"] | None = None
    language: str | None = None
    duration: float | None = None
    segments: tuple[TranscriptionSegment, ...] | None = None
    words: tuple[TranscriptionWord, ...] | None = None


class Model(msgspec.Struct):
    """A model as the key sees it. ``context_size`` is tokens per request; ``state`` cold, starting, ready or failed.

    ``type`` and ``abilities`` are what its files say once they are there, before that what was declared or is likely.
    """

    id: str
    created: int
    owned_by: str
    context_size: int
    abilities: tuple[str, ...]
    aliases: tuple[str, ...]
    state: str
    type: str = "text"
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct):
    """All models the key may use."""

    data: list[Model]
    object: Literal["list"] = "list"


class Health(msgspec.Struct):
    """``workers_idle`` are free places on ready instances; ``timestamp`` is ISO 8601."""

    status: Literal["healthy", "unhealthy"]
    database: Literal["connected", "unavailable"]
    workers_idle: int
    active_slots: int
    timestamp: str
    version: str


class Root(msgspec.Struct):
    """What answers here."""

    name: str
    version: str
    docs: str
    registry: str


class ErrorObject(msgspec.Struct, omit_defaults=True):
    """``code`` names the rule, ``message`` says what to do, ``details`` has the rule's numbers."""

    message: str
    type: str
    param: str | None
    code: str | None
    details: Json | None = None


class ErrorEnvelope(msgspec.Struct):
    """Errors of ``/v1``."""

    error: ErrorObject


class DetailEnvelope(msgspec.Struct):
    """Errors of all other paths. On the LLMRing surface ``detail`` lists what is wrong with a body or parameter.

    ``details`` are the numbers of the rule that ``code`` names.
    """

    detail: str | list[Json]
    code: str = ""
    details: Json = {}
