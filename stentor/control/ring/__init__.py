"""The LLMRing surface at the authority: usage, receipts, registry, conversations, templates."""
