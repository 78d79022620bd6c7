"""``stentor usage``: what was used, by whom, and what it cost."""

from typing import Any

import click

from stentor.cli.backend import open_backend
from stentor.cli.options import place_options, read_settings
from stentor.cli.render import Row, json_option, money_of, plain, show_rows, time_of


@click.command()
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=20, show_default=True, help="Newest events to show."
)
@click.option("--key", help="Only this key's id.")
@click.option("--user", help="Only this user's name or id.")
@click.option("--model", help="Only this model.")
@json_option
@place_options
def usage(limit: int, as_json: bool, config: str | None, data_dir: str | None, **filters: Any) -> None:
    """List usage events, newest first; request_id is the answer's x-request-id header."""
    given = {name: value for name, value in filters.items() if value is not None}
    with open_backend(read_settings({"config": config, "data_dir": data_dir})) as backend:
        rows = backend.list_usage(given, limit)
    show_rows(rows, _COLUMNS, "No usage matches that." if given else "Nothing has been used yet.", as_json)


def _latency(row: Row) -> str:
    latency = row.get("latency_us")
    return f"{latency / 1e6:.2f} s" if isinstance(latency, int) else "–"


_COLUMNS = (
    ("time", time_of("settled_us")),
    ("request_id", plain("request_id")),
    ("model", plain("model")),
    ("in", plain("input_tokens")),
    ("cached", plain("cached_tokens")),
    ("out", plain("output_tokens")),
    ("cost", money_of("cost_nano")),
    ("status", plain("status")),
    ("reason", plain("reason")),
    ("took", _latency),
)
