"""Lists of items: text (one path per line), or CSV or JSON lines with a column `path`."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from ..errors import MovqError
from ..files import os_reason
from ..records import parse_json
from .manifest import DESCRIBED
from .paths import is_plain

_OWN = {"path", "id", "start", "duration", *DESCRIBED} - {"extra"}


class Row(NamedTuple):
    """One row of a list. `path` is absolute, `written` is as the list has it, `extra` are the columns unknown to movq.

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

    "-" is standard input. Paths are relative to the list's folder, or to the current folder for "-". Raises MovqError
    if the list cannot be read. Iterating raises MovqError, naming the line, if a row is not valid, so iterate once
    before any work.
    """

    def __init__(self, name: str) -> None:
        try:
            if name == "-" and sys.stdin is None:
                raise MovqError("is closed", "standard input")
            self._data = (sys.stdin.buffer.read() if name == "-" else _read(name)).removeprefix(b"\xef\xbb\xbf")
        except OSError as error:
            raise MovqError(os_reason(error), name) from None
        self.name = "standard input" if name == "-" else name
        self._folder = os.getcwd() if name == "-" else os.path.dirname(os.path.abspath(name))
        suffix = os.path.splitext(name)[1].lower()
        self._suffix = suffix if suffix in FORMATS else _guessed(self._data)

    def __iter__(self) -> Iterator[Row]:
        ids = set[str]()
        for number, values in self._parsed():
            row = _row(values, self._folder, number, self.name)
            if row.id is not None:
                if row.id in ids:
                    first = next(before.line for before in self if before.id == row.id)
                    raise MovqError(f"line {number} has the id {row.id!r} of line {first}", self.name)
                ids.add(row.id)
            yield row

    def _parsed(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (line, columns) of each row."""
        if self._suffix in (".jsonl", ".ndjson", ".json"):
            return _json(self._data, self.name)
        if self._suffix in (".csv", ".tsv"):
            return _csv(self._data, "\t" if self._suffix == ".tsv" else ",", self.name)
        return _paths(self._data)


def _read(name: str) -> bytes:
    with open(name, "rb") as file:
        return file.read()


def _paths(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield one path per line, or per zero byte as `find -print0` writes them, because names may hold newlines."""
    separator = b"\0" if b"\0" in data else b"\n"
    for number, line in enumerate(_split(data, separator), 1):
        path = os.fsdecode(line if separator == b"\0" else line.rstrip(b"\r"))
        if path.strip():
            yield number, {"path": path}


def _split(data: bytes, separator: bytes) -> Iterator[bytes]:
    """Yield the parts of `data.split(separator)` one at a time."""
    start = 0
    while (end := data.find(separator, start)) >= 0:
        yield data[start:end]
        start = end + len(separator)
    yield data[start:]


FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")


def _guessed(data: bytes) -> str:
    """Guess the suffix of a list from its beginning."""
    start = b"".join(data[:200].split())
    if start.startswith((b"{", b"[{")):
        return ".json"
    head = data.split(b"\n", 1)[0].decode("utf-8", "replace")
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        if "path" in (column.strip().strip('"') for column in head.split(delimiter)):
            return suffix
    return ".txt"


def _text(data: bytes, shown: str, first_line: int = 1) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = first_line + data[: error.start].count(b"\n")
        raise MovqError(f"line {line} is not UTF-8", shown) from None


def _json(data: bytes, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    rows: Iterator[tuple[int, Any]]
    if data.lstrip().startswith(b"["):
        rows = enumerate(_loaded(data, shown), 1)
    else:
        lines = enumerate(_split(data, b"\n"), 1)
        rows = ((number, _loaded(line, shown, number)) for number, line in lines if line.strip())
    for number, values in rows:
        if not isinstance(values, dict):
            raise MovqError(f"line {number} is not an object with a path", shown)
        yield number, values


def _loaded(data: bytes, shown: str, line: int | None = None) -> Any:
    """Return the value of JSON, of one line or of the whole list. Raises MovqError if it is not JSON."""
    try:
        return parse_json(data)
    except (ValueError, RecursionError):
        raise MovqError(_problem(_text(data, shown, line or 1), line), shown) from None


def _problem(text: str, line: int | None) -> str:
    """Describe what is wrong with text that is not JSON, by Python's own parser, which is slower."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no number")

    not_json = "is not JSON" if line is None else f"line {line} is not JSON"
    try:
        values = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        return f"{not_json} ({error})"
    for number, row in enumerate(values, 1) if line is None else [(line, values)]:
        for name, value in row.items() if isinstance(row, dict) else ():
            try:
                json.dumps([name, value], ensure_ascii=False, allow_nan=False).encode()
            except UnicodeEncodeError:
                return f"line {number}: {name!r} has half a character in it"
            except ValueError:
                return f"line {number}: {name!r} has a number that is too large"
    return not_json


def _csv(data: bytes, delimiter: str, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="")
    reader = csv.DictReader(text, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        names = reader.fieldnames or ()
        if "path" not in names or len(set(names)) < len(names):
            wrong = "has a column twice" if "path" in names else "has no column path"
            raise MovqError(f"{wrong}; it has {', '.join(names) or 'none'}", shown)
        for values in reader:
            if None in values:
                raise MovqError(f"line {reader.line_num} has more columns than the first", shown)
            yield reader.line_num, values
    except csv.Error as error:
        raise MovqError(f"line {reader.line_num} is not CSV ({error})", shown) from None
    except UnicodeDecodeError:
        _text(data, shown)  # raises with the number of the line
        raise


_SECONDS = re.compile(r"-?(\d{1,12}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,2})?|\d{1,12}/\d{1,12}")


def _row(values: dict[str, Any], folder: str, number: int, shown: str) -> Row:
    written = _column(values, "path", number, shown)
    name = _column(values, "id", number, shown)
    if written is None:
        raise MovqError(f"line {number} has no path", shown)
    if "\0" in written:
        raise MovqError(f"line {number} has a path with a zero byte", shown)
    if set(written.split("/")) <= {"", ".", ".."}:
        raise MovqError(f"line {number} has a path that no file can have", shown)
    if name is not None and not is_plain(name):
        raise MovqError(f"line {number}: the id {name!r} is no name for a file of the output folder", shown)
    return Row(
        line=number,
        path=absolute(written, folder),
        written=written,
        id=name,
        start=_seconds(values, "start", number, shown),
        duration=_seconds(values, "duration", number, shown),
        caption=_column(values, "caption", number, shown),
        extra={key: value for key, value in values.items() if key not in _OWN},
    )


def _column(values: dict[str, Any], name: str, number: int, shown: str) -> str | None:
    """Return the text of a column; None if it is missing or empty."""
    value = values.get(name)
    if value is None or isinstance(value, str):
        return value or None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise MovqError(f"line {number}: {name} is no text", shown)
    return str(value)


def _fraction(text: str) -> Fraction | None:
    """Return a number as written, exactly; None if the text is none."""
    found = _SECONDS.fullmatch(text)
    if found is None:
        return None
    decimal, _, exponent = found.groups()
    if decimal and not exponent and text[0] != "-":  # twice as fast as below, and a list may have a million
        whole, _, part = decimal.partition(".")
        return Fraction(int(whole + part), 10 ** len(part))
    try:
        return Fraction(text)
    except ZeroDivisionError:
        return None


def _seconds(values: dict[str, Any], name: str, number: int, shown: str) -> Fraction | None:
    """Return the seconds in a column, exactly as written; None if it is missing or empty, and for a start of 0."""
    value = _column(values, name, number, shown)
    if value is None:
        return None
    seconds = _fraction(value)
    if seconds is None:
        raise MovqError(f"line {number}: {name} {value[:40]!r} is not a number of seconds", shown)
    if seconds < 0 or (seconds == 0 and name == "duration"):
        raise MovqError(f"line {number}: {name} of {value} seconds cannot be", shown)
    return seconds or None
