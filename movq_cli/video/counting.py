"""Read the times of packets without decoding them: when each frame is shown, and how far apart frames are. PyAV."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from itertools import islice, pairwise
from math import lcm

from ..errors import MovqError
from ..options import Selection
from .container import AVI, TIMELESS, Source, av_errors, refuse_encrypted
from .keyframes import KeyFinder
from .times import FrameTimes

_SAMPLE = 500  # packets whose times show if frames are equally far apart
_REORDERED = 32  # the last of a sample, between which frames may be missing
_MILLISECOND = Fraction(1, 1000)  # times of Matroska and FLV are rounded to it


def read_times(source: Source, passed: Callable[[], None] = lambda: None, until: Selection | None = None) -> FrameTimes:
    """Return the times of all frames, from one pass over the packets, none of which is decoded.

    A damaged file has the frames before the damage, and an `error`. With `until`, the pass ends when it has told where
    decoding for this selection may begin.
    """
    if source.picture:
        return FrameTimes(1, [0], [1], source.stated_rate, picture=True)
    rate, base = source.rate, Fraction(source.stream.time_base or 1)
    scale = lcm(base.denominator, rate.numerator)
    tick, usual = base.numerator * scale // base.denominator, scale * rate.denominator // rate.numerator
    by_place, spans, some_key = source.format == AVI, list[tuple[int, int]](), False
    keys, error, enough = KeyFinder(source), None, _SAMPLE

    def found(whole: bool) -> FrameTimes:
        frames = sorted(spans)
        times, ends = [time for time, _ in frames], [end for _, end in frames]
        return FrameTimes(scale, times, ends, source.stated_rate, False, *keys.found(times, whole), error)

    try:
        with av_errors("is damaged"):
            for packet in source.container.demux(source.stream):
                passed()
                refuse_encrypted(packet, len(spans))
                if packet.is_keyframe and not some_key:
                    some_key = True
                    spans.clear()  # frames in front of the first key frame cannot be decoded
                ticks = packet.dts if by_place else packet.pts
                time = None if ticks is None else ticks * tick
                if packet.size:
                    keys.look(packet, time)
                if packet.size == 0 or packet.is_discard:
                    continue
                if time is None:
                    spans.append((len(spans) * usual, (len(spans) + 1) * usual))
                else:
                    spans.append((time, time + (packet.duration * tick if packet.duration else usual)))
                if until is not None and len(spans) == enough:
                    enough *= 2
                    if (times := found(whole=False)).key_of(until) is not None:
                        return times
    except MovqError as damage:
        error = damage.bare()
    return found(whole=error is None)


def has_variable_rate(source: Source) -> bool:
    """Return True if frames are at unequal distances, judged by the first packets of the file."""
    if source.picture or source.format in TIMELESS:
        return False
    times, tick = [], Fraction(0)
    with suppress(MovqError), av_errors("is damaged"):
        for packet in islice(source.container.demux(source.stream), _SAMPLE):
            if packet.size and packet.pts is not None and not packet.is_discard:
                tick = Fraction(packet.time_base)
                times.append(packet.pts * tick)
    gaps = sorted(after - before for before, after in pairwise(sorted(times)[: max(0, _SAMPLE - _REORDERED)]))
    return bool(gaps) and gaps[-1] - gaps[0] > 2 * max(tick, _MILLISECOND)
