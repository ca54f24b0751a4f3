"""Check that a video is whole, by what its container says about itself. PyAV; runs in the decoding process.

libav ends a file that is cut between two packets like a whole one; in some formats, it does so after any cut. Each
format shows a cut in its own way: by a count of frames, by an end in time, or by how its last bytes must look.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from fractions import Fraction

import av

from ..errors import MovqError
from ..values import format_time
from .container import Source, av_errors, open_video

_END_TOLERANCE = Fraction(3, 2)  # frames by which the last one may fall short of a stream's stated end
_MP4 = "mp4"
_ENDS_IN_TIME = ("matroska", "mxf")  # do not count frames; others do, or tell by their bytes, or have no stated end
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEAD = 1 << 16
_FLV_START = 4096
_FLV_TAIL = 4  # bytes that hold the size of the tag before; they end the file too
_FLV_HEAD = 11  # bytes in front of a tag's data
_FLV_TAGS = (8, 9, 18)  # sound, video, script


def check_whole(
    source: Source, packets: int, last: int, end: Fraction, rate: Fraction, passed: Callable[[], None]
) -> None:
    """Raise MovqError if a file that was read to its end was cut before its true end.

    `packets` is the number of packets read, and the last of them ends at byte `last`. `end` is that of the last frame,
    in seconds; `rate` is in frames per second. `passed` is called now and then.
    """
    if source.picture:
        return
    expected = source.stream.frames
    if packets < expected and not (_MP4 in source.container.format.name and _all_packets(source, passed) >= expected):
        raise MovqError(f"is cut off: {packets} of {expected} frames are there")
    stated = _stated_end(source)
    if stated is not None and end + _END_TOLERANCE / rate < stated:
        raise MovqError(f"is cut off: it ends at {format_time(float(end))} of {format_time(float(stated))}")
    ends_well = _LAST_BYTES.get(source.container.format.name)
    if ends_well is not None and not ends_well(source, last):
        raise MovqError(f"is cut off: it does not end as a {source.container.format.name} file does")


def _all_packets(source: Source, passed: Callable[[], None]) -> int:
    """Return the number of packets, including those hidden by an edit list: if all are key frames, libav omits them."""
    with open_video(source.path, source.stream.index, edit_list=False) as whole, av_errors("is damaged"):
        count = 0
        for packet in whole.container.demux(whole.stream):
            passed()
            count += packet.size > 0
        return count


def _stated_end(source: Source) -> Fraction | None:
    """Return where a file says that its video ends, in seconds of its own clock; None if it does not say."""
    container, stream = source.container, source.stream
    if not any(name in container.format.name for name in _ENDS_IN_TIME):
        return None
    text = stream.metadata.get("DURATION", "")  # Matroska, of one stream
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except ValueError:
        pass
    if container.format.name == "mxf" and stream.duration is not None and stream.time_base is not None:
        return stream.duration * Fraction(stream.time_base)
    if len(container.streams) == 1 and container.duration is not None:
        return Fraction(container.duration, av.time_base)
    return None


def _gif(source: Source, last: int) -> bool:
    """Return True if a GIF's blocks of sub-blocks end with a semicolon (GIF89a, 15 to 27). Later bytes do not count."""
    with open(source.path, "rb") as file:
        file.seek(10)
        file.seek(2 + _table(file.read(1)), os.SEEK_CUR)
        while (kind := file.read(1)) != b";":
            if kind == b",":
                file.seek(8, os.SEEK_CUR)
                file.seek(_table(file.read(1)), os.SEEK_CUR)
            elif kind != b"!":
                return False
            file.seek(1, os.SEEK_CUR)
            while size := int.from_bytes(file.read(1)):
                file.seek(size, os.SEEK_CUR)
        return True


def _table(flags: bytes) -> int:
    """Return the size in bytes of the colour table that a byte of flags announces."""
    packed = int.from_bytes(flags)
    return 3 << ((packed & 7) + 1) if packed & 0x80 else 0


def _flv(source: Source, last: int) -> bool:
    """Return True if an FLV ends with the size of its last tag (Adobe, FLV 10.1, E.3).

    The size must lead back to the start of a tag, unless the last packet read ends right before it. Some files state
    their own size, and must not be smaller.
    """
    with open(source.path, "rb") as file:
        _, said, number = file.read(_FLV_START).partition(b"filesize\0")
    if said and len(number) >= 8 and source.container.size < struct.unpack(">d", number[:8])[0]:
        return False
    size = int.from_bytes(_tail(source, _FLV_TAIL))
    tag = _tail(source, _FLV_TAIL + size)[:_FLV_HEAD] if size >= _FLV_HEAD else b""
    return last + _FLV_TAIL >= source.container.size or (
        tag[:1] in map(bytes, zip(_FLV_TAGS)) and int.from_bytes(tag[1:4]) + _FLV_HEAD == size
    )


def _yuv4mpeg(source: Source, last: int) -> bool:
    """Return True if the frames, uncompressed and one after another, go on up to the last byte."""
    return last >= source.container.size


def _asf(source: Source, last: int) -> bool:
    """Return False if an ASF is smaller than its header says (Microsoft, ASF 1.2, 3.2). A broadcast's does not say."""
    with open(source.path, "rb") as file:
        head = file.read(_ASF_HEAD)
    at = head.find(_ASF_PROPERTIES)
    said = head[at : at + 89] if at >= 0 else b""
    if len(said) < 89 or said[88] & 1:
        return True
    return source.container.size >= int.from_bytes(said[40:48], "little")


_LAST_BYTES: dict[str, Callable[[Source, int], bool]] = {
    "asf": _asf,
    "gif": _gif,
    "flv": _flv,
    "yuv4mpegpipe": _yuv4mpeg,
}


def _tail(source: Source, count: int) -> bytes:
    with open(source.path, "rb") as file:
        file.seek(max(0, source.container.size - count))
        return file.read(count)
