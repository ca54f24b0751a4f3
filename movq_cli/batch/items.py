"""Items: what is to be encoded, from folders, files, globs and lists, and where in the output each goes.

What is named at the prompt goes under its path from the folder that everything named shares; what is in a list under its
id, or else its path as the list has it.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from ..errors import MovqError
from ..files import text_of
from .folders import Walk
from .lists import Row, absolute, read_list
from .outputs import Places


@dataclass(frozen=True)
class Item:
    """One row of a dataset: a video, or a span of it, and what a list says of it.

    `path` is absolute; `output` is relative to the output folder; `id`, unique, is what the manifest knows it by. Times in
    seconds. `problem` is why it cannot be encoded, where that is known already.
    """

    id: str
    path: str
    output: str
    start: Fraction | None = None
    duration: Fraction | None = None
    caption: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """What it is, whatever is said of it."""
        return text_of(self.id), os.fsencode(self.path), self.start or 0, self.duration or 0


@dataclass(frozen=True)
class Found:
    """Items by id, and what was passed over: (path, why)."""

    items: list[Item]
    skipped: list[tuple[str, str]]


def find_items(sources: Sequence[str], lists: Sequence[str], output: str) -> Found:
    """The items of folders (all below them), files, globs and lists ("-": of standard input).

    The output folder is left out, unless it is itself a source. Raises MovqError for a source that is missing, a glob
    without matches, and a list that cannot be understood.
    """
    walk = Walk(output)
    items: dict[tuple[Any, ...], Item] = {}
    rows: dict[tuple[Any, ...], Row] = {}
    for name in (*lists, *(source for source in sources if source == "-")):
        for row in read_list(name):
            item = _of_row(row)
            other = rows.setdefault(item.key, row)
            if items.setdefault(item.key, item) != item:
                columns = "with other columns: give each an id"
                raise MovqError(f"line {row.line} names the clip of line {other.line} twice, {columns}", row.list)
            if other is not row:
                walk.skipped[row.path] = "named twice"
    named, matched, roots = _expand([source for source in sources if source != "-"])
    if named or matched:
        shared = [path if os.path.isdir(path) else os.path.dirname(path) for path in named]
        root = os.path.commonpath([*shared, *roots])
        for path, problem in walk.files(named, matched):
            item = Item(os.path.relpath(path, root), path, "", problem=problem)
            items.setdefault(item.key, item)
    places = Places()
    placed = []
    for key in sorted(items):
        item = items[key]
        name, place = places.place(item.id, item.path, str(item.start), str(item.duration))
        placed.append(replace(item, id=name, output=place))
    return Found(placed, sorted(walk.skipped.items()))


def _expand(sources: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Absolute paths: of what is named, of what globs match, and of the folders that globs begin at."""
    named: list[str] = []
    matched: list[str] = []
    roots: list[str] = []
    for source in sources:
        if os.path.lexists(source):
            named.append(absolute(source))
        elif glob.escape(source) == source:
            raise MovqError("no such file or folder", source)
        else:
            matches = sorted(glob.glob(source, recursive=True))
            if not matches:
                raise MovqError("matches no file", source)
            matched += map(absolute, matches)
            parts = source.split(os.sep)
            fixed = next(i for i, part in enumerate(parts) if glob.escape(part) != part)
            roots.append(absolute(os.sep.join(parts[:fixed]) + os.sep if fixed else "."))
    return list(dict.fromkeys(named)), list(dict.fromkeys(matched)), roots


def _of_row(row: Row) -> Item:
    """An item without a place yet."""
    name = row.id
    if name is None:
        name = "/".join(part for part in row.written.split("/") if part not in ("", ".", ".."))
        if row.start is not None or row.duration is not None:
            name += f"_{_seconds(row.start or Fraction(0))}-{'' if row.duration is None else _seconds(row.duration)}"
    return Item(name, row.path, "", row.start, row.duration, row.caption, row.extra)


def _seconds(value: Fraction) -> str:
    return f"{float(value):.6f}".rstrip("0").rstrip(".")
