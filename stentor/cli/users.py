"""``stentor users``: list and make users, and fill their balances."""

from typing import Any
from urllib.parse import quote

import click

from stentor.cli.backend import open_backend
from stentor.cli.group import WordsGroup
from stentor.cli.options import place_options, read_settings
from stentor.cli.render import (
    format_usd,
    json_option,
    money_of,
    plain,
    print_json,
    print_rows,
    show_row,
    show_rows,
    time_of,
)
from stentor.cli.values import Dollars
from stentor.core.lazy import load

_GONE = "What somebody used stays in the books; `stentor users set NAME --inactive` shuts them out with all their keys."


@click.group(cls=WordsGroup, words=dict.fromkeys(("delete", "remove", "rm"), _GONE))
def users() -> None:
    """List and make users, and fill their balances."""


@users.command("list")
@json_option
@place_options
def list_users(as_json: bool, **place: Any) -> None:
    """List all users."""
    with open_backend(read_settings(place)) as backend:
        rows = backend.list_users()
    show_rows(rows, _COLUMNS, "There are no users yet; the first start of the server makes the admin.", as_json)


@users.command("create")
@click.argument("name")
@click.option("--email", help="Their address.")
@click.option("--role", type=click.Choice(["user", "admin"]), default="user", show_default=True, help="Admins manage.")
@click.option("--tier", default=None, help="payg (prepaid balance), sub, or admin. [default: sub, for admins admin]")
@json_option
@place_options
def create(name: str, as_json: bool, config: str | None, data_dir: str | None, **given: Any) -> None:
    """Make a user; give them a key with `stentor keys create --user NAME`."""
    tier = given["tier"] or ("admin" if given["role"] == "admin" else "sub")
    ask = {"name": name, "email": given["email"], "role": given["role"], "tier": tier}
    with open_backend(read_settings({"config": config, "data_dir": data_dir})) as backend:
        row = backend.add_user(ask)
    show_row(row, f"User {name} is made (id {row.get('id')}, tier {tier}).", as_json)


@users.command("topup", context_settings={"ignore_unknown_options": True})  # or -5 is taken for an option
@click.argument("user")
@click.argument("amount", type=Dollars(negative=True))
@click.option("--note", default="", help="Why, for the books.")
@json_option
@place_options
def topup(user: str, amount: int, note: str, as_json: bool, **place: Any) -> None:
    """Add USD to a user's balance; a negative amount corrects it."""
    with open_backend(read_settings(place)) as backend:
        row = backend.top_up(user, amount, note)
    if as_json:
        print_json(row)
        return
    balance = row.get("balance_nano")
    tail = f"; the balance is now {format_usd(balance)}" if isinstance(balance, int) else ""
    click.echo(f"{format_usd(amount)} booked for {user}{tail}.")


@users.command("set")
@click.argument("user")
@click.option("--tier", help="Another tier.")
@click.option("--role", type=click.Choice(["user", "admin"]), help="Whoever is no admin any more keeps no admin key.")
@click.option("--email", help="Another address.")
@click.option("--active/--inactive", default=None, help="Let them in, or shut them out with all their keys.")
@json_option
@place_options
def change(user: str, as_json: bool, config: str | None, data_dir: str | None, **given: Any) -> None:
    """Change a user's tier, role, email, or whether they are let in."""
    body = {name: value for name, value in given.items() if value is not None}
    with open_backend(read_settings({"config": config, "data_dir": data_dir})) as backend:
        row = backend.call("PATCH", f"/users/{quote(user, safe='')}", body)
    if as_json:
        print_json(row)
        return
    print_rows([row], _COLUMNS, "")


@users.command("passwd")
@click.argument("user", default="admin")
@json_option
@place_options
def passwd(user: str, as_json: bool, **place: Any) -> None:
    """Give a user a new console password and print it; they change it at the next sign-in, and other sessions end."""
    password = load("stentor.people.passwords").new_password()
    body = {"password": password, "password_temporary": True}
    with open_backend(read_settings(place)) as backend:
        row = backend.call("PATCH", f"/users/{quote(user, safe='')}", body)
    if as_json:
        print_json({"user": row.get("name"), "password": password})
        return
    click.echo(password)
    click.echo(f"This is the new password of {row.get('name')}, shown this once.", err=True)


@users.command("ledger")
@click.argument("user")
@json_option
@place_options
def ledger(user: str, as_json: bool, **place: Any) -> None:
    """List what was paid in and taken off, newest first."""
    with open_backend(read_settings(place)) as backend:
        rows = backend.list_rows(f"/users/{quote(user, safe='')}/ledger")
    show_rows(rows, _LEDGER_COLUMNS, "Nothing was booked yet.", as_json)


_LEDGER_COLUMNS = (
    ("time", time_of("created_us")),
    ("kind", plain("kind")),
    ("amount", money_of("amount_nano")),
    ("by", plain("actor")),
    ("note", plain("note")),
    ("reference", plain("reference")),
)
_COLUMNS = (
    ("id", plain("id")),
    ("name", plain("name")),
    ("email", plain("email")),
    ("role", plain("role")),
    ("tier", plain("tier_id")),
    ("balance", money_of("balance_nano")),
    ("active", plain("active")),
    ("made", time_of("created_us")),
)
