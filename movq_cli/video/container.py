"""Open a video safely and choose its stream. PyAV; runs in the decoding process.

movq opens videos to read in no other way: regular files only, by the `file:` protocol only, in formats from a list,
with a limit on pixels in both the demuxer and the decoder. Without the list of formats, a playlist named .mp4 would
open other files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
import av.error
from av.stream import Disposition

from ..errors import MovqError, option
from ..files import require_file
from ..options import MOST_PIXELS
from ..values import format_bytes
from .geometry import round_up
from .raw import Bytes
from .stills import SEQUENCE, Grid, HeifItems, heif_brand, read_still

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

MAX_WIDTH, MAX_HEIGHT = 8192, 4320
USUAL_PIXELS = MAX_WIDTH * MAX_HEIGHT
"""Pixels up to which a picture may be of any file, and up to which decoding gets its usual memory."""
_PIXELS_PER_BYTE = 10_000  # pictures above the limit must have fewer: a bomb has more
_ALIGNED = 128  # libav counts the pixels of pictures that are a little larger, by less than a 16th in videos
_FALLBACK_RATE = Fraction(25)
_VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,flv,ogg,asf,gif,mxf,mjpeg,"
    "yuv4mpegpipe,ivf,av1,obu"
)
AVI = "avi"
TIMELESS = (AVI, "mxf")
"""Formats that hold a rate but no times. With B-frames, the times that libav gives their frames are out of order."""
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


@dataclass(frozen=True)
class Source:
    """An open video, the chosen stream, and the context that decodes it; `picture` is True for a still picture.

    `data` are the file's bytes. `grid` is set for a picture in tiles, whose first tile is the stream. `threads` are
    those that decoding and converting may take; pixels do not depend on them. `notes` are what the user should know
    about the choice of stream.
    """

    path: str
    data: Bytes
    container: InputContainer
    stream: VideoStream
    codec: VideoCodecContext
    picture: bool
    grid: Grid | None
    max_pixels: int
    threads: int
    notes: tuple[str, ...]

    @property
    def format(self) -> str:
        """The name of the container format in libav."""
        return self.container.format.name

    @property
    def stated_rate(self) -> Fraction | None:
        """Frames per second, on average; None if the file gives no hint."""
        return self.stream.average_rate or self.stream.guessed_rate

    @property
    def rate(self) -> Fraction:
        """The stated rate, or 25."""
        return self.stated_rate or _FALLBACK_RATE


def packet_span(
    packet: Packet[VideoStream], usual: Fraction, in_order: bool = False
) -> tuple[Fraction, Fraction] | None:
    """Return the time and end of a packet's frame, in seconds; None if the packet has no time.

    `usual` is the duration to assume if the packet has none. With `in_order`, the time is that of its place in the file.
    """
    ticks = packet.dts if in_order else packet.pts
    if ticks is None:
        return None
    base = Fraction(packet.time_base)
    time = ticks * base
    return time, time + (packet.duration * base if packet.duration else usual)


def refuse_encrypted(packet: Packet[VideoStream], frames: int) -> None:
    """Raise MovqError if a packet, in front of which there are so many frames, is encrypted (ISO/IEC 23001-7)."""
    if packet.has_sidedata("encryption_info"):
        raise MovqError("is encrypted" + (f" after {frames} frames" if frames else ""))


@contextmanager
def open_video(
    path: str,
    stream: int | None = None,
    *,
    edit_list: bool = True,
    explode: bool = True,
    max_pixels: int | None = None,
    threads: int = 1,
) -> Iterator[Source]:
    """Open a video file, and choose the video stream with index `stream`, or the first one. Raises MovqError.

    Cover pictures and streams without a decoder do not count as video streams, and one without data gives way to the
    next. Without its `edit_list`, a .mp4 or .mov gives all packets, including those that are not to be shown. Without
    `explode`, the decoder conceals damage instead of raising. `max_pixels` raises the limit for pictures.
    """
    require_file(path)
    if os.path.getsize(path) == 0:
        raise MovqError("is empty")
    with open(path, "rb") as file:
        data = Bytes(file)
        still, brand = read_still(data), heif_brand(data)
        heif = HeifItems(data) if brand == "picture" else None
        size = (still.width, still.height) if still else heif.size() if heif else (0, 0)
        most = _pixel_limit(*size, data.size, max_pixels)
        demuxer = still.format if still else None
        options = {
            "protocol_whitelist": "file",
            "format_whitelist": demuxer or _VIDEO_FORMATS,
            "max_pixels": str(most),
        }
        if not edit_list:
            options["advanced_editlist"] = "0"
        with av_errors("is not a video movq can read"):
            container = av.open("file:" + path, format=demuxer, metadata_errors="replace", options=options)
        with container:
            picture = heif is not None or (still is not None and still.format != SEQUENCE)
            grid = heif.grid() if heif else None
            chosen, notes = _choose_stream(container, stream, brand, heif.primary if heif else 0, grid)
            codec = _codec(chosen)
            for context in (codec, *(_tiles(container, grid) if grid else ())):
                context.options = {"max_pixels": str(most)} | ({"err_detect": "explode"} if explode else {})
                context.thread_type, context.thread_count = "SLICE", threads
            yield Source(path, data, container, chosen, codec, picture, grid, most, threads, notes)


def _pixel_limit(width: int, height: int, size: int, allowed: int | None) -> int:
    """Return the most pixels that a picture of a file of `size` bytes may have.

    Raises MovqError if its still picture of width x height (0 if unknown) has more.
    """
    limit, pixels = max(USUAL_PIXELS, allowed or 0, min(_PIXELS_PER_BYTE * size, MOST_PIXELS)), width * height
    if pixels > MOST_PIXELS:
        raise MovqError(f"has {width}x{height} pixels: it is too large for any decoder")
    if pixels > limit:
        raise MovqError(
            f"has {width}x{height} pixels in {format_bytes(size)}, as a file made to fill memory would; "
            f"{option('max_pixels', pixels)} allows it"
        )
    return max(limit + limit // 16, round_up(width, _ALIGNED) * round_up(height, _ALIGNED))


@contextmanager
def av_errors(what: str) -> Iterator[None]:
    """Turn what PyAV raises, except MemoryError, into a MovqError that says `what`, and why in brackets.

    The reason is in libav's words, except where those would mislead.
    """
    try:
        yield
    except (MovqError, MemoryError):
        raise
    except av.error.FFmpegError as error:
        raise MovqError(f"{what} ({_words(error)})") from error
    except (OverflowError, UnicodeDecodeError, ValueError) as error:
        raise MovqError(f"{what} ({error})") from error


def _words(error: av.error.FFmpegError) -> str:
    words = str(error.strerror or error).lower()
    large = (
        f"pictures of more than {MAX_WIDTH}x{MAX_HEIGHT} pixels in a file that seems made to fill memory, which "
        f"{option('max_pixels')} allows"
    )
    if isinstance(error, av.error.ArgumentError):
        return f"not a format on movq's list, or {large}"
    if "resource busy" in words:  # libav's words for ENOMEM and for refused picture sizes
        return f"damaged, or {large}"
    return words


def _choose_stream(
    container: InputContainer, index: int | None, brand: str, item: int, grid: Grid | None
) -> tuple[VideoStream, tuple[str, ...]]:
    """Return the stream to decode, and notes for the user. `brand` and `item` are those of a HEIF file, or "" and 0."""
    good = [
        s
        for s in container.streams.video
        if s.codec_context is not None and not s.disposition & Disposition.attached_pic
    ]
    if index is not None:
        for s in good:
            if s.index == index:
                return s, ()
        raise MovqError(f"has no video in stream {index}; its video streams: {stream_list(good) or 'none'}")
    if not good:
        raise MovqError("has no video stream")
    if brand == "picture":
        notes = ("has transparency, which movq does not read in this format",) if any(map(_is_alpha, good)) else ()
        first = item if grid is None else grid.tiles[0]
        return next((s for s in good if s.id == first), good[0]), notes
    if brand == "sequence":  # a still picture may be in front of it
        good = [s for s in good if s.duration is not None] or good
    chosen = next((s for s in good if s.codec_context.pix_fmt is not None), good[0])
    if chosen is good[0]:
        return chosen, ()
    return chosen, (f"stream {good[0].index} was not recognised: stream {chosen.index} was taken",)


def stream_list(streams: Iterable[VideoStream]) -> str:
    """Return the indices of streams as text."""
    return ", ".join(str(stream.index) for stream in streams)


def _is_alpha(stream: VideoStream) -> bool:
    return stream.metadata.get("title") == "Alpha"


def _codec(stream: VideoStream) -> VideoCodecContext:
    """Return the context that decodes a stream: libvpx's for VP8 and VP9 with alpha, which libav's own does not read."""
    context = stream.codec_context
    name = _ALPHA_DECODERS.get(context.codec.canonical_name, "")
    if stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return context
    decoder = cast("VideoCodecContext", av.CodecContext.create(name, "r"))
    decoder.extradata = context.extradata
    return decoder


def _tiles(container: InputContainer, grid: Grid) -> Iterator[VideoCodecContext]:
    return (stream.codec_context for stream in container.streams.video if stream.id in grid.tiles)
