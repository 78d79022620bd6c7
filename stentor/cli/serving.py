"""``up`` and ``serve``: start the server in this process and say how to reach it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import click
import msgspec

from stentor.cli.options import MORE_OPTIONS, read_settings, setting_options
from stentor.cli.progress import fetch_model
from stentor.core.errors import StentorError
from stentor.core.lazy import load

if TYPE_CHECKING:
    from stentor.runtime.spec import ModelSpec
    from stentor.settings import Settings

READY_FIELDS = ("base_url", "api_key", "admin_user", "admin_password", "model")


class Ready(Protocol):
    """What the server says when it is ready; key and password only at the start that made them."""

    @property
    def base_url(self) -> str: ...
    @property
    def api_key(self) -> str | None: ...
    @property
    def admin_user(self) -> str: ...
    @property
    def admin_password(self) -> str | None: ...
    @property
    def model(self) -> str | None: ...


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--model`` and ``--instances``: what to serve beside the settings file."""
    instances = click.option("--instances", metavar="N", help="Instances of each --model to start. [default: 1]")
    model = click.option("--model", "models", multiple=True, metavar="SOURCE", help="Serve this file or source too.")
    return model(instances(command))


@click.command(epilog=MORE_OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line when ready, and go on serving.")
@click.option("--admin-key", is_flag=True, help="Make the first API key an admin key.")
@model_options
@setting_options
def up(as_json: bool, admin_key: bool, **overrides: Any) -> int:
    """Start the server, and at the first start all that it needs: a model, an admin, an API key."""
    settings = read_settings(overrides, tell=True)
    fetch_missing(settings)
    return _run(settings, announce_json if as_json else _announcer(settings), admin_key)


@click.command(epilog=MORE_OPTIONS)
@model_options
@setting_options
def serve(**overrides: Any) -> int:
    """Start the server with the models of the settings."""
    settings = read_settings(overrides, tell=True)
    fetch_missing(settings)
    return _run(settings, _announcer(settings), False)


def _run(settings: "Settings", on_ready: Callable[[Ready], None], admin_key: bool) -> int:
    return int(load("stentor.app").run(settings, on_ready=on_ready, admin_key=admin_key))


def fetch_missing(settings: "Settings") -> None:
    """Fetch what is to be started at once. Raises where nothing would be left to serve; else a failure is a warning."""
    wanted = [spec for spec in settings.runtime.models if spec.preload and spec.source]
    failures = [error for spec in wanted if (error := _find_failure(settings, spec)) is not None]
    if failures and len(failures) == len(settings.runtime.models):
        failed = isinstance(failures[0], load("stentor.runtime.downloads").FetchError)
        if failed and wanted[0].source == load("stentor.settings.models").STARTER_SOURCE:
            raise StentorError(f"{failures[0]} With a file of yours: `stentor up --model FILE.gguf`.") from failures[0]
        raise failures[0]
    for error in failures:
        click.echo(f"stentor: {error}", err=True)


def _find_failure(settings: "Settings", spec: "ModelSpec") -> StentorError | None:
    try:
        path = fetch_model(settings, spec.source, spec.id, lambda: load("stentor.app").check_address(settings))
        load("stentor.runtime.sources").check_fits(spec.engine, path)
    except StentorError as error:
        return error
    return None


def announce_json(ready: Ready) -> None:
    """One JSON line on stdout."""
    click.echo(msgspec.json.encode({name: getattr(ready, name) for name in READY_FIELDS}).decode())


def _announcer(settings: "Settings") -> Callable[[Ready], None]:
    hardware = load("stentor.runtime.hardware")
    # Asking a driver may take seconds: it is done while the server starts, not while it serves.
    looking = ThreadPoolExecutor(1)
    gpus = looking.submit(hardware.find_gpus)
    looking.shutdown(wait=False)

    def announce(ready: Ready) -> None:
        gpu = hardware.choose_gpu_step(gpus.result(), settings.runtime.engine_bin)
        click.echo(describe_ready(ready, gpu))

    return announce


def describe_ready(ready: Ready, gpu: str) -> str:
    """How to reach a server that is ready, with what is shown only once, as text to print."""
    once = "   (shown this once)"
    lines = ["", "Stentor is ready.", "", f"  Address   {ready.base_url}", f"  Model     {ready.model or 'none yet'}"]
    if ready.admin_password:
        lines.append(f"  Admin     {ready.admin_user} / {ready.admin_password}{once}")
    lines.append(f"  API key   {ready.api_key}{once}" if ready.api_key else "  API key   stentor keys create")
    if ready.api_key:
        add = "`stentor models add whisper-tiny.en` or `piper-joe`"
        lines.append(f"  Speech    pip install 'stentor[whisper,piper]', then {add}")
    lines += [f"  GPU       {gpu}", "", "Try it:", "", _curl(ready), "", "Stop with Ctrl-C.", ""]
    return "\n".join(lines)


def _curl(ready: Ready) -> str:
    body = {
        "model": ready.model or "MODEL",
        "stream": True,
        "messages": [{"role": "user", "content": "Why is the sky blue? Answer in one sentence."}],
    }
    key = ready.api_key or "$STENTOR_API_KEY"
    return (
        f"  curl -N {ready.base_url}/chat/completions \\\n"
        f'    -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\\n'
        f"    -d '{msgspec.json.encode(body).decode()}'"
    )
