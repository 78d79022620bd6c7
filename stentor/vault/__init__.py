"""Secrets at rest: data keys wrapped by the master key, and what is sealed with them."""
