"""Read the few bytes of a file that PyAV does not tell about: mainly how a whole file ends.

The bytes may be hostile: every read is bounded and no length is trusted. Walks take at most _MOST steps. No PyAV.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import BinaryIO, NamedTuple

_MOST = 1 << 22  # boxes, pages, chunks or elements to look at in one file
BLOCK = 1 << 20
"""The most bytes of one read."""


class Bytes:
    """The bytes of an open file, or of one in memory, by position. Reads past the end give fewer bytes.

    `passed` is called at each read, as a sign of life.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.passed: Callable[[], None] = lambda: None
        self._file = file
        self.size = file.seek(0, os.SEEK_END)

    def at(self, start: int, count: int) -> bytes:
        """Return up to `count` bytes from `start`; at most BLOCK."""
        if not 0 <= start < self.size:
            return b""
        self._file.seek(start)
        self.passed()
        return self._file.read(max(0, min(count, BLOCK)))

    def number(self, start: int, count: int) -> int:
        """Return the big-endian number in `count` bytes from `start`; missing bytes count as zeros."""
        return int.from_bytes(self.at(start, count).ljust(count, b"\0"))

    def find(self, words: bytes, start: int) -> int:
        """Return the first position of `words` at or after `start`; -1 if they do not occur."""
        overlap = len(words) - 1
        while start < self.size:
            block = self.at(start, BLOCK)
            place = block.find(words)
            if place >= 0:
                return start + place
            if len(block) < BLOCK:
                break
            start += len(block) - overlap
        return -1


class Part(NamedTuple):
    """A box, chunk or element: its name, and where it starts, where its body starts and where it ends.

    `end` may lie behind the end of the file.
    """

    name: bytes
    start: int
    body: int
    end: int


# -- MP4 (ISO/IEC 14496-12)


def boxes(data: Bytes, start: int = 0, end: int | None = None) -> Iterator[Part]:
    """Yield the boxes between two positions, one after another, also the last if it is not complete."""
    stop = data.size if end is None else min(end, data.size)
    for _ in range(_MOST):
        if start >= stop:
            return
        head = data.at(start, 16)
        size, body = int.from_bytes(head[:4]), start + 8
        if size == 1:
            size, body = int.from_bytes(head[8:16]), start + 16
        after = stop if size == 0 and len(head) >= 8 else start + max(size, body - start)
        yield Part(head[4:8], start, body, after)
        start = after


def box(data: Bytes, path: str, start: int = 0, end: int | None = None) -> Part | None:
    """Return the first box at a path of names, like "moov/mvex/mehd", or None."""
    found = None
    for name in path.encode().split(b"/"):
        found = next((one for one in boxes(data, start, end) if one.name == name), None)
        if found is None:
            return None
        start, end = found.body, found.end
    return found


def is_fragmented(data: Bytes) -> bool:
    """Return True if an MP4 announces fragments, which its first table of frames does not count."""
    return box(data, "moov/mvex") is not None


_FRAGMENT_BOXES = b"styp sidx ssix prft emsg moof mdat imda uuid free skip mfra".split()


def fragments_end(data: Bytes) -> bool:
    """Return True if all fragments of an MP4 are there: the last box, and those that segment indexes refer to."""
    last = None
    for one in boxes(data):
        if one.end >= data.size and not _begins_a_fragment(data.at(one.start, 8)):
            if data.find(b"moof", one.start) >= 0:
                return False  # bytes between boxes, behind which libav finds nothing
            break
        if one.name == b"sidx" and _indexed_end(data, one) > data.size:
            return False
        last = one
    return last is None or (last.end <= data.size and last.name != b"moof")


def _begins_a_fragment(head: bytes) -> bool:
    """Return True if these are the first bytes of a box that belongs to fragments, as far as so few can tell."""
    if len(head) <= 4:
        return head[0] == 0  # as in a length
    return any(name.startswith(head[4:]) for name in _FRAGMENT_BOXES)


def _indexed_end(data: Bytes, sidx: Part) -> int:
    """Return where the last fragment ends that a segment index refers to (8.16.3)."""
    version = data.number(sidx.body, 1)
    at = sidx.body + (20 if version == 0 else 28)
    count = data.number(at + 2, 2)
    first = data.number(at - 4, 4) if version == 0 else data.number(at - 8, 8)
    references = data.at(at + 4, min(12 * count, sidx.end - at - 4))
    sizes = (int.from_bytes(references[i : i + 4]) & 0x7FFFFFFF for i in range(0, len(references), 12))
    return sidx.end + first + sum(sizes)


def fragments_duration(data: Bytes) -> Fraction | None:
    """Return the duration that an MP4 states for its longest track with all fragments, in seconds (8.8.2)."""
    mehd, mvhd = box(data, "moov/mvex/mehd"), box(data, "moov/mvhd")
    if mehd is None or mvhd is None:
        return None
    scale = data.number(mvhd.body + (12 if data.number(mvhd.body, 1) == 0 else 20), 4)
    ticks = data.number(mehd.body + 4, 4 if data.number(mehd.body, 1) == 0 else 8)
    return Fraction(ticks, scale) if scale and ticks else None


# -- Matroska (RFC 9559)

_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_INSIDE = {
    *(_CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367),  # of a segment
    *(0xE7, 0xA3, 0xA0, 0xA7, 0xAB, 0x5854, 0xAF),  # of a cluster
    *(0xEC, 0xBF),  # of both: Void and CRC-32
}


def elements(data: Bytes, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield (id, start of the body, its end or None if its size is unknown) of elements one after another."""
    for _ in range(_MOST):
        if start >= end:
            return
        head = data.at(start, 12)
        id_length = 9 - (head[0] if head else 0).bit_length()
        size_length = 9 - (head[id_length] if len(head) > id_length else 0).bit_length()
        body = start + id_length + size_length
        if id_length > 4 or size_length > 8 or len(head) < body - start:
            yield 0, start, data.size + 1  # no element, or one that is cut off
            return
        size = int.from_bytes(head[id_length : body - start]) & ((1 << 7 * size_length) - 1)
        unknown = size == (1 << 7 * size_length) - 1
        yield int.from_bytes(head[:id_length]), body, None if unknown else body + size
        start = body if unknown else body + size


def matroska_ends(data: Bytes) -> bool:
    """Return True if a Matroska or WebM is sound, element by element, to the last byte of its segment or of the file."""
    for name, body, end in elements(data, 0, data.size):
        if name == _SEGMENT:  # recorders do not know its size
            stop = data.size if end is None else end
            return stop <= data.size and _is_sound(data, body, stop)
        if end is None:
            break
    return False


def _is_sound(data: Bytes, start: int, stop: int, in_cluster: bool = False) -> bool:
    """Return True if elements of known names follow each other, and those of clusters too, which hold no others.

    Of an element of unknown size, elements() goes on inside.
    """
    for name, body, end in elements(data, start, stop):
        if name not in _INSIDE or (end is not None and end > stop):
            return False
        if name == _CLUSTER and end is not None and (in_cluster or not _is_sound(data, body, end, in_cluster=True)):
            return False
    return True


# -- Ogg (RFC 3533)

_END_OF_STREAM = 4
_OGG_VIDEO = (b"\x80theora", b"OVP80", b"BBCD", b"\x01video")
"""The first bytes of streams of Theora, VP8, Dirac, and of OGM's video."""


def ogg_ends(data: Bytes, last: int) -> bool:
    """Return True if the last page is complete, and each stream of video has said that it ends.

    If none is recognised, each stream must have.
    """
    ended: dict[bytes, bool] = {}
    video: set[bytes] = set()
    at = 0
    for _ in range(_MOST):
        head = data.at(at, 27)
        if head[:4] != b"OggS":  # bytes between pages, or the end
            at = data.find(b"OggS", at)
            if at < 0:
                break
            head = data.at(at, 27)
        table = data.at(at + 27, head[26]) if len(head) == 27 else b""
        after = at + 27 + len(table) + sum(table)
        if len(head) < 27 or len(table) < head[26] or after > data.size:
            return False
        serial = head[14:18]
        if serial not in ended and data.at(at + 27 + len(table), 8).startswith(_OGG_VIDEO):
            video.add(serial)
        ended[serial] = bool(head[5] & _END_OF_STREAM)
        at = after
    return bool(ended) and all(ended[serial] for serial in video or ended)


# -- AVI


def avi_repeats(data: Bytes, stream: int) -> int | None:
    """Return the number of chunks of a stream that are empty: they repeat the frame before. None if the file is cut."""
    wanted = {b"%02d%s" % (stream, kind) for kind in (b"dc", b"db")}
    count, inside = 0, [(0, data.size)]
    for _ in range(_MOST):
        while inside and inside[-1][0] >= inside[-1][1]:
            inside.pop()
        if not inside:
            return count
        at, end = inside.pop()
        head = data.at(at, 12)
        size = int.from_bytes(head[4:8], "little")
        after = at + 8 + size + size % 2
        if len(head) < 8 and not inside:
            return count  # less than a chunk behind the last one
        if at + 8 + size > end:
            return None
        inside.append((after, end))
        if head[:4] in (b"RIFF", b"LIST") and (head[8:12] in (b"AVI ", b"AVIX", b"movi", b"rec ")):
            inside.append((at + 12, at + 8 + size))
        count += size == 0 and head[:4] in wanted
    return count


# -- others

_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEAD = 1 << 16
_FLV_START = 4096
_FLV_TAIL = 4  # bytes that hold the size of the tag before; they end the file too
_FLV_HEAD = 11  # bytes in front of a tag's data
_FLV_TAGS = (8, 9, 18)  # sound, video, script
_IVF_HEAD = 12  # bytes in front of a frame; libav gives their position


def gif_ends(data: Bytes, last: int) -> bool:
    """Return True if a GIF's blocks of sub-blocks end with a semicolon (GIF89a, 15 to 27). Later bytes do not count."""
    at, in_block = 13 + _colour_table(data.number(10, 1)), False
    for _ in range(_MOST):
        byte = data.at(at, 1)
        at += 1
        if in_block:
            at += int.from_bytes(byte)
            in_block = byte not in (b"\0", b"")
        elif byte == b";":
            return True
        elif byte == b"\0":
            continue
        elif byte in (b",", b"!"):
            at += 1 + (9 + _colour_table(data.number(at + 8, 1)) if byte == b"," else 0)
            in_block = True
        else:
            return False
    return False


def _colour_table(packed: int) -> int:
    """Return the size in bytes of the colour table that a byte of flags announces."""
    return 3 << ((packed & 7) + 1) if packed & 0x80 else 0


def flv_ends(data: Bytes, last: int) -> bool:
    """Return True if an FLV ends with the size of its last tag (Adobe, FLV 10.1, E.3).

    The size must lead back to the start of a tag, unless the last packet read ends right before it. Some files state
    their own size, and must not be smaller.
    """
    _, said, number = data.at(0, _FLV_START).partition(b"filesize\0")
    if said and len(number) >= 8 and data.size < struct.unpack(">d", number[:8])[0]:
        return False
    size = data.number(data.size - _FLV_TAIL, _FLV_TAIL)
    tag = data.at(data.size - _FLV_TAIL - size, _FLV_HEAD) if size >= _FLV_HEAD else b""
    return last + _FLV_TAIL >= data.size or (
        tag[:1] in map(bytes, zip(_FLV_TAGS)) and int.from_bytes(tag[1:4]) + _FLV_HEAD == size
    )


def yuv4mpeg_ends(data: Bytes, last: int) -> bool:
    """Return True if the frames, uncompressed and one after another, go on up to the last byte."""
    return last >= data.size


def ivf_ends(data: Bytes, last: int) -> bool:
    """Return True if the last frame ends where the file does. The header's count of frames is not kept by writers."""
    return last + _IVF_HEAD >= data.size


def asf_ends(data: Bytes, last: int) -> bool:
    """Return False if an ASF is smaller than its header says (Microsoft, ASF 1.2, 3.2). A broadcast's does not say."""
    head = data.at(0, _ASF_HEAD)
    at = head.find(_ASF_PROPERTIES)
    said = head[at : at + 89] if at >= 0 else b""
    if len(said) < 89 or said[88] & 1:
        return True
    return data.size >= int.from_bytes(said[40:48], "little")


ENDS: dict[str, Callable[[Bytes, int], bool]] = {
    "asf": asf_ends,
    "flv": flv_ends,
    "gif": gif_ends,
    "ivf": ivf_ends,
    "ogg": ogg_ends,
    "yuv4mpegpipe": yuv4mpeg_ends,
}
"""By libav's name of a format: whether a file ends as such files do, given where its last packet ends."""
