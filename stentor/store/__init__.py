"""The durable part: one schema, one writer, group commits. All SQL of the domains lives in their ``table`` modules."""
