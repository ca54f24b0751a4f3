"""Records and what JSON has of them: the fields that a dataclass or TypedDict declares are written, and checked when read.

Lines of manifests, indices of tars and messages between movq's processes go through here. A Fraction is a text, so it stays
exact; a NamedTuple is a list.
"""

from __future__ import annotations

import os
from fractions import Fraction
from typing import Annotated, Any, TypeVar

import msgspec

T = TypeVar("T")

MOST = 2**62
"""More than any file has of anything."""
Count = Annotated[int, msgspec.Meta(ge=0, lt=MOST)]
Amount = Annotated[float, msgspec.Meta(ge=0, lt=MOST)]


def to_values(record: Any) -> Any:
    """Return a record as JSON can hold it: dicts, lists or tuples, texts and numbers."""
    return msgspec.to_builtins(record, enc_hook=_to_text)


def from_values(kind: type[T], values: Any) -> T:
    """Return the record that `to_values` made these of. Raises ValueError where they are not what its fields declare.

    Keys that are no fields are left out.
    """
    return msgspec.convert(values, kind, dec_hook=_from_text)


def parse_json(text: bytes | str) -> Any:
    """Return what JSON text says. Raises ValueError for anything else, also numbers and characters that JSON has not."""
    return msgspec.json.decode(text)


def _to_text(value: Any) -> str:
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    raise NotImplementedError(f"{type(value)} in a record")


def _from_text(kind: type, value: Any) -> Any:
    if kind is Fraction:  # numbers are what Python users may have given
        return Fraction(value)
    raise NotImplementedError(f"{kind} in a record")
