"""``stentor report``, ``stentor audit``, ``stentor signups`` and ``stentor sessions``."""

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import click
import msgspec

from stentor.cli.backend import open_backend
from stentor.cli.options import place_options, read_settings
from stentor.cli.render import Row, json_option, money_of, plain, print_json, printable, show_row, show_rows, time_of
from stentor.cli.values import Span

_US_PER_S = 1_000_000


@click.command()
@click.option(
    "--by",
    type=click.Choice(["day", "model", "key", "user", "project"]),
    default="day",
    show_default=True,
    help="What to sum up by.",
)
@click.option("--user", help="Only this user's.")
@click.option("--model", help="Only this model's.")
@click.option("--last", type=Span(), help="Only the last days: 7d, 4w.")
@json_option
@place_options
def report(by: str, last: int | None, as_json: bool, config: str | None, data_dir: str | None, **given: Any) -> None:
    """Sum usage up by day, model, key, user or project."""
    filters = {"by": by, **{name: value for name, value in given.items() if value is not None}}
    if last is not None:
        filters["since_us"] = _now_us() - last * _US_PER_S
    with open_backend(read_settings({"config": config, "data_dir": data_dir})) as backend:
        rows = backend.list_rows("/usage/report", filters)
    show_rows(rows, _REPORT_COLUMNS, "Nothing has been used yet.", as_json)


@click.command()
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="Newest changes to show."
)
@click.option("--actor", help="Only what this user, key or system did.")
@click.option("--action", help="Only this, such as key_create.")
@json_option
@place_options
def audit(limit: int, as_json: bool, config: str | None, data_dir: str | None, **given: Any) -> None:
    """List who changed what, newest first."""
    filters = {name: value for name, value in given.items() if value is not None}
    with open_backend(read_settings({"config": config, "data_dir": data_dir})) as backend:
        rows = backend.list_rows("/audit", filters, limit)
    show_rows(rows, _AUDIT_COLUMNS, "Nothing was changed yet.", as_json)


@click.group()
def signups() -> None:
    """List, approve and reject requests for accounts."""


@signups.command("list")
@click.option("--state", type=click.Choice(["pending", "approved", "rejected"]), help="Only these.")
@json_option
@place_options
def list_signups(state: str | None, as_json: bool, **place: Any) -> None:
    """List requests for accounts, newest first."""
    with open_backend(read_settings(place)) as backend:
        rows = backend.list_rows("/signups", {"state": state})
    show_rows(rows, _SIGNUP_COLUMNS, "Nobody has asked for an account.", as_json)


@signups.command("approve")
@click.argument("signup")
@click.option("--tier", help="Another tier than the one asked for.")
@json_option
@place_options
def approve(signup: str, tier: str | None, as_json: bool, **place: Any) -> None:
    """Make the user and print their first key; it is shown this once."""
    with open_backend(read_settings(place)) as backend:
        row = backend.call("POST", f"/signups/{quote(signup, safe='')}/approve", {"tier": tier} if tier else {})
    if as_json:
        print_json(row)
        return
    click.echo(row["key"]["key"])
    click.echo(f"User {row['user']['name']} is made. The key above is shown this once; send it to them.", err=True)


@signups.command("reject")
@click.argument("signup")
@json_option
@place_options
def reject(signup: str, as_json: bool, **place: Any) -> None:
    """Say no to a request."""
    with open_backend(read_settings(place)) as backend:
        row = backend.call("POST", f"/signups/{quote(signup, safe='')}/reject", {})
    show_row(row, f"The request of {row.get('email')} is rejected.", as_json)


@click.group()
def sessions() -> None:
    """List and end console sessions."""


@sessions.command("list")
@click.option("--user", help="Only this user's.")
@json_option
@place_options
def list_sessions(user: str | None, as_json: bool, **place: Any) -> None:
    """List who is signed in."""
    with open_backend(read_settings(place)) as backend:
        rows = backend.list_rows("/sessions", {"user": user})
    show_rows(rows, _SESSION_COLUMNS, "Nobody is signed in.", as_json)


@sessions.command("end")
@click.argument("session")
@json_option
@place_options
def end_session(session: str, as_json: bool, **place: Any) -> None:
    """Sign somebody out."""
    with open_backend(read_settings(place)) as backend:
        row = backend.call("DELETE", f"/sessions/{quote(session, safe='')}")
    show_row(row, "The session has ended.", as_json)


def _now_us() -> int:
    return int(datetime.now(UTC).timestamp() * _US_PER_S)


def _change(row: Row) -> str:
    """What was set, as JSON; of a change only the fields that differ."""
    before, after = row.get("before") or {}, row.get("after") or {}
    changed = {name: value for name, value in after.items() if not before or before.get(name) != value}
    return printable(msgspec.json.encode(changed or before).decode())


_REPORT_COLUMNS = (
    ("group", plain("label")),
    ("events", plain("events")),
    ("in", plain("input_tokens")),
    ("cached", plain("cached_tokens")),
    ("out", plain("output_tokens")),
    ("cost", money_of("cost_nano")),
    ("absorbed", money_of("absorbed_nano")),
)
_AUDIT_COLUMNS = (
    ("time", time_of("created_us")),
    ("who", plain("actor")),
    ("way", plain("origin")),
    ("from", plain("address")),
    ("action", plain("action")),
    ("kind", plain("subject_kind")),
    ("id", plain("subject_id")),
    ("change", _change),
)
_SIGNUP_COLUMNS = (
    ("id", plain("id")),
    ("email", plain("email")),
    ("tier", plain("tier_id")),
    ("state", plain("state")),
    ("message", plain("message")),
    ("asked", time_of("created_us")),
)
_SESSION_COLUMNS = (
    ("id", plain("id")),
    ("user", plain("user")),
    ("kind", plain("kind")),
    ("address", plain("address")),
    ("since", time_of("created_us")),
    ("seen", time_of("seen_us")),
)
