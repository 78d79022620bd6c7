"""The registry of models: a source's, cached, with this server's own models and prices beside them."""
