"""Full-text search over messages, where the two database systems go different ways.

SQLite keeps an FTS5 index beside the table, which is told of each text that comes and goes; PostgreSQL an expression
index (GIN over ``to_tsvector``), which looks after itself. Words are found whatever their case and accents.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

INDEX = "message_search"
_WORD = re.compile(r"\w+", re.UNICODE)
_MAKE_SQLITE = (
    f"CREATE VIRTUAL TABLE {INDEX} USING fts5(content, content='messages', content_rowid='number', "
    "tokenize='unicode61 remove_diacritics 2')"
)


def _fold_table() -> dict[str, str]:
    """Latin letters with accents, each with the letter below it (U+00C0 to U+017F)."""
    found = {}
    for code in range(0xC0, 0x180):
        base = unicodedata.normalize("NFD", chr(code))[0]
        if base.isascii() and base.isalpha():
            found[chr(code)] = base
    return found


_FOLDS = _fold_table()
_PLAIN = str.maketrans(_FOLDS)
_VECTOR = (
    "to_tsvector('simple', translate(coalesce(messages.content, ''), "
    f"'{''.join(_FOLDS)}', '{''.join(_FOLDS.values())}'))"
)
_MAKE_POSTGRESQL = f"CREATE INDEX {INDEX} ON messages USING gin ({_VECTOR})".replace("messages.content", "content")


def make_index(connection: Connection) -> None:
    """Make the index of an empty ``messages``."""
    connection.execute(text(_MAKE_SQLITE if _is_sqlite(connection) else _MAKE_POSTGRESQL))


def add_texts(connection: Connection, texts: Sequence[tuple[int, str]]) -> None:
    """Take up texts by their messages' numbers."""
    if texts and _is_sqlite(connection):
        statement = text(f"INSERT INTO {INDEX}(rowid, content) VALUES (:number, :content)")  # noqa: S608
        connection.execute(statement, [{"number": number, "content": content} for number, content in texts])


def remove_texts(connection: Connection, texts: Sequence[tuple[int, str]]) -> None:
    """Forget texts, given as they were taken up; before their messages are deleted."""
    if texts and _is_sqlite(connection):
        statement = text(
            f"INSERT INTO {INDEX}({INDEX}, rowid, content) VALUES ('delete', :number, :content)"  # noqa: S608
        )
        connection.execute(statement, [{"number": number, "content": content} for number, content in texts])


def matching(connection: Connection, query: str) -> Any | None:
    """A condition on ``messages.number`` for those that hold every word of ``query``; None: it holds no word."""
    words = _WORD.findall(query)[:32]
    if not words:
        return None
    if _is_sqlite(connection):
        wanted = " ".join(f'"{word}"' for word in words)
        return text(f"messages.number IN (SELECT rowid FROM {INDEX} WHERE {INDEX} MATCH :words)").bindparams(  # noqa: S608
            words=wanted
        )
    statement = text(f"{_VECTOR} @@ plainto_tsquery('simple', :words)")
    return statement.bindparams(words=" ".join(words).translate(_PLAIN))


def _is_sqlite(connection: Connection) -> bool:
    return connection.dialect.name == "sqlite"
