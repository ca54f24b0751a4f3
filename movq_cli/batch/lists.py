"""Lists of items: text with one path per line, or tables whose columns are named as trainers name them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

from ..errors import MovqError, MovqUsageError, option
from ..files import os_reason
from ..values import parse_seconds
from .parsing import Columns, fold, format_of, parse
from .paths import is_plain

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "file_name", "file_path", "video_path", "media_path", "video"),
    "caption": ("caption", "text", "prompt", "cap"),
    "id": ("id",),
    "start": ("start",),
    "duration": ("duration",),
    "end": ("end",),
}
"""The columns that movq uses, by the names that trainers' lists have for them, in any case. The first that a list has counts."""

_VIDEOS = "videos"
"""The folder next to a list in which trainers look for its videos too."""

_NAMES = 12
_CAPTION_WORDS = 5
_CAPTION_NAMES = ("caption", "prompt", "descri", "summary", "text")
_LOOKED_AT = 100
"""In a list without captions, a column with this many words, on average over the first rows, may have them."""


class Row(NamedTuple):
    """One row of a list. `path` is absolute, `written` is as the list has it, `extra` are the columns that movq does not use.

    `line` is the row's line number in the list, or its number in a JSON array, from 1.
    """

    line: int
    path: str
    written: str
    id: str | None
    start: Fraction | None
    duration: Fraction | None
    caption: str | None
    extra: dict[str, Any]


def absolute(path: str, folder: str = "") -> str:
    """Return an absolute path that leads where the system would go: links are followed before `..` goes back up."""
    whole = os.path.join(folder or os.getcwd(), path)
    if ".." not in whole.split(os.sep):
        return os.path.normpath(whole)
    parent, name = os.path.split(whole.rstrip(os.sep))
    return os.path.realpath(whole) if name == ".." else os.path.join(os.path.realpath(parent), name)


class RowList:
    """A list, held as bytes. Each iteration parses its rows again, so that a million rows take little memory.

    "-" is standard input. Paths are relative to the list's folder, or to the current folder for "-"; or to `videos` in that
    folder, if the first video that is found is there. `named` maps fields of COLUMNS to the columns that have them,
    where the user has named one. With `describing`, only paths and captions are used, all other columns are extra, and a
    column that is named need not be there.

    Raises MovqError if the list cannot be read. Iterating raises MovqError, naming the line, if a row is not valid, so
    iterate once before any work.
    """

    def __init__(self, name: str, named: Mapping[str, str] | None = None, *, describing: bool = False) -> None:
        try:
            if name == "-" and sys.stdin is None:
                raise MovqError("is closed", "standard input")
            self._data = (sys.stdin.buffer.read() if name == "-" else _read(name)).removeprefix(b"\xef\xbb\xbf")
        except OSError as error:
            raise MovqError(os_reason(error), name) from None
        self.name = "standard input" if name == "-" else name
        self._named = named or {}
        self._is_describing = describing
        self._fields = ("path", "caption") if describing else tuple(COLUMNS)
        self._beginning = os.getcwd() if name == "-" else os.path.dirname(os.path.abspath(name))
        self._names = [*COLUMNS["path"], *filter(None, self._named.values())]
        self._suffix = format_of(self._data, os.path.splitext(name)[1].lower(), self._names)

    def __iter__(self) -> Iterator[Row]:
        ids = set[str]()
        for number, values in self._parsed():
            row = self._row(values, number)
            if row.id is not None:
                if row.id in ids:
                    first = next(before.line for before in self if before.id == row.id)
                    ignored = option("columns", "id=")
                    raise MovqError(
                        f"line {number} has the id {row.id!r} of line {first}; {ignored} ignores ids", self.name
                    )
                ids.add(row.id)
            yield row

    @cached_property
    def columns(self) -> dict[str, str]:
        """The fields of COLUMNS that the list has, with the column of each. Raises MovqError if it has no path.

        Without a start, a duration or an end describes the video, and does not cut it. An end counts before a duration.
        """
        have = self._have
        folded = {fold(column): column for column in reversed(have)}
        found = {}
        for field in self._fields:
            named = self._named.get(field)
            names = COLUMNS[field] if named is None else (named, *(COLUMNS[field] if self._is_describing else ()))
            column = next((folded[fold(name)] for name in names if fold(name) in folded), None)
            if column is not None:
                found[field] = column
            elif named and not self._is_describing:
                raise MovqError(f"has no column {named}; it has {_some(have)}", self.name)
        if "path" not in found and have:
            wanted = option("columns", "path=NAME")
            raise MovqError(f"has no column path; it has {_some(have)}: {wanted} names another", self.name)
        cutting = (
            ["end", "duration"]
            if "start" in found
            else [field for field in ("end", "duration") if field in self._named]
        )
        for field in ("end", "duration"):
            if field not in cutting or (field == "duration" and "end" in found):
                found.pop(field, None)
        return found

    @property
    def remark(self) -> str:
        """A line about what was taken for what; "" if every column has the name that movq has for it."""
        taken = [f"{column} as {field}" for field, column in self.columns.items() if column != field]
        words = [f"takes {' and '.join(taken)}"] if taken else []
        if self._folder != self._beginning:
            words.append(f"finds its videos in {_VIDEOS}")
        if self._is_describing:
            words += ["cuts no spans: named as a list it would"] if self._has("start") else []
        elif "start" not in self.columns:
            ends = [field for field in ("end", "duration") if field not in self.columns and self._has(field)]
            words += [f"has no column start, so that its column {' and '.join(ends)} cuts nothing"] if ends else []
        return "; ".join(words)

    @property
    def unused_captions(self) -> str:
        """The name of a column that may have captions, by its name or its texts; "" if there is none, or if some are taken."""
        if "caption" in self.columns:
            return ""
        texts: dict[str, list[int]] = {}
        for row in islice(self, _LOOKED_AT):
            for column, value in row.extra.items():
                texts.setdefault(column, []).append(len(value.split()) if isinstance(value, str) else 0)
        means = {column: sum(counts) / len(counts) for column, counts in texts.items() if any(counts)}
        called = [column for column in means if any(word in fold(column) for word in _CAPTION_NAMES)]
        longest = max(called or means, key=means.__getitem__, default="")
        return longest if called or means.get(longest, 0) >= _CAPTION_WORDS else ""

    @cached_property
    def _have(self) -> dict[str, None]:
        """All columns of the list, in order."""
        if self._suffix == ".txt":
            return {"path": None}
        return dict.fromkeys(column for _, values in self._parsed() for column in values)

    def _has(self, column: str) -> bool:
        return column in map(fold, self._have)

    def _parsed(self) -> Iterator[tuple[int, Columns]]:
        """Yield (line, columns) of each row."""
        return parse(self._data, self._suffix, self.name, self._names)

    @cached_property
    def _folder(self) -> str:
        """The folder that paths are relative to."""
        below = os.path.join(self._beginning, _VIDEOS)
        if not os.path.isdir(below):
            return self._beginning
        for _, values in islice(self._parsed(), _LOOKED_AT):
            path = values.get(self.columns["path"])
            if not isinstance(path, str) or "\0" in path:
                continue
            for folder in (self._beginning, below):
                if os.path.lexists(os.path.join(folder, path)):
                    return folder
        return self._beginning

    def _row(self, values: Columns, number: int) -> Row:
        read = _Reader(values, self.columns, f"line {number}", self.name)
        written, name = read.text("path"), read.text("id")
        if written is None:
            raise MovqError(f"line {number} has no path", self.name)
        if "\0" in written:
            raise MovqError(f"line {number} has a path with a zero byte", self.name)
        if set(written.split("/")) <= {"", ".", ".."}:
            raise MovqError(f"line {number} has a path that no file can have", self.name)
        if name is not None and not is_plain(name):
            raise MovqError(f"line {number}: the id {name!r} cannot be a path below the output folder", self.name)
        caption, others = read.caption()
        start = read.seconds("start")
        used = self.columns.values()
        return Row(
            line=number,
            path=absolute(written, self._folder),
            written=written,
            id=name,
            start=start,
            duration=read.duration(start),
            caption=caption,
            # A null is left out: `datasets` takes a column that begins with nulls for one without texts.
            extra={key: value for key, value in values.items() if key not in used and value is not None} | others,
        )


def _some(columns: Iterable[str]) -> str:
    """Return the names of the first columns, as text."""
    names = list(columns)
    return ", ".join(names[:_NAMES]) + (", ..." if names[_NAMES:] else "") if names else "none"


def _read(name: str) -> bytes:
    with open(name, "rb") as file:
        return file.read()


_SECONDS = re.compile(r"-?(\d{1,12}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,2})?|\d{1,12}/\d{1,12}")
_CLOCK = re.compile(r"(\d{1,4}:)?\d{1,4}:\d{1,2}(\.\d{1,30})?")
_ISO = re.compile(r"PT(?:(\d{1,4})H)?(?:(\d{1,6})M)?(?:(\d{1,9}(?:\.\d{1,30})?)S)?")
"""A duration of ISO 8601: PT1M3.5S."""


class _Reader(NamedTuple):
    """Reads the fields of a row, by the columns that a list has for them. `line` and `name` are for messages."""

    values: Columns
    columns: Mapping[str, str]
    line: str
    name: str

    def _value(self, field: str) -> Any:
        return self.values.get(self.columns[field]) if field in self.columns else None

    def text(self, field: str) -> str | None:
        """Return the text of a field; None if it is missing or empty."""
        value = self._value(field)
        if value is None or isinstance(value, str):
            return value or None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise MovqError(f"{self.line}: {self.columns[field]} is not text", self.name)
        return str(value)

    def caption(self) -> tuple[str | None, dict[str, Any]]:
        """Return the caption, the first if there are several, and the column of all of them if there are."""
        several = self._value("caption")
        if not isinstance(several, list):
            return self.text("caption"), {}
        column = self.columns["caption"]
        if not all(isinstance(text, str) for text in several):
            raise MovqError(f"{self.line}: {column} is neither text nor a list of texts", self.name)
        return (several[0] or None if several else None), ({column: several} if several[1:] else {})

    def seconds(self, field: str) -> Fraction | None:
        """Return the seconds of a field, exactly as written; None if it is missing or empty, and for a start of 0."""
        value = self.text(field)
        if value is None:
            return None
        seconds = _seconds(value)
        if seconds is None:
            raise MovqError(f"{self.line}: {field} {value[:40]!r} is not a number of seconds", self.name)
        if seconds < 0 or (seconds == 0 and field == "duration"):
            raise MovqError(f"{self.line}: a {field} of {value} seconds is impossible", self.name)
        return seconds or None

    def duration(self, start: Fraction | None) -> Fraction | None:
        """Return the seconds from a start to the end, or of the duration; None if the row has neither."""
        end = self.seconds("end")
        if end is None:
            return self.seconds("duration")
        if end <= (start or 0):
            raise MovqError(f"{self.line}: the end, {self.text('end')}, is not after the start", self.name)
        return end - (start or 0)


def _seconds(text: str) -> Fraction | None:
    """Return the seconds of 63.5, 0:01:03.5 or PT1M3.5S, exactly; None for another text."""
    if (found := _SECONDS.fullmatch(text)) is not None:
        return _fraction(text, *found.groups())
    if _CLOCK.fullmatch(text):
        try:
            return parse_seconds(text)
        except MovqUsageError:
            return None
    if (found := _ISO.fullmatch(text)) is not None and any(found.groups()):
        hours, minutes, seconds = (Fraction(part or 0) for part in found.groups())
        return hours * 3600 + minutes * 60 + seconds
    return None


def _fraction(text: str, decimal: str | None, _: str | None, exponent: str | None) -> Fraction | None:
    """Return a number as written, exactly, from the groups of _SECONDS; None if it divides by zero."""
    if decimal and not exponent and text[0] != "-":  # twice as fast as below, and a list may have a million
        whole, _, part = decimal.partition(".")
        return Fraction(int(whole + part), 10 ** len(part))
    try:
        return Fraction(text)
    except ZeroDivisionError:
        return None
