"""Read the side data of frames and streams that PyAV does not name. Runs in the decoding process.

The side data of a decoded frame is never read directly. PyAV 18.1 raises for the whole list if it does not know the
name of one type (29 is a view id, 31 Exif), and frees the metadata of side data twice if it has any (the name of a
colour profile).
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import NamedTuple, cast

import av
import av.error
from av.buffer import Buffer
from av.filter import Graph
from av.video.stream import VideoStream

from .container import av_errors
from .raw import Bytes, elements

_DISPLAY_MATRIX = 6  # AV_FRAME_DATA_DISPLAYMATRIX
_TYPES = range(40)  # libav 62 has 0 to 32, and numbers never change


def display_matrix(frame: av.VideoFrame) -> bytes | None:
    """Return the nine numbers, four bytes each, by which libav says to turn and mirror the frame; None without them.

    libav's own filters make a second reference to the same pixels, with all other side data removed.
    """
    with av_errors("cannot be decoded"):
        graph = Graph()
        graph.threads = 1
        entry = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
        others = [graph.add("sidedata", f"mode=delete:type={n}") for n in _TYPES if n != _DISPLAY_MATRIX]
        end = graph.add("buffersink")
        graph.link_nodes(entry, *others, end).configure()
        entry.push(frame)
        data = end.pull().side_data.get("DISPLAYMATRIX")
        return None if data is None else bytes(cast(Buffer, data))


class StreamFacts(NamedTuple):
    """The cropping of a stream in pixels, and its Dolby Vision profile if its pictures cannot be shown without it."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0
    dolby_vision: int | None = None


_FACT_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts")
_MASTERS = (0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x41E4)  # Segment, Tracks, TrackEntry, Video, BlockAdditionMapping
_CROPS = {0x54CC: "left", 0x54BB: "top", 0x54DD: "right", 0x54AA: "bottom"}
_ADDED = 0x41ED  # BlockAddIDExtraData: in Dolby Vision, its configuration


def stream_facts(stream: VideoStream) -> StreamFacts:
    """Return the facts that libav knows of a stream: clean aperture, PixelCrop, Dolby Vision's configuration.

    PyAV 18.1 has no names for them, but libav's Matroska muxer writes them: only a header, into memory.
    """
    if stream.container.format.name not in _FACT_FORMATS:
        return StreamFacts()
    written = io.BytesIO()
    try:
        with av.open(written, "w", format="matroska", options={"strict": "unofficial"}) as container:
            container.add_stream_from_template(stream, opaque=True)
            container.start_encoding()
    except (av.error.FFmpegError, ValueError):  # Matroska has no such codec, or the size is not known
        return StreamFacts()
    data = Bytes(written)
    facts: dict[str, int] = {}
    waiting = [(0, data.size)]
    while waiting:
        for name, body, end in elements(data, *waiting.pop()):
            if end is None or name in _MASTERS:
                waiting.append((body, data.size if end is None else end))
                if end is None:
                    break
            elif name in _CROPS:
                facts[_CROPS[name]] = data.number(body, end - body)
            elif name == _ADDED and data.number(body + 4, 1) >> 4 == 0:  # no other way to show the base layer
                facts["dolby_vision"] = data.number(body + 2, 1) >> 1
    return StreamFacts(**facts)
