"""Tables for people, drawn by rich."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import printable

_FILE_WIDTH = 200
_LEAST_FIRST = 16  # characters of the first column
_GAP = 3  # characters between columns


def print_pairs(pairs: Mapping[str, str | Sequence[str]], title: str = "", file: TextIO | None = None) -> None:
    """Print names on the left and values on the right, a list one line each. Empty values are left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        if value:
            lines = [value] if isinstance(value, str) else value
            table.add_row(name, Text("\n".join(map(printable, lines))))
    if title:
        _print(Text(printable(title), style="bold", overflow="fold"), file)
    _print(table, file)


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[str]], file: TextIO | None = None) -> None:
    """Print a table to standard output, or to `file`. All columns except the first are aligned to the right.

    On a terminal too narrow for its columns, each row becomes a list of names and values: no number is broken in two.
    """
    rows = list(rows)
    needed = _LEAST_FIRST + sum(_GAP + max(map(len, column)) for column in list(zip(columns, *rows, strict=True))[1:])
    if needed > _console(file or sys.stdout).width:
        for row in rows:
            print_pairs(dict(zip(columns[1:], row[1:], strict=True)), row[0], file)
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(columns[0], overflow="fold", min_width=_LEAST_FIRST)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    _print(table, file)


def _console(file: TextIO) -> Console:
    """Return a console of the terminal's width, or else of _FILE_WIDTH."""
    return Console(highlight=False, file=file, width=None if file.isatty() else _FILE_WIDTH)


def _print(what: Table | Text, file: TextIO | None = None) -> None:
    """Print to a terminal at its width, or else without trailing spaces."""
    file = file or sys.stdout
    if file is None:  # standard output is closed
        return
    console = _console(file)
    if file.isatty():
        console.print(what)
        return
    with console.capture() as captured:
        console.print(what)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), file=file)
