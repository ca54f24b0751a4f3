"""The windows of a clip, whose frames share norm statistics, and the chunks into which each window is cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from .errors import MovqUsageError
from .model.config import WINDOW_FRAMES, WINDOW_LATENTS, AutoencoderConfig

WHOLE_WINDOW = 0
"""A chunk length that means the whole window, or as much of it as exists. As `chunk_frames`: one chunk per window."""


def check_chunk_frames(chunk_frames: int, config: AutoencoderConfig) -> None:
    """Raise MovqUsageError, naming the nearest multiples, unless chunk_frames is a multiple of the temporal factor."""
    factor = config.temporal_factor
    if chunk_frames < factor or chunk_frames % factor:
        raise MovqUsageError(
            f"must be a multiple of {factor} frames, which make one latent; got {chunk_frames}: "
            f"use {near_multiples(chunk_frames, factor)}",
            option="chunk_frames",
        )


def near_multiples(value: int, step: int) -> str:
    """Return the multiples of `step` below and above a value as text, without 0."""
    below = value // step * step
    return f"{below} or {below + step}" if below >= step else str(step)


@dataclass(frozen=True)
class ChunkSchedule:
    """The windows and chunks of a clip, in frames to encode or in latents to decode.

    With `semantics` "frame" each chunk is a window. With "whole" the clip is one window. With "diffusers" windows have
    `window_size` each, and the first also has the remainder (AutoencoderKLCogVideoX._encode). `count` is the total,
    tail included; None if it is unknown, which "diffusers" does not allow. The clip's first chunk has the length
    `first`, all others have `later`.
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
        """Return the schedule for encoding frames. Chunk 0 has one frame more, or as many as the padding mode needs."""
        return cls(semantics, count, WINDOW_FRAMES, _first_chunk(chunk_frames, config), chunk_frames)

    @classmethod
    def of_latents(cls, semantics: str, count: int, chunk_frames: int, config: AutoencoderConfig) -> ChunkSchedule:
        """Return the schedule for decoding latents, with chunks of as many frames as in `of_frames`."""
        first = config.latent_frames(_first_chunk(chunk_frames, config))
        return cls(semantics, count, WINDOW_LATENTS, first, chunk_frames // config.temporal_factor)

    def windows(self) -> Iterator[Iterator[int]]:
        """Yield the lengths of the chunks of each window.

        Their sum may exceed the clip. With "frame" the windows, and with "whole" the chunks of the window, go on
        without end, except if a length is WHOLE_WINDOW, which is then the only one.
        """
        if self.semantics == "frame":
            yield from (iter([length]) for length in self._chunks(None))
        elif self.semantics == "whole":
            yield self._chunks(None)
        else:
            for i, window in enumerate(self.window_lengths()):
                yield self._chunks(window, begun=i > 0)

    def window_lengths(self) -> list[int]:
        """Return the length of each window; an empty list if norms span one frame. Needs `count` in the other cases."""
        if self.semantics == "frame":
            return []
        assert self.count is not None
        if self.semantics == "whole":
            return [self.count]
        windows = max(1, self.count // self.window_size)
        return [self.count - (windows - 1) * self.window_size] + [self.window_size] * (windows - 1)

    def lengths(self) -> Iterator[int]:
        """Yield the lengths of all chunks. Their sum is `count`, which must be known."""
        assert self.count is not None
        left = self.count
        for length in chain.from_iterable(self.windows()):
            if left <= 0:
                return
            yield min(length or left, left)
            left -= length or left

    @property
    def longest(self) -> int:
        """The length of the longest chunk; `first` if `count` is None."""
        return self.first if self.count is None else max(self.lengths())

    @property
    def chunks(self) -> int:
        """The number of chunks, which needs `count`."""
        return sum(1 for _ in self.lengths())

    def _chunks(self, window: int | None, begun: bool = False) -> Iterator[int]:
        """Yield the lengths of the chunks of a window, without end if `window` is None.

        `begun`: the clip's first chunk was in an earlier window. WHOLE_WINDOW gives a single chunk.
        """
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
