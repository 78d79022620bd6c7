"""Every operation of the LLMRing surface by the name that the surface calls it."""

from collections.abc import Awaitable, Callable

from stentor.control.ring.models import RingRegistry
from stentor.control.ring.proofs import RingProofs
from stentor.control.ring.receipts import RingReceipts
from stentor.control.ring.talks import RingTalks
from stentor.control.ring.usage import RingUsage
from stentor.core.ring import RingAnswer, RingCall

Operation = Callable[[RingCall], Awaitable[RingAnswer]]


class RingOperations:
    """Joins the parts."""

    def __init__(
        self, usage: RingUsage, talks: RingTalks, receipts: RingReceipts, proofs: RingProofs, registry: RingRegistry
    ) -> None:
        self._table: dict[str, Operation] = {
            "ring_log": usage.log,
            "ring_logs": usage.logs,
            "ring_stats": usage.stats,
            "ring_create_conversation": talks.create,
            "ring_list_conversations": talks.list,
            "ring_get_conversation": talks.get,
            "ring_update_conversation": talks.update,
            "ring_delete_conversation": talks.delete,
            "ring_list_messages": talks.messages,
            "ring_add_message": talks.add_one,
            "ring_add_messages": talks.add_batch,
            "ring_log_conversation": talks.log,
            "ring_delete_old_messages": talks.delete_old,
            "ring_search_messages": talks.search,
            "ring_export_conversation": talks.export,
            "ring_create_template": talks.create_template,
            "ring_list_templates": talks.list_templates,
            "ring_template_stats": talks.template_stats,
            "ring_get_template": talks.get_template,
            "ring_update_template": talks.update_template,
            "ring_use_template": talks.use_template,
            "ring_delete_template": talks.delete_template,
            "ring_store_receipt": receipts.store,
            "ring_get_receipt": receipts.get,
            "ring_list_receipts": receipts.list_kept,
            "ring_issue_receipt": receipts.issue,
            "ring_generate_receipt": receipts.generate,
            "ring_preview_receipt": receipts.preview,
            "ring_uncertified_logs": receipts.uncertified,
            "ring_receipt_logs": receipts.logs,
            "ring_verify_receipt": receipts.verify,
            "ring_key_pem": receipts.key_pem,
            "ring_key_jwk": receipts.key_jwk,
            "ring_keys": receipts.keys,
            "ring_raw_keys": receipts.raw_keys,
            "ring_checkpoint": proofs.checkpoint,
            "ring_inclusion": proofs.inclusion,
            "ring_consistency": proofs.consistency,
            "ring_tile": proofs.tile,
            "ring_entries": proofs.entries,
            "ring_registry": registry.whole,
            "ring_provider": registry.provider,
            "ring_provider_version": registry.version,
        }

    def names(self) -> set[str]:
        """What can be asked for."""
        return set(self._table)

    async def perform(self, name: str, call: RingCall) -> RingAnswer:
        """Do what the route with this handler's name is for. Raises Refused."""
        return await self._table[name](call)
