"""The LLMRing routes. Conversations and templates are served with and without ``/api/v1`` before them."""

from typing import Any

from stentor.history import values as history
from stentor.http.ring import wire
from stentor.http.route import Route, admin
from stentor.receipts import values as receipts
from stentor.registry import values as registry

API = "/api/v1"
LOG = "/receipts/log"


def _ring(
    method: str, path: str, handler: str, summary: str, request: Any = None, response: Any = None, *query: str
) -> Route:
    """A call on a project's data."""
    return Route(
        method, path, f"ring_{handler}", "key", summary, "ring", request, response, "detail", query=query, managed=True
    )


def _open(path: str, handler: str, summary: str, response: Any = None, *query: str) -> Route:
    """What anyone may see."""
    return Route(
        "GET", path, f"ring_{handler}", "public", summary, "", None, response, "detail", query=query, managed=True
    )


def _conversations(prefix: str) -> tuple[Route, ...]:
    own = f"{prefix}/conversations"
    one = own + "/{id}"
    update = ("update_conversation", "Change a conversation.", history.ConversationUpdate, history.Conversation)
    return (
        _ring("POST", own, "create_conversation", "Start a conversation.",
              history.ConversationCreate, history.Conversation),
        _ring("GET", own, "list_conversations", "Conversations, last written to first.",
              None, list[history.Conversation], "limit", "offset"),
        _ring("POST", f"{own}/log", "log_conversation", "Keep one whole exchange.",
              history.ConversationLogRequest, history.ConversationLogResponse),
        _ring("DELETE", f"{own}/old-messages", "delete_old_messages", "Remove the project's old messages.",
              None, history.Deleted, "retention_days"),
        _ring("GET", f"{own}/search", "search_messages", "Messages that hold all of these words.",
              None, list[history.FoundMessage], "q", "limit", "offset"),
        _ring("GET", one, "get_conversation", "A conversation with its messages.",
              None, history.ConversationWithMessages, "include_messages", "message_limit"),
        _ring("PATCH", one, *update),
        _ring("PUT", one, *update),
        _ring("DELETE", one, "delete_conversation", "Remove a conversation.", None, history.Said),
        _ring("GET", f"{one}/messages", "list_messages", "A page of messages, oldest first.",
              None, list[history.Message], "limit", "offset"),
        _ring("POST", f"{one}/messages", "add_message", "Keep a message.", history.MessageCreate, history.Message),
        _ring("POST", f"{one}/messages/batch", "add_messages", "Keep messages.",
              history.MessageBatch, list[history.Message]),
        _ring("GET", f"{one}/export", "export_conversation", "A conversation as JSON Lines.", None, None, "after")
        ._replace(media_type="application/jsonl"),
    )  # fmt: skip


def _templates(prefix: str) -> tuple[Route, ...]:
    own = f"{prefix}/templates"
    one = own + "/{id}"
    update = ("update_template", "Change a template.", history.TemplateUpdate, history.Template)
    return (
        _ring("POST", own, "create_template", "Make a template.", history.TemplateCreate, history.Template),
        _ring("GET", own, "list_templates", "Templates, newest first.",
              None, list[history.Template], "created_by", "limit", "offset"),
        _ring("GET", f"{own}/stats", "template_stats", "The most used templates.",
              None, list[history.TemplateStats], "limit"),
        _ring("GET", one, "get_template", "A template.", None, history.Template),
        _ring("PUT", one, *update),
        _ring("PATCH", one, *update),
        _ring("DELETE", one, "delete_template", "Remove a template.", None, history.Said),
        _ring("POST", f"{one}/use", "use_template", "Count a use.", None, history.Template),
    )  # fmt: skip


_USAGE = (
    _ring("POST", f"{API}/log", "log", "Log a call made anywhere.", history.UsageLogRequest, history.UsageLogResponse),
    _ring("GET", f"{API}/logs", "logs", "Calls, newest first.", None, list[history.UsageLogEntry],
          "limit", "offset", "start_date", "end_date", "alias", "model", "origin", "metered_by"),
    _ring("GET", f"{API}/stats", "stats", "Sums by period, model, origin, alias.", None, history.UsageStats,
          "start_date", "end_date", "group_by", "metered_by"),
)  # fmt: skip
_RECEIPTS = (
    _ring("POST", f"{API}/receipts", "store_receipt", "Keep a receipt that was signed here.",
          receipts.ReceiptRequest, receipts.ReceiptResponse),
    _ring("GET", f"{API}/receipts", "list_receipts", "Receipts, newest first.",
          None, receipts.ReceiptList, "limit", "offset"),
    _ring("GET", f"{API}/receipts/uncertified", "uncertified_logs", "Calls without a receipt.",
          None, history.UncertifiedLogs, "limit", "offset", "metered_by"),
    _ring("POST", f"{API}/receipts/issue", "issue_receipt", "Sign what a client says it used.",
          wire.AnyReceipt, wire.AnyReceipt),
    _ring("POST", f"{API}/receipts/generate", "generate_receipt", "One receipt over many calls.",
          receipts.GenerateRequest, receipts.GenerateResponse),
    _ring("POST", f"{API}/receipts/preview", "preview_receipt", "What a receipt would certify.",
          receipts.GenerateRequest, receipts.Preview),
    Route("POST", f"{API}/receipts/verify", "ring_verify_receipt", "public", "Check a receipt.", "",
          wire.AnyReceipt, receipts.Verdict, "detail", managed=True),
    _open(f"{API}/receipts/public-key.pem", "key_pem", "The key that signs receipts.")
    ._replace(media_type="application/x-pem-file"),
    _open(f"{API}/receipts/public-keys.json", "raw_keys", "All keys that signed receipts.", receipts.RawKeyList),
    _ring("GET", f"{API}/receipts/{{id}}", "get_receipt", "A receipt with its proof.", None, wire.AnyReceipt),
    _ring("GET", f"{API}/receipts/{{id}}/logs", "receipt_logs", "The calls behind a receipt.",
          None, history.CertifiedLogs, "limit", "offset"),
    _open("/receipts/public-key.pem", "key_pem", "The key that signs receipts.")
    ._replace(media_type="application/x-pem-file"),
    _open("/receipts/public-key.jwk", "key_jwk", "The same as JWK.", receipts.PublicJwk),
    _open("/receipts/public-keys.json", "keys", "All public keys, with purpose and time.",
          list[receipts.PublicKeyEntry]),
    _open(f"{LOG}/checkpoint", "checkpoint", "The log's newest checkpoint, a signed note.", None, "log")
    ._replace(media_type="text/plain"),
    _open(f"{LOG}/proof", "inclusion", "Where a leaf stands.", receipts.InclusionProof, "index", "size", "log"),
    _open(f"{LOG}/consistency", "consistency", "That the log only grew.", receipts.ConsistencyProof,
          "first", "second", "log"),
    _open(f"{LOG}/tiles/{{level}}/{{index}}", "tile", "256 hashes of a level.", None, "log")
    ._replace(media_type="application/octet-stream"),
    _ring("GET", f"{LOG}/entries", "entries", "Leaves; their contents for whom they belong to.",
          None, receipts.LogEntries, "start", "limit", "log"),
)  # fmt: skip
_REGISTRY = (
    *(
        _open(path, "registry", "All models with their prices.", registry.RegistryResponse,
              "version", "providers", "capabilities")
        for path in ("/registry", "/registry.json")
    ),
    _open("/registry/v/{version}/registry.json", "registry", "All models, at a version.", registry.RegistryResponse),
    _open("/registry/{provider}/models.json", "provider", "One provider's models.", registry.ProviderDocument),
    _open("/registry/{provider}/v/{version}/models.json", "provider_version", "The same, at a version.",
          registry.ProviderVersion),
)  # fmt: skip

ROUTES: tuple[Route, ...] = (
    *_USAGE,
    *_conversations(API),
    *_conversations(""),
    *_templates(API),
    *_templates(""),
    *_RECEIPTS,
    *_REGISTRY,
    admin("POST", "/receipts/rotate-key", "rotate_receipt_key", "Sign with a new key from now on.",
          wire.RotateReceiptKeyRequest, wire.ReceiptKeyPage),
)  # fmt: skip
