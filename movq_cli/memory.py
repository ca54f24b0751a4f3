"""The memory that encoding and decoding take: for a chunk, for a strip, and for what waits.

The networks' part is counted in model/cost.py, in elements; here it becomes bytes, and pictures and weights are added.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Self

from .checkpoints.checkpoint import Checkpoint
from .device import ITEM_SIZE, computed_size
from .errors import option
from .model.config import WINDOW_FRAMES, AutoencoderConfig
from .model.cost import MAX_ELEMENTS, ChunkCost, decode_cost, default_chunk_frames, encode_cost
from .schedule import ChunkSchedule
from .video import AHEAD_BYTES
from .video.geometry import round_up

if TYPE_CHECKING:
    import torch

PROCESS_BYTES = 330 << 20
"""Resident memory of a process with torch loaded, before it has computed anything (measured: benchmarks/memory.py)."""

WORKSPACE_BYTES = 600 << 20
"""Memory that cuDNN's kernels take on a CUDA device beside activations, at most (measured: benchmarks/gpu.py)."""

AHEAD_FRAMES = 32
"""The number of frames that decoding may run ahead of encoding, within AHEAD_BYTES of shared memory."""

ONE_PIECE = 0
"""A strip height that means the whole picture."""


def ahead_bytes(picture_bytes: int, frames: int | None) -> int:
    """Return the shared memory that is taken by frames which are read ahead, of a clip of `frames` (None: unknown)."""
    ahead = min(AHEAD_FRAMES, frames or AHEAD_FRAMES) * picture_bytes
    return min(ahead, max(AHEAD_BYTES, 2 * picture_bytes))


class Need(NamedTuple):
    """The bytes that a plan takes.

    `computing` has to be in memory. `waiting`, between two stages and for the next chunk, may be on disk. `spare` is what
    memory may have left without room for another strip. `indexable`: no tensor has more than MAX_ELEMENTS elements.
    """

    computing: int
    waiting: int
    spare: int
    indexable: bool


@dataclass(frozen=True)
class NetworkMemory(ABC):
    """The memory that a network takes for pictures of a `size`, (width, height), which are padded to a `multiple`.

    `schedule` has each window in one chunk; its count may be an upper bound.
    """

    checkpoint: Checkpoint
    schedule: ChunkSchedule
    size: tuple[int, int]
    multiple: int
    device: torch.device
    precision: str

    @property
    def config(self) -> AutoencoderConfig:
        """The config of the weights."""
        return self.checkpoint.config

    @property
    def width(self) -> int:
        """The width of a padded picture."""
        return round_up(self.size[0], self.multiple)

    @property
    def height(self) -> int:
        """The height of a padded picture."""
        return round_up(self.size[1], self.multiple)

    @property
    @abstractmethod
    def parameters(self) -> int:
        """The number of parameters of the network."""

    @property
    @abstractmethod
    def total(self) -> int | None:
        """The number of frames of the clip, or an upper bound; None if it is not known."""

    @property
    @abstractmethod
    def window(self) -> int:
        """The frames of the longest window; 0 if norms span one frame, so that each chunk is a window."""

    @abstractmethod
    def longest(self, chunk_frames: int) -> int:
        """Return the frames of the longest chunk."""

    @abstractmethod
    def cost(self, frames: int, strip_rows: int) -> ChunkCost:
        """Return the cost of a chunk of `frames` frames in strips of so many rows."""

    @abstractmethod
    def staging(self, frames: int, strip_rows: int) -> int:
        """Return the bytes that the pictures of a chunk take on their way to the network, or from it."""

    @abstractmethod
    def smaller(self) -> Iterator[Self]:
        """Yield the same for smaller pictures that could be asked for, from large to small."""

    @property
    @abstractmethod
    def advice(self) -> str:
        """The advice for users whose memory is too small for even the smallest chunk."""

    def strips(self) -> Iterator[int]:
        """Yield the heights of strips that a picture can be cut into, from one piece to many strips."""
        yield ONE_PIECE
        step, before = self.config.strip_step, 0
        for count in range(2, 1 if self.config.attends else 1 + -(-self.height // step)):
            rows = round_up(-(-self.height // count), step)
            if rows != before:
                yield rows
            before = rows

    @property
    def default_chunk(self) -> int:
        """The length of chunks if none is asked for."""
        return default_chunk_frames(self.config, self.height, self.width, self.device.type)

    def need(self, longest: int, strip_rows: int) -> Need:
        """Return what chunks take, the longest of which has so many frames, in strips of this height."""
        item = ITEM_SIZE[self.precision]
        cost = self.cost(longest, strip_rows)
        base = WORKSPACE_BYTES if self.device.type == "cuda" else PROCESS_BYTES
        computing = base + self.parameters * item + self.staging(longest, strip_rows)
        computing += cost.activations * computed_size(self.precision, self.device)
        indexable = cost.largest <= MAX_ELEMENTS
        if not strip_rows and longest >= self.window:  # nothing waits but the past
            return Need(computing + (0 if longest == self.total else cost.caches) * item, 0, 0, indexable)
        # The layers of a window take turns, so that its chunks need the past of one. Later windows find that of all.
        first = max(self.window, longest)
        window = self.cost(first, strip_rows)
        if first == self.total:
            waiting = window.waiting + (cost.largest_cache if longest < first else 0)
        else:
            later = self.cost(WINDOW_FRAMES if self.window else longest - 1, strip_rows)
            waiting = max(window.growing, later.waiting + cost.caches)
        spare = 2 * cost.waiting * (strip_rows or self.height) // self.height
        return Need(computing, waiting * item, spare * item, indexable)


@dataclass(frozen=True)
class EncodeMemory(NetworkMemory):
    """The memory of an encoding. `open_at_once` videos of this size are open.

    `smaller_sizes` are those that could be asked for, from large to small.
    """

    open_at_once: int = 1
    smaller_sizes: tuple[tuple[int, int], ...] = ()

    @cached_property
    def parameters(self) -> int:
        """The number of parameters of the encoder."""
        return self.checkpoint.parameters["encoder"]

    @property
    def total(self) -> int | None:
        """The number of frames of the clip, or an upper bound; None if it is not known."""
        return self.schedule.count

    @cached_property
    def window(self) -> int:
        """The frames of the longest window; 0 if norms span one frame."""
        return max(self.schedule.window_lengths(), default=0)

    def longest(self, chunk_frames: int) -> int:
        """Return the frames of the longest chunk."""
        return ChunkSchedule.of_frames(self.schedule.semantics, self.total, chunk_frames, self.config).longest

    def cost(self, frames: int, strip_rows: int) -> ChunkCost:
        """Return the cost of a chunk of `frames` frames in strips of so many rows."""
        return encode_cost(self.config, frames, self.height, self.width, strip_rows)

    def staging(self, frames: int, strip_rows: int) -> int:
        """Return the bytes of frames that were read ahead, of a chunk as bytes, and of a piece of it as numbers."""
        row = self.width * self.config.in_channels
        chunk = frames * self.height * row
        if self.device.type == "cuda":
            return chunk + frames * (strip_rows or self.height) * row * ITEM_SIZE["fp32"]
        return 2 * chunk + self.open_at_once * ahead_bytes(self.height * row, self.total)

    def smaller(self) -> Iterator[Self]:
        """Yield the same for smaller pictures, from large to small."""
        return (replace(self, size=size) for size in self.smaller_sizes)

    @property
    def advice(self) -> str:
        """The advice for users whose memory is too small for even the smallest chunk."""
        return f"take a smaller picture: {option('short_side')}"


@dataclass(frozen=True)
class DecodeMemory(NetworkMemory):
    """The memory of a decoding. The schedule is in latents, everything else in frames.

    `consumer_bytes` are the host's memory that the user of the frames takes.
    """

    consumer_bytes: int = 0

    @cached_property
    def parameters(self) -> int:
        """The number of parameters of the decoder."""
        return self.checkpoint.parameters["decoder"]

    @property
    def total(self) -> int | None:
        """The number of frames of the clip."""
        assert self.schedule.count is not None
        return self.config.latents_to_frames(self.schedule.count)

    @cached_property
    def window(self) -> int:
        """The frames of the longest window; 0 if norms span one frame."""
        return self._most_frames(self.schedule.window_lengths())

    def longest(self, chunk_frames: int) -> int:
        """Return the frames of the longest chunk."""
        semantics, count = self.schedule.semantics, self.schedule.count
        assert count is not None
        return self._most_frames(ChunkSchedule.of_latents(semantics, count, chunk_frames, self.config).lengths())

    def cost(self, frames: int, strip_rows: int) -> ChunkCost:
        """Return the cost of a chunk of `frames` frames in strips of so many rows."""
        return decode_cost(self.config, frames, self.height, self.width, strip_rows)

    def staging(self, frames: int, strip_rows: int) -> int:
        """Return the bytes of a piece as the decoder gives it and in fp32, twice of all pixels as uint8, and its consumer's."""
        row = frames * self.width * self.config.out_ch
        piece = (strip_rows or self.height) * row
        pixels = piece * (ITEM_SIZE[self.precision] + ITEM_SIZE["fp32"]) + 2 * self.height * row
        return pixels + (0 if self.device.type == "cuda" else self.consumer_bytes)

    def smaller(self) -> Iterator[Self]:
        """Yield nothing: the size of the latents is what it is."""
        return iter(())

    @property
    def advice(self) -> str:
        """The advice for users whose memory is too small for even the smallest chunk."""
        return f"{option('memory_budget')} allows more"

    def _most_frames(self, latents: Iterable[int]) -> int:
        """Return the frames of the longest of these chunks or windows. The stream's first latent is one frame."""
        factor, first = self.config.temporal_factor, self.config.latents_to_frames
        return max((n * factor if i else first(n) for i, n in enumerate(latents)), default=0)
