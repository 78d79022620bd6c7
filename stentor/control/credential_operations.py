"""The operations on providers, hub tokens and the master key, as JSON rows. No secret is in any of them."""

import msgspec

from stentor.control.credentials import Credentials, Look
from stentor.control.reading import Operation, Row, actor_of, page_of, read_body
from stentor.core.errors import Refused
from stentor.core.operator import Task
from stentor.vault.providers import NewProvider, ProviderChange


class _HubToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: str
    name: str = "default"


class _NewMasterKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    master_key: str | None = None


class CredentialOperations:
    """What others trusted the server with. ``look`` asks a provider whether it is well."""

    def __init__(self, credentials: Credentials, look: Look) -> None:
        self._credentials = credentials
        self._look = look

    def table(self) -> dict[str, Operation]:
        """The operations by name."""
        return {
            "list_providers": self.list_providers,
            "create_provider": self.create_provider,
            "change_provider": self.change_provider,
            "delete_provider": self.delete_provider,
            "test_provider": self.test_provider,
            "list_hub_tokens": self.list_hub_tokens,
            "set_hub_token": self.set_hub_token,
            "delete_hub_token": self.delete_hub_token,
            "list_secrets": self.list_secrets,
            "rotate_master_key": self.rotate_master_key,
        }

    async def list_providers(self, task: Task) -> Row:
        """Providers by name."""
        return page_of([msgspec.to_builtins(each) for each in await self._credentials.list_providers()], None)

    async def create_provider(self, task: Task) -> Row:
        """A new provider."""
        made = await self._credentials.add_provider(actor_of(task), read_body(task.body, NewProvider))
        row: Row = msgspec.to_builtins(made)
        return row

    async def change_provider(self, task: Task) -> Row:
        """A provider as it is from now on."""
        change = read_body(task.body, ProviderChange)
        row: Row = msgspec.to_builtins(
            await self._credentials.change_provider(actor_of(task), task.params["name"], change)
        )
        return row

    async def delete_provider(self, task: Task) -> Row:
        """The provider that is gone."""
        row: Row = msgspec.to_builtins(await self._credentials.remove_provider(actor_of(task), task.params["name"]))
        return row

    async def test_provider(self, task: Task) -> Row:
        """Whether a provider answers, and what it says if it doesn't."""
        problem = await self._credentials.test_provider(task.params["name"], self._look)
        return {"name": task.params["name"], "ok": not problem, "text": problem or "It answered."}

    async def list_hub_tokens(self, task: Task) -> Row:
        """Hub tokens by name."""
        return page_of([msgspec.to_builtins(each) for each in await self._credentials.list_hub_tokens()], None)

    async def set_hub_token(self, task: Task) -> Row:
        """A hub token, in place of an older one of its name."""
        ask = read_body(task.body, _HubToken)
        row: Row = msgspec.to_builtins(await self._credentials.set_hub_token(actor_of(task), ask.name, ask.token))
        return row

    async def delete_hub_token(self, task: Task) -> Row:
        """Nothing is left of it."""
        await self._credentials.remove_hub_token(actor_of(task), task.params["name"])
        return {"name": task.params["name"], "deleted": True}

    async def list_secrets(self, task: Task) -> Row:
        """Everything that is kept, by kind and name."""
        return page_of([msgspec.to_builtins(each) for each in await self._credentials.list_secrets()], None)

    async def rotate_master_key(self, task: Task) -> Row:
        """A new master key; the operator's alone, since whoever sets it could lock everybody else out."""
        if task.origin != "cli":
            text = "The master key is changed on the server's own machine: `stentor vault rotate`."
            raise Refused("conflict", text)
        done = await self._credentials.rotate(actor_of(task), read_body(task.body, _NewMasterKey).master_key)
        return done._asdict()
