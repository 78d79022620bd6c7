"""``stentor providers``, ``stentor secrets``, ``stentor vault``: what the server was trusted with.

A secret is never an argument, where every user of the machine could read it: it is asked for, or read from stdin.
"""

import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from stentor.cli.backend import open_backend
from stentor.cli.options import place_options, read_settings
from stentor.cli.render import Row, json_option, plain, show_row, show_rows, time_of

KINDS = click.Choice(["openai", "anthropic"])


def read_secret(what: str) -> str:
    """A secret from stdin where that isn't a terminal, else asked for without showing it."""
    if sys.stdin.isatty():
        return str(click.prompt(what, hide_input=True, default="", show_default=False)).strip()
    return sys.stdin.readline(8192).strip()


@click.group()
def providers() -> None:
    """Servers elsewhere that run remote models, and their credentials."""


@providers.command("list")
@json_option
@place_options
def list_providers(as_json: bool, **place: Any) -> None:
    """List all providers, without their credentials."""
    with open_backend(read_settings(place)) as backend:
        rows = backend.list_rows("/providers")
    show_rows(rows, _PROVIDERS, "There are no providers. Add one with `stentor providers add`.", as_json)


@providers.command("add")
@click.argument("name")
@click.option("--kind", type=KINDS, default="openai", show_default=True, help="What it speaks.")
@click.option("--base-url", required=True, help="Its address, such as https://api.example.com/v1.")
@json_option
@place_options
def add_provider(name: str, kind: str, base_url: str, as_json: bool, **place: Any) -> None:
    """Add a provider; its credential is asked for, or read from stdin (empty: it wants none)."""
    ask = {"name": name, "kind": kind, "base_url": base_url, "credential": read_secret("Credential")}
    with open_backend(read_settings(place)) as backend:
        row = backend.call("POST", "/providers", ask)
    show_row(row, f"Provider {name} is added.", as_json)


@providers.command("change")
@click.argument("name")
@click.option("--kind", type=KINDS, help="What it speaks.")
@click.option("--base-url", help="A new address; the credential is needed again.")
@click.option("--credential", "renew", is_flag=True, help="Ask for a new credential.")
@json_option
@place_options
def change_provider(
    name: str, kind: str | None, base_url: str | None, renew: bool, as_json: bool, **place: Any
) -> None:
    """Change a provider."""
    credential = read_secret("Credential") if renew or base_url is not None else None
    change = {"kind": kind, "base_url": base_url, "credential": credential}
    with open_backend(read_settings(place)) as backend:
        row = backend.call("PATCH", f"/providers/{quote(name, safe='')}", change)
    show_row(row, f"Provider {name} is changed.", as_json)


@providers.command("remove")
@click.argument("name")
@json_option
@place_options
def remove_provider(name: str, as_json: bool, **place: Any) -> None:
    """Forget a provider and its credential."""
    with open_backend(read_settings(place)) as backend:
        row = backend.call("DELETE", f"/providers/{quote(name, safe='')}")
    show_row(row, f"Provider {name} is gone.", as_json)


@providers.command("test")
@click.argument("name")
@json_option
@place_options
def test_provider(name: str, as_json: bool, **place: Any) -> None:
    """Ask a provider for its models."""
    with open_backend(read_settings(place)) as backend:
        row = backend.call("POST", f"/providers/{quote(name, safe='')}/test")
    show_row(row, f"{name}: {row.get('text')}", as_json)
    if not row.get("ok"):
        click.get_current_context().exit(1)


@click.group()
def secrets() -> None:
    """What the vault keeps: tokens for the model hub, providers' credentials."""


@secrets.command("list")
@json_option
@place_options
def list_secrets(as_json: bool, **place: Any) -> None:
    """List names and the last four characters; nothing more can be read again."""
    with open_backend(read_settings(place)) as backend:
        rows = backend.list_rows("/secrets")
    show_rows(rows, _SECRETS, "The vault is empty.", as_json)


@secrets.command("set-hub-token")
@click.option("--name", default="default", show_default=True, help="Of several, the one that was set last is used.")
@json_option
@place_options
def set_hub_token(name: str, as_json: bool, **place: Any) -> None:
    """Keep a token for the model hub; it is asked for, or read from stdin."""
    ask = {"name": name, "token": read_secret("Token")}
    with open_backend(read_settings(place)) as backend:
        row = backend.call("POST", "/hf-tokens", ask)
    show_row(row, f"The token {name} is kept.", as_json)


@secrets.command("remove-hub-token")
@click.option("--name", default="default", show_default=True, help="Which one.")
@json_option
@place_options
def remove_hub_token(name: str, as_json: bool, **place: Any) -> None:
    """Forget a token for the model hub."""
    with open_backend(read_settings(place)) as backend:
        row = backend.call("DELETE", f"/hf-tokens/{quote(name, safe='')}")
    show_row(row, f"The token {name} is gone.", as_json)


@click.group()
def vault() -> None:
    """The master key, under which all secrets are sealed."""


@vault.command("rotate")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The new key: 64 hex digits or base64 of 32 bytes. [default: one is made, where the key lies in a file]",
)
@json_option
@place_options
def rotate(key_file: Path | None, as_json: bool, **place: Any) -> None:
    """Seal with a new master key from now on; the server goes on meanwhile, and everything keeps working."""
    settings = read_settings(place)
    given = None if key_file is None else key_file.read_text("ascii", "replace").strip()
    with open_backend(settings) as backend:
        row = backend.call("POST", "/vault/rotate", {"master_key": given})
    text = f"{row.get('data_keys')} data keys are wrapped with master key {row.get('master_key_id')}."
    if row.get("kept"):
        text += f"\nThe old key is kept in {row['kept']}: backups from before need it."
    elif settings.vault.master_key:
        text += "\nSet STENTOR_MASTER_KEY to the new key before the next start."
    show_row(row, text, as_json)


def _hint(row: Row) -> str:
    return f"…{row['hint']}" if row.get("hint") else "set" if row.get("has_credential", True) else "–"


_PROVIDERS = (
    ("name", plain("name")),
    ("kind", plain("kind")),
    ("address", plain("base_url")),
    ("credential", _hint),
    ("changed", time_of("updated_us")),
)
_SECRETS = (
    ("kind", plain("kind")),
    ("name", plain("name")),
    ("secret", _hint),
    ("changed", time_of("updated_us")),
)
