"""Still pictures as the bytes of PNG and JPEG files. PyAV is imported only when one is made."""

from __future__ import annotations

import os
import struct
import zlib
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import numpy as np

from ..errors import MovqError
from ..files import WholeFile

_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
"""The first bytes of a PNG file, up to its width and height."""
_IHDR_END = 33
_SIGNED = b"tEXtSoftware\0movq"
_SIGNATURE = struct.pack(">I", len(_SIGNED) - 4) + _SIGNED + struct.pack(">I", zlib.crc32(_SIGNED))
"""A chunk of a PNG file, as its specification has it: length, type, keyword and text, checksum."""

if TYPE_CHECKING:
    import av
    from av.video.codeccontext import VideoCodecContext


def write_png(path: str | os.PathLike[str], image: np.ndarray, *, force: bool = False) -> None:
    """Write an RGB uint8 (H, W, 3) picture as a PNG file.

    Raises MovqError if the path exists (unless `force`) or cannot be written.
    """
    with WholeFile(path, force=force) as file:
        file.write(encode_png(image))
        file.commit()


def encode_png(image: np.ndarray) -> bytes:
    """Return the PNG file of an RGB uint8 (H, W, 3) picture."""
    return _encode(_frame(image), "png", {"pred": "avg"})


def signed_png(data: bytes) -> bytes:
    """Return the same PNG file, which also says that movq wrote it."""
    return data[:_IHDR_END] + _SIGNATURE + data[_IHDR_END:]


def is_signed_png(path: str | os.PathLike[str]) -> bool:
    """Return True for a PNG file that says that movq wrote it; False also if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(_IHDR_END + len(_SIGNATURE))[_IHDR_END:] == _SIGNATURE
    except OSError:
        return False


def decode_png(data: bytes, width: int, height: int) -> np.ndarray:
    """Return the picture of a PNG file that `encode_png` made, RGB uint8 (H, W, 3).

    Raises MovqError, without decoding it, for a file of another kind or size.
    """
    import av

    if data[: len(_PNG)] != _PNG or struct.unpack_from(">II", data, len(_PNG)) != (width, height):
        raise MovqError(f"is not a PNG picture of {width}x{height}")
    codec = av.CodecContext.create("png", "r")
    codec.thread_count = 1
    try:
        (frame,) = (*codec.decode(av.Packet(data)), *codec.decode(None))
    except (av.FFmpegError, ValueError) as error:
        raise MovqError(f"is not a picture that can be read ({error})") from None
    if frame.format.name != "rgb24":
        raise MovqError(f"is a picture of {frame.format.name}, not rgb24")
    return frame.to_ndarray()


def encode_jpeg(image: np.ndarray) -> bytes:
    """Return a JPEG file of an RGB uint8 (H, W, 3) picture: full chroma, the finest quantiser but one."""
    from av.video.reformatter import ColorRange, Colorspace

    frame = _frame(image).reformat(
        format="yuvj444p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.JPEG, threads=1
    )
    return _encode(frame, "mjpeg", {"qmin": "2", "qmax": "2"})


def _frame(image: np.ndarray) -> av.VideoFrame:
    import av

    return av.VideoFrame.from_ndarray(image, format="rgb24")


def _encode(frame: av.VideoFrame, encoder: str, options: dict[str, str]) -> bytes:
    import av

    codec = cast("VideoCodecContext", av.CodecContext.create(encoder, "w"))
    codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, frame.format.name
    codec.time_base, codec.sample_aspect_ratio = Fraction(1), Fraction(1)
    codec.options = options
    codec.thread_count = 1
    return b"".join(map(bytes, (*codec.encode(frame), *codec.encode(None))))


def with_palette(frame: av.VideoFrame) -> av.VideoFrame:
    """Return an RGB frame in the 256 colours that suit it best."""
    from av.filter import Graph

    graph = Graph()
    graph.threads = 1
    entry = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
    split, palette, use = (
        graph.add("split"),
        graph.add("palettegen", "stats_mode=single"),
        graph.add("paletteuse", "new=1"),
    )
    end = graph.add("buffersink")
    entry.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(end)
    graph.configure()
    frame.pts = 0
    entry.push(frame)
    entry.push(None)
    return cast("av.VideoFrame", end.pull())
