"""Read the times of packets without decoding them: how many frames there are, and how far apart. PyAV."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from itertools import islice, pairwise

from ..errors import MovqError
from ..options import Selection
from .container import AVI, TIMELESS, Source, av_errors, packet_span, refuse_encrypted
from .selection import Shown, select

_SAMPLE = 500  # packets whose times show if frames are equally far apart
_REORDERED = 32  # the last of a sample, between which frames may be missing
_MILLISECOND = Fraction(1, 1000)  # times of Matroska and FLV are rounded to it


def count_frames(source: Source, selection: Selection, passed: Callable[[], None], until_gap: bool = False) -> int:
    """Return how many frames the selection has, from the times of packets, without decoding them.

    The number is right if the file is whole and its packets are frames. Only decoding can confirm it. A video that is too
    slow for the selection's rate raises MovqError; `until_gap`, the frames before the first gap are counted if they fill
    a second.
    """
    if source.picture:
        return 1
    rate = source.rate
    spans: list[tuple[Fraction, Fraction]] = []
    some_key = False
    try:
        with av_errors("is damaged"):
            for packet in source.container.demux(source.stream):
                passed()
                refuse_encrypted(packet, len(spans))
                if packet.is_keyframe and not some_key:
                    some_key = True
                    spans.clear()  # frames in front of the first key frame cannot be decoded
                if packet.size == 0 or packet.is_discard:
                    continue
                place = len(spans)
                spans.append(packet_span(packet, 1 / rate, source.format == AVI) or (place / rate, (place + 1) / rate))
    except MovqError as error:
        if not selection.allow_partial or error.cause != MovqError.cause:
            raise
    shown = (Shown(i, time, end, None) for i, (time, end) in enumerate(sorted(spans)))
    count = 0
    try:
        for _ in select(shown, selection, source.stated_rate):
            count += 1
    except MovqError:
        if not (until_gap and selection.fps is not None and count >= selection.fps):
            raise
    return count


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
