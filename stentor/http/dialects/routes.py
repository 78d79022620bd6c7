"""The routes of other dialects over the same chat."""

from stentor.flows.dialects.lmserv import LmservChat
from stentor.http.dialects import messages_wire, ollama_wire, responses_wire
from stentor.http.dialects.llama_swap import SwapRunningList
from stentor.http.route import Route

_LINES = "application/x-ndjson"

ROUTES: tuple[Route, ...] = (
    Route(
        "POST", "/v1/responses", "create_response", "key", "Answer a conversation (Responses API).", "inference",
        responses_wire.ResponseRequest, responses_wire.ResponseObject, streams=True,
    ),
    Route(
        "POST", "/v1/messages", "create_message", "key", "Answer a conversation (Anthropic Messages API).",
        "inference", messages_wire.MessageRequest, messages_wire.AnthropicMessage, "anthropic", streams=True,
    ),
    Route(
        "POST", "/v1/messages/count_tokens", "count_message_tokens", "key", "How long a conversation is. Free.",
        "inference", messages_wire.MessageCountRequest, messages_wire.MessageCount, "anthropic", answers=True,
    ),
    Route(
        "POST", "/api/chat", "ollama_chat", "key", "Answer a conversation (Ollama).", "inference",
        ollama_wire.OllamaChatRequest, ollama_wire.OllamaAnswer, "ollama", streams=True, also=(_LINES,),
    ),
    Route(
        "POST", "/api/generate", "ollama_generate", "key", "Answer a prompt (Ollama).", "inference",
        ollama_wire.OllamaGenerateRequest, ollama_wire.OllamaAnswer, "ollama", streams=True, also=(_LINES,),
    ),
    Route(
        "POST", "/api/embed", "ollama_embed", "key", "Turn texts into vectors (Ollama).", "inference",
        ollama_wire.OllamaEmbedRequest, ollama_wire.OllamaEmbeddings, "ollama", answers=True,
    ),
    Route(
        "POST", "/api/embeddings", "ollama_embeddings", "key", "Turn a text into a vector (Ollama, older).",
        "inference", ollama_wire.OllamaOldEmbedRequest, ollama_wire.OllamaOldEmbedding, "ollama", answers=True,
    ),
    Route(
        "GET", "/api/tags", "ollama_tags", "key", "The models this key may use (Ollama).", "inference",
        None, ollama_wire.OllamaTags, "ollama",
    ),
    Route(
        "POST", "/api/show", "ollama_show", "key", "One model (Ollama).", "inference",
        ollama_wire.OllamaShowRequest, ollama_wire.OllamaModel, "ollama",
    ),
    Route(
        "GET", "/api/ps", "ollama_ps", "key", "The models that are loaded (Ollama).", "inference",
        None, ollama_wire.OllamaProcesses, "ollama",
    ),
    Route(
        "GET", "/api/version", "ollama_version", "public", "The version of Ollama's API that is spoken here.", "",
        None, ollama_wire.OllamaVersion, "ollama",
    ),
    Route(
        "GET", "/running", "swap_running", "key", "The models that are loaded (llama-swap).", "inference",
        None, SwapRunningList, "detail",
    ),
    *(
        Route(method, path, "swap_unload", "admin", summary, "admin", envelope="detail", media_type="text/plain")
        for method, path, summary in (
            ("GET", "/unload", "Unload all models (llama-swap)."),
            ("POST", "/api/models/unload", "Unload all models (llama-swap, newer)."),
            ("POST", "/api/models/unload/{model_name}", "Unload one model (llama-swap)."),
        )
    ),
    Route(
        "POST", "/chat", "lmserv_chat", "key", "Answer a prompt with plain text, a chunk a token (LMServ).",
        "inference", LmservChat, None, "lmserv", "text/plain", streams=True, also=("text/plain",),
    ),
)  # fmt: skip
