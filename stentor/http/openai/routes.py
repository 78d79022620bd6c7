"""The OpenAI-compatible routes."""

from stentor.http import wire
from stentor.http.openai import audio_wire
from stentor.http.route import Route

ROUTES: tuple[Route, ...] = (
    Route(
        "POST", "/v1/chat/completions", "chat", "key", "Answer a conversation.", "inference",
        wire.ChatCompletionRequest, wire.ChatCompletion, streams=True,
    ),
    Route(
        "POST", "/v1/completions", "completion", "key", "Continue a text.", "inference",
        wire.CompletionRequest, wire.Completion, streams=True,
    ),
    Route(
        "POST", "/v1/embeddings", "embeddings", "key", "Turn texts into vectors.", "inference",
        wire.EmbeddingRequest, wire.EmbeddingList, answers=True,
    ),
    Route(
        "POST", "/v1/rerank", "rerank", "key", "Order documents by how well they answer a query.", "inference",
        wire.RerankRequest, wire.Ranking, answers=True,
    ),
    Route(
        "POST", "/v1/tokenize", "tokenize", "key", "Cut a text into a model's tokens.", "inference",
        wire.TokenizeRequest, wire.Tokens, answers=True,
    ),
    Route(
        "POST", "/v1/audio/transcriptions", "transcription", "key", "Write down what is said.", "inference",
        wire.TranscriptionForm, wire.Transcription, streams=True, form=True,
        also=("text/plain", "text/vtt", "text/event-stream"),
    ),
    Route(
        "POST", "/v1/audio/translations", "translation", "key", "Write down in English what is said.", "inference",
        wire.TranscriptionForm, wire.Transcription, streams=True, form=True,
        also=("text/plain", "text/vtt", "text/event-stream"),
    ),
    Route(
        "POST", "/v1/audio/speech", "speak", "key", "Speak a text.", "inference",
        audio_wire.SpeechRequest, audio_wire.SpokenText, streams=True, also=audio_wire.SPOKEN_MEDIA_TYPES,
    ),
    Route(
        "GET", "/v1/audio/voices", "list_voices", "key", "The voices of the models this key may use.", "inference",
        None, audio_wire.VoiceList, query=("model",),
    ),
    Route("GET", "/v1/models", "list_models", "key", "The models this key may use.", "inference", None, wire.ModelList),
    Route("GET", "/v1/models/{model_name}", "get_model", "key", "One model.", "inference", None, wire.Model),
)  # fmt: skip
