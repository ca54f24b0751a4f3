"""Convert records to JSON values and back: the fields that a dataclass or TypedDict declares, checked when read.

Lines of manifests, indexes of tars and messages between movq's processes go through here. A Fraction becomes text, so
that it stays exact; a NamedTuple becomes a list.
"""

from __future__ import annotations

import os
from fractions import Fraction
from typing import Annotated, Any, TypeVar

import msgspec

T = TypeVar("T")

MOST = 2**62
"""An exclusive bound for every count and amount, more than any file can have."""
Count = Annotated[int, msgspec.Meta(ge=0, lt=MOST)]
Amount = Annotated[float, msgspec.Meta(ge=0, lt=MOST)]


def to_values(record: Any) -> Any:
    """Return a record as values for JSON: dicts, lists or tuples, texts and numbers."""
    return msgspec.to_builtins(record, enc_hook=_to_text)


def from_values(kind: type[T], values: Any) -> T:
    """Return the record that `to_values` converted. Raises ValueError if values are not what its fields declare.

    Keys that are not fields are ignored.
    """
    return msgspec.convert(values, kind, dec_hook=_from_text)


def parse_json(text: bytes | str) -> Any:
    """Return the value of JSON text. Raises ValueError for anything else, such as NaN or invalid UTF-8."""
    return msgspec.json.decode(text)


def _to_text(value: Any) -> str:
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    raise NotImplementedError(f"{type(value)} in a record")


def _from_text(kind: type, value: Any) -> Any:
    if kind is Fraction:  # a number, if a Python user gave one
        return Fraction(value)
    raise NotImplementedError(f"{kind} in a record")
