"""Receipts that prove something: an append-only log of usage, signed checkpoints, proofs that an outsider checks."""
