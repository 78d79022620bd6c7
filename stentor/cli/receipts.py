"""``stentor receipts``: check receipts and the log behind them, from any machine, with public keys alone."""

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec

from stentor.cli.options import place_options, read_settings
from stentor.cli.render import json_option, print_json
from stentor.core.errors import StentorError
from stentor.core.lazy import load

ANSWER_MAX_BYTES = 64 * 1024 * 1024
TIMEOUT_S = 30.0
_keys_option = click.option(
    "--keys", type=click.Path(dir_okay=False, path_type=Path), help="public-keys.json, got where you trust it."
)


@click.group()
def receipts() -> None:
    """Check receipts, and the log that stands behind them."""


@receipts.command("verify")
@click.argument("file", type=click.File("rb"))
@_keys_option
@click.option("--url", help="Server to get the public keys from.")
@json_option
def verify(file: Any, keys: Path | None, url: str | None, as_json: bool) -> int:
    """Check the receipt in FILE (- reads standard input): signature, place in the log, the log's signature."""
    if (keys is None) == (url is None):
        raise StentorError("Say whose keys to trust: --keys public-keys.json (works offline), or --url of the server.")
    document = _decode(keys.read_bytes() if keys else _get(str(url), "/receipts/public-keys.json"), "the keys")
    receipt = _decode(file.read(), "the receipt")
    if not isinstance(receipt, dict):
        raise StentorError("The file holds no receipt: a receipt is a JSON object.")
    receipt = receipt.get("receipt", receipt)
    module = load("stentor.receipts.verify")
    found = module.verify_receipt(receipt, module.read_keys(document))
    name = module.receipt_name(receipt)
    origin = found.checkpoint.origin if found.checkpoint else None
    if as_json:
        print_json({"receipt_id": name, "valid": found.valid, "log": found.log, "origin": origin,
                    "problem": found.problem})  # fmt: skip
    elif not found.valid:
        click.echo(f"{name}: NOT valid: {found.problem}.", err=True)
    elif found.log == "pending":
        click.echo(f"{name}: signature valid; it carries no proof from the log yet.")
    else:
        leaf = receipt["log"]["index"]
        click.echo(f"{name}: valid, leaf {leaf} of {found.checkpoint.size} in {origin}.")
    return 0 if found.valid else 1


@receipts.command("audit")
@click.argument("url")
@click.option("--state", type=click.Path(dir_okay=False, path_type=Path), help="Where to remember the last checkpoint.")
@click.option("--full", is_flag=True, help="Fetch every leaf's hash and build the tree anew.")
@_keys_option
@json_option
@place_options
def audit(url: str, state: Path | None, full: bool, keys: Path | None, as_json: bool, **place: Any) -> int:
    """Look at the receipt log of the server at URL: has it only grown since the last time?

    Exit status 1 if not, or if it starts anew under another origin. Run it from a machine of your own, now and then.
    """
    path = state or _state_path(url, place)
    module = load("stentor.receipts.monitor")
    given = None if keys is None else load("stentor.receipts.verify").read_keys(_decode(keys.read_bytes(), "the keys"))
    report = module.audit(lambda target: _get(url, target), _read_state(path, module.Seen), given, full=full)
    if report.seen is not None:
        _write_state(path, report.seen)
    if as_json:
        print_json({"ok": not report.problems, **msgspec.to_builtins(report)})
    else:
        for text in report.notes:
            click.echo(text)
        for text in report.problems:
            click.echo(text, err=True)
        if not report.problems:
            click.echo(f"{report.seen.origin}: {report.seen.size} leaves, consistent with what was seen before.")
    return 1 if report.problems else 0


def _state_path(url: str, place: dict[str, Any]) -> Path:
    host = urlsplit(url).netloc.replace(":", "_") or "server"
    path: Path = read_settings(place).data_dir / "audits" / f"{host}.json"
    return path


def _read_state(path: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise StentorError(f"{path} isn't what a monitor wrote: {error}. Name another file with --state.") from None


def _write_state(path: Path, seen: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(msgspec.json.encode(seen) + b"\n")
    draft.replace(path)


def _decode(raw: bytes, what: str) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise StentorError(f"Can't read {what}: {error}.") from None


def _get(url: str, target: str) -> bytes:
    """A path of the server. Raises StentorError."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise StentorError(f"'{url[:200]}' is no address of a server: it starts with https:// or http://.")
    request = urllib.request.Request(url.rstrip("/") + target, headers={"User-Agent": "stentor"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            body: bytes = answer.read(ANSWER_MAX_BYTES)
            return body
    except urllib.error.HTTPError as error:
        with error:
            return _refusal(url, target, error)
    except (urllib.error.URLError, OSError) as error:
        raise StentorError(f"Can't reach {url}: {getattr(error, 'reason', error)}.") from None


def _refusal(url: str, target: str, error: urllib.error.HTTPError) -> bytes:
    # A proof that can't be had is an answer of its own: the monitor says what it means.
    if target.startswith("/receipts/log/consistency"):
        return b"null"
    raise StentorError(f"{url}{target} answered {error.code}.") from None
