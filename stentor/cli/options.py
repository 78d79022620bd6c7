"""Options that several commands share, and how they become settings."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stentor.core.lazy import load
from stentor.settings.declared import DECLARED

if TYPE_CHECKING:
    from stentor.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])


def place_options(command: Command) -> Command:
    """``--config`` and ``--data-dir``: which installation a command is about."""
    command = click.option("--data-dir", metavar="PATH", help="Everything the server writes lies under it.")(command)
    return click.option("--config", metavar="FILE", help="The settings file. [default: ./stentor.toml]")(command)


MORE_OPTIONS = (
    "Every setting that isn't secret is an option too, such as --queue-max: `stentor config --all` lists them."
)
SHOWN = ("HOST", "PORT", "GATEWAY_WORKERS", "LOG_LEVEL", "LOG_FORMAT", "DEFAULT_CTX", "DEFAULT_THREADS")


def setting_options(command: Command) -> Command:
    """An option for every setting that isn't secret; ``--help`` shows the common ones."""
    for setting in reversed(DECLARED):
        if setting.secret or setting.name in ("DATA_DIR", "INSTANCES"):
            continue
        option = click.option(setting.option, metavar="VALUE", help=setting.text, hidden=setting.name not in SHOWN)
        command = option(command)
    return place_options(command)


def read_settings(overrides: dict[str, Any], *, tell: bool = False) -> "Settings":
    """Settings of this process; misspelt names are told on stderr, and everything else there is to tell if asked."""
    settings, notices = load("stentor.settings").load_settings(overrides, os.environ, Path.cwd())
    for notice in notices:
        if tell or notice.kind == "unknown":
            click.echo(f"stentor: {notice.text}", err=True)
    return settings  # type: ignore[no-any-return]
