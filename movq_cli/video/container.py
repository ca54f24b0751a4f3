"""Open a video safely and choose its stream. PyAV; runs in the decoding process.

movq opens videos to read in no other way: regular files only, by the `file:` protocol only, in formats from a list,
with a limit on pixels in both the demuxer and the decoder. Without the list of formats, a playlist named .mp4 would
open other files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import av.error
from av.stream import Disposition

from ..errors import MovqError
from ..files import require_file

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

MAX_WIDTH, MAX_HEIGHT = 8192, 4320
_FALLBACK_RATE = Fraction(25)
_VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,flv,ogg,asf,gif,mxf,"
    "yuv4mpegpipe,ivf,av1,obu"
)


@dataclass(frozen=True)
class Source:
    """An open video: its path, its container, the chosen stream, and True if it is a still picture."""

    path: str
    container: InputContainer
    stream: VideoStream
    picture: bool

    @property
    def rate(self) -> Fraction:
        """Frames per second, on average; 25 if the file gives no hint."""
        return self.stream.average_rate or self.stream.guessed_rate or _FALLBACK_RATE


def packet_span(packet: Packet[VideoStream], usual: Fraction) -> tuple[Fraction, Fraction] | None:
    """Return the time and end of a packet's frame, in seconds; None if the packet has no time.

    `usual` is the duration to assume if the packet has none.
    """
    if packet.pts is None:
        return None
    base = Fraction(packet.time_base)
    time = packet.pts * base
    return time, time + (packet.duration * base if packet.duration else usual)


@contextmanager
def open_video(path: str, stream: int | None = None, *, edit_list: bool = True) -> Iterator[Source]:
    """Open a video file, and choose the video stream with index `stream`, or the first one. Raises MovqError.

    Cover pictures and streams without a decoder do not count as video streams. Without its `edit_list`, a .mp4 or .mov
    gives all packets, including those that are not to be shown.
    """
    require_file(path)
    if os.path.getsize(path) == 0:
        raise MovqError("is empty")
    picture = _picture_format(path)
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": picture or _VIDEO_FORMATS,
        "max_pixels": str(MAX_WIDTH * MAX_HEIGHT),
    }
    if not edit_list:
        options["advanced_editlist"] = "0"
    with av_errors("is not a video movq can read"):
        container = av.open("file:" + path, format=picture, metadata_errors="replace", options=options)
    with container:
        chosen = _choose_stream(container, stream)
        chosen.codec_context.options = {"max_pixels": str(MAX_WIDTH * MAX_HEIGHT), "err_detect": "explode"}
        chosen.codec_context.thread_type = "SLICE"
        yield Source(path, container, chosen, picture is not None)


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
    if isinstance(error, av.error.ArgumentError):
        return f"not a format on movq's list, or pictures of more than {MAX_WIDTH}x{MAX_HEIGHT} pixels"
    if "resource busy" in words:  # libav's words for ENOMEM and for refused picture sizes
        return f"damaged, or pictures of more than {MAX_WIDTH}x{MAX_HEIGHT} pixels"
    return words


def _picture_format(path: str) -> str | None:
    """Return the demuxer of a still picture, by its first bytes; None for other files. Raises MovqError if animated."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        if b"acTL" in head:
            raise MovqError("is an animated PNG; convert it to a video")
        return "png_pipe"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg_pipe"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        if head[12:16] == b"VP8X" and head[20] & 2:
            raise MovqError("is an animated WebP; convert it to a video")
        return "webp_pipe"
    return None


def _choose_stream(container: InputContainer, index: int | None) -> VideoStream:
    good = [
        s
        for s in container.streams.video
        if s.codec_context is not None and not s.disposition & Disposition.attached_pic
    ]
    if index is not None:
        for s in good:
            if s.index == index:
                return s
        found = ", ".join(str(s.index) for s in good) or "none"
        raise MovqError(f"has no video in stream {index}; its video streams: {found}")
    if not good:
        raise MovqError("has no video stream")
    return good[0]
