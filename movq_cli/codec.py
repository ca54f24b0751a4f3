"""Frames to latents and back: windows of chunks, the tail, the one loop. Tensors in, tensors out; no files, no video.

    for window: for stage: for chunk of the window        (the inner two are model/stages.py)

A window is the frames that share norm statistics: with norms per frame, each chunk is one; with norms over the whole clip
there is one; in diffusers' way they are of 8 frames or 2 latents.
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
    from .model.store import Store

RGB = 3
"""Channels of a picture."""

_WHOLE_STEP = 64  # frames that a buffer for all of them begins with


Progress = Callable[[int, int | None], None]
"""Called with frames done so far and in all (None: unknown). Frames half way through the network count half."""


def silent(done: int, total: int | None) -> None:
    """A Progress that tells nobody."""


class WorkDone:
    """A `Worked` that adds up what it hears and reports it as frames, never more than `most` there are so far."""

    def __init__(self, progress: Progress, total: int | None, most: Callable[[], int]) -> None:
        self._progress, self._total, self._most = progress, total, most
        self._done = 0.0
        progress(0, total)

    def __call__(self, frames: float) -> None:
        """Add work, in frames."""
        self._done += frames
        self._progress(min(round(self._done), self._most()), self._total)


class TimedImage(Protocol):
    """A frame: image RGB uint8 (H, W, 3), time and end in seconds, index in the source."""

    @property
    def image(self) -> np.ndarray:
        """RGB uint8 (H, W, 3)."""

    @property
    def time(self) -> Fraction:
        """When it is shown, in seconds."""

    @property
    def end(self) -> Fraction:
        """When the next one is, in seconds."""

    @property
    def index(self) -> int:
        """Its place among the source's frames."""


def fit_tail(frames: int, tail: str, factor: int, least: int = 0) -> tuple[int, int]:
    """(frames to repeat at the end, frames to drop) so that 1 + n * factor remain, of `least` frames at least.

    Raises MovqError for tail 'error'.
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
    """A clip gave another number of frames, tail included, than its windows were planned for."""

    def __init__(self, planned: int, found: int) -> None:
        super().__init__(f"{found} frames where {planned} were counted")
        self.found = found


class Chunker:
    """Collects frames, the tail as told, into windows of chunks (T, H, W, 3). Fewer than `least` frames are made up to it.

    While its chunks are taken it records what happened to the frames: `times` and `indices` of those kept, how many were
    `padded` or `dropped`, when the first kept one `start`s and the last one `end`s.
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
        """Yield windows by a schedule (ChunkSchedule.windows), each to be taken to its end before the next.

        A chunk is a view of a buffer that the next chunk overwrites; `ending` is called before the last one is given. Raises
        WrongCountError after it if frames, tail included, are not as many as `planned`.
        """
        images = self._kept()
        self._next = next(images, None)
        for lengths in schedule:
            chunks = self._chunks(images, lengths, ending)
            opening = next(chunks, None)
            if opening is None:
                break
            yield chain([opening], chunks)
        self._buffer = None  # as large as a chunk, and who records outlives it
        if planned is not None:
            left = self._next is not None
            deque(images, maxlen=0)  # so that all are counted
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
        """The images of 1 + n * factor frames. Frames are held back until they fill a latent."""
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
    """uint8 (T, H, W, 3) to what the network sees: (1, 3, T, H, W) in [-1, 1], x / 127.5 - 1, rounded once."""
    import torch
    from einops import rearrange

    return rearrange(frames, "t h w c -> 1 c t h w").to(torch.float32).div_(127.5).sub_(1).to(dtype)


def to_pixels(x: torch.Tensor) -> torch.Tensor:
    """Round what the decoder gives, (1, 3, T, H, W) in about [-1, 1], to uint8 (T, H, W, 3)."""
    import torch
    from einops import rearrange

    pixels = (x.float() + 1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return rearrange(pixels, "1 c t h w -> t h w c").contiguous()


def encode(
    encoder: Encoder3D,
    windows: Iterable[Iterable[np.ndarray]],
    device: torch.device,
    dtype: torch.dtype,
    store: Store | None = None,
    worked: Worked = lambda frames: None,
    check: bool = False,
    cache: StreamCache | None = None,
) -> Iterator[torch.Tensor]:
    """The latents of a stream of windows of chunks uint8 (T, H, W, 3): for each chunk, (1, C, T', H', W') on the CPU.

    Chunks wait in the `store` between stages; `worked` hears of the work done, in frames. With `check`, raises
    NotFiniteError, which names stage and frame, where numbers are not finite. `cache` is the stream's, for who knows its end.
    """
    from .model.causal import StreamCache

    cache, upload = cache or StreamCache(), Uploads(device)

    def computed() -> Iterator[tuple[torch.Tensor]]:
        for window in windows:
            chunks = (to_input(upload(chunk), dtype) for chunk in window)
            for latents in _inferred(encoder.encode_window(chunks, cache, store, worked, check)):
                yield (latents,)

    for (latents,) in landed(computed(), device):
        yield latents


def decode(
    decoder: Decoder3D,
    windows: Iterable[Iterable[torch.Tensor]],
    device: torch.device,
    dtype: torch.dtype,
    store: Store | None = None,
    worked: Worked = lambda frames: None,
    cache: StreamCache | None = None,
) -> Iterator[np.ndarray]:
    """The frames of a stream of windows of chunks of latents (1, z, L, H', W'): for each chunk, uint8 (T, H, W, 3).

    Raises MovqError for values that are not finite.
    """
    from .model.causal import StreamCache

    cache = cache or StreamCache()

    def computed() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for window in windows:
            chunks = ((z, z) for z in (chunk.to(device, dtype) for chunk in window))
            for x in _inferred(decoder.decode_window(chunks, cache, store, worked)):
                yield to_pixels(x), x.isfinite().all()

    for pixels, finite in landed(computed(), device):
        if not bool(finite):
            raise MovqError(f"the decoder gives values that are not finite; try {option('precision', 'fp32')}")
        yield pixels.numpy()


def _inferred(results: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The same results; inference mode is on while they are computed, and not while they are used."""
    import torch

    while True:
        with torch.inference_mode():
            result = next(results, None)
        if result is None:
            return
        yield result
