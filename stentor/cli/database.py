"""``stentor db``: what the database is, bring it up to date, check it."""

from typing import Any

import click
import msgspec

from stentor.cli.backend import open_backend
from stentor.cli.options import place_options, read_settings
from stentor.cli.render import Row, json_option, print_json
from stentor.core.errors import StentorError
from stentor.core.lazy import load


@click.group()
def db() -> None:
    """Look at the database, bring it up to date, check it."""


@db.command("status")
@json_option
@place_options
def status(as_json: bool, **place: Any) -> None:
    """Say where the database is, its schema, its size, and which system holds it."""
    found = _status(place)
    if as_json:
        print_json(found)
        return
    width = max(len(name) for name in found)
    for name, value in found.items():
        click.echo(f"{name:<{width}}  {'–' if value is None else value}")


@db.command("migrate")
@place_options
def migrate(**place: Any) -> None:
    """Bring the schema up to date; every start of the server does so too."""
    settings = read_settings(place)
    before = _inspect(settings)
    if before.server_pid is not None:
        click.echo(f"The server (process {before.server_pid}) is running and has schema {before.revision} already.")
        return
    with open_backend(settings):
        after = _inspect(settings)
    moved = (
        "made"
        if before.revision is None
        else "was up to date"
        if before.revision == after.revision
        else "brought up to date"
    )
    click.echo(f"{after.place} {moved}, schema {after.revision}.")


@db.command("check")
@json_option
@place_options
def check(as_json: bool, **place: Any) -> int:
    """Check the database and the books; exit status 1 if anything is wrong."""
    problems = _find_problems(read_settings(place))
    if as_json:
        print_json({"ok": not problems, "problems": problems})
    elif problems:
        for problem in problems:
            click.echo(f"{problem['check']}: {problem['problem']}", err=True)
    else:
        click.echo("The database is sound and the books agree.")
    return 1 if problems else 0


def _find_problems(settings: Any) -> list[Row]:
    problems: list[Row] = []
    try:
        problems += [{"check": "database", "problem": line} for line in _integrity(settings)]
        if _inspect(settings).revision is not None:
            with open_backend(settings) as backend:
                problems += [_problem(row) for row in backend.read_doctor() if not row.get("ok", False)]
    except StentorError as error:
        problems.append({"check": "database", "problem": str(error)})
    return problems


def _problem(row: Row) -> Row:
    return {"check": str(row.get("name", "books")), "problem": str(row.get("text", ""))}


def _inspect(settings: Any) -> Any:
    return load("stentor.store.inspection").inspect_store(settings.store)


def _integrity(settings: Any) -> list[str]:
    return load("stentor.store.inspection").check_integrity(settings.store)  # type: ignore[no-any-return]


def _status(place: dict[str, Any]) -> Row:
    found: Row = msgspec.to_builtins(_inspect(read_settings(place)), enc_hook=str)
    return found
