"""``stentor tiers``, ``stentor projects`` and ``stentor prices``."""

from typing import Any
from urllib.parse import quote

import click

from stentor.cli.backend import open_backend
from stentor.cli.options import place_options, read_settings
from stentor.cli.render import Row, format_usd, json_option, money_of, plain, show_row, show_rows, time_of
from stentor.cli.values import Dollars, Moment

_WINDOWS = ("none", "day", "month")
_NO_LIMIT = -1


# -- tiers -------------------------------------------------------------------------------------------------------------


@click.group()
def tiers() -> None:
    """List, make, change and remove tiers."""


@tiers.command("list")
@json_option
@place_options
def list_tiers(as_json: bool, **place: Any) -> None:
    """List all tiers with their limits."""
    with open_backend(read_settings(place)) as backend:
        show_rows(backend.list_rows("/tiers"), _TIER_COLUMNS, "There are no tiers.", as_json)


@tiers.command("set")
@click.argument("tier")
@click.option("--requests-per-minute", type=click.IntRange(min=-1), help="-1: no limit.")
@click.option("--tokens-per-minute", type=click.IntRange(min=-1), help="-1: no limit.")
@click.option("--concurrency", type=click.IntRange(min=-1), help="-1: no limit.")
@click.option("--prepaid/--free", default=None, help="Whether requests are paid from a balance.")
@json_option
@place_options
def set_tier(tier: str, as_json: bool, config: str | None, data_dir: str | None, **given: Any) -> None:
    """Make a tier, or change the limits of one that exists; holds for its users at once."""
    body = {name: None if value == _NO_LIMIT else value for name, value in given.items() if value is not None}
    with open_backend(read_settings({"config": config, "data_dir": data_dir})) as backend:
        exists = any(row.get("id") == tier for row in backend.list_rows("/tiers"))
        if exists:
            row = backend.call("PATCH", f"/tiers/{quote(tier, safe='')}", body)
        else:
            row = backend.call("POST", "/tiers", {"id": tier, **body})
    show_rows([row], _TIER_COLUMNS, "", as_json)


@tiers.command("delete")
@click.argument("tier")
@json_option
@place_options
def delete_tier(tier: str, as_json: bool, **place: Any) -> None:
    """Remove a tier that nobody has."""
    with open_backend(read_settings(place)) as backend:
        row = backend.call("DELETE", f"/tiers/{quote(tier, safe='')}")
    show_row(row, f"The tier {tier} is gone.", as_json)


# -- projects ----------------------------------------------------------------------------------------------------------


@click.group()
def projects() -> None:
    """List, make, change and close projects."""


@projects.command("list")
@click.option("--user", help="Only this owner's.")
@json_option
@place_options
def list_projects(user: str | None, as_json: bool, **place: Any) -> None:
    """List projects with their budgets."""
    with open_backend(read_settings(place)) as backend:
        rows = backend.list_rows("/projects", {"user": user})
    show_rows(rows, _PROJECT_COLUMNS, "There are no projects.", as_json)


@projects.command("create")
@click.argument("name")
@click.option("--owner", default="admin", show_default=True, help="Name or id of whose it is.")
@json_option
@place_options
def create_project(name: str, owner: str, as_json: bool, **place: Any) -> None:
    """Make a project for a team."""
    with open_backend(read_settings(place)) as backend:
        row = backend.call("POST", "/projects", {"name": name, "owner": owner})
    show_rows([row], _PROJECT_COLUMNS, "", as_json)


@projects.command("budget")
@click.argument("project")
@click.argument("window", type=click.Choice(_WINDOWS))
@click.argument("limit", type=Dollars(), required=False)
@json_option
@place_options
def set_budget(project: str, window: str, limit: int | None, as_json: bool, **place: Any) -> None:
    """Set a project's budget in USD for all time, a day or a month; without a limit, lift it."""
    with open_backend(read_settings(place)) as backend:
        row = backend.call("PATCH", f"/projects/{quote(project, safe='')}", {"budgets": {window: limit}})
    show_rows([row], _PROJECT_COLUMNS, "", as_json)


@projects.command("set")
@click.argument("project")
@click.option("--name", help="What it is called from now on.")
@click.option("--open", "reopen", is_flag=True, help="Open it again: its keys work as they did.")
@json_option
@place_options
def set_project(project: str, name: str | None, reopen: bool, as_json: bool, **place: Any) -> None:
    """Rename a project, or open a closed one again."""
    change = {} if name is None else {"name": name}
    body = {**change, **({"active": True} if reopen else {})}
    if not body:
        raise click.UsageError("Say what is to change: --name, --open.")
    with open_backend(read_settings(place)) as backend:
        row = backend.call("PATCH", f"/projects/{quote(project, safe='')}", body)
    show_rows([row], _PROJECT_COLUMNS, "", as_json)


@projects.command("close")
@click.argument("project")
@json_option
@place_options
def close_project(project: str, as_json: bool, **place: Any) -> None:
    """Close a project; its keys stop at once, what it used stays in the books."""
    with open_backend(read_settings(place)) as backend:
        row = backend.call("DELETE", f"/projects/{quote(project, safe='')}")
    show_rows([row], _PROJECT_COLUMNS, "", as_json)


# -- prices ------------------------------------------------------------------------------------------------------------


@click.group()
def prices() -> None:
    """List and set what models cost."""


@prices.command("list")
@json_option
@place_options
def list_prices(as_json: bool, **place: Any) -> None:
    """List what each model costs now, in USD per million; * is every local model without its own price."""
    with open_backend(read_settings(place)) as backend:
        show_rows(backend.list_rows("/pricing"), _PRICE_COLUMNS, "There are no prices.", as_json)


@prices.command("history")
@click.argument("model")
@json_option
@place_options
def price_history(model: str, as_json: bool, **place: Any) -> None:
    """List all prices of a model, the latest first."""
    with open_backend(read_settings(place)) as backend:
        show_rows(backend.list_rows(f"/pricing/{quote(model, safe='')}"), _PRICE_COLUMNS, "There are none.", as_json)


@prices.command("set")
@click.argument("model")
@click.option("--input", "input_nano", type=Dollars(), required=True, help="USD per million input tokens.")
@click.option("--output", "output_nano", type=Dollars(), required=True, help="USD per million output tokens.")
@click.option("--cached", "cached_nano", type=Dollars(), help="USD per million cached tokens. [default: as input]")
@click.option("--audio-second", "audio_second_nano", type=Dollars(), help="USD per million seconds of audio.")
@click.option("--character", "character_nano", type=Dollars(), help="USD per million characters.")
@click.option("--request", "request_nano", type=Dollars(), help="USD per million requests.")
@click.option("--from", "effective_us", type=Moment(), help="A span like 2d, or a date. [default: now]")
@json_option
@place_options
def set_price(model: str, as_json: bool, config: str | None, data_dir: str | None, **given: Any) -> None:
    """Give a model a price from now, or from a later moment on."""
    body = {"model": model, **{name: value for name, value in given.items() if value is not None}}
    with open_backend(read_settings({"config": config, "data_dir": data_dir})) as backend:
        row = backend.call("POST", "/pricing", body)
    show_rows([row], _PRICE_COLUMNS, "", as_json)


def _budgets(row: Row) -> str:
    shown = [
        f"{format_usd(budget['used_nano'])} of {format_usd(budget['limit_nano'])}"
        + ("" if budget["window"] == "none" else f" a {budget['window']}")
        for budget in row.get("budgets") or []
    ]
    return ", ".join(shown) or "–"


_TIER_COLUMNS = (
    ("id", plain("id")),
    ("name", plain("name")),
    ("requests/min", plain("requests_per_minute")),
    ("tokens/min", plain("tokens_per_minute")),
    ("at a time", plain("concurrency")),
    ("prepaid", plain("prepaid")),
)
_PROJECT_COLUMNS = (
    ("id", plain("id")),
    ("name", plain("name")),
    ("owner", plain("owner_id")),
    ("active", plain("active")),
    ("budgets", _budgets),
    ("made", time_of("created_us")),
)
_PRICE_COLUMNS = (
    ("model", plain("model")),
    ("from", time_of("effective_us")),
    ("input", money_of("input_nano")),
    ("cached", money_of("cached_nano")),
    ("output", money_of("output_nano")),
    ("audio s", money_of("audio_second_nano")),
    ("characters", money_of("character_nano")),
    ("requests", money_of("request_nano")),
    ("version", plain("version")),
)
