"""The reference pages, made from the tables that the code runs on.

``python -m stentor.cli.reference docs/reference`` writes them; with ``--check`` nothing is written and the exit status
is 1 where a page differs from what would be.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from stentor.cli.root import root
from stentor.core.lazy import load
from stentor.runtime.spec import ModelSpec
from stentor.settings.compose import show_value
from stentor.settings.declared import DECLARED, LMSERV_MARKS, UNUSED_ALIASES, Setting
from stentor.settings.models import MODEL_TEXTS

MADE = "<!-- Made by `make docs` from the code. Edit the tables there, not this page. -->"


def cell(text: str) -> str:
    """Text that is safe inside a table's cell."""
    return text.replace("\\|", "|").replace("|", "\\|").replace("\n", " ")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    names = list(head)
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(cell(value) for value in row)} |" for row in rows]
    return "\n".join(lines)


def page(title: str, *parts: str) -> str:
    """A page: title, the note that it is made, and its parts."""
    return "\n\n".join((f"# {title}", MADE, *(part for part in parts if part))) + "\n"


def settings_page() -> str:
    """Every setting, by group; then the keys of a model's table."""
    opening = (
        "Defaults are overridden by `stentor.toml` (`--config`, else `./stentor.toml`, else "
        "`{DATA_DIR}/stentor.toml`), that by the environment (`STENTOR_` + the name), and that by the command line "
        "(`--` + the name in lower case with dashes). In the file a setting's name is written in lower case. Relative "
        "paths start from the file's folder, elsewhere from the working directory. An empty environment variable "
        "counts as not set."
    )
    aliases = (
        "Aliases are read from the environment. If two names for one setting have different values, the server does "
        "not start. The aliases marked * are words so common that they count only with `STENTOR_COMPAT=lmserv` or "
        f"beside one of {', '.join(f'`{mark}`' for mark in LMSERV_MARKS)}. "
        + " ".join(f"`{name}` is accepted and not used: {why}." for name, why in UNUSED_ALIASES.items())
        + " Settings marked «later» are accepted and checked, and nothing reads them yet."
    )
    groups: dict[str, list[Setting]] = {}
    for setting in DECLARED:
        groups.setdefault(setting.group, []).append(setting)
    sections = [f"## {group}\n\n{_settings_table(settings)}" for group, settings in groups.items()]
    return page("Settings", opening, aliases, *sections, _models_section())


def _settings_table(settings: list[Setting]) -> str:
    return table(
        ("setting", "default", "value", "aliases", "what it does"),
        (
            (
                f"`{setting.name}`" + (" (secret)" if setting.secret else ""),
                _default(setting),
                setting.kind.words,
                _aliases(setting),
                setting.text,
            )
            for setting in settings
        ),
    )


def _default(setting: Setting) -> str:
    if setting.default_text:
        return setting.default_text
    shown = show_value(msgspec.structs.replace(setting, secret=False), setting.default)
    return f"`{shown}`" if shown else ""


def _aliases(setting: Setting) -> str:
    return ", ".join([*(f"`{name}`" for name in setting.aliases), *(f"`{name}`*" for name in setting.common_aliases)])


def _models_section() -> str:
    rows = []
    for field in msgspec.structs.fields(ModelSpec):
        required = field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT
        default = "" if required or field.default is msgspec.NODEFAULT else _plain(field.default)
        rows.append((f"`{field.name}`", default, MODEL_TEXTS.get(field.name, "")))
    text = (
        "Each `[[models]]` table of the settings file describes one model. Without any, and without `MODEL_PATH` or "
        "`--model`, a small starter model is served."
    )
    return f"## Models\n\n{text}\n\n{table(('key', 'default', 'what it does'), rows)}"


def _plain(value: Any) -> str:
    if value is None or value in ("", ()):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def cli_page() -> str:
    """Every command with its options."""
    opening = (
        "Every command takes `--config FILE` and `--data-dir PATH`; listings take `--json`. While a server runs, "
        "commands talk to it; otherwise they open its data folder themselves. Exit status: 0 done, 1 a problem, "
        "2 wrong usage."
    )
    return page("Command line", opening, *_commands(root, ("stentor",)))


def _commands(group: click.Group, path: tuple[str, ...]) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        full = (*path, name)
        if isinstance(command, click.Group):
            yield from _commands(command, full)
        else:
            yield _command(command, full)


def _command(command: click.Command, path: tuple[str, ...]) -> str:
    context = click.Context(command, info_name=" ".join(path))
    usage = " ".join(command.collect_usage_pieces(context))
    options = [
        record
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        if (record := parameter.get_help_record(context)) is not None
        if parameter.name not in ("config", "data_dir")
    ]
    hidden = any(isinstance(parameter, click.Option) and parameter.hidden for parameter in command.params)
    parts = [f"## {' '.join(path)}", f"`{' '.join(path)} {usage}`", command.help or ""]
    if options:
        parts.append(table(("option", "what it does"), ((f"`{name}`", text) for name, text in options)))
    if hidden:
        parts.append("Every [setting](settings.md) that is not secret is an option too.")
    return "\n\n".join(parts)


def routes_page() -> str:
    """Every route of the surface."""
    surface = load("stentor.http.surface").SURFACE
    rows = (
        (f"`{route.method}`", f"`{route.path}`", _access(route), route.summary)
        for route in sorted(surface, key=lambda route: (route.path, route.method))
    )
    text = "A path that is not listed is refused. `key` needs an API key with the scope named."
    return page("Routes", text, table(("method", "path", "who", "what it does"), rows))


def _access(route: Any) -> str:
    return f"{route.access} ({route.scope})" if route.access == "key" and route.scope else str(route.access)


def metrics_page() -> str:
    """Every metric."""
    rows = (
        (f"`{metric.name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help)
        for metric in load("stentor.telemetry.metrics").METRICS
    )
    text = "Prometheus metrics at `GET /metrics`. No label ever holds a key or a user."
    return page("Metrics", text, table(("metric", "kind", "labels", "what it counts"), rows))


def errors_page() -> str:
    """Every error code."""
    codes = load("stentor.http.errors").CODES
    rows = (
        (f"`{code}`", str(meaning.status), f"`{meaning.type}`", meaning.text)
        for code, meaning in sorted(codes.items(), key=lambda item: (item[1].status, item[0]))
    )
    text = '`/v1` answers errors as `{"error": {message, type, param, code}}`, other paths as `{"detail": …}`.'
    return page("Errors", text, table(("code", "status", "type", "what it means"), rows))


PAGES = {
    "settings.md": settings_page,
    "cli.md": cli_page,
    "routes.md": routes_page,
    "metrics.md": metrics_page,
    "errors.md": errors_page,
}


def list_stale(folder: Path) -> list[str]:
    """Names of pages in ``folder`` that differ from what the code says, missing ones included."""
    return [name for name, make in PAGES.items() if _read(folder / name) != make()]


def _read(path: Path) -> str | None:
    return path.read_text("utf-8") if path.is_file() else None


def main(arguments: list[str]) -> int:
    """Write or check the pages; returns the exit status."""
    folders = [Path(argument) for argument in arguments if not argument.startswith("-")]
    if len(folders) != 1:
        click.echo("usage: python -m stentor.cli.reference [--check] FOLDER", err=True)
        return 2
    if "--check" in arguments:
        stale = list_stale(folders[0])
        for name in stale:
            click.echo(f"{folders[0] / name} is out of date; run `make docs`.", err=True)
        return 1 if stale else 0
    folders[0].mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (folders[0] / name).write_text(make(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
