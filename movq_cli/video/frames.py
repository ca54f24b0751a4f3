"""Decode frames as a viewer shows them, one at a time, and check that none is missing.

PyAV; runs in the decoding process.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import islice, pairwise
from typing import TYPE_CHECKING, TypeVar, cast

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from ..errors import MovqError
from ..options import Picture, Selection
from .colour import Colour, colour_of
from .container import Source, av_errors, packet_span
from .exif import read_orientation, without_exif
from .geometry import Geometry, Orientation, plan_geometry
from .info import VideoInfo
from .integrity import check_whole
from .keyframes import Entry
from .selection import Shown, select
from .sidedata import display_matrix

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

T = TypeVar("T")

FILTER = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
FILTER_NAME = "swscale bicubic, full chroma, accurate, bit-exact"
_SAMPLE = 500  # packets whose times show if frames are equally far apart
_REORDERED = 32  # the last of a sample, between which frames may be missing
_MILLISECOND = Fraction(1, 1000)  # times of Matroska and FLV are rounded to it
_CUTTABLE = ("mpegts", "mpeg")  # streams that are routinely cut at any point
_TIMELESS = ("avi", "mxf")  # hold a rate but no times; with B-frames, the times that libav gives are out of order


class Decoder:
    """An open video that is read once: first `info`, then `frames`.

    `warnings` lists what was not handled, each once, in order of appearance. With `allow_partial`, frames end where the
    file is cut off or damaged, and `partial` is set. `passed` is called often, as a sign of life. Packets in front of
    `entry` are not decoded, except those needed for the first frame; the selection must begin at the entry or later.
    """

    def __init__(
        self,
        source: Source,
        allow_partial: bool = False,
        passed: Callable[[], None] = lambda: None,
        entry: Entry | None = None,
    ) -> None:
        self.source, self._passed, self._entry = source, passed, entry
        self.warnings: list[str] = []
        self.partial = False
        self._exif: Orientation | None = None  # set when the packet of a picture is read
        self._shown = self._decode_all() if not allow_partial else self._decode_some()
        try:
            self._first = _decoded(next(self._shown))
        except StopIteration:
            raise MovqError("has no frame that can be shown") from None
        frame = self._first.payload
        self._colours: dict[tuple[object, ...], Colour] = {}
        self.colour = self._colour(frame)
        self.orientation = self._orientation(frame)
        self._reformatter = VideoReformatter()

    @property
    def info(self) -> VideoInfo:
        """The properties of the video, from its header and its first frame."""
        source, stream, frame = self.source, self.source.stream, self._first.payload
        aspect = stream.sample_aspect_ratio or Fraction(1)
        shown = plan_geometry(frame.width, frame.height, aspect, self.orientation, Picture(), 1).shown
        duration = _duration(source)
        return VideoInfo(
            container=source.container.format.name,
            codec=stream.codec_context.name,
            pixel_format=frame.format.name,
            width=frame.width,
            height=frame.height,
            shown_width=shown[0],
            shown_height=shown[1],
            rotation=self.orientation.rotation,
            mirrored=self.orientation.mirrored,
            pixel_aspect=aspect,
            matrix=self.colour.matrix,
            color_range=self.colour.color_range,
            transfer=self.colour.transfer,
            fps=None if source.picture else stream.average_rate,
            frames_from_header=1 if source.picture else (stream.frames or None),
            duration=None if source.picture else duration,
            stream=stream.index,
            bytes=source.container.size,
            is_picture=source.picture,
            warnings=tuple(self.warnings),
        )

    def geometry(self, picture: Picture, multiple: int) -> Geometry:
        """Return how stored frames become the requested picture, padded to `multiple`."""
        frame, aspect = self._first.payload, self.source.stream.sample_aspect_ratio or Fraction(1)
        return plan_geometry(frame.width, frame.height, aspect, self.orientation, picture, multiple)

    def frames(self, selection: Selection) -> Iterator[Shown[av.VideoFrame]]:
        """Yield the selected frames. If the file is read to its end, also check that it was whole."""

        def all_frames() -> Iterator[Shown[av.VideoFrame | None]]:
            yield self._first
            yield from self._shown

        return map(_decoded, select(all_frames(), selection, self._passed))

    def rgb(self, frame: av.VideoFrame, scaled: tuple[int, int]) -> np.ndarray:
        """Return a stored frame as RGB uint8 (height, width, 3), resampled once to `scaled` (width, height)."""
        colour = self._colour(frame)
        width, height = scaled
        if frame.format.has_palette or any(c.is_alpha for c in frame.format.components):
            rgba = self._reformat(frame, colour, frame.width, frame.height, "rgba").to_ndarray()
            alpha = rgba[..., 3:]
            rgb = rgba[..., :3]
            if alpha.min() < 255:
                self._warn("has transparent pixels: laid over black")
                rgb = ((rgb.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
            if (frame.width, frame.height) == scaled:
                return rgb
            opaque = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb, np.uint8), format="rgb24")
            return self._reformatter.reformat(
                opaque, width, height, "rgb24", interpolation=FILTER, threads=1
            ).to_ndarray()
        return self._reformat(frame, colour, width, height, "rgb24").to_ndarray()

    def _reformat(self, frame: av.VideoFrame, colour: Colour, width: int, height: int, format: str) -> av.VideoFrame:
        with av_errors("has colours that cannot be converted"):
            return self._reformatter.reformat(
                frame,
                width,
                height,
                format,
                src_colorspace=colour.matrix_number,
                src_color_range=colour.range_number,
                interpolation=FILTER,
                threads=1,
            )

    def _colour(self, frame: av.VideoFrame) -> Colour:
        key = frame.format.name, frame.colorspace, frame.color_range, frame.color_trc, frame.interlaced_frame
        if key not in self._colours:
            self._colours[key] = colour_of(frame)
            for warning in self._colours[key].warnings:
                self._warn(warning)
        return self._colours[key]

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _orientation(self, frame: av.VideoFrame) -> Orientation:
        if self._exif is not None:  # libav makes a display matrix from the same Exif: only one may be applied
            return self._exif
        m = array.array("i", display_matrix(frame) or b"")
        if m.itemsize != 4 or len(m) != 9:
            return Orientation()
        if sys.byteorder != "little":
            m.byteswap()
        a, b, c, d = m[0], m[1], m[3], m[4]  # a stored point (p, q) is shown at (a p + c q, b p + d q)
        one = 1 << 16
        if b == c == 0 and abs(a) == abs(d) == one:
            return Orientation(False, a < 0, d < 0)
        if a == d == 0 and abs(b) == abs(c) == one:
            return Orientation(True, c < 0, b < 0)
        self._warn("is turned by an angle that is not a quarter turn: encoded as stored")
        return Orientation()

    def _prepared(self, packet: Packet[VideoStream]) -> Packet[VideoStream]:
        """Return the packet to decode: a PNG's without its Exif, any other unchanged. Reads a picture's orientation."""
        if not self.source.picture or packet.size == 0:
            return packet
        data = memoryview(packet)
        self._exif = read_orientation(data)
        bare = without_exif(data)
        if bare is None:
            return packet
        changed = cast("Packet[VideoStream]", av.Packet(bare))
        changed.stream, changed.time_base = packet.stream, packet.time_base
        changed.pts, changed.dts = packet.pts, packet.dts
        return changed

    def _decode_some(self) -> Iterator[Shown[av.VideoFrame | None]]:
        """Yield the frames before the first missing one, except those that the decoder had not given out by then."""
        some = False
        try:
            for frame in self._decode_all():
                yield frame
                some = True
        except MovqError as error:
            if not some or error.cause != MovqError.cause:
                raise
            self.partial = True
            self._warn(f"{error.reason_with_flags}: what comes before was taken (--allow-partial)")

    def _decode_all(self) -> Iterator[Shown[av.VideoFrame | None]]:
        """Yield every frame that is shown. Frames that the entry allows to skip have no payload."""
        source, entry, timeline = self.source, self._entry, _Timeline(self.source, self._warn)
        passing = False  # True while packets in front of the entry are skipped
        with av.logging.Capture(local=False) as log:
            demuxed = source.container.demux(source.stream)
            while True:
                with av_errors(f"cannot be decoded after {timeline.index} frames"):
                    packet = next(demuxed, None)
                    if packet is None:
                        break
                    timeline.count(packet)
                    if entry is not None and timeline.may_pass(entry):
                        passing = True
                        self._passed()
                        continue
                    if passing:
                        source.stream.codec_context.flush_buffers()
                    decoded = self._prepared(packet).decode()
                if any("ended prematurely" in message for _, _, message in log):
                    raise MovqError(f"is cut off: the file ends early, after about {timeline.index} frames")
                log.clear()
                if entry is not None and passing:
                    yield from timeline.enter(entry)
                    passing = False
                for frame in decoded:
                    shown = timeline.place(frame)
                    if shown is not None:
                        yield shown
        check_whole(source, timeline.packets, timeline.last_byte, timeline.end, timeline.rate, self._passed)


class _Timeline:
    """Gives each decoded frame, in order, an index, a time and an end. Refuses damage and changes of size.

    `packets` is the number of packets read so far, and `last_byte` is where the last of them ends in the file. `index`
    is that of the next frame, `end` that of the last one.
    """

    def __init__(self, source: Source, warn: Callable[[str], None]) -> None:
        format = source.container.format.name
        self._cuttable, self._timed = format in _CUTTABLE, format not in _TIMELESS
        self._picture, self._warn = source.picture, warn
        self.rate = source.rate
        self.packets = self.last_byte = self.index = 0
        self.end = Fraction(0)
        self._last: Fraction | None = None  # time of the last frame
        self._entered: Fraction | None = None  # time of the entry, until its frame is placed
        self._size: tuple[int, int] | None = None

    def count(self, packet: Packet[VideoStream]) -> None:
        """Count a packet. Raises MovqError if it is damaged, except in formats that are routinely cut."""
        self.packets += packet.size > 0
        self.last_byte = max(self.last_byte, (packet.pos or 0) + packet.size)
        if packet.is_corrupt and not self._cuttable:
            raise MovqError(f"is cut off or damaged after {self.index} frames")

    def may_pass(self, entry: Entry) -> bool:
        """Return True if the last packet is in front of the entry, and the entry was right about the last frame."""
        return self.packets <= entry.packets and self.index > 0 and entry.agrees(self.index - 1, self._last)

    def enter(self, entry: Entry) -> list[Shown[None]]:
        """Continue at an entry. Return the frames in front of it that were not decoded."""
        passed = entry.before[self.index :]
        self.index, self._last, self._entered = len(entry.before), entry.before[-1].time, entry.time
        return passed

    def place(self, frame: av.VideoFrame) -> Shown[av.VideoFrame | None] | None:
        """Return a decoded frame with its index, time and end; None if it is one that `enter` has skipped."""
        self._check(frame)
        base = Fraction(frame.time_base or 0)
        time = self._time_of(frame, base)
        if self._entered is not None and time < self._entered:
            return None  # it follows the entry's packet in the file but is shown before the entry
        self._entered = None
        if self._last is not None and time <= self._last:
            self._warn(f"has frame times that do not grow, first at frame {self.index}")
        self._last, self.end = time, time + (frame.duration * base if frame.duration else 1 / self.rate)
        self.index += 1
        return Shown(self.index - 1, time, self.end, frame)

    def _check(self, frame: av.VideoFrame) -> None:
        if frame.is_corrupt:
            if not self._cuttable:
                raise MovqError(f"is damaged at frame {self.index}")
            self._warn("has damaged frames")
        width, height = self._size = self._size or (frame.width, frame.height)
        if self._size != (frame.width, frame.height):
            raise MovqError(
                f"changes its picture size from {width}x{height} to {frame.width}x{frame.height} at frame {self.index}"
            )

    def _time_of(self, frame: av.VideoFrame, base: Fraction) -> Fraction:
        if frame.pts is not None and self._timed:
            return frame.pts * base
        if self._timed and not self._picture:
            self._warn(f"has frames without times: taken as {float(self.rate):g} frames per second")
        return self.end


def _decoded(frame: Shown[av.VideoFrame | None]) -> Shown[av.VideoFrame]:
    """Return the same frame, typed as one that was decoded."""
    assert frame.payload is not None, f"frame {frame.index} was passed over"
    return cast(Shown[av.VideoFrame], frame)


def count_frames(source: Source, selection: Selection, passed: Callable[[], None]) -> int:
    """Return how many frames the selection has, from the times of packets, without decoding them.

    The number is right if the file is whole and its packets are frames. Only decoding can confirm it.
    """
    if source.picture:
        return 1
    rate = source.rate
    spans: list[tuple[Fraction, Fraction]] = []
    try:
        with av_errors("is damaged"):
            for packet in source.container.demux(source.stream):
                passed()
                if packet.size == 0 or packet.is_discard:
                    continue
                place = len(spans)
                spans.append(packet_span(packet, 1 / rate) or (place / rate, (place + 1) / rate))
    except MovqError as error:
        if not selection.allow_partial or error.cause != MovqError.cause:
            raise
    return _length(select((Shown(i, t, end, None) for i, (t, end) in enumerate(sorted(spans))), selection))


def has_variable_rate(source: Source) -> bool:
    """Return True if frames are at unequal distances, judged by the first packets of the file."""
    if source.picture or source.container.format.name in _TIMELESS:
        return False
    times, tick = [], Fraction(0)
    with suppress(MovqError), av_errors("is damaged"):
        for packet in islice(source.container.demux(source.stream), _SAMPLE):
            if packet.size and packet.pts is not None and not packet.is_discard:
                tick = Fraction(packet.time_base)
                times.append(packet.pts * tick)
    gaps = sorted(after - before for before, after in pairwise(sorted(times)[: max(0, _SAMPLE - _REORDERED)]))
    return bool(gaps) and gaps[-1] - gaps[0] > 2 * max(tick, _MILLISECOND)


def _length(items: Iterable[T]) -> int:
    return sum(1 for _ in items)


def _duration(source: Source) -> Fraction | None:
    stream = source.stream
    if stream.duration is not None and stream.time_base is not None:
        return stream.duration * Fraction(stream.time_base)
    if source.container.duration is not None:
        return Fraction(source.container.duration, av.time_base)
    return None
