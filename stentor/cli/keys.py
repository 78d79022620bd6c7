"""``stentor keys``: make, list, revoke and rotate API keys."""

import time
from typing import Any
from urllib.parse import quote

import click

from stentor.cli.backend import open_backend
from stentor.cli.group import WordsGroup
from stentor.cli.options import place_options, read_settings
from stentor.cli.render import Row, json_option, money_of, plain, print_json, print_rows, show_row, show_rows, time_of
from stentor.cli.values import Dollars, KeyIdText, Moment, Span
from stentor.core.principal import SCOPES

DEFAULT_GRACE = "0s"
_MONEY = {
    "spending-limit": "spending_limit_nano",
    "budget-day": "budget_day_nano",
    "budget-month": "budget_month_nano",
}


@click.group(cls=WordsGroup, words=dict.fromkeys(("delete", "remove", "rm"), "Here it is `stentor keys revoke`."))
def keys() -> None:
    """Make, list, revoke and rotate API keys."""


@keys.command("create")
@click.option("--name", default="", help="What the key is for.")
@click.option("--user", default="admin", show_default=True, help="Name or id of its owner.")
@click.option("--project", default="", help="Id of the project that it belongs to. [default: its owner's own]")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="May be repeated. [default: inference]"
)
@click.option("--model", "models", multiple=True, metavar="MODEL", help="Only this model; may be repeated.")
@click.option("--endpoint", "endpoints", multiple=True, metavar="PATH", help="Only this path; may be repeated.")
@click.option("--token-limit", type=click.IntRange(min=1), help="Tokens that it may ever use, in and out.")
@click.option("--spending-limit", type=Dollars(), help="USD that it may ever spend.")
@click.option("--budget-day", type=Dollars(), help="USD a day, UTC.")
@click.option("--budget-month", type=Dollars(), help="USD a month, UTC.")
@click.option("--requests-per-minute", type=click.IntRange(min=1), help="Below its owner's own limit.")
@click.option("--tokens-per-minute", type=click.IntRange(min=1), help="Below its owner's own limit.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Requests at a time.")
@click.option("--expires", type=Moment(), help="A span like 30d, or a date.")
@json_option
@place_options
def create(as_json: bool, config: str | None, data_dir: str | None, **given: Any) -> None:
    """Make a key and print it; it is shown this once."""
    settings = read_settings({"config": config, "data_dir": data_dir})
    limits = {
        "token_limit": given["token_limit"],
        "spending_limit_nano": given["spending_limit"],
        "budget_day_nano": given["budget_day"],
        "budget_month_nano": given["budget_month"],
        "requests_per_minute": given["requests_per_minute"],
        "tokens_per_minute": given["tokens_per_minute"],
        "concurrency": given["concurrency"],
    }
    ask = {
        "name": given["name"],
        "user": given["user"],
        "project": given["project"],
        "scopes": list(given["scopes"]) or ["inference"],
        "models": list(given["models"]),
        "endpoints": list(given["endpoints"]),
        "limits": limits,
        "expires_us": given["expires"],
    }
    with open_backend(settings) as backend:
        _show_new(backend.add_key(ask), as_json)


@keys.command("list")
@json_option
@place_options
def list_keys(as_json: bool, **place: Any) -> None:
    """List all keys, without their texts."""
    with open_backend(read_settings(place)) as backend:
        rows = backend.list_keys()
    show_rows(rows, _COLUMNS, "There are no API keys yet. Make one with `stentor keys create`.", as_json)


@keys.command("limit")
@click.argument("key_id", type=KeyIdText())
@click.option("--token-limit", type=click.IntRange(min=-1), help="Tokens that it may ever use; -1 lifts it.")
@click.option("--spending-limit", "spending_limit_nano", type=Dollars(), help="USD that it may ever spend.")
@click.option("--budget-day", "budget_day_nano", type=Dollars(), help="USD a day, UTC.")
@click.option("--budget-month", "budget_month_nano", type=Dollars(), help="USD a month, UTC.")
@click.option("--requests-per-minute", type=click.IntRange(min=-1), help="-1 lifts it.")
@click.option("--tokens-per-minute", type=click.IntRange(min=-1), help="-1 lifts it.")
@click.option("--concurrency", type=click.IntRange(min=-1), help="Requests at a time; -1 lifts it.")
@click.option("--lift", multiple=True, type=click.Choice(_MONEY), help="Lift this limit; may be repeated.")
@json_option
@place_options
def limit(
    key_id: str, lift: tuple[str, ...], as_json: bool, config: str | None, data_dir: str | None, **given: Any
) -> None:
    """Change a key's limits; a new one counts what the key has used before."""
    limits = {name: None if value == -1 else value for name, value in given.items() if value is not None}
    limits |= dict.fromkeys(_MONEY[name] for name in lift)
    with open_backend(read_settings({"config": config, "data_dir": data_dir})) as backend:
        row = backend.call("PATCH", f"/api-keys/{quote(key_id, safe='')}", {"limits": limits})
    if as_json:
        print_json(row)
        return
    print_rows([row], _COLUMNS, "")


@keys.command("revoke")
@click.argument("key_id", type=KeyIdText())
@json_option
@place_options
def revoke(key_id: str, as_json: bool, **place: Any) -> None:
    """End a key now; its running requests are ended too."""
    with open_backend(read_settings(place)) as backend:
        row = backend.revoke_key(key_id)
    show_row(row, f"Key {key_id} is revoked.", as_json)


@keys.command("rotate")
@click.argument("key_id", type=KeyIdText())
@click.option(
    "--grace", type=Span(), default=DEFAULT_GRACE, show_default=True, help="How long the old key still works."
)
@json_option
@place_options
def rotate(key_id: str, grace: int, as_json: bool, **place: Any) -> None:
    """Replace a key by a new one with the same rights."""
    with open_backend(read_settings(place)) as backend:
        _show_new(backend.rotate_key(key_id, grace), as_json)


def _show_new(row: Row, as_json: bool) -> None:
    if as_json:
        print_json(row)
        return
    click.echo(row.get("key"))
    click.echo(f"Key id {row.get('id')}. The key above is shown this once.", err=True)


def _state(row: Row) -> str:
    if row.get("revoked_us"):
        return "revoked"
    expires_us = row.get("expires_us")
    if expires_us is not None and expires_us <= time.time() * 1e6:
        return "expired"
    return "ending" if row.get("grace_until_us") else "active"


def _limits(row: Row) -> str:
    limits = row.get("limits") or {}
    words = {
        "token_limit": "tokens",
        "requests_per_minute": "requests/min",
        "tokens_per_minute": "tokens/min",
        "concurrency": "at a time",
    }
    shown = [f"{limits[name]} {word}" for name, word in words.items() if limits.get(name) is not None]
    if limits.get("spending_limit_nano") is not None:
        shown.append(money_of("spending_limit_nano")(limits))
    for name, word in (("budget_day_nano", "a day"), ("budget_month_nano", "a month")):
        if limits.get(name) is not None:
            shown.append(f"{money_of(name)(limits)} {word}")
    return ", ".join(shown) or "–"


def _hint(row: Row) -> str:
    return f"…{row.get('hint', '')}"


_COLUMNS = (
    ("id", plain("id")),
    ("name", plain("name")),
    ("key", _hint),
    ("scopes", plain("scopes")),
    ("models", plain("models")),
    ("limits", _limits),
    ("state", _state),
    ("expires", time_of("expires_us")),
    ("made", time_of("created_us")),
)
