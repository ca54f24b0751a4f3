"""Decode frames as a viewer shows them, one at a time, and check that none is missing.

PyAV; runs in the decoding process.
"""

from __future__ import annotations

import array
import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
import av.error
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from ..errors import MovqError, option
from ..options import Picture, Selection
from .colour import Colour, colour_of
from .container import Source, av_errors, open_video, stream_list
from .decoding import HarmlessError, NoKeyError, Reading, from_tiles
from .exif import read_orientation, without_exif
from .geometry import Geometry, Orientation, plan_geometry
from .info import VideoInfo
from .integrity import stated_frames
from .keyframes import entry_of
from .selection import Shown, is_same_rate, select
from .sidedata import display_matrix, stream_facts
from .times import FrameTimes

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

FILTER = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
FILTER_NAME = "swscale bicubic, full chroma, accurate, bit-exact"
_RGB = Colour("rgb", "full", "unknown", None, None, ())
_HELD_BYTES = 128 << 20
"""Decoded frames that are held for the next selection, which may begin before the end of this one."""


class Decoder:
    """An open video that is read once: first `info`, then `frames` of one selection or, if they are in order, of several.

    `warnings` lists what was not handled, each once, in order of appearance. With `allow_partial`, frames end where the
    file is cut off or damaged, and `partial` is set. `passed` is called often, as a sign of life. With `several`
    selections, the last frames are held for the next one.
    """

    def __init__(
        self,
        source: Source,
        allow_partial: bool = False,
        passed: Callable[[], None] = lambda: None,
        several: bool = False,
    ) -> None:
        self.source, self._passed, self._several = source, passed, several
        self.warnings: list[str] = list(source.notes)
        self.partial = False
        self._reading: Reading | None = None
        self._held = deque[Shown[av.VideoFrame | None]]()  # decoded, the last of them in front of the next
        self._next = 0  # the index of the next frame to come
        self._seen: list[Fraction] = []  # the times of all before it, unless some were passed over
        self._exif: Orientation | None = None  # set when the packet of a picture is read
        self._shown = self._decode_to_damage(allow_partial)
        try:
            self._first = _decoded(self._hold(next(self._shown)))
            self._held.append(self._first)
        except StopIteration:
            others = [stream for stream in source.container.streams.video if stream.index != source.stream.index]
            way_out = f"; {option('stream', stream_list(others))} takes another" if others else ""
            raise MovqError(f"has no frame that can be shown{way_out}") from None
        frame = self._first.payload
        self.facts = stream_facts(source.stream)
        if min(self._size) < 1:
            raise MovqError("says that more is cut away than its picture has")
        if self.facts.dolby_vision is not None:
            self._warn(
                f"Dolby Vision of profile {self.facts.dolby_vision}: its colours are encoded as they are, and look wrong"
            )
        self._colours: dict[tuple[object, ...], Colour] = {}
        self.colour = self._colour(frame)
        self.orientation = self._orientation(frame)
        self._reformatter = VideoReformatter()
        self._early = tuple(self.warnings)
        self._clear = not (allow_partial or source.picture or source.grid)

    @property
    def info(self) -> VideoInfo:
        """The properties of the video, from its header and its first frame."""
        source, stream, frame = self.source, self.source.stream, self._first.payload
        aspect = stream.sample_aspect_ratio or Fraction(1)
        width, height = self._size
        shown = plan_geometry(width, height, aspect, self.orientation, Picture(), 1).shown
        duration = _duration(source)
        return VideoInfo(
            container=source.format,
            codec=stream.codec_context.name,
            pixel_format=frame.format.name,
            width=width,
            height=height,
            shown_width=shown[0],
            shown_height=shown[1],
            rotation=self.orientation.rotation,
            mirrored=self.orientation.mirrored,
            pixel_aspect=aspect,
            matrix=self.colour.matrix,
            color_range=self.colour.color_range,
            transfer=self.colour.transfer,
            fps=None if source.picture else source.stated_rate,
            frames_from_header=1 if source.picture else stated_frames(source),
            duration=None if source.picture else duration,
            stream=stream.index,
            bytes=source.container.size,
            is_picture=source.picture,
            warnings=self._early,
        )

    def geometry(self, picture: Picture, multiple: int) -> Geometry:
        """Return how stored frames become the requested picture, with sides on `multiple`."""
        aspect = self.source.stream.sample_aspect_ratio or Fraction(1)
        return plan_geometry(*self._size, aspect, self.orientation, picture, multiple)

    @property
    def _size(self) -> tuple[int, int]:
        """The width and height of stored frames, inside the file's own cropping."""
        frame, facts = self._first.payload, self.facts
        return frame.width - facts.left - facts.right, frame.height - facts.top - facts.bottom

    def goes_on(self, selection: Selection, times: FrameTimes | None) -> bool:
        """Return True if `frames` gives another selection as a new Decoder would, without decoding anything again.

        It does not after a warning, which would be about another selection.
        """
        if not self._clear:
            return False
        earliest = self._held[0].index if self._held else self._next
        if times is None or not times.promised:
            return self._begin(selection, None)[0] >= earliest
        if self._reading is None or times.key_of(selection) is None:
            return False
        first = times.first(selection)
        return first is not None and first >= earliest and times.time(self._next - 1) == self._reading.timeline.last

    def frames(
        self, selection: Selection, times: FrameTimes | None = None, jumps: bool = False
    ) -> Iterator[Shown[av.VideoFrame]]:
        """Yield the selected frames. If the file is read to its end, also check that it was whole.

        With the `times` of the video, packets in front of the selection are not decoded if that changes no frame, nor read
        if the decoder `jumps`. Raises NoEntryError, before the first frame, if that turns out to be impossible: then
        another Decoder is needed, which does less.
        """
        self.warnings[:] = self._early
        entry = None
        if self._reading is not None and times is not None:
            entry = self._reading.entry = entry_of(times, selection)
            self._reading.jumps = jumps
        if entry is None and self._next == 1:
            times = None  # nothing has confirmed what packets promise
        begin, rest = self._begin(selection, times)
        rate = self.source.stated_rate
        if (
            selection.fps is not None
            and rate is not None
            and is_same_rate(selection.fps, rate)
            and rate != selection.fps
        ):
            self.warnings.append(
                f"has {float(rate):.6g} frames per second, taken as the {float(selection.fps):.6g} asked for"
            )
        return map(_decoded, select(self._from(begin, times), rest, rate, self._passed, self._first.time))

    def _begin(self, selection: Selection, times: FrameTimes | None) -> tuple[int, Selection]:
        """Return the index of a frame in front of which the selection needs none, and what is left to select from there."""
        if times is not None and times.promised:
            return times.begin(selection)
        seen, skipped = self._seen, 0
        begin = bisect_left(seen, seen[0] + selection.start) if selection.start and seen else 0
        if selection.fps is None and begin < len(seen):
            skipped = min(selection.skip, (len(seen) - begin) // selection.every)
        return begin + skipped * selection.every, replace(selection, skip=selection.skip - skipped)

    def _from(self, begin: int, times: FrameTimes | None) -> Iterator[Shown[av.VideoFrame | None]]:
        """Yield all frames from the index `begin` on; those that are not decoded again have no payload."""
        held = list(self._held)
        earliest = held[0].index if held else self._next
        if times is not None:
            yield from map(times.frame, range(begin, earliest))
        for frame in held:
            if frame.index >= begin:
                yield frame
        for frame in self._shown:
            if self._hold(frame).index >= begin:
                yield frame

    def _hold(self, frame: Shown[av.VideoFrame | None]) -> Shown[av.VideoFrame | None]:
        """Hold a frame that has come, and return it."""
        if self._several:
            if frame.payload is None or frame.index != self._next:
                self._held.clear()
                self._seen.clear()
            elif frame.index:
                self._held.append(frame)
                size = sum(plane.buffer_size for plane in frame.payload.planes)
                while len(self._held) > 1 and size * len(self._held) > _HELD_BYTES:
                    self._held.popleft()
            if frame.index == len(self._seen):
                self._seen.append(frame.time)
        self._next = frame.index + 1
        return frame

    def close(self) -> None:
        """End reading, before the video is closed."""
        self._shown.close()

    def rgb(self, frame: av.VideoFrame, scaled: tuple[int, int]) -> np.ndarray:
        """Return a stored frame as RGB uint8 (height, width, 3), resampled once to `scaled` (width, height)."""
        colour = self._colour(frame)
        if any(self.facts[:4]) or frame.format.has_palette or any(c.is_alpha for c in frame.format.components):
            rgb = self._opaque(frame, colour)
            if rgb.shape[1::-1] == scaled:
                return rgb
            frame, colour = av.VideoFrame.from_ndarray(rgb, format="rgb24"), _RGB
        return self._reformat(frame, colour, *scaled, "rgb24").to_ndarray()

    def _opaque(self, frame: av.VideoFrame, colour: Colour) -> np.ndarray:
        """Return a stored frame as RGB uint8 (H, W, 3), inside the file's own cropping, transparent pixels over black."""
        rgba = self._reformat(frame, colour, frame.width, frame.height, "rgba").to_ndarray()
        left, top, right, bottom, _ = self.facts
        rgba = rgba[top : len(rgba) - bottom, left : rgba.shape[1] - right]
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        if alpha.min() < 255:
            self._warn("has transparent pixels: laid over black")
            rgb = ((rgb.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
        return np.ascontiguousarray(rgb)

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
                threads=self.source.threads,
            )

    def _colour(self, frame: av.VideoFrame) -> Colour:
        key = frame.format.name, frame.colorspace, frame.color_range, frame.color_trc, frame.interlaced_frame
        if key not in self._colours:
            self._colours[key] = colour_of(frame)
            for warning in self._colours[key].warnings:
                self._warn(warning)
        return self._colours[key]

    def _warn(self, text: str) -> None:
        self._clear = False
        if text not in self.warnings:
            self.warnings.append(text)

    def _orientation(self, frame: av.VideoFrame) -> Orientation:
        if self.source.grid is not None:
            return self.source.grid.orientation
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
        if not self.source.picture:
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

    def _decode_to_damage(self, allow_partial: bool) -> Generator[Shown[av.VideoFrame | None]]:
        """Yield every frame that is shown, up to the first missing one.

        With `allow_partial` that is the end, and frames that the decoder had not given out by then are left out. Without,
        the error says what gives the frames before it.
        """
        some = False
        try:
            for frame in self._decode_all():
                yield frame
                some = True
        except MovqError as error:
            if not some or error.cause != MovqError.cause:
                raise
            if not allow_partial:
                raise MovqError(f"{error.marked}; {option('allow_partial', True)} takes what comes before") from error
            self.partial = True
            self._warn(f"{error.reason_with_flags}: what comes before was taken (--allow-partial)")

    def _decode_all(self) -> Iterator[Shown[av.VideoFrame | None]]:
        """Yield every frame that is shown. Frames that the entry allows to skip have no payload.

        A decoder that raises at every error also raises at some that change no picture. If it does, the file is decoded
        again without that, and any other sign of damage is refused.
        """
        source = self.source
        if source.grid is not None:
            yield from_tiles(source, source.grid)
            return
        given = -1  # the index of the last frame
        again, wait_for_key, explode = False, True, True
        while True:
            with ExitStack() as stack:
                if again:
                    source = stack.enter_context(_reopened(self.source, explode))
                reading = Reading(source, self._warn, self._passed, self._prepared, explode, wait_for_key)
                self._reading = None if again else reading
                try:
                    for frame in reading.frames():
                        if frame.index > given:
                            given = frame.index
                            yield frame
                    return
                except NoKeyError:
                    wait_for_key = False
                except HarmlessError:
                    explode = False
                again, self._clear = True, False


def _reopened(source: Source, explode: bool) -> AbstractContextManager[Source]:
    return open_video(
        source.path,
        source.stream.index,
        explode=explode,
        max_pixels=source.max_pixels,
        threads=source.threads,
    )


def _decoded(frame: Shown[av.VideoFrame | None]) -> Shown[av.VideoFrame]:
    """Return the same frame, typed as one that was decoded."""
    assert frame.payload is not None, f"frame {frame.index} was passed over"
    return cast(Shown[av.VideoFrame], frame)


def _duration(source: Source) -> Fraction | None:
    stream = source.stream
    if stream.duration is not None and stream.time_base is not None:
        return stream.duration * Fraction(stream.time_base)
    if source.container.duration is not None:
        return Fraction(source.container.duration, av.time_base)
    return None
