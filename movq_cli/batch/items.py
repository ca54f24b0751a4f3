"""Items: what is to be encoded, from folders, files, globs and lists, and where in the output each goes.

What is named at the prompt goes under its path from the folder that everything named shares; what is in a list under its
id, or else its path as the list has it. No two items share an output, also where case makes no difference.
"""

from __future__ import annotations

import glob
import hashlib
import os
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from ..errors import MovqError
from ..files import MAX_NAME, os_reason, text_of
from ..video import SUFFIXES
from .lists import Row, read_list

SUFFIX = ".safetensors"
_MARK = 10  # hex digits that tell outputs apart
_TEMPORARY = ("~", ".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".aria2", ".ytdl", ".swp")


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


@dataclass(frozen=True)
class Found:
    """Items by id, and what was passed over: (path, why)."""

    items: list[Item]
    skipped: list[tuple[str, str]]


def find_items(sources: Sequence[str], lists: Sequence[str], output: str) -> Found:
    """The items of folders (all below them), files, globs and lists ("-": of standard input). `output` is left out.

    Raises MovqError for a source that is missing, a glob without matches, and a list that cannot be understood.
    """
    skipped: list[tuple[str, str]] = []
    named = list(_expand(source for source in sources if source != "-"))
    rows = [row for name in (*lists, *(s for s in sources if s == "-")) for row in read_list(name)]
    items = [_of_row(row) for row in rows]
    if named:
        root = os.path.commonpath([path if os.path.isdir(path) else os.path.dirname(path) for path in named])
        for path, problem in _files_of(named, output, skipped):
            items.append(Item(os.path.relpath(path, root), path, "", problem=problem))
    return Found(_with_outputs(_once(items, skipped)), skipped)


def _expand(sources: Iterable[str]) -> Iterator[str]:
    """Absolute paths of what is named; globs become their matches."""
    for source in sources:
        if os.path.lexists(source):
            yield os.path.abspath(source)
        elif glob.escape(source) == source:
            raise MovqError("no such file or folder", source)
        else:
            matches = sorted(glob.glob(source, recursive=True))
            if not matches:
                raise MovqError("matches no file", source)
            yield from map(os.path.abspath, matches)


def _files_of(named: Sequence[str], output: str, skipped: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(path, problem) of the files named and of those in the folders named. Links come last, so that each file and folder
    is taken where it is rather than where a link to it is, and taken once."""
    folders = deque(path for path in named if os.path.isdir(path))
    links: deque[str] = deque()
    own, seen_folders, seen_files = _identity(output), set[_Identity | None](), set[_Identity | None]()
    for path in named:
        if not os.path.isdir(path):
            seen_files.add(_identity(path))
            yield path, ""
    while folders or links:
        if not folders:
            path = links.popleft()
            if os.path.isdir(path):
                folders.append(path)
            elif (identity := _identity(path)) in seen_files and identity is not None:
                skipped.append((path, "a link to a file that is taken already"))
            elif identity is not None and not os.path.isfile(path):
                skipped.append((path, "not a regular file"))
            else:
                seen_files.add(identity)
                yield path, ""  # one to nothing is refused when its turn comes
            continue
        folder = folders.popleft()
        identity = _identity(folder)
        if identity is not None and identity == own:
            continue
        if identity is not None and identity in seen_folders:
            skipped.append((folder, "a folder that is taken already"))
            continue
        seen_folders.add(identity)
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield folder, os_reason(error)
            continue
        for entry in listed:
            if entry.name.startswith("."):
                skipped.append((entry.path, "hidden"))
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.name.lower().endswith(_TEMPORARY):
                skipped.append((entry.path, "temporary"))
            elif entry.is_symlink() and os.path.isdir(entry.path):
                links.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
                skipped.append((entry.path, "not a video or picture by its name"))
            elif entry.is_symlink():
                links.append(entry.path)
            elif not entry.is_file():
                skipped.append((entry.path, "not a regular file"))
            else:
                seen_files.add((identity[0] if identity else 0, entry.inode()))
                yield entry.path, ""


_Identity = tuple[int, int]


def _identity(path: str) -> _Identity | None:
    """The same for two names of one file or folder; None if there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _of_row(row: Row) -> Item:
    """An item without an output yet."""
    name = row.id
    if name is None:
        name = "/".join(part for part in row.written.split("/") if part not in ("", ".", ".."))
        if row.start is not None or row.duration is not None:
            name += f"_{_seconds(row.start or Fraction(0))}-{'' if row.duration is None else _seconds(row.duration)}"
    return Item(name, row.path, "", row.start, row.duration, row.caption, row.extra)


def _seconds(value: Fraction) -> str:
    return f"{float(value):.6f}".rstrip("0").rstrip(".")


def _once(items: Iterable[Item], skipped: list[tuple[str, str]]) -> Iterator[Item]:
    """Leaves out what is named twice. Raises MovqError for one clip with two captions and no ids to tell them apart."""
    seen: dict[tuple[Any, ...], Item] = {}
    for item in items:
        key = (item.id, item.path, item.start, item.duration)
        other = seen.setdefault(key, item)
        if other is item:
            yield item
        elif other == item:
            skipped.append((item.path, "named twice"))
        else:
            raise MovqError("is listed twice with different columns; give each row an id", item.path)


def _with_outputs(items: Iterable[Item]) -> list[Item]:
    """The items, sorted, each with an id and an output of its own."""
    taken_ids, taken = set[str](), set[str]()
    placed = []
    for item in sorted(items, key=lambda item: (text_of(item.id), item.path, item.start or 0, item.duration or 0)):
        name = text_of(item.id)
        if name in taken_ids:
            name += _mark(name, item.path, str(item.start), str(item.duration))
        output = _short(name)
        if _folded(output) in taken:
            output = _short(name, _mark(name))
        taken_ids.add(name)
        taken.add(_folded(output))
        placed.append(replace(item, id=name, output=output))
    return placed


def _folded(name: str) -> str:
    """The same for names that some file systems hold to be the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _mark(*of: str) -> str:
    return "~" + hashlib.sha256("\0".join(map(text_of, of)).encode()).hexdigest()[:_MARK]


def _short(name: str, mark: str = "") -> str:
    """A path of an output, with every part short enough for a file system."""
    *folders, last = name.split("/")
    room = MAX_NAME - len(SUFFIX) - len(mark)
    if len(last.encode()) > room:
        mark = mark or _mark(name)
        last = last.encode()[: MAX_NAME - len(SUFFIX) - len(mark)].decode(errors="ignore")
    return "/".join([*folders, last + mark + SUFFIX])
