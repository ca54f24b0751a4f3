"""Which frames are computed at once: the windows of a clip, which share norm statistics, and the chunks they are cut into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from .errors import MovqUsageError
from .model.config import WINDOW_FRAMES, WINDOW_LATENTS, AutoencoderConfig

WHOLE_WINDOW = 0
"""A length that means the whole window, or as much as there is of it: of `chunk_frames`, each window in one chunk."""


def check_chunk_frames(chunk_frames: int, config: AutoencoderConfig) -> None:
    """Raise MovqUsageError, naming the neighbours, unless chunk_frames is a multiple of the temporal factor."""
    factor = config.temporal_factor
    if chunk_frames < factor or chunk_frames % factor:
        below = chunk_frames // factor * factor
        near = f"{below} or {below + factor}" if below >= factor else str(factor)
        raise MovqUsageError(
            f"must be a multiple of {factor} frames, which make one latent; got {chunk_frames}: use {near}",
            option="chunk_frames",
        )


@dataclass(frozen=True)
class ChunkSchedule:
    """The windows and chunks of a clip, in frames to encode or in latents to decode.

    With `semantics` "frame" each chunk is a window; with "whole" there is one window; with "diffusers" windows have
    `window_size` each, and the first also what is over (AutoencoderKLCogVideoX._encode). `count` is how many there are in
    all, the tail included; None if nobody has counted, which "diffusers" does not allow. The clip's first chunk has the length
    `first`, all others `later`.
    """

    semantics: str
    count: int | None
    window_size: int
    first: int
    later: int

    @classmethod
    def of_frames(
        cls, semantics: str, count: int | None, chunk_frames: int, config: AutoencoderConfig
    ) -> ChunkSchedule:
        """Return how frames are encoded. Chunk 0 has one more than the others, or what the padding mode needs."""
        return cls(semantics, count, WINDOW_FRAMES, _first_chunk(chunk_frames, config), chunk_frames)

    @classmethod
    def of_latents(cls, semantics: str, count: int, chunk_frames: int, config: AutoencoderConfig) -> ChunkSchedule:
        """Return how latents are decoded, so that a chunk is as many frames as in `of_frames`."""
        first = config.latent_frames(_first_chunk(chunk_frames, config))
        return cls(semantics, count, WINDOW_LATENTS, first, chunk_frames // config.temporal_factor)

    def windows(self) -> Iterator[Iterator[int]]:
        """Yield the lengths of the chunks of each window.

        They may come to more than there is; where nothing is counted or a window has no end, they never end.
        """
        if self.semantics == "frame":
            yield from (iter([length]) for length in self._chunks(None))
        elif self.semantics == "whole":
            yield self._chunks(None)
        else:
            for i, window in enumerate(self.window_lengths()):
                yield self._chunks(window, begun=i > 0)

    def window_lengths(self) -> list[int]:
        """Return how long windows are that norms span; none if they span a frame."""
        if self.semantics == "frame":
            return []
        assert self.count is not None
        if self.semantics == "whole":
            return [self.count]
        windows = max(1, self.count // self.window_size)
        return [self.count - (windows - 1) * self.window_size] + [self.window_size] * (windows - 1)

    def lengths(self) -> Iterator[int]:
        """Yield the lengths of all chunks, which come to `count`."""
        assert self.count is not None
        left = self.count
        for length in chain.from_iterable(self.windows()):
            if left <= 0:
                return
            yield min(length or left, left)
            left -= length or left

    @property
    def longest(self) -> int:
        """The longest chunk, as far as is known."""
        return self.first if self.count is None else max(self.lengths())

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return sum(1 for _ in self.lengths())

    def _chunks(self, window: int | None, begun: bool = False) -> Iterator[int]:
        """Yield the chunks of a window, which has no end if it is None."""
        length = self.later if begun else self.first
        while window is None or window > 0:
            if length == WHOLE_WINDOW:
                yield window or WHOLE_WINDOW
                return
            yield length if window is None else min(length, window)
            window = None if window is None else window - length
            length = self.later


def _first_chunk(chunk_frames: int, config: AutoencoderConfig) -> int:
    return max(1 + chunk_frames, config.first_chunk_frames) if chunk_frames else WHOLE_WINDOW
