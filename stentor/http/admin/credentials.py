"""Providers, hub tokens, the master key: wire types and routes. Secrets go in and never come out."""

from typing import Literal

import msgspec

from stentor.http.route import Route, admin


class Provider(msgspec.Struct):
    """Where an upstream is. ``hint`` is the end of its credential, empty where that is short or missing."""

    name: str
    kind: Literal["openai", "anthropic"]
    base_url: str
    has_credential: bool
    hint: str
    created_us: int
    updated_us: int


class ProviderPage(msgspec.Struct):
    """All providers by name."""

    data: list[Provider]
    next: None


class CreateProviderRequest(msgspec.Struct, omit_defaults=True):
    """A provider to be made. Its address must be public, or allowed by EGRESS_ALLOW; ``credential`` empty: none."""

    name: str
    kind: Literal["openai", "anthropic"]
    base_url: str
    credential: str = ""


class ChangeProviderRequest(msgspec.Struct, omit_defaults=True):
    """What is to change; null stays, an empty credential takes it away. A new address needs the credential again."""

    kind: Literal["openai", "anthropic"] | None = None
    base_url: str | None = None
    credential: str | None = None


class ProviderTest(msgspec.Struct):
    """Whether a provider answered, and what it said if it didn't."""

    name: str
    ok: bool
    text: str


class Secret(msgspec.Struct):
    """What may be known of a secret: ``hint`` is its last four characters, empty for a short one."""

    id: str
    kind: str
    name: str
    hint: str
    created_us: int
    updated_us: int


class SecretPage(msgspec.Struct):
    """Secrets by kind and name."""

    data: list[Secret]
    next: None


class SetHubTokenRequest(msgspec.Struct, omit_defaults=True):
    """A token for the model hub; of several the one that was set last is used."""

    token: str
    name: str = "default"


class DeletedHubToken(msgspec.Struct):
    """The name of what is gone."""

    name: str
    deleted: bool


class RotateMasterKeyRequest(msgspec.Struct, omit_defaults=True):
    """The new master key: 64 hex digits or base64 of 32 bytes. Null: one is made, where the key lies in a file."""

    master_key: str | None = None


class Rotated(msgspec.Struct):
    """How many data keys were wrapped anew, the id of the new key, and the file that keeps the old one."""

    data_keys: int
    master_key_id: str
    kept: str | None


ROUTES: tuple[Route, ...] = (
    admin("GET", "/providers", "list_providers", "Providers of remote models, by name.", None, ProviderPage),
    admin("POST", "/providers", "create_provider", "Add a provider.", CreateProviderRequest, Provider),
    admin("PATCH", "/providers/{name}", "change_provider", "Change a provider.", ChangeProviderRequest, Provider),
    admin("DELETE", "/providers/{name}", "delete_provider", "Forget a provider and its credential.", None, Provider),
    admin("POST", "/providers/{name}/test", "test_provider", "Ask whether it answers.", None, ProviderTest),
    admin("GET", "/hf-tokens", "list_hub_tokens", "Tokens for the model hub, by name.", None, SecretPage),
    admin("POST", "/hf-tokens", "set_hub_token", "Keep a token for the model hub.", SetHubTokenRequest, Secret),
    admin("DELETE", "/hf-tokens/{name}", "delete_hub_token", "Forget a token.", None, DeletedHubToken),
    admin("GET", "/secrets", "list_secrets", "What the vault keeps, by kind and name.", None, SecretPage),
    admin(
        "POST", "/vault/rotate", "rotate_master_key", "Wrap the data keys with a new master key (operator only).",
        RotateMasterKeyRequest, Rotated,
    ),
)  # fmt: skip
