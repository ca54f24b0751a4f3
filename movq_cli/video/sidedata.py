"""Read the display matrix from the side data of a frame. PyAV; runs in the decoding process.

The side data of a decoded frame is never read directly. PyAV 18.1 raises for the whole list if it does not know the
name of one type (29 is a view id, 31 Exif), and frees the metadata of side data twice if it has any (the name of a
colour profile).
"""

from __future__ import annotations

from fractions import Fraction
from typing import cast

import av
from av.buffer import Buffer
from av.filter import Graph

from .container import av_errors

_DISPLAY_MATRIX = 6  # AV_FRAME_DATA_DISPLAYMATRIX
_TYPES = range(64)  # libav 62 has 0 to 32, and numbers never change


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
