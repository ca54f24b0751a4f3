"""Still pictures by their own bytes: which demuxer they need, how large they are, and the items of a HEIF file.

The bytes may be hostile: what they say is bounded here and checked again by libav. No PyAV.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from ..errors import MovqError
from .geometry import Orientation
from .raw import Bytes, Part, box, boxes

SEQUENCE = "mjpeg"
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_MOST_BETWEEN = 1 << 16  # bytes between two JPEGs of a sequence
_MOST_PARTS = 1 << 16
_MOST_TILES = 1 << 12
_HEIF_IMAGES = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif")
_HEIF_SEQUENCES = (b"hevc", b"hevx", b"hevm", b"hevs", b"msf1", b"avis")


@dataclass(frozen=True)
class Still:
    """A still picture: the demuxer for it, and its size in pixels as stored; (0, 0) if it could not be found.

    The demuxer is SEQUENCE for JPEGs one behind another, which are a video.
    """

    format: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Grid:
    """A picture in tiles: their item ids, row by row, the part of it that is shown, and how that is turned."""

    columns: int
    tiles: tuple[int, ...]
    left: int
    top: int
    width: int
    height: int
    orientation: Orientation


def read_still(data: Bytes) -> Still | None:
    """Return what a PNG, JPEG or WebP file is, by its bytes; None for other files.

    Raises MovqError for an animated PNG or WebP.
    """
    head = data.at(0, 32)
    if head.startswith(_PNG):
        for name in _png_chunks(data):
            if name == b"acTL":
                raise MovqError("is an animated PNG; convert it to a video")
            if name == b"IDAT":
                break
        return Still("png_pipe", *struct.unpack(">II", head[16:24])) if len(head) >= 24 else Still("png_pipe")
    if head.startswith(_JPEG + b"\xff"):
        return Still(SEQUENCE if _is_jpeg_sequence(data) else "jpeg_pipe", *_jpeg_size(data, 0)[:2])
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        if head[12:16] == b"VP8X" and int.from_bytes(head[20:21]) & 2:
            raise MovqError("is an animated WebP; convert it to a video")
        return Still("webp_pipe", *_webp_size(head))
    return None


def _is_jpeg_sequence(data: Bytes) -> bool:
    """Return True if the file is a JPEG with another of the same size behind it.

    Between them may be padding, or the words that cameras send over HTTP. Pictures with a gain map or a preview behind
    them have one of another size, or an index of them (MPF, CIPA DC-007).
    """
    width, height, pixels, several = _jpeg_size(data, 0)
    end = data.find(b"\xff\xd9", pixels) if pixels and not several else -1
    between, found, _ = data.at(end + 2, _MOST_BETWEEN).partition(_JPEG + b"\xff")
    if end < 0 or not found or (between.strip(b"\0\xff\r\n") and b"content-type: image/jpeg" not in between.lower()):
        return False
    return _jpeg_size(data, end + 2 + len(between))[:2] == (width, height)


def _jpeg_size(data: Bytes, start: int) -> tuple[int, int, int, bool]:
    """Return a JPEG's width and height, where its pixels begin (0 if not found), and True if it has an index of others."""
    width = height = 0
    several = False
    at = start + 2
    for _ in range(_MOST_PARTS):
        head = data.at(at, 10)
        if len(head) < 4 or head[0] != 0xFF:
            break
        if head[1] == 0xFF:  # a fill byte
            at += 1
            continue
        if head[1] in range(0xC0, 0xD0) and head[1] not in (0xC4, 0xC8, 0xCC) and len(head) >= 9:
            height, width = struct.unpack(">HH", head[5:9])
        if head[1] == 0xDA:
            return width, height, at, several
        several |= head[1] == 0xE2 and head[4:8] == b"MPF\0"
        at += 2 + max(2, int.from_bytes(head[2:4]))
    return width, height, 0, several


def _webp_size(head: bytes) -> tuple[int, int]:
    if head[12:16] == b"VP8X" and len(head) >= 30:
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L" and len(head) >= 25:
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if head[12:16] == b"VP8 " and len(head) >= 30:
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return 0, 0


def _png_chunks(data: Bytes) -> Iterator[bytes]:
    """Yield the name of each chunk of a PNG file."""
    start = len(_PNG)
    for _ in range(_MOST_PARTS):
        head = data.at(start, 8)
        if len(head) < 8:
            return
        yield head[4:8]
        start += 12 + int.from_bytes(head[:4])


# -- HEIF and AVIF (ISO/IEC 23008-12)


def heif_brand(data: Bytes) -> Literal["", "picture", "sequence"]:
    """Return what a file is by its main brand, if that is one of HEIF or AVIF."""
    head = data.at(0, 12)
    if head[4:8] != b"ftyp":
        return ""
    return "picture" if head[8:12] in _HEIF_IMAGES else "sequence" if head[8:12] in _HEIF_SEQUENCES else ""


class HeifItems:
    """The items of a HEIF file, as its meta box describes them."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        found = box(data, "meta")
        self._inside = {} if found is None else {one.name: one for one in boxes(data, found.body + 4, found.end)}

    @property
    def primary(self) -> int:
        """The id of the item to show; 0 if none is named."""
        pitm = self._inside.get(b"pitm")
        if pitm is None:
            return 0
        return self._data.number(pitm.body + 4, 2 if self._data.number(pitm.body, 1) == 0 else 4)

    def size(self) -> tuple[int, int]:
        """Return the width and height of the primary item in pixels; (0, 0) if they are not stated."""
        for name, part in self._properties(self.primary):
            if name == b"ispe":
                return self._data.number(part.body + 4, 4), self._data.number(part.body + 8, 4)
        return 0, 0

    def grid(self) -> Grid | None:
        """Return the tiles of the primary item; None if it has none. Raises MovqError if they cannot be put together."""
        item = self.primary
        tiles = self._tiles(item)
        if not tiles:
            return None
        kind = self._kind(item)
        if kind != "grid":
            raise MovqError(f"is made from other pictures ({kind}), which movq cannot do; convert it to JPEG or PNG")
        at = self._place(item)
        head = self._data.at(at, 12) if at is not None else b""
        if len(head) < 8 or (head[1] & 1 and len(head) < 12):
            raise MovqError("is a picture in tiles, which movq cannot put together; convert it to JPEG or PNG")
        rows, columns = head[2] + 1, head[3] + 1
        width, height = struct.unpack(">II", head[4:12]) if head[1] & 1 else struct.unpack(">HH", head[4:8])
        if rows * columns != len(tiles) or not width or not height:
            raise MovqError("is a picture in tiles that do not fit together")
        return Grid(columns, tiles, *self._shown_part(item, width, height), self._orientation(item))

    def _kind(self, item: int) -> str:
        """Return the four letters that say what an item is; "" if it is not described."""
        iinf = self._inside.get(b"iinf")
        if iinf is None:
            return ""
        data, start = self._data, iinf.body + (6 if self._data.number(iinf.body, 1) == 0 else 8)
        for infe in boxes(data, start, iinf.end):
            wide = {2: 2, 3: 4}.get(data.number(infe.body, 1), 0)
            if infe.name == b"infe" and wide and data.number(infe.body + 4, wide) == item:
                return data.at(infe.body + 6 + wide, 4).decode("latin-1")
        return ""

    def _shown_part(self, item: int, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, top, width and height of an item's clean aperture (clap); the whole picture if it has none."""
        for name, part in self._properties(item):
            if name == b"clap":
                numbers = struct.unpack(">8i", self._data.at(part.body, 32).ljust(32, b"\0"))
                if min(numbers[1::2]) < 1:
                    break
                w, h, right, down = (Fraction(*numbers[i : i + 2]) for i in range(0, 8, 2))
                left, top = round((width - w) / 2 + right), round((height - h) / 2 + down)
                if left < 0 or top < 0 or w < 1 or h < 1 or left + round(w) > width or top + round(h) > height:
                    raise MovqError("says that more is cut away than its picture has")
                return left, top, round(w), round(h)
        return 0, 0, width, height

    def _tiles(self, item: int) -> tuple[int, ...]:
        """Return the ids of the items that an item is derived from."""
        iref = self._inside.get(b"iref")
        if iref is None:
            return ()
        data, wide = self._data, 2 if self._data.number(iref.body, 1) == 0 else 4
        for one in boxes(data, iref.body + 4, iref.end):
            if one.name == b"dimg" and data.number(one.body, wide) == item:
                count = min(data.number(one.body + wide, 2), _MOST_TILES)
                first = one.body + wide + 2
                return tuple(data.number(first + i * wide, wide) for i in range(count))
        return ()

    def _place(self, item: int) -> int | None:
        """Return where the first bytes of an item are in the file, or None."""
        iloc = self._inside.get(b"iloc")
        if iloc is None:
            return None
        data, version = self._data, self._data.number(iloc.body, 1)
        sizes = data.at(iloc.body + 4, 2).ljust(2, b"\0")
        offset_size, length_size, base_size = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4
        index_size = sizes[1] & 15 if version in (1, 2) else 0
        wide = 2 if version < 2 else 4
        at = iloc.body + 6
        count = data.number(at, wide)
        at += wide
        for _ in range(min(count, _MOST_PARTS)):
            found = data.number(at, wide)
            at += wide
            method = data.number(at, 2) & 15 if version in (1, 2) else 0
            at += 2 if version in (1, 2) else 0
            base = data.number(at + 2, base_size)
            at += 2 + base_size
            extents = data.number(at, 2)
            at += 2
            if found == item and extents:
                offset = base + data.number(at + index_size, offset_size)
                idat = self._inside.get(b"idat")
                if method == 0:
                    return offset
                return None if method != 1 or idat is None else idat.body + offset
            at += extents * (index_size + offset_size + length_size)
        return None

    def _properties(self, item: int) -> Iterator[tuple[bytes, Part]]:
        """Yield the name and box of each property of an item, in order."""
        iprp = self._inside.get(b"iprp")
        if iprp is None:
            return
        data = self._data
        ipco = box(data, "ipco", iprp.body, iprp.end)
        known = [] if ipco is None else list(boxes(data, ipco.body, ipco.end))
        for ipma in boxes(data, iprp.body, iprp.end):
            if ipma.name != b"ipma":
                continue
            wide = 2 if data.number(ipma.body, 1) == 0 else 4
            step = 2 if data.number(ipma.body + 3, 1) & 1 else 1
            at = ipma.body + 8
            for _ in range(min(data.number(ipma.body + 4, 4), _MOST_PARTS)):
                if at >= min(ipma.end, data.size):
                    break
                found, count = data.number(at, wide), data.number(at + wide, 1)
                at += wide + 1
                if found == item:
                    mask = 0x7FFF if step == 2 else 0x7F
                    places = [data.number(at + i * step, step) & mask for i in range(count)]
                    yield from ((known[k - 1].name, known[k - 1]) for k in places if 0 < k <= len(known))
                    return
                at += count * step

    def _orientation(self, item: int) -> Orientation:
        """Return how an item is turned (irot, counter-clockwise quarter turns) and mirrored (imir), in its order."""
        turned = Orientation()
        for name, part in self._properties(item):
            value = self._data.number(part.body, 1)
            if name == b"irot":
                turned = turned.then(_TURNS[value & 3])
            elif name == b"imir":
                turned = turned.then(Orientation(mirror_columns=True) if value & 1 else Orientation(mirror_rows=True))
        return turned


_TURNS = (
    Orientation(),
    Orientation(transpose=True, mirror_rows=True),
    Orientation(mirror_columns=True, mirror_rows=True),
    Orientation(transpose=True, mirror_columns=True),
)
