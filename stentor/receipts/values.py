"""What goes in and out of receipts on the wire: both shapes that the LLMRing protocol has had, and their wrappers.

Shape A is nested (``tokens``, ``cost``), shape B flat (``prompt_tokens``, ``total_cost``). Both carry ours: ``salt``,
``metered_by``, and once the log has them ``log``.
"""

from typing import Annotated, Any, Literal

import msgspec

MeteredBy = Literal["stentor", "client"]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Name = Annotated[str, msgspec.Meta(max_length=255)]
ReceiptName = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:\-]*$")]


class TokenUsage(msgspec.Struct):
    """``input`` includes ``cached_input``."""

    input: Count
    output: Count
    cached_input: Count = 0


class CostBreakdown(msgspec.Struct):
    """US dollars as an exact decimal, and the sum behind it."""

    amount: str
    calculation: str


class CostGiven(msgspec.Struct):
    """As :class:`CostBreakdown`, where the amount may come as a number."""

    amount: str | float | int
    calculation: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class LogProof(msgspec.Struct):
    """Where a receipt stands in the log: its leaf, a signed checkpoint, and the path between them (base64)."""

    index: int
    checkpoint: str
    inclusion: list[str]


class Receipt(msgspec.Struct, omit_defaults=True):
    """Shape A. Without ``log`` it is pending: the log takes it up within a second."""

    id: str
    timestamp: str
    registry_version: str
    model: str
    alias: str
    profile: str
    lock_digest: str
    key_id: str
    tokens: TokenUsage
    cost: CostBreakdown
    signature: str
    salt: str = ""
    metered_by: str = ""
    usage_event: str | None = None
    price_version: int | None = None
    log: LogProof | None = None


class BatchSummary(msgspec.Struct):
    """What a batch receipt sums up; ``by_model`` and ``by_alias`` hold calls, cost and tokens."""

    total_conversations: int
    total_calls: int
    total_tokens: int
    total_cost: float
    start_date: str | None
    end_date: str | None
    by_model: dict[str, Any]
    by_alias: dict[str, Any]
    conversation_ids: list[str]
    log_ids: list[str]


class FlatReceipt(msgspec.Struct, omit_defaults=True):
    """Shape B. The costs are numbers; ``cost.amount`` is the exact total."""

    receipt_id: str
    timestamp: str
    alias: str
    profile: str
    lock_digest: str
    provider: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    input_cost: float
    output_cost: float
    total_cost: float
    signature: str
    key_id: str = ""
    salt: str = ""
    metered_by: str = ""
    cost: CostBreakdown | None = None
    receipt_type: str = ""
    batch_summary: BatchSummary | None = None
    description: str | None = None
    tags: list[str] | None = None
    log: LogProof | None = None


class UnsignedReceipt(msgspec.Struct, omit_defaults=True):
    """Shape A before it is signed; ``key_id`` is what the server says, whatever is sent."""

    id: ReceiptName
    timestamp: str
    model: Name
    tokens: TokenUsage
    cost: CostGiven
    registry_version: Name = ""
    alias: Name = ""
    profile: Name = "default"
    lock_digest: Name = ""
    key_id: Name = ""


class UnsignedFlatReceipt(msgspec.Struct, omit_defaults=True):
    """Shape B before it is signed."""

    alias: Name
    provider: Name
    model: Name
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    input_cost: Amount
    output_cost: Amount
    total_cost: Amount
    profile: Name = "default"
    lock_digest: Name = ""
    receipt_id: ReceiptName | None = None
    timestamp: str | None = None


class ReceiptRequest(msgspec.Struct):
    """A signed receipt to be kept."""

    receipt: dict[str, Any]


class ReceiptResponse(msgspec.Struct):
    """What was kept."""

    receipt_id: str
    status: str


class GenerateRequest(msgspec.Struct, omit_defaults=True):
    """Exactly one of conversation, dates, logs, or everything without a receipt; ``metered_by``: whose numbers."""

    conversation_id: str | None = None
    start_date: str | None = None
    end_date: str | None = None
    log_ids: Annotated[list[str], msgspec.Meta(max_length=10_000)] | None = None
    since_last_receipt: bool = False
    description: Annotated[str, msgspec.Meta(max_length=2000)] | None = None
    tags: Annotated[list[Name], msgspec.Meta(max_length=100)] | None = None
    metered_by: MeteredBy = "client"


class GenerateResponse(msgspec.Struct):
    """The new receipt and how many logs it certifies."""

    receipt: FlatReceipt
    certified_count: int


class ReceiptList(msgspec.Struct):
    """A page of receipts, newest first."""

    receipts: list[dict[str, Any]]
    total: int
    limit: int
    offset: int


class Preview(msgspec.Struct, omit_defaults=True):
    """What a receipt would certify."""

    total_logs: int
    total_conversations: int
    total_tokens: int
    total_cost: float
    start_date: str | None
    end_date: str | None
    by_model: dict[str, Any]
    by_alias: dict[str, Any]
    receipt_type: str | None
    message: str | None = None


class Verdict(msgspec.Struct):
    """``log``: ``included`` (proven), ``pending`` (no proof yet) or ``wrong``. ``problem`` says what doesn't fit."""

    receipt_id: str
    valid: bool
    algorithm: str = "Ed25519"
    key_id: str = ""
    log: str = ""
    problem: str | None = None


class PublicJwk(msgspec.Struct):
    """The current receipt key (RFC 8037)."""

    kty: str
    crv: str
    x: str
    kid: str


class PublicKeyEntry(PublicJwk):
    """A public key with its purpose (``receipt``, ``checkpoint``) and the time it signs, RFC 3339."""

    purpose: str
    valid_from: str
    valid_until: str | None


class RawKeyEntry(msgspec.Struct):
    """A receipt key in the protocol's later form."""

    key_id: str
    public_key: str
    algorithm: str
    format: str
    valid_from: str
    valid_until: str | None


class RawKeyList(msgspec.Struct):
    """All receipt keys, and which one signs now."""

    keys: list[RawKeyEntry]
    current_key_id: str


class InclusionProof(msgspec.Struct):
    """A leaf's place in the tree of ``size`` leaves; hashes are base64."""

    origin: str
    index: int
    size: int
    leaf_hash: str
    inclusion: list[str]
    checkpoint: str | None


class ConsistencyProof(msgspec.Struct):
    """That the tree of ``first`` leaves is the beginning of that of ``second``; hashes are base64."""

    origin: str
    first: int
    second: int
    proof: list[str]


class LogEntry(msgspec.Struct):
    """One leaf; ``content`` is for its project and for admins, null for others."""

    index: int
    kind: str
    leaf_hash: str
    content: dict[str, Any] | None


class LogEntries(msgspec.Struct):
    """Leaves from ``start`` on; ``next`` is where to go on, null at the end."""

    origin: str
    size: int
    entries: list[LogEntry]
    next: int | None
