"""`VideoInfo` describes one video, `VideoFacts` is the little that a batch keeps of each. No PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from ..records import Count

_SUFFIXES = """
.mp4 .m4v .mov .qt .3gp .3g2 .mj2 .f4v .mkv .webm .avi .wmv .asf .flv .ogv .ogg .ogm .mxf .ts .m2ts .mts .mpg .mpeg .m2v
.mpv .vob .h264 .264 .hevc .h265 .265 .ivf .av1 .obu .y4m .gif .png .jpg .jpeg .webp
"""
SUFFIXES = frozenset(_SUFFIXES.split())
"""What the names of videos and pictures end in, in lower case: what to take from a folder. Opening goes by contents."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says of itself and its first frame shows. Sizes in pixels, times in seconds.

    `width` and `height` are as stored, `shown_width` and `shown_height` turned and with square pixels; `rotation` is in
    degrees clockwise. `frames_from_header` may lie; `fps` is the average rate.
    """

    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    shown_width: int
    shown_height: int
    rotation: int
    mirrored: bool
    pixel_aspect: Fraction
    matrix: str
    color_range: str
    transfer: str
    fps: Fraction | None
    frames_from_header: int | None
    duration: Fraction | None
    stream: int
    bytes: int
    is_picture: bool
    warnings: tuple[str, ...]


class VideoFacts(NamedTuple):
    """How many frames a selection has, and the size they show, in pixels; zeros of a video that cannot be read."""

    frames: Count = 0
    width: Count = 0
    height: Count = 0
