"""Read the orientation from the Exif of a JPEG, PNG or WebP picture. No PyAV.

Only this one tag of the first directory is read. libav reads it too, but gives up all of Exif for a single tag that it
cannot read, which is common because of broken maker's notes of cameras. The bytes may be hostile: damage means no
orientation, never an error, and the work is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .geometry import Orientation

Data = bytes | memoryview

ORIENTATIONS = {
    1: Orientation(),
    2: Orientation(mirror_columns=True),
    3: Orientation(mirror_columns=True, mirror_rows=True),
    4: Orientation(mirror_rows=True),
    5: Orientation(transpose=True),
    6: Orientation(transpose=True, mirror_columns=True),
    7: Orientation(transpose=True, mirror_columns=True, mirror_rows=True),
    8: Orientation(transpose=True, mirror_rows=True),
}

_PNG, _PREFIX = b"\x89PNG\r\n\x1a\n", b"Exif\0\0"
_MOST_PARTS = 1 << 16  # segments or chunks to look at: enough for a file of half a gigabyte in chunks of 8 kB
_TAG = 0x112
_VALUES = {3: "H", 4: "I", 8: "h", 9: "i"}  # the integer types: SHORT, LONG, SSHORT, SLONG


def read_orientation(data: Data) -> Orientation | None:
    """Return the orientation that a picture file's bytes give; None if no Exif has a value from 1 to 8."""
    if data[:2] == b"\xff\xd8":
        return _orientation(b"".join(_jpeg_exif(data)))  # long Exif continues in further segments
    if data[:8] == _PNG:
        blocks = [data[start + 8 : end - 4] for start, end in _png_exif(data)]
        return _orientation(blocks[-1]) if blocks else None
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _orientation(next(_webp_exif(data), b""))
    return None


def without_exif(png: Data) -> bytes | None:
    """Return a PNG file's bytes without Exif; None if it has none. libav refuses a picture whose Exif is damaged."""
    kept, at = [], 0
    for start, end in _png_exif(png) if png[:8] == _PNG else ():
        kept.append(png[at:start])
        at = end
    return b"".join([*kept, png[at:]]) if kept else None


def _orientation(tiff: Data) -> Orientation | None:
    if tiff[:6] == _PREFIX:
        tiff = tiff[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(tiff[:4]))
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, first)
        for at in range(first + 2, first + 2 + 12 * entries, 12):
            tag, kind, count, value = struct.unpack_from(order + "HHI4s", tiff, at)
            if tag == _TAG:
                code = _VALUES.get(kind, "")
                if not 0 < count * struct.calcsize(code) <= 4:  # stored elsewhere, or not a number
                    return None
                return ORIENTATIONS.get(struct.unpack_from(order + code, value)[0])
    except struct.error:  # the Exif ends too early
        pass
    return None


def _jpeg_exif(data: Data) -> Iterator[Data]:
    at = 2
    for _ in range(_MOST_PARTS):
        if at + 4 > len(data) or data[at] != 0xFF:
            return
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0xD9, 0xDA) or length < 2:  # the end, or the pixels
            return
        body = data[at + 4 : at + 2 + length]
        if marker == 0xE1 and body[:6] == _PREFIX:
            yield body[6:]
        at += 2 + length


def _png_exif(data: Data) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each chunk of Exif, including its length, name and checksum."""
    at = 8
    for _ in range(_MOST_PARTS):
        if at + 8 > len(data):
            return
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"eXIf" and end <= len(data):
            yield at, end
        at = end


def _webp_exif(data: Data) -> Iterator[Data]:
    at = 12
    for _ in range(_MOST_PARTS):
        if at + 8 > len(data):
            return
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            yield data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
