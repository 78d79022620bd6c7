"""``stentor ps``, ``stentor slots`` and ``stentor logs``: what runs, where, and what it says."""

from typing import Any
from urllib.parse import quote

import click

from stentor.cli.backend import START_TIMEOUT_S, Backend, require_server
from stentor.cli.options import place_options, read_settings
from stentor.cli.render import Row, json_option, plain, print_json, printable, show_row, show_rows

FOLLOW_WAIT_S = 10


@click.command()
@json_option
@place_options
def ps(as_json: bool, **place: Any) -> None:
    """List what runs: the slots that hold an engine, and engines that failed."""
    rows = require_server(read_settings(place), "listing engines").list_slots()
    rows = [row for row in rows if row.get("status") != "empty"]
    show_rows(rows, _COLUMNS, "No engine is running.", as_json)


@click.group()
def slots() -> None:
    """List, load, drain and unload slots."""


@slots.command("list")
@json_option
@place_options
def list_slots(as_json: bool, **place: Any) -> None:
    """List all slots, empty ones too."""
    rows = require_server(read_settings(place), "listing slots").list_slots()
    show_rows(rows, _COLUMNS, "There are no slots.", as_json)


@slots.command("load")
@click.argument("model", required=False)
@click.option("--path", "model_path", help="A file below the model folders, in place of a model's name.")
@click.option("--slot", type=int, help="The port to load it at; what is there drains first.")
@click.option("--type", "model_type", help="text, vision, embedding, …; found out where it is left out.")
@click.option("--ctx", "ctx_size", type=click.IntRange(min=128), help="Tokens of context per request.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of the engine.")
@json_option
@place_options
def load(as_json: bool, config: str | None, data_dir: str | None, **given: Any) -> None:
    """Load a model of the catalogue, or a file, and wait until it answers."""
    body = {name: value for name, value in given.items() if value is not None}
    backend = require_server(read_settings({"config": config, "data_dir": data_dir}), "loading a model")
    row = backend.call("POST", "/slots/load", body, timeout_s=START_TIMEOUT_S)
    show_row(row, f"{row.get('model')} is loaded in slot {row.get('slot')}.", as_json)


@slots.command("unload")
@click.argument("slot", type=int)
@json_option
@place_options
def unload(slot: int, as_json: bool, **place: Any) -> None:
    """Let a slot's requests end, then stop its engine."""
    _end(slot, "unload", as_json, place)


@slots.command("drain")
@click.argument("slot", type=int)
@json_option
@place_options
def drain(slot: int, as_json: bool, **place: Any) -> None:
    """Give a slot no new requests, and wait for those that run."""
    _end(slot, "drain", as_json, place)


def _end(slot: int, action: str, as_json: bool, place: dict[str, Any]) -> None:
    backend = require_server(read_settings(place), f"to {action} a slot")
    row = backend.call("POST", f"/slots/{slot}/{action}", {}, timeout_s=START_TIMEOUT_S)
    show_row(row, f"Slot {slot} is {row.get('status')}.", as_json)


@click.command()
@click.argument("slot")
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written from now on.")
@json_option
@place_options
def logs(slot: str, follow: bool, as_json: bool, **place: Any) -> None:
    """Print the last log lines of an engine, named by its slot, its instance or its model."""
    backend = require_server(read_settings(place), "reading logs")
    name = _find_instance(backend, slot)
    page = _page(backend, name, 0, 0)
    if as_json and not follow:
        print_json(page.get("data", []))
        return
    while True:
        for line in page.get("data", []):
            click.echo(printable(str(line)))
        if not follow:
            return
        page = _page(backend, name, int(page.get("next") or 0), FOLLOW_WAIT_S)


def _find_instance(backend: Backend, name: str) -> str:
    """A model's name as its newest instance; everything else as it is."""
    found = [row for row in backend.list_slots() if row.get("model") == name]
    return str(max(found, key=lambda row: row.get("started_us") or 0)["id"]) if found else name


def _page(backend: Backend, name: str, after: int, wait_s: int) -> Row:
    return backend.call("GET", f"/slots/{quote(name, safe='')}/log", query={"after": after, "wait_s": wait_s})


_COLUMNS = (
    ("slot", plain("port")),
    ("status", plain("status")),
    ("model", plain("model")),
    ("type", plain("model_type")),
    ("context", plain("ctx_size")),
    ("pid", plain("pid")),
    ("running", plain("running")),
    ("places", plain("places")),
    ("MiB", plain("ram_mb")),
    ("CPU %", plain("cpu_percent")),
    ("restarts", plain("restarts")),
    ("reason", plain("reason")),
)
