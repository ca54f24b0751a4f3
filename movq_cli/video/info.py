"""`VideoInfo`, the description of a video, and `VideoFacts`, the little of it that a batch keeps. No PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from ..records import Count

_SUFFIXES = """
.mp4 .m4v .mov .qt .3gp .3g2 .mj2 .f4v .mkv .webm .avi .wmv .asf .flv .ogv .ogg .ogm .mxf .ts .m2ts .mts .mpg .mpeg .m2v
.mpv .vob .h264 .264 .hevc .h265 .265 .ivf .av1 .obu .y4m .mjpeg .mjpg .gif .png .jpg .jpeg .jfif .webp .heic .heif .avif .avifs
"""
SUFFIXES = frozenset(_SUFFIXES.split())
"""Suffixes of videos and pictures, in lower case, to choose files in a folder by. Opening goes by their contents."""


@dataclass(frozen=True)
class VideoInfo:
    """The properties of a video, from its header and its first frame. Sizes are in pixels, times in seconds.

    `width` and `height` are as stored; `shown_width` and `shown_height` are after turning, with square pixels.
    `rotation` is in degrees clockwise. `frames_from_header` may be wrong. `fps` is the average rate; `variable_rate` is
    True if `probe` saw frames at unequal distances.
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
    variable_rate: bool = False


class VideoFacts(NamedTuple):
    """The number of frames in a selection, and their size as shown, in pixels; zeros if a video cannot be read."""

    frames: Count = 0
    width: Count = 0
    height: Count = 0
