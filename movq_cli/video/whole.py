"""Whether a video was all there, by what its container says of itself. PyAV; runs in the decoding process.

libav ends a cut file as it ends a whole one wherever the cut falls between two packets, and in some formats anywhere. Each
format tells in its own way: by a count of frames, by an end in time, or by how its last bytes must look.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import av

from ..errors import MovqError
from .source import Source, av_errors, open_video

_END_TOLERANCE = Fraction(3, 2)  # frames by which the last one may fall short of a stream's stated end
_ENDS_IN_TIME = ("matroska", "mxf", "flv")  # count no frames; others do, or tell by their bytes, or have no end
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEAD = 1 << 16
_FLV_TAIL = 4  # bytes of the size of the tag before, which ends a file too
_FLV_HEAD = 11  # bytes in front of a tag's data
_FLV_TAGS = (8, 9, 18)  # sound, video, script


def check_whole(source: Source, packets: int, last: int, end: Fraction, rate: Fraction) -> None:
    """Raises MovqError where a file that was read to its end had an end that is not its own.

    `packets` were read, the last of them ending at byte `last`; `end` of the last frame, in seconds; `rate` in frames per
    second.
    """
    if source.picture:
        return
    expected = source.stream.frames
    if packets < expected and _all_packets(source) < expected:
        raise MovqError(f"is cut off: {packets} of {expected} frames are there")
    stated = _stated_end(source)
    if stated is not None and end + _END_TOLERANCE / rate < stated:
        raise MovqError(f"is cut off: it ends at {float(end):.2f} s of {float(stated):.2f} s")
    ends_well = _LAST_BYTES.get(source.container.format.name)
    if ends_well is not None and not ends_well(source, last):
        raise MovqError(f"is cut off: it does not end as a {source.container.format.name} file does")


def _all_packets(source: Source) -> int:
    """How many there are, also of those that an edit list hides: where all are key frames, libav leaves them out."""
    with open_video(source.path, source.stream.index, edit_list=False) as whole, av_errors("is damaged"):
        return sum(packet.size > 0 for packet in whole.container.demux(whole.stream))


def _stated_end(source: Source) -> Fraction | None:
    """Where a file says that its video ends, in its own clock."""
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
    """A GIF ends with a semicolon (GIF89a, 27)."""
    return _tail(source, 64).rstrip(b"\0").endswith(b";")


def _flv(source: Source, last: int) -> bool:
    """An FLV ends with the size of its last tag (Adobe, FLV 10.1, E.3), which begins so far before that."""
    size = int.from_bytes(_tail(source, _FLV_TAIL))
    tag = _tail(source, _FLV_TAIL + size)[:_FLV_HEAD] if size >= _FLV_HEAD else b""
    return tag[:1] in map(bytes, zip(_FLV_TAGS)) and int.from_bytes(tag[1:4]) + _FLV_HEAD == size


def _yuv4mpeg(source: Source, last: int) -> bool:
    """Uncompressed frames, one behind the other, up to the last byte."""
    return last >= source.container.size


def _asf(source: Source, last: int) -> bool:
    """The header of an ASF says how long the file is, but in a broadcast (Microsoft, ASF 1.2, 3.2)."""
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
