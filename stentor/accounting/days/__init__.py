"""A row a day: what was folded away of usage, and how often the server could serve."""
