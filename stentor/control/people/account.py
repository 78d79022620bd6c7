"""What users see and do about themselves: limits, balance, usage, keys. Nobody sees anybody else's."""

import msgspec
from sqlalchemy import Connection

from stentor.accounting.ledger import find_balance
from stentor.accounting.meters import Minute
from stentor.accounting.price import Price
from stentor.control.books import LocalBooks
from stentor.control.wanted import KeyAsk
from stentor.core.clock import Clock
from stentor.core.errors import Refused
from stentor.core.ids import KeyId, ModelId, ProjectId
from stentor.people import api_keys, projects, tiers, users
from stentor.people.values import Tier, User
from stentor.store.database import Database

OWN_SCOPES = ("inference", "ring", "mcp")


class Me(msgspec.Struct, frozen=True):
    """A user, their tier, and what they have left."""

    user: User
    tier: Tier
    balance_nano: int


class Window(msgspec.Struct, frozen=True):
    """A limit of any sixty seconds: what it allows (None: everything), what of it is left now."""

    limit: int | None
    remaining: int | None


class RateLimits(msgspec.Struct, frozen=True):
    """The tier's limits over all keys, and how much of them is free."""

    requests: Window
    tokens: Window
    concurrency: Window


class Account:
    """Lives on the books' event loop."""

    def __init__(self, database: Database, books: LocalBooks, clock: Clock) -> None:
        self._database = database
        self._books = books
        self._clock = clock

    async def get_me(self, user_id: str) -> Me:
        """Who the caller is. Raises Refused for the operator, who is nobody."""

        def read(connection: Connection) -> Me:
            user = users.get_user(connection, user_id)
            return Me(user, tiers.get_tier(connection, user.tier_id), find_balance(connection, user.id).left_nano)

        if not user_id:
            raise Refused("not_found", "The operator is no user; ask with a user's key or session.")
        return await self._database.read(read)

    async def get_rate_limits(self, user_id: str) -> RateLimits:
        """What the tier allows, and what of it is free now."""
        me = await self.get_me(user_id)
        account = self._books.roll.users.get(me.user.id)
        second = int(self._clock.monotonic_s())
        tier = me.tier
        running = account.gauge.running if account is not None else 0
        return RateLimits(
            _window(tier.requests_per_minute, account.requests if account else None, second),
            _window(tier.tokens_per_minute, account.tokens if account else None, second),
            Window(tier.concurrency, None if tier.concurrency is None else max(tier.concurrency - running, 0)),
        )

    async def find_allowed_models(self, key_id: str | None) -> frozenset[str]:
        """The models that a key may use; empty: all."""
        if key_id is None:
            return frozenset()
        key = await self._database.read(lambda connection: api_keys.get_key(connection, KeyId(key_id)))
        return frozenset(key.models)

    async def find_own_scopes(self, key_id: str | None) -> tuple[str, ...]:
        """What a new key is for where nothing is said: as the key that asks, without management."""
        if key_id is None:
            return ("inference",)
        key = await self._database.read(lambda connection: api_keys.get_key(connection, KeyId(key_id)))
        return tuple(scope for scope in key.scopes if scope in OWN_SCOPES) or ("inference",)

    def find_price(self, model: str) -> Price | None:
        """What a model costs now, None where that isn't known."""
        try:
            return self._books.prices.get_price(ModelId(model), self._clock.now_us())
        except Refused:
            return None

    async def check_own_key(self, user_id: str, key_id: str) -> None:
        """Raises Refused where the key isn't the user's."""
        await self._database.read(lambda connection: api_keys.get_key_of(connection, KeyId(key_id), user_id))

    async def check_own_ask(self, user_id: str, ask: KeyAsk) -> None:
        """Raises Refused for a key that users may not make for themselves: for management, or in a foreign project."""
        if set(ask.scopes) - set(OWN_SCOPES):
            raise Refused(
                "insufficient_scope", f"A key of your own can have the scopes {', '.join(OWN_SCOPES)}.", param="scopes"
            )
        project = ask.project
        if project:
            found = await self._database.read(lambda connection: projects.get_project(connection, ProjectId(project)))
            if found.owner_id != user_id:
                raise Refused("not_found", f"You have no project '{project[:64]}'.", param="project")


def _window(limit: int | None, window: Minute | None, second: int) -> Window:
    if limit is None:
        return Window(None, None)
    return Window(limit, max(window.free(second), 0) if window is not None else limit)
