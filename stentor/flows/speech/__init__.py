"""Texts spoken aloud, and what is said written down."""
