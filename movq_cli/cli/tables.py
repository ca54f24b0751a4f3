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


def print_pairs(pairs: Mapping[str, str | Sequence[str]], title: str = "") -> None:
    """Print names on the left and values on the right, a list one line each. Empty values are left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        if value:
            lines = [value] if isinstance(value, str) else value
            table.add_row(name, Text("\n".join(map(printable, lines))))
    if title:
        _print(Text(printable(title), style="bold", overflow="fold"))
    _print(table)


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[str]], file: TextIO | None = None) -> None:
    """Print a table to standard output, or to `file`. All columns except the first are aligned to the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(
            column, justify="left" if i == 0 else "right", overflow="fold", min_width=16 if i == 0 else None
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    _print(table, file)


def _print(what: Table | Text, file: TextIO | None = None) -> None:
    """Print at the width of the terminal, or else at _FILE_WIDTH and without trailing spaces."""
    file = file or sys.stdout
    if file is None:  # standard output is closed
        return
    if file.isatty():
        Console(highlight=False, file=file).print(what)
        return
    console = Console(highlight=False, width=_FILE_WIDTH)
    with console.capture() as captured:
        console.print(what)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), file=file)
