"""`FrameTimes`: when each frame of a video is shown, as its packets say, and the key frames among them. No PyAV.

One pass over the packets gives them. They answer for every selection how many frames it has and where decoding for it may
begin, so that a video with thousands of spans is read for that once.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate

import msgspec

from ..errors import MovqError
from ..options import Selection
from .selection import Shown, select


@dataclass(frozen=True)
class FrameTimes:
    """The `times` and `ends` of frames in the order they are shown, in ticks, of which `scale` make a second.

    `rate` is the number of frames per second that the file states, if it does. A still `picture` has one frame. Packets
    promise the first `promised` frames, one by one; `keys` are (packets in front of it, frames shown before it) of the key
    frames that decoding may begin at. `error` is why no more could be read.
    """

    scale: int
    times: list[int]
    ends: list[int]
    rate: Fraction | None
    picture: bool = False
    promised: int = 0
    keys: tuple[tuple[int, int], ...] = ()
    error: MovqError | None = None

    def packed(self) -> bytes:
        """Return the same as bytes, for `unpacked`. They are few: frames at equal distances repeat themselves."""
        steps = [after - before for before, after in zip([0, *self.times], self.times, strict=False)]
        lasting = [end - time for time, end in zip(self.times, self.ends, strict=True)]
        rate = self.rate and str(self.rate)
        error = self.error and self.error.to_dict()
        values = self.scale, steps, lasting, rate, self.picture, self.promised, self.keys, error
        return zlib.compress(msgspec.json.encode(values), 1)

    @classmethod
    def unpacked(cls, data: bytes) -> FrameTimes:
        """Return what `packed` made bytes of."""
        scale, steps, lasting, rate, picture, promised, keys, error = msgspec.json.decode(zlib.decompress(data))
        times = list(accumulate(steps))
        ends = [time + length for time, length in zip(times, lasting, strict=True)]
        keys, error = tuple(map(tuple, keys)), error and MovqError.from_dict(error)
        return cls(scale, times, ends, rate and Fraction(rate), picture, promised, keys, error)

    def time(self, index: int) -> Fraction:
        """Return the time of a frame in seconds."""
        return Fraction(self.times[index], self.scale)

    def frame(self, index: int) -> Shown[None]:
        """Return a frame, without a payload."""
        return Shown(index, self.time(index), Fraction(self.ends[index], self.scale), None)

    def span(self, start: Fraction, duration: Fraction | None) -> tuple[int, int]:
        """Return the index of the first frame in a span of time, and of the first after it."""
        if not self.times:
            return 0, 0
        begin = bisect_left(self.times, self._ticks(start)) if start else 0
        return begin, len(self.times) if duration is None else bisect_left(self.times, self._ticks(start + duration))

    def _ticks(self, seconds: Fraction) -> int:
        """Return the first tick that is at least this many seconds after the first frame."""
        return self.times[0] - (-seconds.numerator * self.scale // seconds.denominator)

    def count(
        self,
        selection: Selection,
        start: Fraction | None = None,
        duration: Fraction | None = None,
        until_gap: bool = False,
    ) -> int:
        """Return how many frames a selection has, with another start and duration if these are given.

        The number is right if the file is whole and its packets are frames. Only decoding can confirm it. A video that is
        too slow for the selection's rate raises MovqError; `until_gap`, the frames before the first gap are counted if they
        fill a second. A damaged video raises MovqError, unless the selection allows a part.
        """
        if self.error is not None and not (selection.allow_partial and self.error.cause == MovqError.cause):
            raise self.error
        if self.picture:
            return 1
        start = selection.start if start is None else start
        duration = selection.duration if duration is None else duration
        if selection.fps is None:
            begin, end = self.span(start, duration)
            count = max(0, -((begin - end) // selection.every) - selection.skip)
            return count if selection.frames is None else min(count, selection.frames)
        count = 0
        try:
            for _ in self._selected(replace(selection, start=start, duration=duration)):
                count += 1
        except MovqError:
            if not (until_gap and count >= selection.fps):
                raise
        return count

    def begin(self, selection: Selection) -> tuple[int, Selection]:
        """Return the index of a frame in front of which a selection needs none, and what is left to select from there."""
        begin, _ = self.span(selection.start, selection.duration)
        if selection.fps is None:
            return begin + selection.skip * selection.every, replace(selection, skip=0)
        return begin, selection

    def first(self, selection: Selection) -> int | None:
        """Return the index of the first frame of a selection; None if it has none. Raises MovqError as `select` does."""
        if selection.fps is None:
            begin, end = self.span(selection.start, selection.duration)
            first = begin + selection.skip * selection.every
            return first if first < end else None
        chosen = next(self._selected(selection), None)
        return None if chosen is None else chosen.index

    def key_of(self, selection: Selection) -> tuple[int, int] | None:
        """Return the last key frame at or before the first frame of a selection; None if packets do not promise them."""
        try:
            first = self.first(selection)
        except MovqError:  # decoding will report it
            return None
        if first is None or first >= self.promised or first + 1 == self.promised < len(self.times):
            return None
        place = bisect_right(self.keys, first, key=lambda key: key[1])
        return self.keys[place - 1] if place else None

    def _selected(self, selection: Selection) -> Iterator[Shown[None]]:
        begin, _ = self.span(selection.start, selection.duration)
        origin = self.time(0) if begin else None
        return select(map(self.frame, range(begin, len(self.times))), selection, self.rate, origin=origin)
