"""The steps that make a database, in order. Loaded only where a database has to change."""
