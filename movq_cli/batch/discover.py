"""`find_items`: the items to encode, from folders, files, globs and lists, and the output of each.

An item named on the command line gets its path relative to the folder that all sources share. An item of a list gets
its id, or without one its path as the list has it.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import attrgetter
from typing import Any, TypeVar

from ..errors import MovqError, MovqUsageError, option
from .captions import caption_path, read_caption, read_captions
from .folders import Walk
from .item import Item
from .lists import FORMATS, Row, RowList, absolute
from .manifest import DESCRIBED
from .names import Places


@dataclass(frozen=True)
class Found:
    """The items that were found, and the files that were ignored, as (path, reason)."""

    items: list[Item]
    ignored: list[tuple[str, str]]

    @property
    def extra(self) -> list[str]:
        """The columns of lists that movq has no use for, sorted."""
        return sorted({name for item in self.items for name in item.extra})


def find_items(sources: Sequence[str], lists: Sequence[str], output: str, captions: str | None = None) -> Found:
    """Return the items of folders (recursively), files, globs and lists ("-" is standard input), sorted by key.

    The output folder is left out, unless it is itself a source. `captions` is a file with one line for each row of the
    list, or for each item if no list is given. Raises MovqError if a source is missing, a glob matches nothing, a list
    cannot be read, or the number of captions differs from that of the rows or items.
    """
    lists = [*lists, *(source for source in sources if source == "-")]
    sources = [source for source in sources if source != "-"]
    if captions is not None and lists and (sources or len(lists) > 1):
        raise MovqUsageError("goes with one list, or with no list at all", option="captions")
    walk = Walk(output)
    items = _listed(lists, captions, walk.ignored)
    if sources:
        known = {item.key for item in items}
        items += (item for item in _walked(sources, walk, captions is None) if item.key not in known)
        items.sort(key=_key)
    if captions is not None and not lists:
        items = [item.updated(caption=caption) for item, caption in _with_captions(items, captions)]
    places = Places()
    for number, item in enumerate(items):
        name, place = places.place(item.id, item.source_path, str(item.start), str(item.duration))
        items[number] = item.updated(id=name, output=place)
    return Found(items, sorted((path, why) for path, why in walk.ignored.items() if why))


_key = attrgetter("key")


def _listed(names: Sequence[str], captions: str | None, ignored: dict[str, str]) -> list[Item]:
    """Return the items of lists, without outputs, sorted by key. An item named twice is taken once and is in `ignored`.

    Raises MovqError if its columns differ the second time.
    """
    lists = [RowList(name) for name in names]

    def rows() -> Iterator[tuple[str, int, Item]]:
        for listed in lists:
            for row, caption in _with_captions(listed, captions):
                yield listed.name, row.line, _of_row(row, caption)

    items: list[Item] = []
    for item in sorted((item for _, _, item in rows()), key=_key):
        if not items or items[-1].key != item.key:
            items.append(item)
        elif items[-1] == item:
            ignored[item.source_path] = "named twice"
        else:
            (_, first, _), *others = (row for row in rows() if row[2].key == item.key)
            name, line = next((name, line) for name, line, other in others if other != items[-1])
            raise MovqError(
                f"line {line} names the clip of line {first} twice, with other columns: give each an id", name
            )
    return items


def _walked(sources: Sequence[str], walk: Walk, captions: bool) -> Iterator[Item]:
    """Yield the items of folders, files and globs, without outputs, each once; with the `captions` next to them."""
    named, matched, roots = _expand(sources)
    shared = [path if os.path.isdir(path) else os.path.dirname(path) for path in named]
    root = os.path.commonpath([*shared, *roots])
    keys = set[tuple[Any, ...]]()
    used: dict[str, str] = {}
    for path, problem in walk.files(named, matched):
        if path in named and path.lower().endswith(FORMATS):
            problem = f"is a list by its name, not a video: {option('lists')} reads it"
        item = Item(os.path.relpath(path, root), path, "", refusal=MovqError(problem) if problem else None)
        if captions and not problem and os.path.lexists(caption_path(path)):
            try:
                item = item.updated(caption=read_caption(path, [*shared, *roots]))
                used[caption_path(path)] = ""
            except MovqError as error:
                used[caption_path(path)] = f"a caption that {error.reason}, so that its video has none"
        if item.key not in keys:
            keys.add(item.key)
            yield item
    walk.ignored |= used


Captioned = TypeVar("Captioned", Item, Row)


def _with_captions(things: Iterable[Captioned], path: str | None) -> Iterator[tuple[Captioned, str | None]]:
    """Yield items or rows with their captions: their own, or those of the file `path`."""
    if path is None:
        yield from ((one, one.caption) for one in things)
        return
    captions = read_captions(path)
    count = 0
    for count, one in enumerate(things, 1):
        if one.caption is not None:
            raise MovqUsageError("goes with a list that has no captions itself", option="captions")
        yield one, captions[count - 1] if count <= len(captions) else None
    if len(captions) != count:
        raise MovqError(f"has {len(captions):,} captions for {count:,} items: a line is one, in the same order", path)


def _expand(sources: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return absolute paths: those named, those that globs match, and the folders that globs start from."""
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


def _of_row(row: Row, caption: str | None) -> Item:
    """Return the item of a row, without its output."""
    name = row.id
    if name is None:
        name = "/".join(part for part in row.written.split("/") if part not in ("", ".", ".."))
        if row.start is not None or row.duration is not None:
            name += f"_{_seconds(row.start or Fraction(0))}-{'' if row.duration is None else _seconds(row.duration)}"
    described = {column: getattr(row, column) for column in DESCRIBED} | {"caption": caption}
    return Item(name, row.path, "", row.start, row.duration, **described)


def _seconds(value: Fraction) -> str:
    return f"{float(value):.6f}".rstrip("0").rstrip(".")
