"""``/v1/models``: what the key may use."""

import msgspec

from stentor.core.principal import Principal
from stentor.core.scheduler import ModelCard, Scheduler
from stentor.http import wire
from stentor.http.connection import Connection
from stentor.http.openai.text import not_in_models

_encode = msgspec.json.Encoder().encode
_JSON = (b"content-type", b"application/json")


class ModelEndpoints:
    """The catalogue, as the OpenAI API lists models."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    async def list_models(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """GET /v1/models"""
        cards = await self._scheduler.list_models()
        models = [_model(card) for card in cards if may_use(principal, card)]
        await respond_json(connection, wire.ModelList(data=models))

    async def get_model(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """GET /v1/models/{model_name}: by id, alias or any name that a request may use."""
        card = await self._scheduler.find_model(params["model_name"], principal.models)
        if card is None:
            raise not_in_models(params["model_name"])
        await respond_json(connection, _model(card))


def may_use(principal: Principal, card: ModelCard) -> bool:
    """Whether a key may use a model; else it doesn't hear of it."""
    return not principal.models or card.id in principal.models


def _model(card: ModelCard) -> wire.Model:
    return wire.Model(
        id=card.id,
        created=card.created_us // 1_000_000,
        owned_by="stentor",
        context_size=card.context_size,
        abilities=card.abilities,
        aliases=card.aliases,
        state=card.state,
        type=card.type,
    )


async def respond_json(connection: Connection, value: msgspec.Struct) -> None:
    """Answer with ``value`` as JSON."""
    await connection.respond(200, [(b"x-request-id", connection.request_id.encode()), _JSON], _encode(value))
