"""``stentor import``: take over what other programs were told."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from stentor.cli.backend import find_server, open_backend
from stentor.cli.group import WordsGroup
from stentor.cli.options import place_options, read_settings
from stentor.cli.render import json_option, plain, print_json, print_rows
from stentor.core.errors import StentorError
from stentor.core.lazy import load

Command = TypeVar("Command", bound=Callable[..., Any])


_LITELLM = "Its file is short: write the same into stentor.toml, word for word as in docs/guide/first-steps.md."


@click.group("import", cls=WordsGroup, words={"litellm": _LITELLM})
def import_command() -> None:
    """Take over models and settings of other programs."""


def _import_options(command: Command) -> Command:
    dry = click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
    return place_options(json_option(dry(command)))


@import_command.command("gateway-config")
@click.argument("file", type=click.Path(path_type=Path))
@_import_options
def gateway_config(file: Path, dry_run: bool, as_json: bool, **place: Any) -> None:
    """LLM Gateway's data/config.json: slots, settings, prices, limits, the hub's token."""
    _apply(load("stentor.settings.import_gateway").read_gateway_config(file), place, dry_run, as_json)


@import_command.command("model-config")
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@_import_options
def model_config(files: tuple[Path, ...], dry_run: bool, as_json: bool, **place: Any) -> None:
    """Model descriptions such as assets/config/*.json, a model each."""
    _apply(load("stentor.settings.import_gateway").read_model_configs(list(files)), place, dry_run, as_json)


@import_command.command("llama-swap")
@click.argument("file", type=click.Path(path_type=Path))
@_import_options
def llama_swap(file: Path, dry_run: bool, as_json: bool, **place: Any) -> None:
    """llama-swap's YAML."""
    _apply(load("stentor.settings.import_llama_swap").read_llama_swap(file), place, dry_run, as_json)


@import_command.command("ollama")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--copy", is_flag=True, help="Copy the files into MODEL_CACHE; else they are used where they lie.")
@_import_options
def ollama(folder: Path | None, copy: bool, dry_run: bool, as_json: bool, **place: Any) -> None:
    """Ollama's models: [default: OLLAMA_MODELS, else ~/.ollama/models]."""
    module = load("stentor.settings.import_ollama")
    store = folder or module.find_store(dict(os.environ))
    copy_to = read_settings(dict(place)).model_cache / "ollama" if copy else None
    found = module.read_ollama_store(store, copy_to)

    def fetch(added: set[str]) -> None:
        if copy_to is not None:
            module.copy_blobs(store, copy_to, [model for model in found.models if model["id"] in added])

    _apply(found, place, dry_run, as_json, fetch)


def _apply(
    found: Any,
    place: dict[str, Any],
    dry_run: bool,
    as_json: bool,
    fetch: Callable[[set[str]], None] | None = None,
) -> None:
    """Write the settings file, make the calls, and show all that changed."""
    settings = read_settings(dict(place))
    path = settings.config_file or Path.cwd() / "stentor.toml"
    plan = load("stentor.settings.imported").plan_file(path, found)
    rows = [*plan.changes, *(call.change for call in found.calls), *found.skipped]
    if not dry_run:
        if fetch is not None:
            fetch({change.name for change in plan.changes if change.action == "add"})
        if plan.text is not None:
            _write(path, plan.text)
        if found.calls:
            with open_backend(settings) as backend:
                for call in found.calls:
                    backend.call(call.method, call.path, call.body)
    _show(path, rows, dry_run, as_json)
    if not dry_run and any(row.kind == "setting" and row.action == "set" for row in rows) and find_server(settings):
        click.echo(
            "stentor: the running server takes over models by itself, other settings when it is restarted.", err=True
        )


def _write(path: Path, text: str) -> None:
    """Replace the settings file whole; the old one stays beside it. It may hold secrets, so it is its owner's alone."""
    try:
        if path.is_file():
            path.with_name(path.name + ".bak").write_bytes(path.read_bytes())
        fresh = path.with_name(f".{path.name}.new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        fresh.replace(path)
    except OSError as error:
        raise StentorError(f"The settings file {path} can't be written: {error.strerror}.") from None


def _show(path: Path, rows: list[Any], dry_run: bool, as_json: bool) -> None:
    plain_rows = [{"action": r.action, "kind": r.kind, "name": r.name, "detail": r.detail} for r in rows]
    if as_json:
        print_json({"config_file": str(path), "dry_run": dry_run, "changes": plain_rows})
        return
    columns = tuple((name, plain(name)) for name in ("action", "kind", "name", "detail"))
    print_rows(plain_rows, columns, "There is nothing to take over.")
    if rows:
        click.echo(f"Nothing was changed; {path} stays as it is." if dry_run else f"Written to {path}.", err=True)
