"""What the registry says on the wire."""

from typing import Any

import msgspec


class ProviderDocument(msgspec.Struct):
    """The models of one provider, by ``provider:model``."""

    provider: str
    version: int
    updated_at: str
    models: dict[str, dict[str, Any]]


class ProviderVersion(msgspec.Struct):
    """The same at one version, for ever; clients read its models as a list."""

    provider: str
    version: int
    updated_at: str
    models: list[dict[str, Any]]


class ProviderInfo(msgspec.Struct):
    """Where a provider's document is."""

    name: str
    base_url: str
    models_endpoint: str | None = None


class RegistryResponse(msgspec.Struct):
    """All providers together."""

    version: str
    generated_at: str
    models: dict[str, dict[str, Any]]
    providers: dict[str, ProviderInfo]
