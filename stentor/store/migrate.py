"""Bring a database to the schema of this code. Loads Alembic: reached through ``stentor.core.lazy.load`` only."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from stentor.core.errors import StentorError


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def head() -> str:
    """The newest revision that this code knows."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def upgrade(connection: Connection, current: str | None) -> None:
    """Run all missing steps on ``connection``, inside its transaction.

    ``current`` is the database's revision, None for an empty one. Raises StentorError for a revision that this code
    doesn't know: a newer Stentor made that database.
    """
    config = _config()
    if current is not None:
        try:
            ScriptDirectory.from_config(config).get_revision(current)
        except CommandError as error:
            raise StentorError(
                f"The database was made by a newer Stentor (schema {current}, this one knows up to {head()}). "
                "Install that version again, or restore the backup taken before the upgrade."
            ) from error
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
