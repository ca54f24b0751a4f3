"""`find_items`: the items to encode, from folders, files, globs and lists, and the output of each.

The id of an item is its path below the folder that was named, or the id or path that a list has for it. Naming more sources
changes no id: where two clash, the item of the later source gets the name of its folder in front.
"""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, TypeVar

from ..errors import MovqError, MovqUsageError, MovqWarning, flag, option
from .captions import caption_path, read_caption, read_captions, read_metadata
from .folders import Walk
from .item import Item
from .lists import Row, RowList, absolute
from .manifest import DESCRIBED
from .names import Places
from .parsing import FORMATS


@dataclass(frozen=True)
class Found:
    """The items that were found, and the files that were ignored, as (path, reason).

    `remarks` are (list, text) about lists: which columns were taken for which fields. `folders` are those that were looked
    into, and those that items are in.
    """

    items: list[Item]
    ignored: list[tuple[str, str]]
    remarks: list[tuple[str, str]] = field(default_factory=list)
    folders: frozenset[str] = frozenset()

    @property
    def extra(self) -> list[str]:
        """The columns of lists that movq has no use for, sorted."""
        return sorted({name for item in self.items for name in item.extra})


def find_items(
    sources: Sequence[str],
    lists: Sequence[str],
    output: str,
    captions: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Found:
    """Return the items of folders (recursively), files, globs and lists ("-" is standard input), sorted by key.

    The output folder is left out, unless it is itself a source. `captions` is a file with one line for each row of the
    list, or for each item if no list is given. `columns` are those that the user has named, by the field of COLUMNS that
    they have. Raises MovqError if a source is missing, a glob matches nothing, a list cannot be read, or the number of
    captions differs from that of the rows or items.
    """
    lists = [*lists, *(source for source in sources if source == "-")]
    sources = [source for source in sources if source != "-"]
    if captions is not None and lists and (sources or len(lists) > 1):
        raise MovqUsageError("goes with one list, or with no list at all", option="captions")
    walk = Walk(output)
    tables = [RowList(name, columns) for name in lists]
    items = _listed(tables, captions, walk.ignored)
    remarks = [(table.name, remark) for table in tables if (remark := table.remark)]
    for table in tables if captions is None else ():
        if column := table.unused_captions:
            text = (
                f"{table.name}: has no captions, but texts in {column}: {flag('columns')} caption={column} takes them"
            )
            warnings.warn(MovqWarning(text), stacklevel=3)
    places = Places()
    placed = [_placed(item, places) for item in items]
    if sources:
        known = {item.key for item in items}
        walked = sorted(_walked(sources, walk, captions is None), key=lambda found: (found.place, found.item.key))
        if captions is None:
            walked = _described(walked, sources, walk, columns, remarks)
        placed += (_placed(one.item, places, one.apart) for one in walked if one.item.key not in known)
    if columns and not lists and not walk.metadata:
        raise MovqUsageError(f"goes with {option('lists')}, or with metadata in a folder", option="columns")
    items = [item for _, item in sorted(placed, key=itemgetter(0))]
    if captions is not None and not lists:
        items = [item.updated(caption=caption) for item, caption in _with_captions(items, captions)]
    folders = {os.path.dirname(item.source_path) for item in items} | set(map(absolute, filter(os.path.isdir, sources)))
    return Found(items, sorted((path, why) for path, why in walk.ignored.items() if why), remarks, frozenset(folders))


_key = attrgetter("key")


def _placed(item: Item, places: Places, apart: str = "") -> tuple[tuple[Any, ...], Item]:
    """Return an item with an id and output of its own, `apart` if its id is taken; and the key that it is sorted by."""
    if apart and item.id in places:
        item = item.updated(id=apart)
    name, place = places.place(item.id, item.source_path, str(item.start), str(item.duration))
    return item.key, item.updated(id=name, output=place)


def _listed(lists: Sequence[RowList], captions: str | None, ignored: dict[str, str]) -> list[Item]:
    """Return the items of lists, without outputs, sorted by key. An item named twice is taken once and is in `ignored`.

    Raises MovqError if its columns differ the second time.
    """

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
            (before, first, _), *others = (row for row in rows() if row[2].key == item.key)
            name, line = next((name, line) for name, line, other in others if other != items[-1])
            where = f"line {first}" if name == before else f"line {first} of {before}"
            raise MovqError(f"line {line} names the clip of {where} again, with other columns: give each an id", name)
    return items


def _walked(sources: Sequence[str], walk: Walk, captions: bool) -> Iterator[_Walked]:
    """Yield the items of folders, files and globs, without outputs, each once; with the `captions` next to them."""
    bases = _bases(sources)
    named = [path for path, base in bases.items() if not base.matched]
    roots = list({base.folder: None for base in bases.values()})
    paths, used = set[str](), dict[str, str]()
    for path, problem in walk.files(named, [path for path, base in bases.items() if base.matched]):
        if path in paths:
            continue
        paths.add(path)
        base = _base_of(path, bases)
        if path in bases and not base.matched and path.lower().endswith(FORMATS):
            problem = f"is a list by its name, not a video: {option('lists')} reads it"
        name = os.path.relpath(path, base.folder)
        item = Item(name, path, "", refusal=MovqError(problem) if problem else None)
        if captions and not problem and os.path.lexists(caption_path(path)):
            try:
                item = item.updated(caption=read_caption(path, roots))
                used[caption_path(path)] = ""
            except MovqError as error:
                used[caption_path(path)] = f"a caption that {error.reason}, so that its video has none"
        yield _Walked(item, base.place, os.path.join(os.path.basename(base.folder), name))
    walk.ignored |= used


def split_glob(source: str) -> tuple[str, str]:
    """Return the folder in front of a glob, which may be "", and the glob; the source and "" if it is none, or exists.

    What `glob.escape` has escaped in the folder, as each `[` by `[[]`, is given back plain.
    """
    parts = source.split(os.sep)
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(_ESCAPED.sub("", part))), len(parts))
    if os.path.lexists(source) or fixed == len(parts):
        return source, ""
    folder = os.sep.join(parts[:fixed]) + os.sep if fixed else ""
    return _ESCAPED.sub(r"\1", folder), os.sep.join(parts[fixed:])


_ESCAPED = re.compile(r"\[([*?[])\]")


class _Walked(NamedTuple):
    """An item of the source that was named as number `place`. `apart` is its id if another item has its own."""

    item: Item
    place: int
    apart: str


class _Base(NamedTuple):
    """The folder that the ids of a source begin below. `place` counts the sources as they were named."""

    place: int
    folder: str
    matched: bool = False


def _bases(sources: Sequence[str]) -> dict[str, _Base]:
    """Return the absolute paths that sources name, or that their globs match, each with its base."""
    bases: dict[str, _Base] = {}
    for place, source in enumerate(sources):
        if os.path.lexists(source):
            path = absolute(source)
            bases.setdefault(path, _Base(place, path if os.path.isdir(path) else os.path.dirname(path)))
        elif glob.escape(source) == source:
            raise MovqError("no such file or folder", source)
        else:
            matches = sorted(glob.glob(source, recursive=True))
            if not matches:
                raise MovqError("matches no file", source)
            folder = absolute(split_glob(source)[0] or ".")
            for path in map(absolute, matches):
                bases.setdefault(path, _Base(place, folder, matched=True))
    return bases


def _base_of(path: str, bases: Mapping[str, _Base]) -> _Base:
    """Return the base of the source that was named first, of all that hold a file."""
    found = [bases[path]] if path in bases else []
    above, below = os.path.dirname(path), path
    while above != below:
        if above in bases:
            found.append(bases[above])
        above, below = os.path.dirname(above), above
    return min(found)


def _described(
    walked: list[_Walked],
    sources: Sequence[str],
    walk: Walk,
    columns: Mapping[str, str] | None,
    remarks: list[tuple[str, str]],
) -> list[_Walked]:
    """Return the items with what metadata files in their folders say; the nearest counts, and a caption file before it.

    Adds to `remarks`. Metadata that cannot be read are ignored.
    """
    found: dict[str, Row] = {}
    videos = {one.item.source_path for one in walked}
    for path in sorted(walk.metadata, key=lambda path: (path.count(os.sep), path)):
        try:
            rows, remark = read_metadata(path, videos, list(map(absolute, sources)), columns)
        except MovqError as error:
            walk.ignored[path] = f"metadata that describes nothing: {error.reason_with_flags}"
            continue
        found |= rows
        remarks += [(path, remark)] if remark else []
    return [
        one
        if row is None
        else one._replace(item=one.item.updated(caption=one.item.caption or row.caption, extra=row.extra))
        for one, row in ((one, found.get(one.item.source_path)) for one in walked)
    ]


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
