"""The LLMRing surface."""
