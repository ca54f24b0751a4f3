"""Read videos as frames, the way a viewer shows them, and write frames to files. Only this package uses PyAV.

Decoding runs in a separate process.
"""

from .decoders import AHEAD_BYTES, warm_decoders
from .geometry import Geometry, part_kept, plan_geometry
from .info import SUFFIXES, VideoFacts, VideoInfo
from .pictures import write_png
from .reader import Frame, FrameReader, Survey, count_frames, probe, read_frames, survey
from .selection import is_same_rate
from .times import FrameTimes
from .write import FrameWriter, library_versions, open_writer

__all__ = [
    "AHEAD_BYTES",
    "SUFFIXES",
    "Frame",
    "FrameReader",
    "FrameTimes",
    "FrameWriter",
    "Geometry",
    "Survey",
    "VideoFacts",
    "VideoInfo",
    "count_frames",
    "is_same_rate",
    "library_versions",
    "open_writer",
    "part_kept",
    "plan_geometry",
    "probe",
    "read_frames",
    "survey",
    "warm_decoders",
    "write_png",
]
