"""The handlers of the dialects' routes."""

from stentor.core.clock import Clock
from stentor.core.operator import Operate
from stentor.core.scheduler import Scheduler
from stentor.http.dialects.anthropic_messages import MessagesEndpoints
from stentor.http.dialects.llama_swap import LlamaSwapEndpoints
from stentor.http.dialects.lmserv import LmservEndpoints
from stentor.http.dialects.ollama import OllamaEndpoints
from stentor.http.dialects.openai_responses import ResponsesEndpoints
from stentor.http.dialects.service import DialectService
from stentor.http.handler import Handler


def dialect_handlers(
    service: DialectService, scheduler: Scheduler, operate: Operate, clock: Clock
) -> dict[str, Handler]:
    """By the names in ``routes.py``; ``operate`` has the node authority do what administrators ask for."""
    messages = MessagesEndpoints(service)
    swap = LlamaSwapEndpoints(scheduler, operate, clock)
    ollama = OllamaEndpoints(service, scheduler, operate)
    return {
        "create_response": ResponsesEndpoints(service).create,
        "create_message": messages.create,
        "count_message_tokens": messages.count_tokens,
        "ollama_chat": ollama.chat,
        "ollama_generate": ollama.generate,
        "ollama_embed": ollama.embed,
        "ollama_embeddings": ollama.embeddings,
        "ollama_tags": ollama.tags,
        "ollama_show": ollama.show,
        "ollama_ps": ollama.running,
        "ollama_version": ollama.version,
        "swap_running": swap.running,
        "swap_unload": swap.unload,
        "lmserv_chat": LmservEndpoints(service).chat,
    }
