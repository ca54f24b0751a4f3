"""Read and write the headers of safetensors files. No tensor library is imported."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import MovqError
from .files import os_reason, require_file

ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
"""Bytes per number of the safetensors dtypes that movq's own files may hold."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a safetensors file: dtype by its safetensors name, shape, and where its bytes are in `file`."""

    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    end: int = 0
    file: str = ""

    @property
    def numel(self) -> int:
        """The number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return only the header of a file. Raises MovqError for anything but a well-formed safetensors file."""
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    require_file(name)
    try:
        with safe_open(name, framework="np") as checked:  # checks every offset, shape and the header's size
            checked.keys()
        return parse_header(header_at(name), name)
    except SafetensorError as error:
        raise MovqError(f"is not a safetensors file ({error})", name) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MovqError(f"is not a readable safetensors file ({error})", name) from None


def header_at(path: str, offset: int = 0) -> bytes:
    """Return the bytes of the header that begins at a byte of a file, with its length in front. Raises OSError."""
    with open(path, "rb") as file:
        file.seek(offset)
        size = file.read(8)
        return size + file.read(int.from_bytes(size, "little"))


def parse_header(data: bytes | memoryview, file: str = "") -> Header:
    """Return the header of a safetensors `file` that begins with these bytes, without checking that the rest fits.

    Raises ValueError, KeyError, TypeError or RecursionError if it is not a header.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(bytes(data[8:end]))
    metadata = header.pop("__metadata__", None) or {}
    tensors = {
        key: TensorEntry(entry["dtype"], tuple(entry["shape"]), end + start, end + stop, file)
        for key, entry in header.items()
        for start, stop in [entry["data_offsets"]]
    }
    return Header(tensors, metadata)


def looks_like_safetensors(path: str | os.PathLike[str]) -> bool:
    """Return True if a file begins like a safetensors file, with a length and then JSON. The rest is not checked."""
    try:
        with open(path, "rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise MovqError(os_reason(error), os.fspath(path)) from None


def header_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a safetensors file with these tensors (name: dtype, shape), in the order given.

    Metadata is sorted and the header is padded with spaces to a multiple of 8, so that equal contents give equal bytes
    and tensors are aligned.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * ITEM_SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
