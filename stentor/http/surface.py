"""The surface: every path that Stentor answers, who may call it, and what goes in and out.

From this one table come the routes, the access check, the OpenAPI document and the reference page. A path that isn't
here is refused; a route without an access rule can't be written.
"""

from typing import Any, Literal, NamedTuple

from stentor.http import wire
from stentor.http.admin import wire as admin
from stentor.http.errors import Envelope

Access = Literal["public", "key", "admin", "metrics"]
"""``public``: anyone. ``key``: an API key with the route's scope. ``admin``: a key with the scope ``admin``, or the
operator on the server's own socket. ``metrics``: as ``admin``, and anyone on this machine while the server listens on
loopback alone."""


class Route(NamedTuple):
    """One method on one path. ``request`` and ``response`` are wire types, or None for other media types.

    ``also`` are media types that ``Accept`` may ask for instead, ``query`` the parameters after the question mark.
    """

    method: str
    path: str
    handler: str
    access: Access
    summary: str
    scope: str = ""
    request: Any = None
    response: Any = None
    envelope: Envelope = "openai"
    media_type: str = "application/json"
    streams: bool = False
    also: tuple[str, ...] = ()
    query: tuple[str, ...] = ()


def _admin(method: str, path: str, handler: str, summary: str, request: Any = None, response: Any = None) -> Route:
    return Route(method, "/admin/api" + path, handler, "admin", summary, "admin", request, response, "detail")


def _listing(path: str, handler: str, summary: str, response: Any, *query: str) -> Route:
    return _admin("GET", path, handler, summary, None, response)._replace(query=(*query, "after", "limit"))


SURFACE: tuple[Route, ...] = (
    Route(
        "POST", "/v1/chat/completions", "chat", "key", "Answer a conversation.", "inference",
        wire.ChatCompletionRequest, wire.ChatCompletion, streams=True,
    ),
    Route(
        "POST", "/v1/completions", "completion", "key", "Continue a text.", "inference",
        wire.CompletionRequest, wire.Completion, streams=True,
    ),
    Route("GET", "/v1/models", "list_models", "key", "The models this key may use.", "inference", None, wire.ModelList),
    Route("GET", "/v1/models/{model}", "get_model", "key", "One model.", "inference", None, wire.Model),
    Route(
        "GET", "/health", "health", "public", "Whether the server can serve.", "", None, wire.Health, "detail",
        also=("text/plain",),
    ),
    Route(
        "GET", "/", "root", "public", "What this server is.", "", None, wire.Root, "detail",
        also=("text/plain", "text/html"),
    ),
    Route(
        "GET", "/metrics", "metrics", "metrics", "Prometheus metrics.", "admin",
        media_type="text/plain", envelope="detail",
    ),
    Route("GET", "/openapi.json", "openapi", "public", "The OpenAPI document of this surface.", envelope="detail"),
    Route("GET", "/docs", "docs", "public", "The reference as a page.", media_type="text/html", envelope="detail"),
    Route("GET", "/swagger-ui/", "docs", "public", "The same page.", media_type="text/html", envelope="detail"),
    _listing("/api-keys", "list_keys", "API keys without their texts, newest first.", admin.KeyPage, "user"),
    _admin("POST", "/api-keys", "create_key", "Make an API key.", admin.CreateKeyRequest, admin.NewKey),
    _admin("POST", "/api-keys/{id}/revoke", "revoke_key", "End a key now.", None, admin.Key),
    _admin("POST", "/api-keys/{id}/rotate", "rotate_key", "Replace a key.", admin.RotateKeyRequest, admin.NewKey),
    _listing("/users", "list_users", "Users with their balances, by name.", admin.UserPage),
    _admin("POST", "/users", "create_user", "Make a user.", admin.CreateUserRequest, admin.User),
    _admin("POST", "/users/{id}/topup", "top_up", "Add to a prepaid balance.", admin.TopUpRequest, admin.User),
    _listing(
        "/usage", "list_usage", "Usage events, newest first.", admin.UsagePage,
        "user", "project", "key", "model", "request_id", "status", "since_us", "until_us",
    ),
    _admin("GET", "/models", "list_model_cards", "The catalogue with states and sources.", None, admin.ModelPage),
    _admin("POST", "/models/{id}/start", "start_model", "Bring it up.", admin.StartModelRequest, admin.ModelCard),
    _admin("POST", "/models/{id}/stop", "stop_model", "Stop it when its requests are done.", None, admin.ModelCard),
    _admin("GET", "/slots", "list_slots", "Engine processes with their last log lines.", None, admin.SlotPage),
    _admin("GET", "/system", "system", "The machine and its engines.", None, admin.System),
    _admin("GET", "/doctor", "doctor", "Whether the books agree with themselves.", None, admin.FindingPage),
)  # fmt: skip
