"""``stentor doctor``: looks at the machine, the models and the books, and says what to do."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from stentor.cli.backend import Backend, open_backend
from stentor.cli.examine import Finding, examine_machine
from stentor.cli.options import place_options, read_settings
from stentor.cli.render import Row, json_option, print_json
from stentor.core.errors import StentorError
from stentor.core.lazy import load

if TYPE_CHECKING:
    from stentor.settings import Settings

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


@click.command()
@json_option
@place_options
def doctor(as_json: bool, **place: Any) -> int:
    """Look at everything Stentor needs, and say what to do; exit status 1 if there is a problem."""
    settings = read_settings(place, tell=not as_json)
    findings = [*examine_machine(settings), *_books(settings)]
    failed = any(finding.status == "problem" for finding in findings)
    if as_json:
        print_json({"ok": not failed, "checks": findings})
    else:
        for finding in findings:
            _show(finding)
    return 1 if failed else 0


def _show(finding: Finding) -> None:
    mark, colour = _MARKS[finding.status]
    click.echo(f"{click.style(mark, fg=colour)} {finding.name}: {finding.text}")
    if finding.step:
        click.echo(f"    → {finding.step}")


def _books(settings: "Settings") -> list[Finding]:
    """The books' own check: the balances against the events. Only where there are books."""
    try:
        if load("stentor.store.inspection").inspect_store(settings.store).revision is None:
            return []
        with open_backend(settings) as backend:
            rows = [_finding(row) for row in backend.read_doctor()]
            return [*rows, *_providers(settings, backend)]
    except StentorError as error:
        return [Finding("books", "problem", str(error), "Put that right, then run `stentor doctor` again.")]


def _providers(settings: "Settings", backend: Backend) -> Iterator[Finding]:
    """Providers that models name and the vault doesn't have."""
    wanted = [(spec.id, spec.remote.provider) for spec in settings.runtime.models if spec.remote is not None]
    if not any(name for _, name in wanted):
        return
    known = {row.get("name") for row in backend.list_rows("/providers")}
    for model, name in wanted:
        if name and name not in known:
            step = f"Run: stentor providers add {name} --base-url URL"
            yield Finding(f"model {model}", "problem", f"The vault has no provider '{name}'.", step)


def _finding(row: Row) -> Finding:
    fine = bool(row.get("ok"))
    step = str(row.get("step") or ("" if fine else "Stop the server and keep a copy of the data folder."))
    return Finding(str(row.get("name", "books")), "ok" if fine else "problem", str(row.get("text", "")), step)
