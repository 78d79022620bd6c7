"""Texts spoken aloud."""
