"""`VideoInfo`: what a video is. No PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


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
