"""The management routes. A noun with many of them has a module of its own beside this one."""

from stentor.http.admin import wire
from stentor.http.route import Route, admin, listing

ROUTES: tuple[Route, ...] = (
    listing("/api-keys", "list_keys", "API keys without their texts, newest first.", wire.KeyPage, "user"),
    admin("POST", "/api-keys", "create_key", "Make an API key.", wire.CreateKeyRequest, wire.NewKey),
    admin("POST", "/api-keys/{id}/revoke", "revoke_key", "End a key now.", None, wire.Key),
    admin("POST", "/api-keys/{id}/rotate", "rotate_key", "Replace a key.", wire.RotateKeyRequest, wire.NewKey),
    listing("/users", "list_users", "Users with their balances, by name.", wire.UserPage),
    admin("POST", "/users", "create_user", "Make a user.", wire.CreateUserRequest, wire.User),
    admin("POST", "/users/{id}/topup", "top_up", "Add to a prepaid balance.", wire.TopUpRequest, wire.User),
    listing(
        "/usage", "list_usage", "Usage events, newest first.", wire.UsagePage,
        "user", "project", "key", "model", "request_id", "status", "since_us", "until_us",
    )._replace(also=("text/csv",)),
    admin("GET", "/models", "list_model_cards", "The catalogue with states and sources.", None, wire.ModelPage),
    admin("POST", "/models/{id}/start", "start_model", "Bring it up.", wire.StartModelRequest, wire.ModelCard),
    admin("POST", "/models/{id}/stop", "stop_model", "Stop it when its requests are done.", None, wire.ModelCard),
    admin("GET", "/doctor", "doctor", "Whether the books agree with themselves.", None, wire.FindingPage),
)  # fmt: skip
