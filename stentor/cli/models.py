"""``stentor models``: list, fetch, start and stop models."""

from typing import Any

import click

from stentor.cli.backend import open_backend, require_server
from stentor.cli.options import place_options, read_settings
from stentor.cli.render import json_option, plain, show_row, show_rows


@click.group()
def models() -> None:
    """List, find, fetch, add, start and stop models."""


@models.command("list")
@json_option
@place_options
def list_models(as_json: bool, **place: Any) -> None:
    """List the models of the settings, and what runs of them."""
    with open_backend(read_settings(place)) as backend:
        rows = backend.list_models()
    show_rows(rows, _COLUMNS, "No model is configured. `stentor up` takes a small one by itself.", as_json)


@models.command("start")
@click.argument("model")
@click.option("--instances", type=click.IntRange(1, 64), default=1, show_default=True, help="At least so many.")
@json_option
@place_options
def start(model: str, instances: int, as_json: bool, **place: Any) -> None:
    """Bring a model up on the running server, and wait until it answers."""
    row = require_server(read_settings(place), "starting a model").start_model(model, instances)
    show_row(row, f"{model} is ready.", as_json)


@models.command("stop")
@click.argument("model")
@json_option
@place_options
def stop(model: str, as_json: bool, **place: Any) -> None:
    """Let a model's requests end, then stop it."""
    row = require_server(read_settings(place), "stopping a model").stop_model(model)
    show_row(row, f"{model} is stopped.", as_json)


@models.command("slots")
@json_option
@place_options
def slots(as_json: bool, **place: Any) -> None:
    """List the engine processes of the running server."""
    rows = require_server(read_settings(place), "listing engines").list_slots()
    show_rows(rows, _SLOT_COLUMNS, "No engine is running.", as_json)


_COLUMNS = (
    ("id", plain("id")),
    ("aliases", plain("aliases")),
    ("abilities", plain("abilities")),
    ("context", plain("context_size")),
    ("engine", plain("engine")),
    ("state", plain("state")),
    ("ready", plain("ready_instances")),
    ("source", plain("source")),
    ("reason", plain("reason")),
)
_SLOT_COLUMNS = (
    ("port", plain("port")),
    ("model", plain("model")),
    ("state", plain("state")),
    ("pid", plain("pid")),
    ("running", plain("running")),
    ("places", plain("places")),
    ("restarts", plain("restarts")),
    ("reason", plain("reason")),
)
