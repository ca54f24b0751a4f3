"""Lists of items: text (a path per line), CSV, or JSON lines with a column `path`."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from ..errors import MovqError
from ..files import os_reason
from .paths import is_plain

_OWN = ("path", "id", "start", "duration", "caption")


@dataclass(frozen=True)
class Row:
    """One row of a list: `path` is absolute, `written` as the list has it; the columns that are not movq's are `extra`.

    `line` of the `list` it is in: for an array of JSON its place in it.
    """

    list: str
    line: int
    path: str
    written: str
    id: str | None = None
    start: Fraction | None = None
    duration: Fraction | None = None
    caption: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def absolute(path: str, folder: str = "") -> str:
    """A path from the root, leading where the system would go: through links before `..` leads back."""
    whole = os.path.join(folder or os.getcwd(), path)
    if ".." not in whole.split(os.sep):
        return os.path.normpath(whole)
    parent, name = os.path.split(whole.rstrip(os.sep))
    return os.path.realpath(whole) if name == ".." else os.path.join(os.path.realpath(parent), name)


def read_list(name: str) -> list[Row]:
    """The rows of a list; "-" is standard input. Its paths are relative to its own folder, or to the current one for "-".

    Raises MovqError, naming the line, for what cannot be understood: before any work, since a list is easily mended.
    """
    try:
        if name == "-" and sys.stdin is None:
            raise MovqError("is closed", "standard input")
        data = sys.stdin.buffer.read() if name == "-" else _read(name)
    except OSError as error:
        raise MovqError(os_reason(error), name) from None
    shown = "standard input" if name == "-" else name
    folder = os.getcwd() if name == "-" else os.path.dirname(os.path.abspath(name))
    rows = []
    ids: dict[str, int] = {}
    for number, values in _parsed(data, os.path.splitext(name)[1].lower(), shown):
        row = _row(values, folder, number, shown)
        if row.id is not None and (first := ids.setdefault(row.id, number)) != number:
            raise MovqError(f"line {number} has the id {row.id!r} of line {first}", shown)
        rows.append(row)
    return rows


def _read(name: str) -> bytes:
    with open(name, "rb") as file:
        return file.read()


def _parsed(data: bytes, suffix: str, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, columns) of each row. The suffix decides the format; without one that is known, the first line does."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    if suffix not in _FORMATS:
        suffix = _guessed(data)
    if suffix in (".jsonl", ".ndjson", ".json"):
        yield from _json(_text(data, shown), shown)
    elif suffix in (".csv", ".tsv"):
        yield from _csv(_text(data, shown), "\t" if suffix == ".tsv" else ",", shown)
    else:
        separator = b"\0" if b"\0" in data else b"\n"  # as find -print0 has it: names may hold newlines
        for number, line in enumerate(data.split(separator), 1):
            path = os.fsdecode(line if separator == b"\0" else line.rstrip(b"\r"))
            if path.strip():
                yield number, {"path": path}


_FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")


def _guessed(data: bytes) -> str:
    """The suffix that a list's beginning speaks for."""
    start = b"".join(data[:200].split())
    if start.startswith((b"{", b"[{")):
        return ".json"
    head = data.split(b"\n", 1)[0].decode("utf-8", "replace")
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        if "path" in (column.strip().strip('"') for column in head.split(delimiter)):
            return suffix
    return ".txt"


def _text(data: bytes, shown: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise MovqError(f"line {line} is not UTF-8", shown) from None


def _json(text: str, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if text.lstrip().startswith("["):
        rows = list(enumerate(_loaded(text, "", shown), 1))
    else:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = [(number, _loaded(line, f"line {number} ", shown)) for number, line in lines]
    for number, values in rows:
        if not isinstance(values, dict):
            raise MovqError(f"line {number} is not an object with a path", shown)
        for name, value in values.items():
            try:
                json.dumps([name, value], ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise MovqError(f"line {number}: {name!r} has half a character in it", shown) from None
        yield number, values


def _loaded(text: str, line: str, shown: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no number")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise MovqError(f"{line}is not JSON ({error})", shown) from None


def _csv(text: str, delimiter: str, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        names = reader.fieldnames or ()
        if "path" not in names or len(set(names)) < len(names):
            wrong = "has a column twice" if "path" in names else "has no column path"
            raise MovqError(f"{wrong}; it has {', '.join(names) or 'none'}", shown)
        for values in reader:
            if None in values:
                raise MovqError(f"line {reader.line_num} has more columns than the first", shown)
            yield reader.line_num, dict(values)
    except csv.Error as error:
        raise MovqError(f"line {reader.line_num} is not CSV ({error})", shown) from None


_SECONDS = re.compile(r"-?(\d{1,12}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,2})?|\d{1,12}/\d{1,12}")


def _row(values: dict[str, Any], folder: str, number: int, shown: str) -> Row:
    line = f"line {number}"

    def text(name: str) -> str | None:
        value = values.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise MovqError(f"{line}: {name} is no text", shown)
        return str(value)

    def seconds(name: str, least: int) -> Fraction | None:
        value = text(name)
        if value is None:
            return None
        try:
            seconds = Fraction(value) if _SECONDS.fullmatch(value) else None
        except ZeroDivisionError:
            seconds = None
        if seconds is None:
            raise MovqError(f"{line}: {name} {value[:40]!r} is not a number of seconds", shown)
        if seconds < 0 or (seconds == 0 and least):
            raise MovqError(f"{line}: {name} of {value} seconds cannot be", shown)
        return seconds or None

    written, name = text("path"), text("id")
    if written is None:
        raise MovqError(f"{line} has no path", shown)
    if "\0" in written:
        raise MovqError(f"{line} has a path with a zero byte", shown)
    if set(written.split("/")) <= {"", ".", ".."}:
        raise MovqError(f"{line} has a path that no file can have", shown)
    if name is not None and not is_plain(name):
        raise MovqError(f"{line}: the id {name!r} is no name for a file of the output folder", shown)
    return Row(
        list=shown,
        line=number,
        path=absolute(written, folder),
        written=written,
        id=name,
        start=seconds("start", 0),
        duration=seconds("duration", 1),
        caption=text("caption"),
        extra={key: value for key, value in values.items() if key not in _OWN},
    )
