"""Where decoding of a late part of a video may begin: at the last key frame in front of it, if packets tell which that is.

They do in MP4 and Matroska, of codecs whose packets are frames; anything else is decoded from its beginning. Nothing is
sought by time: packets are still read in their order, which costs next to nothing beside decoding them. PyAV; runs in the
decoding process.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from ..errors import MovqError
from .selection import Selection, Shown, select
from .source import Source, av_errors, open_video

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_CODECS = ("h264", "hevc", "vp9", "av1")
_IDR = 5  # H.264, table 7-1
_IRAP = range(16, 22)  # H.265, table 7-1: BLA, IDR, CRA


@dataclass(frozen=True)
class Entry:
    """A key frame that decoding may begin at: from its `time` on, frames come out as if all had been decoded.

    `packets` of the stream lie in front of it; `before` are the frames that are shown before it.
    """

    packets: int
    time: Fraction
    before: list[Shown[None]]


@dataclass(frozen=True)
class _Key:
    """A key frame's packet, and how many lie in front of it."""

    packet: Packet[VideoStream]
    packets: int
    time: Fraction


class _Unclear(Exception):
    """Packets do not tell which frames there are, and in which order."""


def find_entry(path: str, selection: Selection, passed: Callable[[], None] = lambda: None) -> Entry | None:
    """The last entry that is not behind the selection's first frame; None where the beginning of the file has to do.

    What may be wrong with a file is for decoding it to say.
    """
    if not (selection.start or selection.skip) or selection.allow_partial:
        return None
    before: list[Shown[None]] = []

    def promised(source: Source) -> Iterator[Shown[_Key]]:
        for time, end, key in _promised(source, passed):
            if before and time <= before[-1].time:
                raise _Unclear
            before.append(Shown(len(before), time, end, None))
            yield Shown(before[-1].index, time, end, key)

    with open_video(path, selection.stream) as source:
        if (
            source.container.format.name not in _CONTAINERS
            or source.stream.codec_context.codec.canonical_name not in _CODECS
        ):
            return None
        try:
            with av_errors("is damaged"):
                first = next(select(promised(source), selection), None)
                if first is None or first.payload.packets == 0 or not _decodes_alone(source, first.payload):
                    return None
        except (_Unclear, MovqError):
            return None
    key = first.payload
    return Entry(key.packets, key.time, before[: bisect_left(before, key.time, key=lambda frame: frame.time)])


def _promised(source: Source, passed: Callable[[], None]) -> Iterator[tuple[Fraction, Fraction, _Key]]:
    """Time and end of the frames that packets promise, as they are shown, each with the last key frame that is not behind it.

    What is shown before a key frame and yet follows it in the file does so before the next key frame. Raises _Unclear.
    """
    usual = 1 / source.rate
    key: _Key | None = None  # frames from here
    following: _Key | None = None  # to here are the next to be given
    waiting: list[tuple[Fraction, Fraction]] = []
    latest: Fraction | None = None
    packets = 0
    for packet in source.container.demux(source.stream):
        passed()
        if packet.size == 0:
            continue
        if packet.pts is None or packet.is_corrupt:
            raise _Unclear
        base = Fraction(packet.time_base)
        time = packet.pts * base
        if _is_key(packet, source):
            if latest is not None and time <= latest:
                raise _Unclear
            yield from _taken(waiting, key, following)
            key, following = following, _Key(packet, packets, time)
        if not packet.is_discard:
            waiting.append((time, time + (packet.duration * base if packet.duration else usual)))
        latest = time if latest is None else max(latest, time)
        packets += 1
    yield from _taken(waiting, key, following)
    yield from _taken(waiting, following, None)


def _taken(
    waiting: list[tuple[Fraction, Fraction]], key: _Key | None, until: _Key | None
) -> list[tuple[Fraction, Fraction, _Key]]:
    """What waits and is shown before `until`, in order, and waits no longer."""
    waiting.sort()
    count = len(waiting) if until is None else bisect_left(waiting, (until.time,))
    if not count:
        return []
    if key is None:  # frames that no key frame is in front of
        raise _Unclear
    taken = [(time, end, key) for time, end in waiting[:count]]
    del waiting[:count]
    return taken


def _is_key(packet: Packet[VideoStream], source: Source) -> bool:
    """Whether what is shown after this packet's frame needs none of those before it.

    Of H.264, whose recovery points are marked as key frames too, and HEVC, the packet's own units have to say so.
    """
    codec, record = source.stream.codec_context.codec.canonical_name, source.stream.codec_context.extradata or b""
    if not packet.is_keyframe or codec not in ("h264", "hevc"):
        return packet.is_keyframe
    place = 4 if codec == "h264" else 21  # of the size of lengths (ISO/IEC 14496-15, 5.3.3 and 8.3.3)
    if len(record) <= place or record[0] != 1:
        return False
    heads = _unit_heads(bytes(packet), (record[place] & 3) + 1)
    if codec == "h264":
        return any(head & 31 == _IDR for head in heads)
    return any(head >> 1 & 63 in _IRAP for head in heads)


def _unit_heads(data: bytes, length_size: int) -> Iterator[int]:
    """The first byte of each unit of a packet, in front of which its length stands."""
    at = length_size
    while at < len(data):
        yield data[at]
        at += int.from_bytes(data[at - length_size : at]) + length_size


def _decodes_alone(source: Source, key: _Key) -> bool:
    """Whether a key frame's packet gives its frame, and that one alone."""
    context = source.stream.codec_context
    frames = [*context.decode(key.packet), *context.decode(None)]
    return (
        len(frames) == 1
        and frames[0].pts == key.packet.pts
        and frames[0].key_frame
        and not (frames[0].interlaced_frame or frames[0].is_corrupt)
    )
