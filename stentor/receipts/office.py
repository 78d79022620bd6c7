"""The office that hands receipts out: finds, signs, keeps and checks them, and knows where each stands in the log."""

import asyncio
import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from stentor.core.clock import Clock, time_text
from stentor.core.errors import Refused
from stentor.receipts import table
from stentor.receipts.batch import Item, certify, new_salt
from stentor.receipts.canonical import NotCanonical, leaf_hash, sign_receipt
from stentor.receipts.keys import Keys, Purpose, Seals, find_state
from stentor.receipts.log import ReceiptLog, Store
from stentor.receipts.stored import decode_body, encode_body
from stentor.receipts.usage import UsageRow, split_receipt_id, usage_leaf
from stentor.receipts.verify import TrustedKey, Verification, receipt_name, verify_receipt

Body = dict[str, Any]

NO_ENTRY = 0  # ``log_id`` of a receipt that is kept for its owner and has no entry of its own


class ReceiptOffice:
    """``wake`` tells the sequencer that there is something new."""

    def __init__(self, store: Store, receipt_log: ReceiptLog, keys: Keys, salt_key: bytes, clock: Clock) -> None:
        self._store = store
        self.receipt_log = receipt_log
        self._salt_key = salt_key
        self._clock = clock
        self.keys = keys
        self.wake: Callable[[], None] = _nobody_waits
        self._rotating = asyncio.Lock()
        self._key_state: tuple[object, ...] = ()
        receipt_log.sign_with(lambda now_us: self.keys.checkpoint_signers(now_us))

    # -- handing out -------------------------------------------------------------------------------------------------

    async def get(self, project_id: str | None, receipt_id: str) -> Body:
        """A kept receipt of the project, or that of one of its usage events; ``project_id`` None: any event's.

        Raises Refused: ``not_found``, and ``conflict`` where an event no longer says what the log holds.
        """
        if project_id is not None:
            row = await self._store.read(lambda connection: table.find_receipt(connection, project_id, receipt_id))
            if row is not None:
                receipt = decode_body(row.body)
                return await self._with_proof(receipt, row.log_id, row.leaf_index)
        event = split_receipt_id(receipt_id)
        found = None if event is None else await self._store.read(lambda c: _find_usage(c, *event, project_id))
        if found is None:
            raise Refused("not_found", f"There is no receipt '{receipt_id[:128]}'.")
        return await self._of_usage(*found)

    async def _of_usage(self, row: UsageRow, leaf: tuple[int, int] | None) -> Body:
        receipt = self._sign(usage_leaf(row, self._salt_key))
        log_id, index = leaf or (None, None)
        if log_id is not None and index is not None:
            held, _ = await self.receipt_log.prove_inclusion(log_id, index, index + 1)
            if held != leaf_hash(receipt):
                raise Refused(
                    "conflict",
                    f"The event {row.request_id} doesn't say any more what entry {index} of the receipt log holds: it "
                    "was changed after it was settled. No receipt is given for it.",
                )
        return await self._with_proof(receipt, log_id, index)

    def _sign(self, unsigned: Mapping[str, Any]) -> Body:
        key_id, private = self.keys.signer()
        receipt = {**unsigned, "key_id": key_id}
        try:
            receipt["signature"] = sign_receipt(receipt, private)
        except NotCanonical as error:
            raise Refused("invalid_request", f"This can't be signed: {error}.") from None
        return receipt

    async def _with_proof(self, receipt: Body, log_id: int | None, index: int | None) -> Body:
        if not log_id or index is None:
            return receipt
        log = self.receipt_log
        signed = await log.checkpoint_of(log_id, index + 1)
        _, path = await log.prove_inclusion(log_id, index, signed.checkpoint.size)
        proof = {"index": index, "checkpoint": signed.note, "inclusion": [_base64(node) for node in path]}
        return {**receipt, "log": proof}

    async def list_kept(self, project_id: str, limit: int, offset: int) -> tuple[list[Body], int]:
        """A page of the project's kept receipts, newest first, and how many there are."""

        def work(connection: Connection) -> tuple[list[table.ReceiptRow], int]:
            rows = table.list_receipts(connection, project_id, limit, offset)
            return rows, table.count_receipts(connection, project_id)

        rows, total = await self._store.read(work)
        return [decode_body(row.body) for row in rows], total

    # -- taking in ---------------------------------------------------------------------------------------------------

    async def issue(self, project_id: str, unsigned: Body, shape: str) -> Body:
        """Sign what a client says it used, keep it, and have it taken into the log as the client's word."""
        receipt = self._sign({**unsigned, "salt": new_salt(), "metered_by": "client"})
        await self._keep(project_id, receipt, shape, ())
        return receipt

    async def certify(
        self, project_id: str, items: Sequence[Item], metered_by: str, description: str | None, tags: list[str] | None
    ) -> Body:
        """One signed receipt over the project's logs."""
        receipt = self._sign(certify(items, metered_by, self._clock.now_us(), description, tags))
        await self._keep(project_id, receipt, "B", items)
        return receipt

    async def _keep(self, project_id: str, receipt: Body, shape: str, items: Sequence[Item]) -> None:
        now_us = self._clock.now_us()
        row = self._row(project_id, receipt, shape, now_us, None)
        certified = [
            {
                "project_id": project_id,
                "kind": item.kind,
                "item_id": item.id,
                "receipt_id": row.id,
                "certified_us": now_us,
            }
            for item in items
        ]

        def work(connection: Connection) -> None:
            if table.find_receipt(connection, project_id, row.id) is not None:
                raise Refused("conflict", f"There is a receipt '{row.id}' already; give this one another id.")
            table.add_receipt(connection, row)
            table.add_items(connection, certified)

        await self._store.write(work)
        self.wake()

    async def store(self, project_id: str, receipt: Body, shape: str) -> str:
        """Keep a receipt that one of our keys signed; returns its id. Raises Refused for any other."""
        verdict = self.verify(receipt)
        if not verdict.valid:
            raise Refused("invalid_request", "Invalid receipt signature", details={"problem": verdict.problem})
        name = receipt_name(receipt)
        row = self._row(project_id, receipt, shape, self._clock.now_us(), NO_ENTRY)

        def work(connection: Connection) -> None:
            if table.find_receipt(connection, project_id, name) is None:
                table.add_receipt(connection, row)

        await self._store.write(work)
        return name

    @staticmethod
    def _row(project_id: str, receipt: Body, shape: str, now_us: int, log_id: int | None) -> table.ReceiptRow:
        return table.ReceiptRow(
            project_id,
            receipt_name(receipt),
            shape,
            str(receipt.get("receipt_type") or "single"),
            str(receipt.get("metered_by") or ""),
            encode_body(receipt),
            log_id,
            None,
            now_us,
        )

    # -- checking ----------------------------------------------------------------------------------------------------

    def trusted(self) -> list[TrustedKey]:
        """Our own public keys, as a verifier uses them."""
        return [
            TrustedKey(key.id, key.purpose, key.public, None if key.until_us is None else _time(key.until_us))
            for key in self.keys.publics()
        ]

    def verify(self, receipt: Mapping[str, Any]) -> Verification:
        """Whether one of our keys signed exactly this, and the log holds it where it says."""
        return verify_receipt(receipt, self.trusted())

    # -- keys --------------------------------------------------------------------------------------------------------

    async def rotate(self, purpose: Purpose, seals: Seals) -> None:
        """Sign with a new key from now on; what was signed before stays valid."""
        async with self._rotating:
            keys, now_us = self.keys, self._clock.now_us()
            self.keys = await self._store.write(lambda connection: keys.rotated(connection, seals, purpose, now_us))
            self.receipt_log.sign_with(lambda at_us: self.keys.checkpoint_signers(at_us))

    async def follow_keys(self, seals: Seals) -> None:
        """Take up the keys that another node has made since the last time."""
        state = await self._store.read(find_state)
        if state == self._key_state:
            return
        async with self._rotating:
            keys = self.keys
            self.keys = await self._store.read(lambda connection: keys.reloaded(connection, seals))
            self.receipt_log.sign_with(lambda at_us: self.keys.checkpoint_signers(at_us))
        self._key_state = state

    def describe_keys(self) -> list[Body]:
        """The ``public-keys.json`` document: the current receipt key first."""
        keys = sorted(self.keys.publics(), key=lambda key: (key.purpose != "receipt", -key.from_us))
        return [
            {
                "kid": key.id,
                **key.jwk(),
                "purpose": key.purpose,
                "valid_from": time_text(key.from_us),
                "valid_until": None if key.until_us is None else time_text(key.until_us),
            }
            for key in keys
        ]

    # -- entries -----------------------------------------------------------------------------------------------------

    async def entries(self, row: table.LogRow, start: int, end: int, project_id: str | None) -> list[Body]:
        """The leaves from ``start`` to before ``end``; contents of projects other than this are left out."""
        hashes = await self.receipt_log.leaf_hashes(row, start, end)

        def work(connection: Connection) -> dict[int, tuple[str, str, Body]]:
            found: dict[int, tuple[str, str, Body]] = {}
            for index, usage in table.list_usage_leaves(connection, row.id, start, end):
                found[index] = ("usage", usage.project_id, usage_leaf(usage, self._salt_key))
            for kept in table.list_receipt_leaves(connection, row.id, start, end):
                assert kept.leaf_index is not None
                body = decode_body(kept.body)
                leaf = {name: value for name, value in body.items() if name not in ("signature", "key_id")}
                found[kept.leaf_index] = ("receipt", kept.project_id, leaf)
            return found

        found = await self._store.read(work)
        entries = []
        for index, hashed in enumerate(hashes, start):
            kind, owner, leaf = found.get(index, ("unknown", "", {}))
            mine = kind != "unknown" and project_id in (None, owner)
            entries.append(
                {"index": index, "kind": kind, "leaf_hash": _base64(hashed), "content": leaf if mine else None}
            )
        return entries

    async def certified(self, project_id: str, kind: str, ids: Sequence[str]) -> set[str]:
        """Which of these logs have a receipt."""
        return await self._store.read(lambda connection: table.list_certified(connection, project_id, kind, ids))

    async def items(self, project_id: str, receipt_id: str) -> Sequence[tuple[str, str]]:
        """Kind and id of the logs behind a receipt of the project. Raises Refused."""

        def work(connection: Connection) -> Sequence[tuple[str, str]] | None:
            if table.find_receipt(connection, project_id, receipt_id) is None:
                return None
            return table.list_items(connection, project_id, receipt_id)

        found = await self._store.read(work)
        if found is None:
            raise Refused("not_found", f"There is no receipt '{receipt_id[:128]}'.")
        return found


def _find_usage(
    connection: Connection, request_id: str, attempt: int, project_id: str | None
) -> tuple[UsageRow, tuple[int, int] | None] | None:
    """An event, and the log and index of its leaf."""
    row = table.find_usage(connection, request_id, attempt, project_id)
    return None if row is None else (row, table.find_usage_leaf(connection, row.id))


def _nobody_waits() -> None:
    return


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _time(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us / 1e6, UTC)
