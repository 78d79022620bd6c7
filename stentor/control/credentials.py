"""What others trusted the server with: providers' credentials and hub tokens. They go in, are used, and never come out.

The credentials of providers are kept opened in memory, as every request to a remote model needs one; hub tokens are
opened when they are asked for.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection

from stentor.audit.log import Actor, record_change
from stentor.core.clock import Clock
from stentor.core.errors import Refused, StentorError
from stentor.egress.targets import check_base
from stentor.runtime.hub import HubSettings
from stentor.runtime.remotes import Address
from stentor.runtime.remotes import Provider as KnownProvider
from stentor.store.database import Database
from stentor.vault import providers, secrets
from stentor.vault.exchange import install_key, stage_key
from stentor.vault.keyring import Keyring
from stentor.vault.master import KEY_BYTES, MasterKey, parse_master_key
from stentor.vault.providers import NewProvider, Provider, ProviderChange
from stentor.vault.secrets import HUB_TOKEN, Secret
from stentor.vault.settings import VaultSettings

CheckAddress = Callable[[str], None]
"""Raises Refused for an address that the server doesn't connect to."""
Look = Callable[[Address], Awaitable[str]]


class Rotated(NamedTuple):
    """A finished rotation: how many data keys were wrapped anew, the new key's id, and where the old key is kept."""

    data_keys: int
    master_key_id: str
    kept: str | None


INFERENCE = "hf-inference"


class Credentials:
    """Lives on the books' event loop. Make it with :meth:`open`."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        settings: VaultSettings,
        clock: Clock,
        check: CheckAddress,
        hub: HubSettings = HubSettings(),  # noqa: B008  # frozen
    ) -> None:
        self._hub = hub
        self._database = database
        self._keyring = keyring
        self._settings = settings
        self._clock = clock
        self._check = check
        self._known: dict[str, KnownProvider] = {}
        self._rotating = asyncio.Lock()
        self._loading = asyncio.Lock()

    async def load(self) -> None:
        """Open every provider's credential. Raises StentorError if one can't be opened."""

        def read(connection: Connection) -> dict[str, KnownProvider]:
            texts = providers.load_credentials(connection, self._keyring)
            rows = providers.list_providers(connection)
            known = {row.name: KnownProvider(row.kind, row.base_url, texts[row.name]) for row in rows}
            if self._hub.inference_url:
                token = self._hub.token or secrets.find_latest(connection, self._keyring, HUB_TOKEN) or ""
                known.setdefault(INFERENCE, KnownProvider("hf-inference", self._hub.inference_url, token))
            return known

        # One at a time, each begun after the change that called for it: the last word is the last change's.
        async with self._loading:
            self._known = await self._database.read(read)

    def find_provider(self, name: str) -> KnownProvider | None:
        """The provider of this name with its credential, for those who ask it."""
        return self._known.get(name)

    # -- providers ---------------------------------------------------------------------------------------------------

    async def list_providers(self) -> list[Provider]:
        """All providers by name."""
        return await self._database.read(providers.list_providers)

    async def add_provider(self, actor: Actor, new: NewProvider) -> Provider:
        """Make a provider. Raises Refused, also for an address that isn't public and wasn't allowed."""
        check_base(new.base_url)
        self._check(new.base_url)

        def work(connection: Connection, now_us: int) -> tuple[Provider, dict[str, Any] | None]:
            return providers.add_provider(connection, self._keyring, new, now_us), None

        return await self._change(actor, "provider_create", work)

    async def change_provider(self, actor: Actor, name: str, change: ProviderChange) -> Provider:
        """Change a provider; requests from now on use it as it is now."""
        if change.base_url is not None:
            check_base(change.base_url)
            self._check(change.base_url)

        def work(connection: Connection, now_us: int) -> tuple[Provider, dict[str, Any] | None]:
            before = _visible(providers.get_provider(connection, name))
            return providers.change_provider(connection, self._keyring, name, change, now_us), before

        return await self._change(actor, "provider_change", work)

    async def remove_provider(self, actor: Actor, name: str) -> Provider:
        """Forget a provider. Its models can't be reached any more."""

        def work(connection: Connection) -> Provider:
            gone = providers.remove_provider(connection, name)
            record_change(
                connection, self._clock.now_us(), actor, "provider_delete", ("provider", name), before=_visible(gone)
            )
            return gone

        gone = await self._database.write(work)
        await self.load()
        return gone

    async def _change(
        self, actor: Actor, action: str, work: Callable[[Connection, int], tuple[Provider, dict[str, Any] | None]]
    ) -> Provider:
        def write(connection: Connection) -> Provider:
            now_us = self._clock.now_us()
            made, before = work(connection, now_us)
            record_change(
                connection, now_us, actor, action, ("provider", made.name), before=before, after=_visible(made)
            )
            return made

        made = await self._database.write(write)
        await self.load()
        return made

    async def test_provider(self, name: str, look: Look) -> str:
        """Ask a provider for its models; empty if it answered well, else what is wrong. Raises ``not_found``."""
        known = self._known.get(name)
        if known is None:
            raise Refused("not_found", f"There is no provider '{name[:64]}'; `stentor providers list` shows all.")
        return await look(Address(known.kind, known.base_url, known.credential, trusted=False))

    # -- hub tokens ----------------------------------------------------------------------------------------------------

    async def list_hub_tokens(self) -> list[Secret]:
        """Hub tokens by name."""
        return await self._database.read(lambda connection: secrets.list_secrets(connection, HUB_TOKEN))

    async def list_secrets(self) -> list[Secret]:
        """Everything that is kept, by kind and name."""
        return await self._database.read(secrets.list_secrets)

    async def set_hub_token(self, actor: Actor, name: str, token: str) -> Secret:
        """Keep a hub token under ``name``, in place of an older one."""
        secrets.check_name(name)
        secrets.check_secret(token, "token")

        def work(connection: Connection) -> Secret:
            now_us = self._clock.now_us()
            made, replaced = secrets.set_secret(connection, self._keyring, HUB_TOKEN, name, token, now_us)
            after = {"name": name, "replaced": replaced}
            record_change(connection, now_us, actor, "hub_token_set", ("hub_token", name), after=after)
            return made

        made = await self._database.write(work)
        await self.load()
        return made

    async def remove_hub_token(self, actor: Actor, name: str) -> None:
        """Forget a hub token. Raises Refused ``not_found``."""

        def work(connection: Connection) -> None:
            secrets.delete_secret(connection, HUB_TOKEN, name)
            record_change(connection, self._clock.now_us(), actor, "hub_token_delete", ("hub_token", name))

        await self._database.write(work)
        await self.load()

    async def find_hf_token(self) -> str | None:
        """The hub token that was set last, or None. Raises StentorError if it can't be opened."""
        return await self._database.read(lambda connection: secrets.find_latest(connection, self._keyring, HUB_TOKEN))

    # -- the master key ------------------------------------------------------------------------------------------------

    async def rotate(self, actor: Actor, given: str | None) -> Rotated:
        """Wrap all data keys with a new master key: ``given``, or made here. Raises StentorError, Refused.

        What the keys sealed stays as it is, so sessions, API keys and secrets go on working meanwhile.
        """
        async with self._rotating:
            in_file = not self._settings.master_key
            if not in_file and not given:
                raise Refused(
                    "invalid_request",
                    "The master key comes from STENTOR_MASTER_KEY, so its successor has to be given: "
                    "`openssl rand -hex 32 > new.key`, then `stentor vault rotate --key-file new.key`.",
                    param="master_key",
                )
            key = _read_key(given) if given else MasterKey(os.urandom(KEY_BYTES))
            if key.key_id == self._keyring.master_key_id:
                raise Refused("conflict", "That is the master key already.", param="master_key")
            if in_file:
                await asyncio.to_thread(stage_key, self._settings.key_file, key)
            count = await self._database.write(lambda connection: self._rewrap(connection, actor, key))
            self._keyring.master_key_id = key.key_id
            kept = await asyncio.to_thread(install_key, self._settings.key_file) if in_file else None
            return Rotated(count, key.key_id, str(kept) if kept is not None else None)

    def _rewrap(self, connection: Connection, actor: Actor, key: MasterKey) -> int:
        count = self._keyring.rewrap(connection, key)
        before, after = {"master_key_id": self._keyring.master_key_id}, {"master_key_id": key.key_id}
        now_us = self._clock.now_us()
        record_change(connection, now_us, actor, "master_key_rotate", ("vault", "master"), before=before, after=after)
        return count


def _visible(provider: Provider) -> dict[str, Any]:
    """A provider for the audit: its credential is there, or it isn't."""
    values: dict[str, Any] = msgspec.to_builtins(provider)
    del values["hint"]
    return values


def _read_key(text: str) -> MasterKey:
    try:
        return parse_master_key(text, "the request")
    except StentorError as error:
        raise Refused("invalid_request", str(error), param="master_key") from None
