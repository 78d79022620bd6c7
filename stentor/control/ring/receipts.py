"""Receipts of projects: kept, issued, generated, verified, and their public keys."""

from typing import Any

from stentor.control.ring.certified import Certified
from stentor.control.ring.reading import choice_of, convert, number_of, read_body, read_time, unprocessable
from stentor.control.ring.tenants import Tenants
from stentor.control.ring.usage import RingUsage, Selection
from stentor.core.clock import Clock, time_text
from stentor.core.errors import Refused
from stentor.core.ids import new_uuid7
from stentor.core.ring import RingAnswer, RingCall
from stentor.history.logs import LogFilter
from stentor.history.values import CertifiedLogs, UncertifiedLogs, UsageLogEntry
from stentor.receipts.batch import preview
from stentor.receipts.canonical import to_base64url
from stentor.receipts.office import Body, ReceiptOffice
from stentor.receipts.usage import usd_text
from stentor.receipts.values import (
    FlatReceipt,
    GenerateRequest,
    RawKeyEntry,
    RawKeyList,
    Receipt,
    ReceiptList,
    ReceiptRequest,
    ReceiptResponse,
    UnsignedFlatReceipt,
    UnsignedReceipt,
    Verdict,
)
from stentor.receipts.verify import receipt_name

NANO = 1_000_000_000
METERS = ("client", "stentor")


def shape_of(receipt: Body) -> str:
    """``B`` for the flat shape, ``A`` for the nested one."""
    return "B" if "prompt_tokens" in receipt else "A"


class RingReceipts:
    """Every receipt route but those of the log."""

    def __init__(
        self, office: ReceiptOffice, certified: Certified, usage: RingUsage, tenants: Tenants, clock: Clock
    ) -> None:
        self._office = office
        self._certified = certified
        self._usage = usage
        self._tenants = tenants
        self._clock = clock

    async def store(self, call: RingCall) -> RingAnswer:
        """Keep a receipt that was signed here."""
        receipt = read_body(call, ReceiptRequest).receipt
        shape = shape_of(receipt)
        _check_shape(receipt, "receipt")
        name = await self._office.store(call.principal.project_id, receipt, shape)
        return RingAnswer(ReceiptResponse(name, "verified"))

    async def get(self, call: RingCall) -> RingAnswer:
        """A receipt with its proof."""
        return RingAnswer(await self._office.get(call.principal.project_id, call.params["id"]))

    async def list_kept(self, call: RingCall) -> RingAnswer:
        """A page of receipts."""
        limit, offset = number_of(call, "limit", 100, 1, 1000), number_of(call, "offset", 0, 0, 10**9)
        kept, total = await self._office.list_kept(call.principal.project_id, limit, offset)
        return RingAnswer(ReceiptList(kept, total, limit, offset))

    async def issue(self, call: RingCall) -> RingAnswer:
        """Sign what a client says."""
        self._tenants.check_may_issue(call.principal)
        body = call.body if isinstance(call.body, dict) else {}
        shape = shape_of(body)
        unsigned = self._flat(call) if shape == "B" else self._nested(call)
        return RingAnswer(await self._office.issue(call.principal.project_id, unsigned, shape))

    def _nested(self, call: RingCall) -> Body:
        wanted = read_body(call, UnsignedReceipt)
        time_us = read_time(wanted.timestamp, ("body", "timestamp"))
        return {
            "id": wanted.id,
            "timestamp": time_text(self._clock.now_us() if time_us is None else time_us),
            "registry_version": wanted.registry_version,
            "model": wanted.model,
            "alias": wanted.alias,
            "profile": wanted.profile,
            "lock_digest": wanted.lock_digest,
            "tokens": {
                "input": wanted.tokens.input,
                "output": wanted.tokens.output,
                "cached_input": wanted.tokens.cached_input,
            },
            "cost": {"amount": _amount(wanted.cost.amount), "calculation": wanted.cost.calculation},
        }

    def _flat(self, call: RingCall) -> Body:
        wanted = read_body(call, UnsignedFlatReceipt)
        time_us = read_time(wanted.timestamp, ("body", "timestamp"))
        total_nano = round(wanted.total_cost * NANO)
        return {
            "receipt_id": wanted.receipt_id or f"rcpt_{new_uuid7().replace('-', '')[-16:]}",
            "timestamp": time_text(self._clock.now_us() if time_us is None else time_us),
            "alias": wanted.alias,
            "profile": wanted.profile,
            "lock_digest": wanted.lock_digest,
            "provider": wanted.provider,
            "model": wanted.model,
            "prompt_tokens": wanted.prompt_tokens,
            "completion_tokens": wanted.completion_tokens,
            "total_tokens": wanted.total_tokens,
            "input_cost": wanted.input_cost,
            "output_cost": wanted.output_cost,
            "total_cost": wanted.total_cost,
            "cost": {"amount": usd_text(total_nano), "calculation": "as the client said"},
            "receipt_type": "single",
        }

    async def generate(self, call: RingCall) -> RingAnswer:
        """One receipt over the project's logs."""
        self._tenants.check_may_issue(call.principal)
        wanted = read_body(call, GenerateRequest)
        project_id = call.principal.project_id
        items = await self._certified.choose(project_id, wanted)
        if not items:
            raise Refused("invalid_request", "No logs found matching the criteria")
        receipt = await self._office.certify(project_id, items, wanted.metered_by, wanted.description, wanted.tags)
        return RingAnswer({"receipt": receipt, "certified_count": len(items)})

    async def preview(self, call: RingCall) -> RingAnswer:
        """What ``generate`` would certify."""
        wanted = read_body(call, GenerateRequest)
        return RingAnswer(preview(await self._certified.choose(call.principal.project_id, wanted)))

    async def uncertified(self, call: RingCall) -> RingAnswer:
        """A page of logs without a receipt."""
        metered_by = choice_of(call, "metered_by", METERS)
        limit, offset = number_of(call, "limit", 100, 1, 1000), number_of(call, "offset", 0, 0, 10**9)
        project_id = call.principal.project_id
        items = await self._certified.list_uncertified(project_id, metered_by)
        page = await self._entries(project_id, metered_by, [item.id for item in items[offset : offset + limit]])
        return RingAnswer(UncertifiedLogs(page, len(items), limit, offset))

    async def logs(self, call: RingCall) -> RingAnswer:
        """A page of the logs behind a receipt."""
        limit, offset = number_of(call, "limit", 100, 1, 1000), number_of(call, "offset", 0, 0, 10**9)
        project_id, name = call.principal.project_id, call.params["id"]
        items = await self._office.items(project_id, name)
        metered_by = "stentor" if items and items[0][0] == "usage" else "client"
        page = await self._entries(project_id, metered_by, [item for _, item in items[offset : offset + limit]])
        return RingAnswer(CertifiedLogs(page, len(items), limit, offset, name))

    async def _entries(self, project_id: str, metered_by: str, ids: list[str]) -> list[UsageLogEntry]:
        if not ids:
            return []
        return await self._usage.entries(Selection(project_id, LogFilter(ids=tuple(ids)), metered_by), len(ids), 0)

    async def verify(self, call: RingCall) -> RingAnswer:
        """Whether a receipt is what one of our keys signed, and stands where it says."""
        if not isinstance(call.body, dict):
            raise unprocessable("dict_type", ("body",), "Input should be an object", call.body)
        found = self._office.verify(call.body)
        key_id = str(call.body.get("key_id") or "")
        return RingAnswer(Verdict(receipt_name(call.body), found.valid, "Ed25519", key_id, found.log, found.problem))

    # -- keys --------------------------------------------------------------------------------------------------------

    async def key_pem(self, call: RingCall) -> RingAnswer:
        """The current receipt key as PEM."""
        return RingAnswer(self._office.keys.current("receipt").pem().encode(), "application/x-pem-file")

    async def key_jwk(self, call: RingCall) -> RingAnswer:
        """The current receipt key as JWK."""
        key = self._office.keys.current("receipt")
        return RingAnswer({**key.jwk(), "kid": key.id})

    async def keys(self, call: RingCall) -> RingAnswer:
        """All public keys, the current receipt key first."""
        return RingAnswer(self._office.describe_keys())

    async def raw_keys(self, call: RingCall) -> RingAnswer:
        """All receipt keys in the protocol's later form."""
        keys = self._office.keys
        entries = [
            RawKeyEntry(
                key.id,
                to_base64url(key.public),
                "Ed25519",
                "base64url",
                time_text(key.from_us),
                None if key.until_us is None else time_text(key.until_us),
            )
            for key in reversed(keys.publics("receipt"))
        ]
        return RingAnswer(RawKeyList(entries, keys.current("receipt").id))


def _check_shape(receipt: Any, *place: str) -> None:
    convert(receipt, FlatReceipt if shape_of(receipt) == "B" else Receipt, *place)


def _amount(given: str | float) -> str:
    """An amount of US dollars as exact decimal text. Raises Refused."""
    try:
        amount = float(given)
    except ValueError:
        amount = -1.0
    if not 0 <= amount <= 1e9:
        raise unprocessable("decimal_parsing", ("body", "cost", "amount"), "Input should be a valid decimal", given)
    return given if isinstance(given, str) else usd_text(round(amount * NANO))
