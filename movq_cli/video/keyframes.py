"""Find where to begin decoding for a late part of a video: at the last key frame before it, if packets tell which one.

They do in MP4 and Matroska, with codecs whose packets are frames. Other files are decoded from the beginning. There is
no seeking by time: packets are still read in order, which costs next to nothing compared with decoding them. PyAV; runs
in the decoding process.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from ..errors import MovqError
from ..options import Selection
from .container import Source, av_errors, open_video, packet_span
from .selection import Shown, select

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_CODECS = ("h264", "hevc", "vp9", "av1")
_LENGTH_SIZE_AT = {"h264": 4, "hevc": 21}  # byte of the decoder's configuration (ISO/IEC 14496-15, 5.3.3 and 8.3.3)
_H264_PICTURE, _H264_IDR = range(1, 6), 5  # H.264, table 7-1
_HEVC_PICTURE, _HEVC_KEY = range(32), range(19, 22)  # H.265, table 7-1; IDR and CRA
_HEVC_ENDS = (16, 17, 18, 36, 37)  # BLA, end of sequence, end of bitstream
_NO_OUTPUT_OF_PRIOR = 0x40  # in the byte after a unit's two-byte header (H.265, 7.3.6.1)
_MOST_WAITING = 5000  # frames to hold back; a file with key frames farther apart is decoded from its beginning


@dataclass(frozen=True)
class Entry:
    """A key frame that decoding may begin at: from its `time` on, frames come out as if all had been decoded.

    `packets` is the number of the stream's packets in front of it; `before` are the frames that are shown before it.
    """

    packets: int
    time: Fraction
    before: list[Shown[None]]

    def agrees(self, index: int, time: Fraction | None) -> bool:
        """Return True if packets promised the frame at this index for the time that decoding gave it."""
        return index < len(self.before) and self.before[index].time == time


@dataclass(frozen=True)
class _Key:
    """The packet of a key frame, the number of packets in front of it, and its time."""

    packet: Packet[VideoStream]
    packets: int
    time: Fraction


class _UnclearError(Exception):
    """Packets do not tell which frames the video has and in which order."""


def find_entry(path: str, selection: Selection, passed: Callable[[], None] = lambda: None) -> Entry | None:
    """Return the last entry at or before the selection's first frame; None if decoding must begin at the first packet.

    A damaged file gives None: what is wrong with it is for decoding to report.
    """
    if not (selection.start or selection.skip) or selection.allow_partial:
        return None
    before: list[Shown[None]] = []

    def promised(source: Source) -> Iterator[Shown[_Key]]:
        for time, end, key in _promised(source, passed):
            if before and time <= before[-1].time:
                raise _UnclearError
            before.append(Shown(len(before), time, end, None))
            yield Shown(before[-1].index, time, end, key)

    with open_video(path, selection.stream, max_pixels=selection.max_pixels) as source:
        if (
            source.container.format.name not in _CONTAINERS
            or source.stream.codec_context.codec.canonical_name not in _CODECS
        ):
            return None
        try:
            with av_errors("is damaged"):
                first = next(select(promised(source), selection, source.stated_rate), None)
                if first is None or first.payload.packets == 0 or not _decodes_alone(source, first.payload):
                    return None
        except (_UnclearError, MovqError):
            return None
    key = first.payload
    return Entry(key.packets, key.time, before[: bisect_left(before, key.time, key=lambda frame: frame.time)])


def _promised(source: Source, passed: Callable[[], None]) -> Iterator[tuple[Fraction, Fraction, _Key]]:
    """Yield (time, end, key frame) of each frame in presentation order, from packets in decode order.

    The key frame is the last one at or before the frame. Frames that follow a key frame in the file but are shown
    before it come before the next key frame in the file. Raises _UnclearError.
    """
    units, usual = _Units(source), 1 / source.rate
    key: _Key | None = None  # the next frames to yield begin here
    following: _Key | None = None  # and end before this one
    waiting: list[tuple[Fraction, Fraction]] = []
    latest: Fraction | None = None
    packets = 0
    for packet in source.container.demux(source.stream):
        passed()
        if packet.size == 0:
            continue
        span = packet_span(packet, usual)
        if span is None or packet.is_corrupt or len(waiting) > _MOST_WAITING:
            raise _UnclearError
        time = span[0]
        if units.is_key(packet):
            if latest is not None and time <= latest:
                raise _UnclearError
            yield from _taken(waiting, key, following)
            key, following = following, _Key(packet, packets, time)
        if not packet.is_discard:
            waiting.append(span)
        latest = time if latest is None else max(latest, time)
        packets += 1
    yield from _taken(waiting, key, following)
    yield from _taken(waiting, following, None)


def _taken(
    waiting: list[tuple[Fraction, Fraction]], key: _Key | None, until: _Key | None
) -> list[tuple[Fraction, Fraction, _Key]]:
    """Remove from `waiting` the frames that are shown before `until`, and return them in order, each with `key`."""
    waiting.sort()
    count = len(waiting) if until is None else bisect_left(waiting, (until.time,))
    if not count:
        return []
    if key is None:  # no key frame is in front of these frames
        raise _UnclearError
    taken = [(time, end, key) for time, end in waiting[:count]]
    del waiting[:count]
    return taken


class _Units:
    """Finds key frames by the units that packets consist of in H.264 and HEVC; in other codecs, by the container."""

    def __init__(self, source: Source) -> None:
        context = source.stream.codec_context
        self._codec, self._length_size = context.codec.canonical_name, 0
        if self._codec in _LENGTH_SIZE_AT:
            record, place = context.extradata or b"", _LENGTH_SIZE_AT[self._codec]
            if len(record) <= place or record[0] != 1:
                raise _UnclearError
            self._length_size = (record[place] & 3) + 1

    def is_key(self, packet: Packet[VideoStream]) -> bool:
        """Return True if the frames shown after this packet's frame need none of those before it. Raises _UnclearError.

        Recovery points of H.264 give False: they are marked as key frames too, but later frames may need earlier ones.
        """
        if packet.has_sidedata("new_extradata"):  # it would be lost if this packet were skipped
            raise _UnclearError
        if self._codec == "h264":
            types = {head[0] & 31 for head in self._heads(packet)}
            if types.isdisjoint(_H264_PICTURE):
                raise _UnclearError
            return packet.is_keyframe and _H264_IDR in types
        if self._codec == "hevc":
            heads = [head for head in self._heads(packet) if head[0] >> 1 & 63 in _HEVC_PICTURE or _ends(head)]
            if not heads or any(map(_ends, heads)):
                raise _UnclearError
            return packet.is_keyframe and any(head[0] >> 1 & 63 in _HEVC_KEY for head in heads)
        return packet.is_keyframe

    def _heads(self, packet: Packet[VideoStream]) -> Iterator[memoryview]:
        """Yield the first three bytes of each unit. The length of a unit stands in front of it."""
        data, size = memoryview(packet), self._length_size
        at = size
        while at < len(data):
            yield data[at : at + 3]
            at += int.from_bytes(data[at - size : at]) + size


def _ends(head: memoryview) -> bool:
    """Return True if a unit of HEVC makes the decoder drop frames.

    After BLA and ends it drops frames that follow; at a key frame with no_output_of_prior_pics_flag, those it holds.
    """
    kind = head[0] >> 1 & 63
    return kind in _HEVC_ENDS or (kind in _HEVC_KEY and len(head) > 2 and bool(head[2] & _NO_OUTPUT_OF_PRIOR))


def _decodes_alone(source: Source, key: _Key) -> bool:
    """Return True if a key frame's packet gives its own frame and no other, not interlaced and not damaged."""
    context = source.stream.codec_context
    frames = [*context.decode(key.packet), *context.decode(None)]
    return (
        len(frames) == 1
        and frames[0].pts == key.packet.pts
        and frames[0].key_frame
        and not (frames[0].interlaced_frame or frames[0].is_corrupt)
    )
