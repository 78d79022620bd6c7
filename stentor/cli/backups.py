"""``stentor backup`` and ``stentor restore``."""

from pathlib import Path
from typing import Any

import click
import msgspec

from stentor.cli.options import place_options, read_settings
from stentor.cli.render import json_option, print_json
from stentor.core.lazy import load


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@place_options
def backup(file: Path, as_json: bool, **place: Any) -> None:
    """Back the database up to FILE (tar.gz), beside a running server too. The master key isn't in it."""
    settings = read_settings(place)
    version = load("stentor.version").VERSION
    manifest = load("stentor.store.backup").make_backup(settings.store, file, version)
    if as_json:
        print_json({"file": str(file), **msgspec.to_builtins(manifest)})
        return
    click.echo(f"{file} holds the database ({manifest.size_bytes} bytes, schema {manifest.revision}).")
    keys = ", ".join(manifest.master_key_ids) or "none"
    click.echo(
        f"It does not hold the master key ({keys}), without which its secrets and keys are lost: keep a copy of "
        f"{settings.vault.key_file}, or of STENTOR_MASTER_KEY, in another place. Models aren't in it either.",
        err=True,
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--replace", is_flag=True, help="Keep the database that is there aside, and put the backup in its place.")
@json_option
@place_options
def restore(file: Path, replace: bool, as_json: bool, **place: Any) -> None:
    """Put a backup's database in place while no server runs."""
    settings = read_settings(place)
    manifest, kept = load("stentor.store.backup").restore_backup(settings.store, file, replace=replace)
    key = load("stentor.vault.master").find_master_key(settings.vault)
    missing = [name for name in manifest.master_key_ids if key is None or name != key.key_id]
    if as_json:
        print_json({**msgspec.to_builtins(manifest), "kept": None if kept is None else str(kept), "missing": missing})
    else:
        click.echo(f"The database of {file} is in place (schema {manifest.revision}).")
        if kept is not None:
            click.echo(f"The old one is {kept}.")
    if missing:
        click.echo(
            f"stentor: It needs the master key {', '.join(missing)}, which isn't here. Put it to "
            f"{settings.vault.key_file} or into STENTOR_MASTER_KEY before the next start.",
            err=True,
        )
