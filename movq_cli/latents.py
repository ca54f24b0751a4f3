"""The latents file: written whole or not at all, read lazily. See docs/format.md.

It is a safetensors file with `latents` (1, C, T', H', W'), never scaled; `frame_times` float64 (frames,), in seconds of
the source's own clock; `frame_indices` int64 (frames,), places among the frames that the source shows; and metadata for
the rest. Latents in int8 have `latents_scale` float32 (C, T') too. Latents are not computed here. torch is imported only
where tensors are used.
"""

from __future__ import annotations

import hashlib
import math
import os
from array import array
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING

from .errors import MovqError, option
from .files import BLOCK, WholeFile, write_all, write_error
from .headers import ITEM_SIZES, Header, header_bytes, read_header
from .int8 import dequantise, quantise, require_scale
from .metadata import CODED_VERSION, FORMAT, FORMAT_VERSION, FORMAT_VERSIONS, Metadata
from .model.config import AutoencoderConfig
from .options import CODES, STORE_DTYPES

if TYPE_CHECKING:
    import numpy as np
    import torch

_FLOATS = ("F32", "F16", "BF16")
DTYPES = dict(zip(STORE_DTYPES, (*_FLOATS, "I8"), strict=True))
"""The dtypes of `--store-dtype`, with their names in safetensors."""
CODE_DTYPES = {"int16": "I16", "int32": "I32"}
"""The dtypes of codes, by their names in torch, with their names in safetensors."""
_MOST_INT16 = 1 << 15  # codes


def code_dtype(codes: int) -> str:
    """Return the name in torch of the smallest dtype for this many codes."""
    return "int16" if codes <= _MOST_INT16 else "int32"


class LatentsWriter:
    """Writes one latents file: `append` chunks in time order, then `finish` and `commit`. Use it in a `with`.

    Memory does not grow with what is appended: chunks go to a nameless file in the folder of the output, and from
    there, channel by channel, into their final order. With `int8`, they are stored so. The constructor raises MovqError,
    before any work is done, if the output cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False, int8: bool = False) -> None:
        self._file = WholeFile(path, force=force)
        try:
            self._spool = self._file.spool()
        except BaseException as error:
            self._file.__exit__(type(error), error, None)
            raise
        self._int8 = int8
        self._scales: list[torch.Tensor] = []
        self._frames: list[int] = []
        self._shape: tuple[int, int, int] | None = None
        self._hash = hashlib.sha256()
        self.dtype = ""

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """The shape (1, C, T', H', W') of the latents appended so far."""
        c, h, w = self._shape or (0, 0, 0)
        return 1, c, sum(self._frames), h, w

    def append(self, latents: torch.Tensor) -> None:
        """Write latents (1, C, n, H', W') on the CPU, all in the same dtype. Raises MovqError if any is not finite."""
        import torch

        _, c, n, h, w = latents.shape
        names = {
            torch.float32: "F32",
            torch.float16: "F16",
            torch.bfloat16: "BF16",
            torch.int16: "I16",
            torch.int32: "I32",
        }
        dtype = "I8" if self._int8 else names[latents.dtype]
        if self._shape not in (None, (c, h, w)) or self.dtype not in ("", dtype):
            raise ValueError(f"a chunk of {tuple(latents.shape)} {dtype} cannot follow {self.shape} {self.dtype}")
        if not bool(torch.isfinite(latents).all()):
            raise MovqError(
                f"latents {sum(self._frames)} to {sum(self._frames) + n - 1} are not finite in {dtype}: nothing was written"
                + ("" if dtype in ("F32", "I8") else f"; {option('store_dtype', 'fp32')} holds larger numbers")
            )
        self._shape, self.dtype = (c, h, w), dtype
        self._frames.append(n)
        if self._int8:
            latents, scale = quantise(latents)
            self._scales.append(scale)
        try:
            write_all(self._spool, _bytes_of(latents))
        except OSError as error:
            raise write_error(error, self._file.path) from error

    def finish(self, metadata: Metadata, frame_times: array[float], frame_indices: array[int]) -> int:
        """Write the whole file, which has no name yet, and return its size in bytes."""
        frames = (len(frame_times),)
        _, channels, latents, _, _ = self.shape
        scale = {"latents_scale": ("F32", (channels, latents))} if self._int8 else {}
        tensors = {"frame_times": ("F64", frames), "frame_indices": ("I64", frames)} | scale
        version = FORMAT_VERSION if self.dtype in _FLOATS else CODED_VERSION
        self._write(header_bytes(tensors | {"latents": (self.dtype, self.shape)}, metadata.to_strings(version)))
        self._write(memoryview(frame_times).cast("B"))
        self._write(memoryview(frame_indices).cast("B"))
        if self._int8:
            import torch

            self._write(_bytes_of(torch.cat(self._scales, dim=1)))
        self._write_latents()
        return self._file.size

    def commit(self) -> None:
        """Sync the file, and give it its name. Raises MovqError if another file has it by now."""
        self._file.commit()

    @property
    def path(self) -> str:
        """The name that the file will have."""
        return self._file.path

    @property
    def sha256(self) -> str:
        """The hex SHA-256 digest of the finished file."""
        return self._hash.hexdigest()

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)

    def _write_latents(self) -> None:
        _, channels, _, h, w = self.shape
        plane = h * w * ITEM_SIZES[self.dtype]  # bytes of one channel of one latent
        for channel in range(channels):
            chunk_start = 0
            for n in self._frames:
                at, left = chunk_start + channel * n * plane, n * plane
                while left:
                    block = os.pread(self._spool, min(left, BLOCK), at)
                    if not block:
                        raise MovqError("the spool beside it was cut", self._file.path)
                    self._write(block)
                    at, left = at + len(block), left - len(block)
                chunk_start += channels * n * plane

    def __enter__(self) -> LatentsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # it has no name, and its data is no longer needed
            os.close(self._spool)
        self._file.__exit__(kind, error, trace)


@dataclass(frozen=True)
class Latents:
    """An open latents file, made by `open_latents`. The header is already read; tensors are read when asked for."""

    path: str
    metadata: Metadata
    header: Header

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (1, C, T', H', W') of the latents; C is 2z for moments (mean, then log variance), else z."""
        return self.header.tensors["latents"].shape

    @property
    def dtype(self) -> str:
        """The dtype that the latents are stored in, by its safetensors name: F32, F16, BF16 or I8."""
        return self.header.tensors["latents"].dtype

    @cached_property
    def latents(self) -> torch.Tensor:
        """The latents as stored, or in fp32 if that is int8: (1, C, T', H', W'), unscaled. Codes are whole numbers."""
        return self._floats(self._tensor("latents"))

    def _floats(self, stored: torch.Tensor, frames: slice = slice(None), channels: slice = slice(None)) -> torch.Tensor:
        """Return latents as floats. They are those of these frames and channels."""
        return stored if self._scale is None else dequantise(stored, self._scale[channels, frames])

    @cached_property
    def _scale(self) -> torch.Tensor | None:
        if self.dtype != "I8":
            return None
        scale = self._tensor("latents_scale")
        try:
            require_scale(scale)
        except ValueError as error:
            raise MovqError(f"has {error}", self.path) from None
        return scale

    @cached_property
    def mean(self) -> torch.Tensor:
        """The mean of the posterior, (1, z, T', H', W'). Raises MovqError for a file of draws or codes."""
        if self.metadata.representation in ("sample", CODES):
            raise MovqError(
                f"holds {'draws' if self.metadata.representation == 'sample' else CODES}, not the mean", self.path
            )
        if self.metadata.representation == "mean":
            return self.latents
        return self.latents[:, : self.shape[1] // 2]

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return latents `start` to `stop`, (1, C, stop - start, H', W'), reading only the part of the file they need.

        Raises MovqError if one is not finite, or if the file cannot be read.
        """
        import torch
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                part: torch.Tensor = self._floats(file.get_slice("latents")[:, :, start:stop], slice(start, stop))
        except (SafetensorError, OSError) as error:
            raise MovqError(f"cannot be read ({error})", self.path) from None
        if not bool(torch.isfinite(part).all()):
            raise MovqError(f"latents {start} to {stop - 1} are not finite", self.path)
        return part

    def channel_stats(self) -> list[tuple[float, float, float, float]]:
        """Return (mean, standard deviation, minimum, maximum) of each channel, with one channel in memory at a time."""
        from safetensors import SafetensorError, safe_open

        stats = []
        try:
            with safe_open(self.path, framework="pt") as file:
                whole = file.get_slice("latents")
                for channel in range(self.shape[1]):
                    one = slice(channel, channel + 1)
                    x = self._floats(whole[:, one], channels=one).double()
                    stats.append((float(x.mean()), float(x.std(correction=0)), float(x.min()), float(x.max())))
        except (SafetensorError, OSError) as error:
            raise MovqError(f"cannot be read ({error})", self.path) from None
        return stats

    def seconds(self) -> np.ndarray:
        """Return `frame_times` as a numpy array, without importing torch."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="np") as file:
                times: np.ndarray = file.get_tensor("frame_times")
                return times
        except (SafetensorError, OSError) as error:
            raise MovqError(f"cannot be read ({error})", self.path) from None

    @cached_property
    def frame_times(self) -> torch.Tensor:
        """The time of each frame, float64 (frames,), in seconds of the source's own clock."""
        return self._tensor("frame_times")

    @cached_property
    def frame_indices(self) -> torch.Tensor:
        """The place of each frame among those that the source shows, int64 (frames,)."""
        return self._tensor("frame_indices")

    def _tensor(self, name: str) -> torch.Tensor:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
                return tensor
        except (SafetensorError, OSError) as error:
            raise MovqError(f"cannot be read ({error})", self.path) from None


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor on the CPU."""
    import torch

    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def is_latents(path: str) -> bool:
    """Return True if the header of a file says that it is a latents file; False also if it cannot be read."""
    try:
        return read_header(path).metadata.get("format") == FORMAT
    except MovqError:
        return False


def open_latents(path: str | os.PathLike[str]) -> Latents:
    """Open a latents file, reading only its header. Raises MovqError for other files and other format versions."""
    name = os.fspath(path)
    header = read_header(name)
    if header.metadata.get("format") != FORMAT:
        raise MovqError("is not a movq latents file", name)
    version = header.metadata.get("format_version", "")
    if version not in FORMAT_VERSIONS:
        known = " and ".join(FORMAT_VERSIONS)
        raise MovqError(f"has format_version {version!r}; this movq reads {known}: update movq", name)
    try:
        metadata = Metadata.from_strings(header.metadata)
        _check(header, metadata)
    except KeyError as error:
        raise MovqError(f"lacks {error.args[0]!r}", name) from None
    except (ValueError, TypeError, ZeroDivisionError, RecursionError) as error:
        raise MovqError(f"says what cannot be: {error}", name) from None
    return Latents(name, metadata, header)


def _check(header: Header, metadata: Metadata) -> None:
    """Raise ValueError or KeyError if tensors and metadata do not agree."""
    _check_tensors(header, metadata)
    latents, m = header.tensors["latents"], metadata
    padded = m.frames + m.frames_padded
    counts = (m.width, m.height, m.frames, m.temporal_factor, m.spatial_factor)
    if min(counts) < 1 or min(m.frames_padded, m.frames_dropped, m.pad_right, m.pad_bottom) < 0:
        raise ValueError("a size or count that is too small")
    if (m.width + m.pad_right) % m.spatial_factor or (m.height + m.pad_bottom) % m.spatial_factor:
        raise ValueError(f"a padded picture that is no multiple of {m.spatial_factor}")
    if not 0 <= m.duration < math.inf:
        raise ValueError(f"a duration of {m.duration}")
    if m.crop is not None and not (isinstance(m.crop, list) and [type(n) for n in m.crop] == [int] * 4):
        raise ValueError("a crop that is none")
    expected = (
        1 + (padded - 1) // m.temporal_factor,
        (m.height + m.pad_bottom) // m.spatial_factor,
        (m.width + m.pad_right) // m.spatial_factor,
    )
    if latents.shape[2:] != expected:
        raise ValueError(f"latents of {list(latents.shape[2:])} where the metadata say {list(expected)}")
    if m.representation == "moments" and latents.shape[1] % 2:
        raise ValueError(f"moments of {latents.shape[1]} channels")


def _check_tensors(header: Header, metadata: Metadata) -> None:
    latents = header.tensors["latents"]
    codes = metadata.representation == CODES
    if (
        latents.dtype not in (CODE_DTYPES if codes else DTYPES).values()
        or len(latents.shape) != 5
        or latents.shape[0] != 1
    ):
        raise ValueError(f"latents of {latents.dtype} {list(latents.shape)}")
    if codes and AutoencoderConfig.from_dict(metadata.config).codebooks != latents.shape[1]:
        raise ValueError(f"codes of {latents.shape[1]} codebooks, which its config does not have")
    if (latents.dtype in _FLOATS) != (header.metadata["format_version"] == FORMAT_VERSION):
        raise ValueError(f"latents of {latents.dtype} in format_version {header.metadata['format_version']}")
    frames = (metadata.frames,)
    others: dict[str, tuple[str, tuple[int, ...]]] = {"frame_times": ("F64", frames), "frame_indices": ("I64", frames)}
    if latents.dtype == "I8":
        others["latents_scale"] = ("F32", (latents.shape[1], latents.shape[2]))
    for name, wanted in others.items():
        entry = header.tensors[name]
        if (entry.dtype, entry.shape) != wanted:
            raise ValueError(f"{name} of {entry.dtype} {list(entry.shape)} for {metadata.frames} frames")
