"""Lists of items: text (a path per line), CSV, or JSON lines with a column `path`."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from ..errors import MovqError
from ..files import os_reason

_OWN = ("path", "id", "start", "duration", "caption")


@dataclass(frozen=True)
class Row:
    """One row of a list: `path` is absolute, `written` as the list has it; the columns that are not movq's are `extra`."""

    path: str
    written: str
    id: str | None = None
    start: Fraction | None = None
    duration: Fraction | None = None
    caption: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def read_list(name: str) -> list[Row]:
    """The rows of a list; "-" is standard input. Its paths are relative to its own folder, or to the current one for "-".

    Raises MovqError, naming the line, for what cannot be understood: before any work, since a list is easily mended.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else _read(name)
    except OSError as error:
        raise MovqError(os_reason(error), name) from None
    shown = "standard input" if name == "-" else name
    folder = os.getcwd() if name == "-" else os.path.dirname(os.path.abspath(name))
    rows: list[Row] = []
    ids: dict[str, int] = {}
    for number, values in _parsed(data, os.path.splitext(name)[1].lower(), shown):
        row = _row(values, folder, f"line {number}", shown)
        if row.id is not None and (first := ids.setdefault(row.id, number)) != number:
            raise MovqError(f"line {number} has the id {row.id!r} of line {first}", shown)
        rows.append(row)
    return rows


def _read(name: str) -> bytes:
    with open(name, "rb") as file:
        return file.read()


def _parsed(data: bytes, suffix: str, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, columns) of each row. The suffix decides the format; without one that is known, the first line does."""
    start = data.lstrip()[:1]
    head = data.split(b"\n", 1)[0].decode("utf-8-sig", "replace").strip()
    columns = [column.strip().strip('"') for column in head.split(",")]
    if suffix in (".jsonl", ".ndjson", ".json") or (suffix not in (".csv", ".tsv", ".txt") and start in (b"{", b"[")):
        yield from _json(_text(data, shown), shown)
    elif suffix in (".csv", ".tsv") or (suffix != ".txt" and "path" in columns):
        yield from _csv(_text(data, shown), "\t" if suffix == ".tsv" else ",", shown)
    else:
        separator = b"\0" if b"\0" in data else b"\n"  # as find -print0 has it: names may hold newlines
        for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(separator), 1):
            path = os.fsdecode(line if separator == b"\0" else line.rstrip(b"\r"))
            if path.strip():
                yield number, {"path": path}


def _text(data: bytes, shown: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise MovqError(f"line {line} is not UTF-8", shown) from None


def _json(text: str, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if text.lstrip().startswith("["):
        try:
            rows = list(enumerate(json.loads(text), 1))
        except (ValueError, RecursionError) as error:
            raise MovqError(f"is not JSON ({error})", shown) from None
    else:
        rows = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, row in rows:
        try:
            values = json.loads(row) if isinstance(row, str) else row
        except (ValueError, RecursionError) as error:
            raise MovqError(f"line {number} is not JSON ({error})", shown) from None
        if not isinstance(values, dict):
            raise MovqError(f"line {number} is not an object with a path", shown)
        yield number, values


def _csv(text: str, delimiter: str, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        if "path" not in (reader.fieldnames or ()):
            raise MovqError(f"has no column path; it has {', '.join(reader.fieldnames or ()) or 'none'}", shown)
        for values in reader:
            if None in values:
                raise MovqError(f"line {reader.line_num} has more columns than the first", shown)
            yield reader.line_num, dict(values)
    except csv.Error as error:
        raise MovqError(f"line {reader.line_num} is not CSV ({error})", shown) from None


def _row(values: dict[str, Any], folder: str, line: str, shown: str) -> Row:
    def text(name: str) -> str | None:
        value = values.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise MovqError(f"{line}: {name} is no text", shown)
        try:
            str(value).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise MovqError(f"{line}: {name} has half a character in it", shown) from None
        return str(value)

    def seconds(name: str, least: int) -> Fraction | None:
        value = text(name)
        try:
            number = None if value is None else Fraction(value)
        except (ValueError, ZeroDivisionError):
            raise MovqError(f"{line}: {name} {value!r} is not a number of seconds", shown) from None
        if number is not None and (number < 0 or (number == 0 and least)):
            raise MovqError(f"{line}: {name} of {value} seconds cannot be", shown)
        return number

    written, name = text("path"), text("id")
    if written is None:
        raise MovqError(f"{line} has no path", shown)
    if "\0" in written:
        raise MovqError(f"{line} has a path with a zero byte", shown)
    if name is not None and (not set(name.split("/")).isdisjoint({"", ".", ".."}) or "\0" in name):
        raise MovqError(f"{line}: the id {name!r} is no name for a file of the output folder", shown)
    return Row(
        path=os.path.abspath(os.path.join(folder, written)),
        written=written,
        id=name,
        start=seconds("start", 0),
        duration=seconds("duration", 1),
        caption=text("caption"),
        extra={key: value for key, value in values.items() if key not in _OWN},
    )
