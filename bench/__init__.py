"""Measures Stentor against nginx, LiteLLM and the bare upstream on one machine. Run `make bench`."""
