"""The colour tags of a frame: the matrix and range that turn it into RGB, and warnings about the rest. PyAV."""

from __future__ import annotations

from dataclasses import dataclass

import av
from av.video.reformatter import ColorRange

from ..errors import MovqError

UNTAGGED_HD_LINES = 720
"""Untagged pictures with at least this many lines are taken as BT.709, smaller ones as BT.601."""

# AVColorSpace (libavutil/pixfmt.h) to its name and the number of its matrix in swscale (libswscale/swscale.h).
_MATRICES = {
    1: ("bt709", 1),
    4: ("fcc", 4),
    5: ("bt470bg", 5),
    6: ("smpte170m", 5),
    7: ("smpte240m", 7),
    9: ("bt2020nc", 9),
}
_OTHER_MATRICES = {
    8: "ycgco",
    10: "bt2020c",
    11: "smpte2085",
    12: "chroma-derived-nc",
    13: "chroma-derived-c",
    14: "ictcp",
}
_RGB, _UNSPECIFIED = 0, 2
_HDR = {16: "PQ (SMPTE ST 2084)", 18: "HLG (ARIB STD-B67)"}
_TRANSFERS = {1: "bt709", 2: "unknown", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear"}
_TRANSFERS |= {13: "srgb", 14: "bt2020-10", 15: "bt2020-12", 16: "pq", 18: "hlg"}


@dataclass(frozen=True)
class Colour:
    """The conversion of one frame to RGB: what its tags say, and the numbers for swscale (None for RGB)."""

    matrix: str
    color_range: str
    transfer: str
    matrix_number: int | None
    range_number: int | None
    warnings: tuple[str, ...]


def colour_of(frame: av.VideoFrame) -> Colour:
    """Return the colour that a frame's tags give. Raises MovqError for a matrix that movq cannot convert."""
    tag, pixels = int(frame.colorspace), frame.format
    warnings = []
    transfer = int(frame.color_trc)
    if transfer in _HDR:
        warnings.append(f"HDR video, {_HDR[transfer]}: encoded as it stands, without tone mapping")
    if frame.interlaced_frame:
        warnings.append("interlaced video: encoded as it stands")
    name = _TRANSFERS.get(transfer, str(transfer))
    if pixels.is_rgb or pixels.has_palette:
        return Colour("rgb", "full", name, None, None, tuple(warnings))
    full = frame.color_range == ColorRange.JPEG or pixels.name.startswith("yuvj")
    if pixels.name.startswith("gray"):
        full = frame.color_range != ColorRange.MPEG
    if tag in _OTHER_MATRICES or tag not in (_RGB, _UNSPECIFIED, *_MATRICES):
        raise MovqError(f"has the colour matrix {_OTHER_MATRICES.get(tag, tag)}, which movq cannot convert")
    if tag in _MATRICES:
        matrix, number = _MATRICES[tag]
    else:
        assumed = 1 if frame.height >= UNTAGGED_HD_LINES else 6
        matrix, number = f"untagged, taken as {_MATRICES[assumed][0]}", _MATRICES[assumed][1]
    return Colour(
        matrix,
        "full" if full else "limited",
        name,
        number,
        int(ColorRange.JPEG if full else ColorRange.MPEG),
        tuple(warnings),
    )
