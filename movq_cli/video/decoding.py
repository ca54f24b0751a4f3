"""Packets to frames: decode a stream once, give each frame its index and time, and check that none is missing.

PyAV; runs in the decoding process.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
import av.error
from av.filter import Graph

from ..errors import MovqError
from .container import AVI, TIMELESS, Source, av_errors, packet_span, refuse_encrypted
from .integrity import Totals, check_whole
from .keyframes import Entry, decodes_alone
from .raw import avi_repeats
from .selection import Shown
from .stills import SEQUENCE, Grid
from .transport import TransportPackets

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

_TRANSPORT = "mpegts"
_CUTTABLE = (_TRANSPORT, "mpeg")  # streams that are routinely cut at any point
_FAR = 32  # packets in front of an entry that are not worth seeking
_REPEATING = (AVI, "ogg")  # have packets without bytes, which repeat the frame before


class HarmlessError(Exception):
    """The decoder raised, but reported only errors that change no picture."""


class NoKeyError(Exception):
    """No packet of the stream is marked as a key frame."""


class NoEntryError(Exception):
    """Decoding cannot begin at the entry, whatever its packet promises."""


class Reading:
    """One pass over the packets of a stream. Packets in front of `entry` are not decoded, as far as that is right.

    With `jumps`, they are not read either. Then NoEntryError may be due to seeking.

    `explode` is False if the decoder conceals damage; then all that it reports must be harmless. With `wait_for_key`,
    packets in front of the first key frame are not decoded: there is nothing to decode them from.
    """

    def __init__(
        self,
        source: Source,
        warn: Callable[[str], None],
        passed: Callable[[], None],
        prepared: Callable[[Packet[VideoStream]], Packet[VideoStream]],
        explode: bool,
        wait_for_key: bool,
    ) -> None:
        self._source, self._warn, self._passed = source, warn, passed
        self.entry: Entry | None = None
        self.jumps = False
        self._prepared, self._explode, self._waiting = prepared, explode, wait_for_key and not source.picture
        self.timeline = Timeline(source, warn)
        self._demuxed = source.container.demux(source.stream)
        self._carriers = TransportPackets(source.data, source.stream.id) if source.format == _TRANSPORT else None
        self._lost = 0  # packets in front of the first key frame
        self._wanted = set[Fraction]()  # the times of packets that should give a frame each

    def frames(self) -> Iterator[Shown[av.VideoFrame | None]]:
        """Yield the frames. Raises MovqError, HarmlessError, NoKeyError and NoEntryError."""
        level = av.logging.get_level()
        if not self._explode:
            av.logging.set_level(av.logging.WARNING)  # HEVC reports lost units as warnings
        try:
            with av.logging.Capture(local=False) as log:
                if self._source.format in _REPEATING:
                    yield from self._with_last_repeated(self._decoded(log))
                else:
                    yield from self._decoded(log)
        finally:
            av.logging.set_level(level)
        timeline = self.timeline
        wanted = sum(time >= timeline.start for time in self._wanted)  # earlier ones refer to what is not in the file
        if timeline.index < wanted:
            raise MovqError(f"is damaged: packets for {wanted} frames give only {timeline.index}")
        check_whole(self._source, timeline.totals(), self._passed)

    def _decoded(self, log: list[tuple[int, str, str]]) -> Iterator[Shown[av.VideoFrame | None]]:
        source, timeline = self._source, self.timeline
        passing: Entry | None = None  # set while packets in front of it are skipped
        for packet in self._packets():
            if self.entry is not None and timeline.may_pass(self.entry):
                if passing is None:
                    self._jump(self.entry)
                passing = self.entry
                self._passed()
                continue
            if passing is not None:
                if not (_is_at(packet, passing) and decodes_alone(source.codec, packet)):
                    raise NoEntryError
                log.clear()
                source.codec.flush_buffers()
            decoded = self._decode(packet, log)
            self._check_log(log)
            if passing is not None:
                yield from timeline.enter(passing)
                passing = None
            for frame in decoded:
                shown = timeline.place(frame)
                if shown is not None:
                    yield shown

    def _jump(self, entry: Entry) -> None:
        """Seek to the packet of an entry, if it is far enough ahead. Where that leads to is for the caller to check."""
        source, timeline = self._source, self.timeline
        if self.jumps and entry.packets - timeline.packets >= _FAR:
            with av_errors("cannot be entered"):
                source.container.seek(int(entry.time / Fraction(source.stream.time_base or 1)), stream=source.stream)
            self._demuxed = source.container.demux(source.stream)
            timeline.packets = entry.packets

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        """Yield the packets to decode, then one that flushes the decoder. Of a picture there is one to decode."""
        timeline = self.timeline
        while True:
            with av_errors(f"cannot be decoded after {timeline.index} frames"):
                packet = next(self._demuxed, None)
            if packet is None:
                return
            self._look_for_gaps(packet)
            if packet.size == 0 and packet.pts is None and packet.dts is None:  # the demuxer's last
                if self._waiting and self._lost:
                    raise NoKeyError
                yield packet
                return
            timeline.count(packet)
            if packet.size == 0:
                continue  # it repeats the frame before
            if self._waiting and not packet.is_keyframe:
                self._lost += not packet.is_discard
                continue
            if self._waiting and self._lost:
                frames = "frame" if self._lost == 1 else f"{self._lost} frames"
                self._warn(f"begins without a key frame: its first {frames} cannot be decoded and are left out")
            self._waiting = False
            if not self._explode and not packet.is_discard and (span := packet_span(packet, Fraction(0))) is not None:
                self._wanted.add(span[0])
            timeline.expect(packet)
            yield packet
            if self._source.picture:
                yield _flush_like(packet)
                return

    def _look_for_gaps(self, packet: Packet[VideoStream]) -> None:
        """Warn if packets of a transport stream are missing in front of this one, or in front of the file's end.

        A gap in front of the entry does not matter. The decoder of HEVC gives half a frame without an error.
        """
        carriers, at_end = self._carriers, packet.size == 0
        if carriers is None:
            return
        lost = carriers.lost_until(self._source.data.size if at_end else packet.pos or 0)
        if lost and (self.entry is None or not self.timeline.may_pass(self.entry)):
            self._warn("has lost or damaged packets: frames may be missing or damaged")
        if at_end and carriers.open_ended and self._source.codec.name == "hevc":
            self._warn("may end inside its last frame, which would be damaged then")

    def _decode(self, packet: Packet[VideoStream], log: list[tuple[int, str, str]]) -> list[av.VideoFrame]:
        timeline = self.timeline
        with av_errors(f"cannot be decoded after {timeline.index} frames"):
            try:
                return self._source.codec.decode(self._prepared(packet) if packet.size else packet)
            except av.error.InvalidDataError:
                if timeline.cuttable and next((more for more in self._demuxed if more.size), None) is None:
                    self._warn("ends inside a frame, which is left out")
                    log.clear()
                    return self._source.codec.decode(_flush_like(packet))
                if self._explode and all(map(_is_harmless, log)):
                    raise HarmlessError from None
                raise

    def _check_log(self, log: list[tuple[int, str, str]]) -> None:
        """Raise MovqError for what the decoder reports but does not raise."""
        done = self.timeline.index
        for line in log:
            if "ended prematurely" in line[2]:
                raise MovqError(f"is cut off: the file ends early, after about {done} frames")
            if "slice CRC mismatch" in line[2] or not (self._explode or _is_harmless(line)):
                raise MovqError(f"is damaged after {done} frames ({line[2].strip().lower()})")
        log.clear()

    def _with_last_repeated(
        self, frames: Iterator[Shown[av.VideoFrame | None]]
    ) -> Iterator[Shown[av.VideoFrame | None]]:
        """Yield the frames, the last of which lasts as long as packets without bytes repeat it."""
        held: Shown[av.VideoFrame | None] | None = None
        try:
            for frame in frames:
                if held is not None:
                    yield held
                held = frame
        except MovqError:
            if held is not None:
                yield held
            raise
        if held is not None:
            timeline = self.timeline
            timeline.end = max(held.end, timeline.repeated_until)
            if self._source.format == AVI and (repeats := avi_repeats(self._source.data, self._source.stream.index)):
                timeline.end = max(timeline.end, (timeline.packets + repeats) / timeline.rate)
            yield replace(held, end=timeline.end)


def _is_at(packet: Packet[VideoStream], entry: Entry) -> bool:
    """Return True if a packet is that of an entry. No other has its time."""
    span = packet_span(packet, Fraction(0))
    return packet.is_keyframe and span is not None and span[0] == entry.time


def _flush_like(packet: Packet[VideoStream]) -> Packet[VideoStream]:
    """Return the packet that makes the decoder of another packet's stream give the frames that it still holds."""
    flush = cast("Packet[VideoStream]", av.Packet())
    flush.time_base = packet.time_base
    return flush


_HARMLESS = re.compile(
    r"SEI type -?\d+ size -?\d+ truncated at"  # supplemental information, not pictures
    r"|mmco: unref short failure"  # a reference picture that is to be forgotten is not there
    r"|Skipping invalid undecodable NALU: (39|40)\b"  # HEVC's supplemental information
)


def _is_harmless(line: tuple[int, str, str]) -> bool:
    """Return True if a line of libav's log is about something that changes no picture."""
    level, _, message = line
    return level > av.logging.WARNING or _HARMLESS.match(message) is not None


def from_tiles(source: Source, grid: Grid) -> Shown[av.VideoFrame | None]:
    """Return the frame of a picture in tiles."""
    frames: dict[int, av.VideoFrame] = {}
    with av_errors("cannot be decoded"):
        for packet in source.container.demux(video=tuple(range(len(source.container.streams.video)))):
            stream = packet.stream
            if stream.id in grid.tiles and packet.size and stream.id not in frames:
                codec = stream.codec_context
                for frame in (*codec.decode(packet), *codec.decode(None)):
                    frames[stream.id] = frame
    if not frames.keys() >= set(grid.tiles):
        raise MovqError("is a picture in tiles, some of which are missing")
    with av_errors("is a picture in tiles that do not fit together"):
        whole = _put_together([frames[tile] for tile in grid.tiles], grid)
    return Shown(0, Fraction(0), 1 / source.rate, whole)


class Timeline:
    """Gives each decoded frame, in order, an index, a time and an end. Refuses damage and changes of size.

    `packets` is the number of packets with bytes read so far, `repeats` that of packets without, and `last_byte` is where
    the last of them ends in the file. `index` is that of the next frame, `start` the time of the first,
    `last` the time of the last one and `end` its end. A stream that is
    `cuttable` may be cut at any point.
    """

    def __init__(self, source: Source, warn: Callable[[str], None]) -> None:
        self.cuttable = source.format in _CUTTABLE
        self._timed, self._placed = source.format not in TIMELESS, source.format == AVI
        self._picture, self._warn = source.picture, warn
        self._codec = source.codec
        self._aspect: Fraction | None = None
        self.rate = source.rate
        self.packets = self.repeats = self.last_byte = self.index = 0
        self.start = self.end = self.repeated_until = Fraction(0)
        self._places = deque[Fraction | None]()  # the times of packets of an AVI, whose frames have none
        self.last: Fraction | None = None
        self._entered: Fraction | None = None  # time of the entry, until its frame is placed
        self._size: tuple[int, int] | None = None
        if source.format == SEQUENCE:
            warn(f"has frames without times: taken as {float(self.rate):g} frames per second")

    def count(self, packet: Packet[VideoStream]) -> None:
        """Count a packet. Raises MovqError if it is damaged, unless the stream is `cuttable`, or encrypted."""
        self.packets += packet.size > 0
        self.repeats += packet.size == 0
        self.last_byte = max(self.last_byte, (packet.pos or 0) + packet.size)
        if packet.size == 0 and (span := packet_span(packet, 1 / self.rate)) is not None:
            self.repeated_until = max(self.repeated_until, span[1])
        refuse_encrypted(packet, self.index)
        if packet.is_corrupt and not self.cuttable:
            raise MovqError(f"is cut off or damaged after {self.index} frames")

    def expect(self, packet: Packet[VideoStream]) -> None:
        """Note the place of a packet that will be decoded, which is the time of a frame in an AVI."""
        if self._placed:
            self._places.append(None if packet.dts is None else packet.dts * Fraction(packet.time_base))

    def totals(self) -> Totals:
        """Return what was read, for the check that it is everything."""
        return Totals(self.packets, self.repeats, self.last_byte, self.end, self.rate)

    def may_pass(self, entry: Entry) -> bool:
        """Return True if the last packet is in front of the entry, and the entry was right about the last frame."""
        return self.packets <= entry.packets and self.index > 0 and entry.agrees(self.index - 1, self.last)

    def enter(self, entry: Entry) -> list[Shown[None]]:
        """Continue at an entry. Return the frames in front of it that were not decoded."""
        passed = entry.passed(self.index)
        self.index, self.last, self._entered = entry.frames, entry.times.time(entry.frames - 1), entry.time
        return passed

    def place(self, frame: av.VideoFrame) -> Shown[av.VideoFrame | None] | None:
        """Return a decoded frame with its index, time and end; None if it is one that `enter` has skipped."""
        self._check(frame)
        base = Fraction(frame.time_base or 0)
        time = self._time_of(frame, base)
        if self._entered is not None and time < self._entered:
            return None  # it follows the entry's packet in the file but is shown before the entry
        self._entered = None
        if self.last is not None and time <= self.last:
            self._warn(f"has frame times that do not grow, first at frame {self.index}")
        if self.index == 0:
            self.start = time
        self.last, self.end = time, time + (frame.duration * base if frame.duration else 1 / self.rate)
        self.index += 1
        return Shown(self.index - 1, time, self.end, frame)

    def _check(self, frame: av.VideoFrame) -> None:
        if frame.is_corrupt:
            if not self.cuttable:
                raise MovqError(f"is damaged at frame {self.index}")
            self._warn("has damaged frames")
        aspect = self._codec.sample_aspect_ratio
        if self.index == 0:
            self._aspect = aspect
        elif aspect != self._aspect:
            self._warn("changes the shape of its pixels: all frames are shown with that of the first")
        width, height = self._size = self._size or (frame.width, frame.height)
        if self._size != (frame.width, frame.height):
            raise MovqError(
                f"changes its picture size from {width}x{height} to {frame.width}x{frame.height} at frame {self.index}"
            )

    def _time_of(self, frame: av.VideoFrame, base: Fraction) -> Fraction:
        place = self._places.popleft() if self._places else None
        if place is not None:
            return place
        if frame.pts is not None and self._timed:
            return frame.pts * base
        if self._timed and not self._picture:
            self._warn(f"has frames without times: taken as {float(self.rate):g} frames per second")
        return self.end


def _put_together(tiles: list[av.VideoFrame], grid: Grid) -> av.VideoFrame:
    """Return one frame of all tiles, row by row, cut to the size of the picture."""
    first = tiles[0]
    places = "|".join(f"{i % grid.columns * first.width}_{i // grid.columns * first.height}" for i in range(len(tiles)))
    graph = Graph()
    graph.threads = 1
    end = graph.add("buffersink")
    crop = graph.add("crop", f"{grid.width}:{grid.height}:{grid.left}:{grid.top}:exact=1")
    if len(tiles) > 1:
        stack = graph.add("xstack", f"inputs={len(tiles)}:layout={places}")
        stack.link_to(crop)
    else:
        stack = crop
    crop.link_to(end)
    entries = []
    for i, tile in enumerate(tiles):
        if (tile.width, tile.height, tile.format.name) != (first.width, first.height, first.format.name):
            raise MovqError("is a picture in tiles of different sizes")
        entry = graph.add_buffer(width=tile.width, height=tile.height, format=tile.format, time_base=Fraction(1))
        entry.link_to(stack, 0, i)
        entries.append(entry)
    graph.configure()
    for entry, tile in zip(entries, tiles, strict=True):
        tile.pts = 0
        entry.push(tile)
        entry.push(None)
    return cast("av.VideoFrame", end.pull())
