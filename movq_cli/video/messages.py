"""The larger messages between movq and a decoding process: a request, and the reply that its video is open. No PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..options import Picture, Selection
from .geometry import Geometry
from .info import VideoInfo

Mode = Literal["probe", "count", "survey", "frames"]


@dataclass(frozen=True)
class Request:
    """A request about the video at `path`, which may be relative to `folder`.

    Mode "probe" opens it, "count" counts the frames of the selection, "survey" reads the times of all frames and the size
    of the first. "frames" decodes the frames with `threads` threads and makes height and width multiples of `multiple`; up to
    `ahead` frames wait in `ahead_bytes` of shared memory, from byte `place` on. Decoding itself may take `memory_limit`
    bytes. `times` are those of a survey, if there was one; `number` counts the requests to this process. With `more`,
    requests for other selections of the same video follow.
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
    place: int = 0
    number: int = 0
    times: bytes = b""
    more: bool = False


@dataclass(frozen=True)
class Opened:
    """The reply that a video is open. Its frames follow, each in one of the `slots` of the shared memory.

    `slots` is their number; `filter` names what resamples frames and converts their colours.
    """

    info: VideoInfo
    geometry: Geometry
    slots: int
    filter: str
