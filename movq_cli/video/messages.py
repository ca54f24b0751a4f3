"""What movq and a decoding process say to each other, besides single values: a request, and that its video is open. No PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..options import Picture, Selection
from .geometry import Geometry
from .info import VideoInfo

Mode = Literal["probe", "count", "survey", "frames"]


@dataclass(frozen=True)
class Request:
    """What to do with the video at `path`, which may be relative to `folder`.

    "probe" opens it, "count" counts the frames of the selection, "survey" does both, "frames" decodes them, with so many
    `threads`, padded to a `multiple` in height and width, up to `ahead` of them in `ahead_bytes` of shared memory.
    Decoding itself may take `memory_limit` bytes.
    """

    mode: Mode
    folder: str
    path: str
    ahead_bytes: int
    memory_limit: int
    selection: Selection = Selection()
    picture: Picture = Picture()
    threads: int = 1
    multiple: int = 1
    ahead: int = 1


@dataclass(frozen=True)
class Opened:
    """A video whose frames follow, each in one of so many `slots` of the shared memory; `filter` names what converts them."""

    info: VideoInfo
    geometry: Geometry
    slots: int
    filter: str
