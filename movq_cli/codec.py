"""Frames to latents: chunk plans, the tail, and the one loop over windows. Tensors in, tensors out; no files, no video.

    for window: for stage: for chunk of the window        (the inner two are model/stages.py)

With norms per frame, each chunk is a window. With norms over the whole clip there is one window, for now of one chunk.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .errors import MovqError, MovqUsageError
from .model.config import AutoencoderConfig

if TYPE_CHECKING:
    import torch

    from .model.encoder import Encoder3D

TAILS = ("pad", "drop", "error")
WHOLE_CLIP = 0
"""A `chunk_frames` that means: all frames in one chunk."""

_WHOLE_STEP = 64  # frames that a buffer for all of them begins with


class TimedImage(Protocol):
    """A frame: image RGB uint8 (H, W, 3), time and end in seconds, index in the source."""

    @property
    def image(self) -> np.ndarray: ...
    @property
    def time(self) -> Fraction: ...
    @property
    def end(self) -> Fraction: ...
    @property
    def index(self) -> int: ...


def check_chunk_frames(chunk_frames: int, config: AutoencoderConfig) -> None:
    """Raises MovqUsageError, naming the neighbours, unless chunk_frames is a multiple of the temporal factor."""
    factor = config.temporal_factor
    if chunk_frames < factor or chunk_frames % factor:
        below = chunk_frames // factor * factor
        near = f"{below} or {below + factor}" if below >= factor else str(factor)
        raise MovqUsageError(
            f"must be a multiple of {factor} frames, which make one latent; got {chunk_frames}: use {near}",
            "--chunk-frames",
        )


def first_chunk(chunk_frames: int, config: AutoencoderConfig) -> int:
    """Frames of chunk 0: one more than later chunks have, or what the padding mode needs."""
    return max(1 + chunk_frames, config.first_chunk_frames)


def count_chunks(frames: int, chunk_frames: int, config: AutoencoderConfig) -> int:
    """How many chunks so many frames, padding included, make."""
    if chunk_frames == WHOLE_CLIP:
        return 1
    return 1 + max(0, -(-(frames - first_chunk(chunk_frames, config)) // chunk_frames))


def fit_tail(frames: int, tail: str, factor: int) -> tuple[int, int]:
    """(frames to repeat at the end, frames to drop) so that 1 + n * factor remain. Raises MovqError for tail 'error'."""
    over = (frames - 1) % factor
    if over == 0:
        return 0, 0
    if tail == "error":
        raise MovqError(
            f"has {frames} frames where 1 + a multiple of {factor} are wanted: {frames - over} and {frames - over + factor} "
            "fit; --tail pad repeats the last frame, --tail drop leaves some out"
        )
    return (factor - over, 0) if tail == "pad" else (0, over)


@dataclass
class Chunker:
    """Collects frames into chunks (T, H, W, 3) of 1 + chunk_frames, then chunk_frames, frames; the tail as told.

    While its chunks are taken it records what happened to the frames: `times` and `indices` of those kept, how many were
    `padded` or `dropped`, and when the last kept one `end`s.
    """

    frames: Iterable[TimedImage]
    chunk_frames: int
    tail: str
    config: AutoencoderConfig

    def __post_init__(self) -> None:
        self.times: array[float] = array("d")
        self.indices: array[int] = array("q")
        self.padded = self.dropped = 0
        self.end = Fraction(0)

    def chunks(self) -> Iterator[np.ndarray]:
        """Each chunk is a view of one buffer, which the next chunk overwrites; all frames in one chunk have their own."""
        if self.chunk_frames == WHOLE_CLIP:
            room, size = None, _WHOLE_STEP
        else:
            room = size = first_chunk(self.chunk_frames, self.config)
        buffer: np.ndarray | None = None
        held = 0
        for frame in self.frames:
            if buffer is None:
                buffer = np.empty((size, *frame.image.shape), np.uint8)
            elif held == len(buffer):
                buffer.resize((2 * held, *frame.image.shape), refcheck=False)
            buffer[held] = frame.image
            self.times.append(float(frame.time))
            self.indices.append(frame.index)
            self.end = frame.end
            held += 1
            if held == room:
                yield buffer[:held]
                held, room = 0, self.chunk_frames
        if buffer is None:
            raise MovqError("has no frame in the range asked for")
        self.padded, self.dropped = fit_tail(len(self.times), self.tail, self.config.temporal_factor)
        if self.dropped:
            held -= self.dropped
            self.end = Fraction(self.times[-self.dropped])
            del self.times[-self.dropped :], self.indices[-self.dropped :]
        if self.padded:
            buffer = np.concatenate([buffer[:held], np.repeat(buffer[held - 1 : held], self.padded, axis=0)])
        if held:
            yield buffer[: held + self.padded]


def to_input(frames: np.ndarray, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """uint8 (T, H, W, 3) to what the network sees: (1, 3, T, H, W) in [-1, 1], x / 127.5 - 1, rounded once."""
    import torch

    x = torch.from_numpy(frames).to(device).permute(3, 0, 1, 2)[None]
    return x.to(torch.float32).div_(127.5).sub_(1).to(dtype)


def encode(
    encoder: Encoder3D, windows: Iterable[Iterable[np.ndarray]], device: torch.device, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """The latents of a stream of windows of chunks uint8 (T, H, W, 3): for each chunk, (1, C, T', H', W') on the device."""
    import torch

    from .model.causal import StreamCache

    cache = StreamCache()
    for window in windows:
        results = encoder.encode_window((to_input(chunk, device, dtype) for chunk in window), cache)
        while True:
            with torch.inference_mode():
                latents = next(results, None)
            if latents is None:
                break
            yield latents


@dataclass(frozen=True)
class Draw:
    """Posterior noise that does not depend on chunks, devices, workers or file names, and differs for every clip."""

    seed: int
    source_sha256: str
    first_index: int

    def __call__(self, moments: torch.Tensor, first_latent: int) -> torch.Tensor:
        """mean + exp(logvar / 2) * noise of moments (1, 2z, n, H', W') in fp32; logvar clamped to [-30, 20]."""
        import torch

        mean, logvar = moments.float().cpu().chunk(2, dim=1)
        noise = torch.stack([self._noise(first_latent + i, mean[0, :, i].shape) for i in range(mean.shape[2])], dim=1)
        return mean + (0.5 * logvar.clamp(-30.0, 20.0)).exp() * noise[None]

    def _noise(self, latent: int, shape: torch.Size) -> torch.Tensor:
        import torch

        key = f"{self.seed} {self.source_sha256} {self.first_index} {latent}".encode()
        number = int.from_bytes(hashlib.sha256(key).digest(), "little") % 2**63  # a seed torch takes
        return torch.randn(shape, generator=torch.Generator().manual_seed(number))
