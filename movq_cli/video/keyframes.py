"""Find where to begin decoding for a late part of a video: at the last key frame before it, if packets tell which one.

They do in MP4 and Matroska, with codecs whose packets are frames. Other files are decoded from the beginning. The times
of all packets tell where to seek, and which packet to expect. PyAV; runs in the decoding process.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
import av.error

from ..options import Selection
from .container import Source
from .selection import Shown
from .times import FrameTimes

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_CODECS = ("h264", "hevc", "vp9", "av1")
_LENGTH_SIZE_AT = {"h264": 4, "hevc": 21}  # byte of the decoder's configuration (ISO/IEC 14496-15, 5.3.3 and 8.3.3)
_H264_PICTURE, _H264_IDR = range(1, 6), 5  # H.264, table 7-1
_HEVC_PICTURE, _HEVC_KEY = range(32), range(19, 22)  # H.265, table 7-1; IDR and CRA
_HEVC_ENDS = (16, 17, 18, 36, 37)  # BLA, end of sequence, end of bitstream
_NO_OUTPUT_OF_PRIOR = 0x40  # in the byte after a unit's two-byte header (H.265, 7.3.6.1)


@dataclass(frozen=True)
class Entry:
    """A key frame that decoding may begin at: from its `time` on, frames come out as if all had been decoded.

    `packets` is the number of the stream's packets in front of it. Of the frames that are shown before it, of which there
    are `frames`, those from the index `wanted` on are shown without having been decoded.
    """

    times: FrameTimes
    packets: int
    frames: int
    wanted: int

    @property
    def time(self) -> Fraction:
        """The time of its frame."""
        return self.times.time(self.frames)

    def agrees(self, index: int, time: Fraction | None) -> bool:
        """Return True if packets promised the frame at this index for the time that decoding gave it."""
        return index < self.frames and self.times.time(index) == time

    def passed(self, index: int) -> list[Shown[None]]:
        """Return the wanted frames before it, from `index` on."""
        return [self.times.frame(i) for i in range(max(index, self.wanted), self.frames)]


class _UnclearError(Exception):
    """Packets do not tell which frames the video has and in which order."""


def entry_of(times: FrameTimes, selection: Selection) -> Entry | None:
    """Return the last entry at or before the selection's first frame; None if decoding must begin at the first packet."""
    if not (selection.start or selection.skip) or selection.allow_partial:
        return None
    key = times.key_of(selection)
    if key is None or 0 in key:
        return None
    return Entry(times, *key, wanted=times.begin(selection)[0])


class KeyFinder:
    """Finds the key frames that decoding may begin at, from the packets of a stream in their order.

    Frames that follow a key frame in the file but are shown before it come before the next key frame in the file. When
    a packet breaks this rule or another, what was found until then remains.
    """

    def __init__(self, source: Source) -> None:
        self._packets = 0
        self._latest: int | None = None
        self._keys: list[tuple[int, int]] = []  # packets in front and time
        self._units: _Units | None = None
        context = source.stream.codec_context
        if source.container.format.name in _CONTAINERS and context.codec.canonical_name in _CODECS:
            with suppress(_UnclearError):
                self._units = _Units(source)

    def look(self, packet: Packet[VideoStream], time: int | None) -> None:
        """Take the next packet that has bytes. `time` is that of its frame, in any unit."""
        if self._units is not None:
            try:
                self._look(packet, time, self._units)
            except _UnclearError:
                self._units = None
        elif self._keys[1:] and (time is None or time < self._keys[-2][1]):
            self._keys.clear()  # a frame among those that were clear
        self._packets += 1

    def _look(self, packet: Packet[VideoStream], time: int | None, units: _Units) -> None:
        if time is None or packet.is_corrupt:
            raise _UnclearError
        if units.is_key(packet):
            if self._latest is not None and time <= self._latest:
                raise _UnclearError
            self._keys.append((self._packets, time))
        elif not packet.is_discard and (not self._keys or time < self._keys[max(0, len(self._keys) - 2)][1]):
            raise _UnclearError
        self._latest = time if self._latest is None else max(self._latest, time)

    def found(self, times: list[int], whole: bool) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Return how many of the frames at these sorted times are clear, and (packets, frames) in front of each key frame.

        Frames at the same time are not clear. Nor are those after the last key frame but one, unless the `whole` file was
        read and all packets are clear.
        """
        clear = len(times)
        if self._units is None or not whole:
            clear = bisect_left(times, self._keys[-2][1]) if self._keys[1:] else 0
        clear = next((i + 1 for i in range(clear - 1) if times[i] == times[i + 1]), clear)
        keys = ((packets, bisect_left(times, time)) for packets, time in self._keys)
        return clear, tuple(key for key in keys if key[1] < clear)


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


def decodes_alone(like: VideoCodecContext, packet: Packet[VideoStream]) -> bool:
    """Return True if a key frame's packet gives its own frame and no other, not interlaced and not damaged.

    It is decoded by a decoder of its own, set up `like` the one that will go on from it.
    """
    context = cast("VideoCodecContext", av.CodecContext.create(like.codec, "r"))
    context.extradata, context.options = like.extradata, like.options
    try:
        frames = [*context.decode(packet), *context.decode(None)]
    except av.error.FFmpegError:
        return False
    return (
        len(frames) == 1
        and frames[0].pts == packet.pts
        and frames[0].key_frame
        and not (frames[0].interlaced_frame or frames[0].is_corrupt)
    )
