"""Frames to latents and back: windows of chunks, the tail, the one loop. Only tensors here, no files and no videos.

    for window: for stage: for chunk of the window        (the inner two are model/stages.py)

A window is the frames that share norm statistics. With norms per frame, each chunk is a window; with norms over the
whole clip, the clip is one window; with diffusers' semantics, windows have 8 frames or 2 latents.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .errors import MovqError, option
from .model.config import AutoencoderConfig
from .schedule import WHOLE_WINDOW
from .transfers import Uploads, landed

if TYPE_CHECKING:
    import torch

    from .model.causal import StreamCache
    from .model.decoder import Decoder3D
    from .model.encoder import Encoder3D
    from .model.stages import Worked

RGB = 3
"""The number of channels of a picture."""

_WHOLE_STEP = 64  # frames for which a buffer of unknown length has room at first


Progress = Callable[[int, int | None], None]
"""Called with the frames done so far and the total (None: unknown). A frame halfway through the network counts half."""


def silent(done: int, total: int | None) -> None:
    """Do nothing; a Progress that reports to nobody."""


class WorkDone:
    """A `Worked` that adds up the work done and reports it in frames, never more than `most()` returns at that time."""

    def __init__(self, progress: Progress, total: int | None, most: Callable[[], int]) -> None:
        self._progress, self._total, self._most = progress, total, most
        self._done = 0.0
        progress(0, total)

    def __call__(self, frames: float) -> None:
        """Add work, in frames."""
        self._done += frames
        self._progress(min(round(self._done), self._most()), self._total)


class TimedImage(Protocol):
    """A frame: an image, its time and end, and its index in the source."""

    @property
    def image(self) -> np.ndarray:
        """The picture, RGB uint8 (H, W, 3)."""

    @property
    def time(self) -> Fraction:
        """The time at which it is shown, in seconds."""

    @property
    def end(self) -> Fraction:
        """The time at which the next frame is shown, in seconds."""

    @property
    def index(self) -> int:
        """The frame's index in the source."""


def fit_tail(frames: int, tail: str, factor: int, least: int = 0) -> tuple[int, int]:
    """Return (frames to repeat at the end, frames to drop) so that 1 + n * factor frames remain.

    Fewer than `least` frames are first made up to `least`. Raises MovqError for tail 'error' if frames do not fit.
    """
    wanted = max(frames, least)
    over = (wanted - 1) % factor
    if over and tail == "error":
        raise MovqError(
            f"has {wanted} frames where 1 + a multiple of {factor} are wanted: {wanted - over} and {wanted - over + factor} "
            f"fit; {option('tail', 'pad')} repeats the last frame, {option('tail', 'drop')} leaves some out"
        )
    if over:
        wanted += factor - over if tail == "pad" else -over
    return max(0, wanted - frames), max(0, frames - wanted)


class WrongCountError(Exception):
    """Raised if a clip has another number of frames, tail included, than its windows were planned for."""

    def __init__(self, planned: int, found: int) -> None:
        super().__init__(f"{found} frames where {planned} were counted")
        self.found = found


class Chunker:
    """Collects frames into windows of chunks (T, H, W, 3), treating the tail as `tail` says (see `fit_tail`).

    While chunks are taken, it records `times` and `indices` of the frames that are kept, how many are `padded` or
    `dropped`, the `start` of the first kept frame and the `end` of the last one.
    """

    def __init__(self, frames: Iterable[TimedImage], tail: str, config: AutoencoderConfig, least: int = 0) -> None:
        self._frames, self._tail, self._factor, self._least = frames, tail, config.temporal_factor, least
        self.times: array[float] = array("d")
        self.indices: array[int] = array("q")
        self.padded = self.dropped = 0
        self.start = self.end = Fraction(0)
        self._last: np.ndarray | None = None
        self._next: np.ndarray | None = None
        self._buffer: np.ndarray | None = None

    def windows(
        self,
        schedule: Iterable[Iterable[int]],
        planned: int | None = None,
        ending: Callable[[], None] = lambda: None,
    ) -> Iterator[Iterator[np.ndarray]]:
        """Yield windows by a schedule (ChunkSchedule.windows). Take all chunks of a window before the next window.

        A chunk is a view of a buffer that the next chunk overwrites. `ending` is called just before the last chunk is
        given. Raises WrongCountError at the end if the number of frames, tail included, is not `planned`.
        """
        images = self._kept()
        self._next = next(images, None)
        for lengths in schedule:
            chunks = self._chunks(images, lengths, ending)
            opening = next(chunks, None)
            if opening is None:
                break
            yield chain([opening], chunks)
        self._buffer = None  # It is as large as a chunk, and this object lives longer for what it recorded.
        if planned is not None:
            left = self._next is not None
            deque(images, maxlen=0)  # takes the remaining frames, so that all are counted
            found = len(self.times) + self.padded
            if left or found != planned:
                raise WrongCountError(planned, found)

    def _chunks(
        self, images: Iterator[np.ndarray], lengths: Iterable[int], ending: Callable[[], None]
    ) -> Iterator[np.ndarray]:
        for length in lengths:
            count = 0
            while self._next is not None and (length == WHOLE_WINDOW or count < length):
                if self._buffer is None:
                    self._buffer = np.empty((length or _WHOLE_STEP, *self._next.shape), np.uint8)
                elif count == len(self._buffer):
                    self._buffer.resize((max(2 * count, length), *self._next.shape), refcheck=False)
                self._buffer[count] = self._next
                count += 1
                self._next = next(images, None)
            if self._buffer is None or not count:
                return
            if self._next is None:
                ending()
            yield self._buffer[:count]

    def _kept(self) -> Iterator[np.ndarray]:
        """Yield the images of 1 + n * factor frames. Frames are held back until they fill a latent.

        Raises MovqError if there is no frame, or for tail 'error' as `fit_tail` does.
        """
        held: list[TimedImage] = []
        room = 1
        for frame in self._frames:
            held.append(frame)
            if len(held) == room:
                yield from self._keep(held)
                room = self._factor
        if not self.times:
            raise MovqError("has no frame in the range asked for")
        self.padded, self.dropped = fit_tail(len(self.times) + len(held), self._tail, self._factor, self._least)
        if self.dropped:
            self.end = held[0].time
            return
        yield from self._keep(held)
        assert self._last is not None
        yield from [self._last] * self.padded

    def _keep(self, held: list[TimedImage]) -> Iterator[np.ndarray]:
        for frame in held:
            if not self.times:
                self.start = frame.time
            self.times.append(float(frame.time))
            self.indices.append(frame.index)
            self.end = frame.end
            self._last = frame.image
            yield frame.image
        held.clear()


def to_input(frames: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert uint8 frames, in any layout, to the network's input in [-1, 1]: x / 127.5 - 1, rounded once."""
    import torch

    return frames.to(torch.float32).div_(127.5).sub_(1).to(dtype)


def to_planes(frames: torch.Tensor) -> torch.Tensor:
    """Return frames (T, H, W, 3) as (1, 3, T, H, W), a view."""
    from einops import rearrange

    return rearrange(frames, "t h w c -> 1 c t h w")


def to_pixels(x: torch.Tensor) -> torch.Tensor:
    """Convert the decoder's output, in about [-1, 1], to uint8, rounded and clamped."""
    import torch

    return (x.float() + 1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def to_frames(x: torch.Tensor) -> torch.Tensor:
    """Return (1, 3, T, H, W) as frames (T, H, W, 3)."""
    from einops import rearrange

    return rearrange(x, "1 c t h w -> t h w c").contiguous()


def encode(
    encoder: Encoder3D,
    windows: Iterable[Iterable[np.ndarray]],
    device: torch.device,
    dtype: torch.dtype,
    cache: StreamCache | None = None,
    worked: Worked = lambda frames: None,
    check: bool = False,
) -> Iterator[torch.Tensor]:
    """Encode windows of chunks uint8 (T, H, W, 3), and yield the moments (1, C, T', H', W') of each chunk on the CPU.

    The stream's `cache` has the store in which activations wait and the height of strips; its `end` ends the stream.
    `worked` is called with the work done, in frames. With `check`, raises NotFiniteError, which names stage and frame, if
    numbers are not finite.
    """
    from .model.causal import StreamCache

    cache, upload = cache or StreamCache(), Uploads(device)

    def prepare(strip: torch.Tensor) -> torch.Tensor:
        return to_input(strip, dtype)

    def computed() -> Iterator[tuple[torch.Tensor]]:
        for window in windows:
            chunks = (to_planes(upload(chunk)) for chunk in window)
            for latents in _inferred(encoder.encode_window(chunks, cache, worked, check, prepare)):
                yield (latents,)

    for (latents,) in landed(computed(), device):
        yield latents


def decode(
    decoder: Decoder3D,
    windows: Iterable[Iterable[torch.Tensor]],
    device: torch.device,
    dtype: torch.dtype,
    cache: StreamCache | None = None,
    worked: Worked = lambda frames: None,
) -> Iterator[np.ndarray]:
    """Decode windows of chunks of latents (1, z, L, H', W'), and yield the frames of each chunk, uint8 (T, H, W, 3).

    `cache` and `worked` are as for `encode`. Raises MovqError for values that are not finite.
    """
    import torch

    from .model.causal import StreamCache

    cache, finite = cache or StreamCache(), []

    def finish(strip: torch.Tensor) -> torch.Tensor:
        finite.append(strip.isfinite().all())
        return to_pixels(strip)

    def computed() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for window in windows:
            chunks = ((z, z) for z in (chunk.to(device, dtype) for chunk in window))
            for pixels in _inferred(decoder.decode_window(chunks, cache, worked, finish)):
                yield to_frames(pixels), torch.stack(finite).all()
                finite.clear()

    for pixels, all_finite in landed(computed(), device):
        if not bool(all_finite):
            raise MovqError(f"the decoder gives values that are not finite; try {option('precision', 'fp32')}")
        yield pixels.numpy()


def _inferred(results: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the results, with inference mode on while they are computed but not while they are used."""
    import torch

    while True:
        with torch.inference_mode():
            result = next(results, None)
        if result is None:
            return
        yield result
