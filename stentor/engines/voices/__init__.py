"""The models that speak, each behind :class:`~stentor.engines.synthesis.Synthesizer`."""
