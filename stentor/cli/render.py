"""How results reach the terminal: a table for people, JSON for programs."""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
import msgspec

from stentor.core.lazy import load

Command = TypeVar("Command", bound=Callable[..., Any])
Row = dict[str, Any]
Columns = Iterable[tuple[str, Callable[[Row], str]]]

NANO_PER_USD = 1_000_000_000
_WHOLE, _FOLDED = 40, 24  # columns up to so wide aren't folded (an id has 36); others get at least so much
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def json_option(command: Command) -> Command:
    """``--json`` on every listing."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


def print_rows(rows: Sequence[Row], columns: Columns, empty: str) -> None:
    """A table of rows; ``columns`` are headings and what to show. ``empty`` is said where there are none.

    On a terminal that is too narrow for it each row becomes a block of lines, so that ids stay whole.
    """
    if not rows:
        click.echo(empty, err=True)
        return
    chosen = list(columns)
    headings = [heading for heading, _show in chosen]
    cells = [[show(row) for _heading, show in chosen] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    console = load("rich.console").Console()
    if not console.is_terminal:
        console.width = 200
    elif sum(min(width, _FOLDED) if width > _WHOLE else width for width in widths) + 3 * len(widths) > console.width:
        _print_blocks(headings, cells)
        return
    table = load("rich.table").Table(box=load("rich.box").SIMPLE_HEAD, pad_edge=False)
    for heading, width in zip(headings, widths, strict=True):
        table.add_column(heading, overflow="fold", no_wrap=console.is_terminal and width <= _WHOLE)
    text = load("rich.text").Text
    for row in cells:
        table.add_row(*map(text, row))
    console.print(table)


def _print_blocks(headings: list[str], cells: list[list[str]]) -> None:
    widest = max(map(len, headings))
    blocks = (
        "\n".join(f"{heading:{widest}}  {cell}" for heading, cell in zip(headings, row, strict=True) if cell != "–")
        for row in cells
    )
    click.echo("\n\n".join(blocks))


def show_rows(rows: Sequence[Row], columns: Columns, empty: str, as_json: bool) -> None:
    """A listing in the form that was asked for."""
    if as_json:
        print_json(rows)
    else:
        print_rows(rows, columns, empty)


def show_row(row: Row, text: str, as_json: bool) -> None:
    """What became of one thing: in words for people."""
    if as_json:
        print_json(row)
    else:
        click.echo(text)


def printable(text: str) -> str:
    """``text`` without what could steer a terminal; line feeds and tabs stay."""
    return _CONTROLS.sub("\ufffd", text)


def plain(name: str) -> Callable[[Row], str]:
    """Show a field as it is; lists joined, absent values as a dash."""

    def show(row: Row) -> str:
        value = row.get(name)
        if value is None or value == "" or value == []:
            return "–"
        if isinstance(value, bool):
            return "yes" if value else "no"
        return printable(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))

    return show


def time_of(name: str) -> Callable[[Row], str]:
    """Show a field of microseconds as local time."""

    def show(row: Row) -> str:
        value = row.get(name)
        if not isinstance(value, int):
            return "–"
        return datetime.fromtimestamp(value / 1e6, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")

    return show


def money_of(name: str) -> Callable[[Row], str]:
    """Show a field of nano-USD in dollars, without rounding anything away."""

    def show(row: Row) -> str:
        value = row.get(name)
        return "–" if not isinstance(value, int) else format_usd(value)

    return show


def format_usd(nano: int) -> str:
    """Nano-USD as dollars with all digits that matter: 1500000000 is ``$1.50``, 40 is ``$0.00000004``."""
    sign, size = ("-", -nano) if nano < 0 else ("", nano)
    whole, rest = divmod(size, NANO_PER_USD)
    digits = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}${whole}.{digits}"
