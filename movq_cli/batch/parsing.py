"""Parse lists into rows of columns: text (one path per line), CSV, JSON lines, and arrays of JSON."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterator
from itertools import zip_longest
from typing import Any

from ..errors import MovqError
from ..records import parse_json

Columns = dict[str, Any]

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
"""The suffixes of lists."""
_DELIMITERS = (",", "\t", ";")


def parse(data: bytes, suffix: str, name: str, columns: Collection[str]) -> Iterator[tuple[int, Columns]]:
    """Yield each row as its line number, or its number in an array, from 1, and its values by column.

    `suffix` is one of FORMATS, and a table has one of these `columns`. Raises MovqError, which names the list `name` and the
    line, where it is not of that format.
    """
    if suffix == ".json":
        return _json(data, name)
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(data, name)
    if suffix in (".csv", ".tsv"):
        return _csv(data, _delimiter(data, columns) or ("\t" if suffix == ".tsv" else ","), name)
    return _paths(data)


def format_of(data: bytes, suffix: str, columns: Collection[str]) -> str:
    """Return the suffix of FORMATS that suits a list: its own, or by its beginning.

    A first line with one of these columns is that of a table, also in a .txt file if it has several.
    """
    if suffix in FORMATS and suffix != ".txt":
        return suffix
    if suffix != ".txt" and b"".join(data[:200].split()).startswith((b"{", b"[{", b'["')):
        return ".json"
    delimiter = _delimiter(data, columns)
    is_table = delimiter and (suffix != ".txt" or delimiter.encode() in data.lstrip().split(b"\n", 1)[0])
    return ".csv" if is_table else ".txt"


def _delimiter(data: bytes, columns: Collection[str]) -> str:
    """Return what separates the columns of a table whose first line has one of these; "" if it has none of them.

    A comma, if there is only one column.
    """
    head = data.lstrip().split(b"\n", 1)[0].decode("utf-8", "replace")
    wanted = set(map(fold, columns))
    for delimiter in _DELIMITERS:
        if not wanted.isdisjoint(fold(column.strip().strip('"')) for column in head.split(delimiter)):
            return delimiter
    return ""


def fold(column: str) -> str:
    """Return the same text for names of columns that differ only in case and in spaces around them."""
    return column.strip().lower()


def _paths(data: bytes) -> Iterator[tuple[int, Columns]]:
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


def _json(data: bytes, name: str) -> Iterator[tuple[int, Columns]]:
    """Yield the rows of an array, of the one array in an object, or of JSON lines, which are often called .json too."""
    try:
        whole = parse_json(data)
    except (ValueError, RecursionError):
        if data.lstrip().startswith(b"["):
            raise _not_json(data, name) from None
        return _json_lines(data, name)
    if isinstance(whole, list) and whole and all(isinstance(value, str) for value in whole):
        return enumerate(({"path": path} for path in whole), 1)
    if not isinstance(whole, dict):
        return _objects(enumerate(whole if isinstance(whole, list) else [whole], 1), name)
    arrays = [value for value in whole.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    return _objects(enumerate(arrays[0] if len(arrays) == 1 else [whole], 1), name)


def _json_lines(data: bytes, name: str) -> Iterator[tuple[int, Columns]]:
    if data.lstrip().startswith(b"["):
        return _json(data, name)
    lines = enumerate(_split(data, b"\n"), 1)
    return _objects(((number, _loaded(line, name, number)) for number, line in lines if line.strip()), name)


def _objects(rows: Iterator[tuple[int, Any]], name: str) -> Iterator[tuple[int, Columns]]:
    for number, values in rows:
        if not isinstance(values, dict):
            raise MovqError(f"line {number} is not an object with a path", name)
        yield number, values


def _loaded(data: bytes, name: str, line: int) -> Any:
    try:
        return parse_json(data)
    except (ValueError, RecursionError):
        raise _not_json(data, name, line) from None


def _not_json(data: bytes, name: str, line: int | None = None) -> MovqError:
    """Return the error that says what is wrong with a line, or with a whole list, by Python's own parser, which is slower."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no number")

    not_json = "is not JSON" if line is None else f"line {line} is not JSON"
    try:
        values = json.loads(_text(data, name, line or 1), parse_constant=refuse)
    except MovqError as error:
        return error
    except (ValueError, RecursionError) as error:
        return MovqError(f"{not_json} ({error})", name)
    for number, row in enumerate(values, 1) if line is None else [(line, values)]:
        for column, value in row.items() if isinstance(row, dict) else ():
            try:
                json.dumps([column, value], ensure_ascii=False, allow_nan=False).encode()
            except UnicodeEncodeError:
                return MovqError(f"line {number}: {column!r} has half a character in it", name)
            except ValueError:
                return MovqError(f"line {number}: {column!r} has a number that is too large", name)
    return MovqError(not_json, name)


def _text(data: bytes, name: str, first_line: int = 1) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = first_line + data[: error.start].count(b"\n")
        raise MovqError(f"line {line} is not UTF-8", name) from None


def _csv(data: bytes, delimiter: str, name: str) -> Iterator[tuple[int, Columns]]:
    """Yield the rows of a table. A row counts by the line that it begins in, as captions may hold newlines."""
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="")
    csv.field_size_limit(max(csv.field_size_limit(), len(data)))  # a caption may be longer than the limit of 128 KiB
    reader = csv.reader(text, delimiter=delimiter, skipinitialspace=True, strict=True)
    line = 1
    try:
        columns = [column.strip() for column in next(filter(None, reader), [])]
        if len(named := list(filter(None, columns))) > len(set(named)):
            raise MovqError(f"has a column twice; it has {', '.join(named)}", name)
        while True:
            line = reader.line_num + 1
            values = next(reader, None)
            if values is None:
                return
            if not values:  # an empty line
                continue
            if any(values[len(columns) :]):
                raise MovqError(f"line {line} has more columns than the first", name)
            row = dict(zip_longest(columns, values[: len(columns)]))
            if row.get("") == "":  # a comma at the end of the first line
                del row[""]
            yield line, row
    except csv.Error as error:
        raise MovqError(f"line {line} is not CSV ({error})", name) from None
    except UnicodeDecodeError:
        _text(data, name)  # raises with the number of the line
        raise
