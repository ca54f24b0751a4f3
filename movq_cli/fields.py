"""The fields of option classes: texts and other values become their declared types, and calls change them by name.

The command line and Python read the same texts: `--duration 1:30` is `duration="1:30"`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from math import isfinite
from numbers import Real
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .errors import MovqUsageError
from .values import Bucket, Column, Pick, Shard, Size, parse_bytes, parse_seconds

T = TypeVar("T")

_TORCH_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def _auto(what: str, text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise MovqUsageError(f"must be auto or a number of {what}, got {text!r}")
    return int(text)


READERS: Mapping[str, Callable[[str], Any]] = {
    "start": parse_seconds,
    "duration": parse_seconds,
    "memory_budget": parse_bytes,
    "tar_size": parse_bytes,
    "chunk_frames": partial(_auto, "frames"),
    "strip_rows": partial(_auto, "rows"),
    "workers": partial(_auto, "processes"),
    "precision": lambda text: _TORCH_NAMES.get(text, text),
    "store_dtype": lambda text: _TORCH_NAMES.get(text, text),
    "dtype": lambda text: _TORCH_NAMES.get(text, text),
    "buckets": Bucket.parse,
    "columns": Column.parse,
    "pick": Pick.parse,
    "shape": Bucket.parse,
    "sizes": Size.parse,
    "shard": Shard.parse,
}
"""The reader of an option's text, if that is more than a name, a path or a number."""

_NUMBERS: Mapping[type, tuple[str, Callable[[str], Any]]] = {
    int: ("a whole number like 49", int),
    float: ("a number like 1.5", float),
    Fraction: ("a number like 25, 29.97 or 30000/1001", Fraction),
}


def read_text(name: str, kind: Any, text: str) -> Any:
    """Return the value that a text means for an option of this type. Raises MovqUsageError that names the option."""
    try:
        if name in READERS:
            return READERS[name](text)
        if kind not in _NUMBERS:
            return text
        words, read = _NUMBERS[kind]
        try:
            return read(text)
        except (ValueError, ZeroDivisionError):
            raise MovqUsageError(f"must be {words}, got {text!r}") from None
    except MovqUsageError as error:
        raise MovqUsageError(error.marked, option=name) from None


@lru_cache
def declared(owner: type) -> dict[str, tuple[Any, bool, bool]]:
    """Return, for each field of an option class, its type, True if there may be several, and True if it may be None."""
    found = {}
    for name, hint in get_type_hints(owner).items():
        several = get_origin(hint) is tuple
        kinds = get_args(hint)[:1] if several else get_args(hint) or (hint,)
        found[name] = kinds[0], several, type(None) in kinds
    return found


def read_fields(options: Any) -> None:
    """Give every field its declared type: texts are read as on the command line, other numbers converted if they fit.

    Raises MovqUsageError for a value of another type.
    """
    kinds: Mapping[str, tuple[Any, bool, bool]] = declared(options.__class__)
    for field in fields(options):
        kind, several, optional = kinds[field.name]
        value = getattr(options, field.name)
        if several:
            listed = value if isinstance(value, Iterable) and not isinstance(value, str | os.PathLike) else [value]
            read: Any = tuple(dict.fromkeys(_read(field.name, kind, one, False) for one in listed))
        else:
            read = _read(field.name, kind, value, optional)
        object.__setattr__(options, field.name, read)


def _read(name: str, kind: Any, value: Any, optional: bool) -> Any:
    if isinstance(value, os.PathLike) and kind is str:
        value = os.fspath(value)
    if type(value).__module__ == "torch" and kind is str:  # torch.device and torch.dtype
        value = str(value).removeprefix("torch.")
    if isinstance(value, str):
        value = read_text(name, kind, value)
    if (value is None and optional) or type(value) is kind or (kind not in _NUMBERS and isinstance(value, kind)):
        return value
    if kind in _NUMBERS and _is_number(value) and (kind is not int or value == int(value)):
        return kind(value) if kind is int else kind(str(value))  # the Fraction of 0.1 is 1/10
    wanted = _NUMBERS[kind][0] if kind in _NUMBERS else kind.__name__
    raise MovqUsageError(f"must be {wanted}{' or None' if optional else ''}, got {value!r}", option=name)


def _is_number(value: Any) -> bool:
    """Return True for a finite number, numpy's among them."""
    return not isinstance(value, bool) and isinstance(value, Real) and isfinite(value)


def changed(options: T, changes: Mapping[str, Any]) -> T:
    """Return options with changes by name. Fields of nested options, like `frames`, may be named directly.

    Raises MovqUsageError for a name that is not an option, or a value that is not valid.
    """
    left = dict(changes)
    for field in fields(options):  # type: ignore[arg-type]
        inner = getattr(options, field.name)
        if is_dataclass(inner) and field.name not in left:
            names = {nested.name for nested in fields(inner)} & left.keys()
            if names:
                left[field.name] = changed(inner, {name: left.pop(name) for name in names})
    unknown = left.keys() - {field.name for field in fields(options)}  # type: ignore[arg-type]
    if unknown:
        raise MovqUsageError(f"{type(options).__name__} has no option {', '.join(map(repr, sorted(unknown)))}")
    return replace(options, **left)  # type: ignore[type-var]


def options_of(kind: type[T], options: T | None, changes: Mapping[str, Any]) -> T:
    """Return the options of a call: `options`, or the defaults, with changes by name.

    Raises MovqUsageError as `changed` does, and if `options` is of another class.
    """
    if options is not None and not isinstance(options, kind):
        raise MovqUsageError(f"options must be {kind.__name__}, got {type(options).__name__}")
    return changed(kind() if options is None else options, changes)
