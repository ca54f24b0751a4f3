"""Video files to frames as a viewer shows them. Everything of PyAV is in here, and runs in a process of its own."""

from .geometry import Geometry, Picture, plan_geometry
from .info import VideoInfo
from .reader import AHEAD_BYTES, Frame, FrameReader, count_frames, probe, read_frames
from .selection import Selection

__all__ = [
    "AHEAD_BYTES",
    "Frame",
    "FrameReader",
    "Geometry",
    "Picture",
    "Selection",
    "VideoInfo",
    "count_frames",
    "plan_geometry",
    "probe",
    "read_frames",
]
