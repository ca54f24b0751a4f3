"""`BatchFiles`: latents and first frames of a batch, mapped from its files and tars, by the lines of its manifest.

What is read must be what the manifest says: headers are compared, and whoever copies whole files compares digests.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import warnings
from collections import OrderedDict
from typing import NamedTuple

import torch

from .batch.manifest import Line
from .batch.tars import Tars
from .errors import MovqError
from .files import require_file
from .first_frame import PNG
from .headers import ITEM_SIZES, Header, TensorEntry, parse_header
from .int8 import dequantise, require_scale
from .metadata import FORMAT, FORMAT_VERSIONS, Metadata

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
}
_OPEN_TARS = 32
_INDEX_BYTES = ITEM_SIZES["I64"]


class Held(NamedTuple):
    """Latents: their header, the bytes of their file, and the file or tar that holds them; `latents` (C, T, H, W) as stored.

    `scale` (C, T) is that of int8. `factor` is the frames of a latent, `representation` what is stored.
    """

    header: Header
    data: memoryview
    path: str
    latents: torch.Tensor
    scale: torch.Tensor | None
    factor: int
    representation: str

    def floats(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return latents `start` to `stop` as stored, or in fp32 if that is int8."""
        stored = self.latents[:, start:stop]
        return stored if self.scale is None else dequantise(stored, self.scale[:, start:stop])


class Stored(NamedTuple):
    """The metadata, latents (C, T, H, W) as stored, or in fp32 if that is int8, and the first frame's index in the source."""

    metadata: Metadata
    latents: torch.Tensor
    first_index: int


class BatchFiles:
    """The files in the folder of a batch. Each method takes a line of the manifest, and with a `kind` a first frame of it.

    Raises MovqError if a file is not what the line says. It may be pickled, and opens files anew then.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._tars = Tars(folder)
        self._maps: OrderedDict[str, memoryview] = OrderedDict()

    def __reduce__(self) -> tuple[type[BatchFiles], tuple[str]]:
        return BatchFiles, (self.folder,)

    def stored(self, row: Line, kind: str = "") -> Stored:
        """Return latents as their file has them, each byte checked."""
        held = self.held(row, kind)
        metadata = _metadata_of(held.header, held.path)
        _check_digest(held.data, row, kind, held.path)
        at = held.header.tensors["frame_indices"].start
        return Stored(metadata, held.floats(), int.from_bytes(held.data[at : at + _INDEX_BYTES], "little"))

    def picture(self, row: Line) -> bytes:
        """Return the first frame as the bytes of a PNG file, each checked."""
        data, path = self.data(row, PNG)
        _check_digest(data, row, PNG, path)
        return bytes(data)

    def metadata(self, row: Line) -> Metadata:
        """Return the metadata of an item."""
        header, _, path = self.header(row)
        return _metadata_of(header, path)

    def held(self, row: Line, kind: str = "") -> Held:
        """Return latents as they are mapped."""
        header, data, path = self.header(row, kind)
        try:
            entry = header.tensors["latents"]
            one, channels, latents, height, width = row["shape"]
            if entry.shape != (one, channels, 1 if kind else latents, height, width):
                raise ValueError("of another shape")
            if entry.dtype != row.get("dtype", entry.dtype):
                raise ValueError("of another data type")
            stored = _tensor(data, entry)
            scale = None
            if entry.dtype == "I8":
                scale = _tensor(data, header.tensors["latents_scale"])
                if scale.shape != stored.shape[1:3]:
                    raise ValueError("scales of another shape")
                require_scale(scale)
            factor, representation = int(header.metadata["temporal_factor"]), header.metadata["representation"]
        except (ValueError, KeyError, TypeError) as error:
            raise MovqError(f"is not what the manifest says ({error})", path) from None
        return Held(header, data, path, stored[0], scale, factor, representation)

    def header(self, row: Line, kind: str = "") -> tuple[Header, memoryview, str]:
        """Return the header of latents, their bytes, and the file or tar that holds them."""
        data, path = self.data(row, kind)
        try:
            header = parse_header(data)
            said = header.metadata
            found = [said[name] for name in ("format", "source_sha256", "weights_digest")]
            known = said["format_version"] in FORMAT_VERSIONS
            if not known or found != [FORMAT, row["source_sha256"], row["weights_digest"]]:
                raise ValueError("other latents")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise MovqError(f"is not what the manifest says ({error})", path) from None
        return header, data, path

    def data(self, row: Line, kind: str = "") -> tuple[memoryview, str]:
        """Return the bytes of latents, or with a `kind` of a first frame, mapped, and the file or tar that holds them."""
        said = row["first_frame"][kind] if kind else row
        path = os.path.join(self.folder, said["output"])
        if "member" not in said:
            data = memoryview(mapped(path))
            if len(data) != said["bytes"]:
                raise MovqError(f"has {len(data)} bytes where the manifest says {said['bytes']}", path)
            return data, path
        part = self._tars.find_first_frame(row, kind) if kind else self._tars.find(row)
        if path not in self._maps:
            if len(self._maps) >= _OPEN_TARS:
                self._maps.popitem(last=False)
            self._maps[path] = memoryview(mapped(path))
        self._maps.move_to_end(path)
        return self._maps[path][part.offset : part.offset + part.bytes], path


def _check_digest(data: memoryview, row: Line, kind: str, path: str) -> None:
    if hashlib.sha256(data).hexdigest() != (row["first_frame"][kind] if kind else row)["sha256"]:
        raise MovqError("is damaged: its bytes are not those that the manifest says", path)


def _metadata_of(header: Header, path: str) -> Metadata:
    try:
        header.tensors["frame_indices"]
        return Metadata.from_strings(header.metadata)
    except (ValueError, KeyError, TypeError, RecursionError, ZeroDivisionError) as error:
        raise MovqError(f"is not what the manifest says ({error})", path) from None


def _tensor(data: memoryview, entry: TensorEntry) -> torch.Tensor:
    """Return a tensor of a file. It cannot be written to. Raises ValueError or KeyError if it is not as the header says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a buffer that is not writable: nothing writes to it
        flat = torch.frombuffer(data, dtype=_DTYPES[entry.dtype], count=entry.numel, offset=entry.start)
    return flat.view(entry.shape)


def mapped(path: str) -> mmap.mmap | bytes:
    """Return the bytes of a file, mapped. Raises MovqError if it is not a readable file."""
    if not require_file(path).st_size:
        return b""  # an empty file cannot be mapped
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
