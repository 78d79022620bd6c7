"""The root of the command line, and the one place where errors become a line on stderr and an exit status."""

import os
import sys
from collections.abc import Mapping

import click

from stentor.cli import EXIT_INTERRUPTED
from stentor.cli.alerts import alerts, webhooks
from stentor.cli.backups import backup, restore
from stentor.cli.chat import chat
from stentor.cli.configuration import config_command
from stentor.cli.credentials import providers, secrets, vault
from stentor.cli.database import db
from stentor.cli.doctor import doctor
from stentor.cli.group import RootGroup
from stentor.cli.importing import import_command
from stentor.cli.keys import keys
from stentor.cli.model_files import COMMANDS as MODEL_COMMANDS
from stentor.cli.models import models
from stentor.cli.plans import prices, projects, tiers
from stentor.cli.receipts import receipts
from stentor.cli.records import audit, report, sessions, signups
from stentor.cli.serving import serve, up
from stentor.cli.slots import logs, ps, slots
from stentor.cli.usage import usage
from stentor.cli.users import users
from stentor.core.errors import StentorError
from stentor.core.lazy import load

EXIT_PROBLEM = 1
EXIT_USAGE = 2


def _tell_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(load("stentor.version").VERSION)
        context.exit()


@click.group(
    cls=RootGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Begin with `stentor up`. `stentor COMMAND --help` says more, `stentor doctor` looks at what is wrong.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_tell_version, help="Print the version."
)
def root() -> None:
    """A self-hosted AI server: models behind one OpenAI-compatible endpoint, every request metered."""


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(load("stentor.version").VERSION)


for model_command in MODEL_COMMANDS:
    models.add_command(model_command)

for command in (
    up,
    serve,
    models,
    keys,
    users,
    usage,
    receipts,
    db,
    doctor,
    ps,
    slots,
    logs,
    tiers,
    projects,
    prices,
    report,
    audit,
    backup,
    restore,
    signups,
    sessions,
    chat,
    config_command,
    import_command,
    version,
    providers,
    secrets,
    vault,
    webhooks,
    alerts,
):
    root.add_command(command)


def main() -> None:
    """Run the command line and end the process with its status: 0, 1 for a problem, 2 for wrong usage."""
    _fill_standard_streams()
    sys.exit(run(sys.argv[1:]))


def _fill_standard_streams() -> None:
    """Put something harmless where a standard stream is closed, or the next file opened would be written to as one."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def _choose_colour(environ: Mapping[str, str]) -> bool | None:
    """None leaves it to the terminal; ``NO_COLOR`` (no-color.org) says no."""
    return False if environ.get("NO_COLOR") else None


def run(arguments: list[str]) -> int:
    """Run one command; problems are written to stderr, one line each, without a traceback."""
    try:
        result = root.main(args=arguments, prog_name="stentor", standalone_mode=False, color=_choose_colour(os.environ))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except StentorError as error:
        click.echo(f"stentor: {error}", err=True)
        return EXIT_PROBLEM
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter must not complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PROBLEM
    except OSError as error:
        click.echo(f"stentor: {error.strerror or error}: {error.filename or 'no file named'}", err=True)
        return EXIT_PROBLEM
    return result if isinstance(result, int) else 0
