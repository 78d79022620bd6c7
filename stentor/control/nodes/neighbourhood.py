"""Nodes tell each other, by way of the database, where they are and what they run; and how one lets another in.

A node asks another with a token that is made of the vault's pepper and that node's id: it opens no other node, isn't
stored anywhere, and is nobody's key. What a node asks for is served by that machine's own engines or not at all, so no
request goes on twice; and it is metered where it was admitted, not here.
"""

import asyncio
import base64
import hmac

import msgspec

from stentor.accounting.accounts import KeyAccount, KeyTerms, ProjectAccount, UserAccount, UserTerms
from stentor.accounting.meters import Meter
from stentor.core.errors import StoreUnavailable
from stentor.core.ids import KeyId, ProjectId, TierId, UserId
from stentor.core.principal import Principal
from stentor.runtime.neighbours import Neighbour, Neighbours, SharedModel
from stentor.store.database import Database
from stentor.store.nodes import NodeRow, describe_node, list_nodes
from stentor.telemetry.logs import Log

LOOK_S = 1.0
NODE_KEY = KeyId("node")
ENDPOINTS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"})
_read_models = msgspec.json.Decoder(tuple[SharedModel, ...]).decode


def node_token(pepper: bytes, node_id: str) -> str:
    """What lets a node of this server in at the node ``node_id``."""
    digest = hmac.digest(pepper, b"node token\0" + node_id.encode(), "sha256")
    return "node-" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def make_node_account() -> KeyAccount:
    """Whom other nodes are to this one: a caller without limits, for what engines answer and nothing else."""
    who = Principal(
        NODE_KEY, UserId("node"), ProjectId("node"), TierId("node"), frozenset({"inference"}), endpoints=ENDPOINTS
    )
    balance = Meter("insufficient_balance", "balance", who.user_id, 0, 0)
    user = UserAccount(UserTerms(who.user_id, who.tier_id, True, False, None, None, None), balance)
    terms = KeyTerms(who, None, None, None, None, None, None, None, None)
    return KeyAccount(terms, user, ProjectAccount(who.project_id, True, {}), (0, 0), 0.0)


class Neighbourhood:
    """Runs :meth:`run` until it is cancelled. ``address`` is where other nodes reach this one; None: nowhere."""

    def __init__(
        self, database: Database, pepper: bytes, neighbours: Neighbours, address: str | None, log: Log
    ) -> None:
        self._database = database
        self._pepper = pepper
        self._neighbours = neighbours
        self._address = address or ""
        self._log = log
        self._said: tuple[str, str] | None = None
        self._up: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Tell and look, for ever. Alone with its database a server has no neighbours."""
        while self._database.is_shared:
            try:
                await self.look()
            except StoreUnavailable:
                pass  # what was known stays known meanwhile
            except Exception as error:  # noqa: BLE001 - a defect must not keep this node from seeing the others again
                self._log.event("neighbours_failed", level="error", cause=error)
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Tell the others what is new here, and take on what is new there. Raises StoreUnavailable."""
        await self._tell()
        rows = await self._database.read(lambda connection: list_nodes(connection, self._database.node_id))
        self._neighbours.update([self._read(row) for row in rows])
        up = frozenset(row.id for row in rows if row.is_up)
        for node_id in sorted(up ^ self._up):
            self._log.event("node_joined" if node_id in up else "node_lost", level="warning", name=node_id)
        self._up = up

    async def _tell(self) -> None:
        models = msgspec.json.encode(self._neighbours.list_shared() if self._address else []).decode()
        say = (self._address, models)
        if say != self._said:
            node_id = self._database.node_id
            await self._database.write(lambda connection: describe_node(connection, node_id, *say))
            self._said = say

    def _read(self, row: NodeRow) -> Neighbour:
        try:
            models = _read_models(row.models)
        except msgspec.DecodeError:  # a node of another version: what it says can't be used here
            models = ()
        return Neighbour(row.id, row.address, node_token(self._pepper, row.id), row.is_up, models)
