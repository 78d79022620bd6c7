"""``stentor webhooks``, ``stentor alerts``: whom the server tells of trouble, and what it told."""

from typing import Any
from urllib.parse import quote

import click

from stentor.alerts.values import EVENTS
from stentor.cli.backend import open_backend
from stentor.cli.credentials import read_secret
from stentor.cli.options import place_options, read_settings
from stentor.cli.render import Row, json_option, plain, printable, show_row, show_rows, time_of

TEST_S = 30.0


@click.group()
def webhooks() -> None:
    """Addresses that are told when a budget runs out, an engine keeps failing, or a cost wasn't paid."""


@webhooks.command("list")
@json_option
@place_options
def list_webhooks(as_json: bool, **place: Any) -> None:
    """List all webhooks, and what became of what was sent last."""
    with open_backend(read_settings(place)) as backend:
        rows = backend.list_rows("/webhooks")
    show_rows(rows, _WEBHOOKS, "There are no webhooks. Add one with `stentor webhooks add`.", as_json)


@webhooks.command("add")
@click.argument("name")
@click.option("--url", required=True, help="Where to send alerts, such as https://ops.example.org/stentor.")
@click.option(
    "--event",
    "events",
    type=click.Choice(EVENTS),
    multiple=True,
    help="What to tell of; may be repeated. [default: all]",
)
@click.option("--secret", "own", is_flag=True, help="Ask for the signing secret, or read it from stdin.")
@json_option
@place_options
def add_webhook(name: str, url: str, events: tuple[str, ...], own: bool, as_json: bool, **place: Any) -> None:
    """Send alerts there, too; the secret that signs them is made and shown once."""
    ask: Row = {"name": name, "url": url, "events": list(events)}
    if own:
        ask["secret"] = read_secret("Secret")
    with open_backend(read_settings(place)) as backend:
        row = backend.call("POST", "/webhooks", ask)
    text = f"Webhook {name} is added. Try it with `stentor webhooks test {name}`."
    if as_json or not row.get("secret"):
        show_row(row, text, as_json)
        return
    click.echo(row["secret"])  # alone, so that it can be kept with `>`
    click.echo(f"{text} Its messages are signed with the secret above, shown this once.", err=True)


@webhooks.command("remove")
@click.argument("name")
@json_option
@place_options
def remove_webhook(name: str, as_json: bool, **place: Any) -> None:
    """Send no more alerts there; what still waited is dropped."""
    with open_backend(read_settings(place)) as backend:
        row = backend.call("DELETE", f"/webhooks/{quote(name, safe='')}")
    show_row(row, f"Webhook {name} is gone.", as_json)


@webhooks.command("test")
@click.argument("name")
@json_option
@place_options
def test_webhook(name: str, as_json: bool, **place: Any) -> None:
    """Send a message that means nothing, once."""
    with open_backend(read_settings(place)) as backend:
        row = backend.call("POST", f"/webhooks/{quote(name, safe='')}/test", timeout_s=TEST_S)
    show_row(row, f"{name}: {printable(str(row.get('text')))}", as_json)
    if not row.get("ok"):
        click.get_current_context().exit(1)


@click.group()
def alerts() -> None:
    """What the server told its webhooks of."""


@alerts.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many.")
@json_option
@place_options
def list_alerts(limit: int, as_json: bool, **place: Any) -> None:
    """List the newest alerts, and whether they arrived."""
    with open_backend(read_settings(place)) as backend:
        rows = backend.list_rows("/alerts", limit=limit)
    show_rows(rows, _ALERTS, "There were no alerts.", as_json)


def _last(row: Row) -> str:
    last = row.get("last_delivery")
    if not isinstance(last, dict):
        return "–"
    problem = f": {printable(str(last['problem']))}" if last.get("problem") else ""
    return f"{last.get('state')} (attempt {last.get('attempts')}){problem}"


def _told(row: Row) -> str:
    return ", ".join(f"{each.get('webhook')}: {each.get('state')}" for each in row.get("deliveries", [])) or "–"


def _text(row: Row) -> str:
    message = row.get("message")
    return printable(str(message.get("text", ""))) if isinstance(message, dict) else "–"


_WEBHOOKS = (
    ("name", plain("name")),
    ("address", plain("url")),
    ("events", plain("events")),
    ("waiting", plain("pending")),
    ("last", _last),
)
_ALERTS = (
    ("time", time_of("created_us")),
    ("event", plain("event")),
    ("what", _text),
    ("sent", _told),
)
