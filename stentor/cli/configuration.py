"""``stentor config``: every setting, its value, and where it came from."""

from typing import Any

import click

from stentor.cli.options import place_options, read_settings
from stentor.cli.render import Row, json_option, plain, print_json, print_rows
from stentor.core.lazy import load


@click.command("config")
@click.option("--all", "show_all", is_flag=True, help="Show defaults too.")
@json_option
@place_options
def config_command(show_all: bool, as_json: bool, **place: Any) -> None:
    """Show the settings in use and where they come from; secrets are masked."""
    settings = read_settings(place, tell=True)
    declared, compose = load("stentor.settings.declared"), load("stentor.settings.compose")
    rows: list[Row] = [
        {
            "name": setting.name,
            "value": compose.show_value(setting, settings.values[setting.name]),
            "origin": settings.origins.get(setting.name, "default"),
        }
        for setting in declared.DECLARED
        if setting.name in settings.values
    ]
    if as_json:
        print_json({"config_file": str(settings.config_file) if settings.config_file else None, "settings": rows})
        return
    shown = [row for row in rows if show_all or row["origin"] != "default"]
    columns = (("setting", plain("name")), ("value", plain("value")), ("from", plain("origin")))
    print_rows(shown, columns, "Every setting has its default; --all shows them.")
