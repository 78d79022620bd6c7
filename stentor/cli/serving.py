"""``up`` and ``serve``: start the server in this process and say how to reach it."""

from typing import Any

import click
import msgspec

from stentor.cli.options import read_settings, setting_options
from stentor.core.lazy import load


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line when ready, and go on serving.")
@click.option("--admin-key", is_flag=True, help="Make the first API key an admin key.")
@setting_options
def up(as_json: bool, admin_key: bool, **overrides: Any) -> int:
    """Start the server; the first start fetches a small model and makes an admin and an API key."""
    settings = read_settings(overrides)
    return int(
        load("stentor.app").run(settings, on_ready=_announce_json if as_json else _announce, admin_key=admin_key)
    )


@click.command()
@setting_options
def serve(**overrides: Any) -> int:
    """Start the server with the models of the settings."""
    settings = read_settings(overrides)
    return int(load("stentor.app").run(settings, on_ready=_announce, admin_key=False))


def _announce_json(ready: Any) -> None:
    line = {name: getattr(ready, name) for name in ("base_url", "api_key", "admin_user", "admin_password", "model")}
    click.echo(msgspec.json.encode(line).decode())


def _announce(ready: Any) -> None:
    click.echo(f"Stentor is ready at {ready.base_url}")
