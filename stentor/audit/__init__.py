"""Who changed what: one row for each change of state by API, console or command line."""
