"""Check that a video is whole, by what its container says about itself. PyAV; runs in the decoding process.

libav ends a file that is cut between two packets like a whole one; in some formats, it does so after any cut. Each
format shows a cut in its own way: by a count of frames, by an end in time, or by how its last bytes must look (raw.py).
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import av

from ..errors import MovqError
from ..values import format_time
from .container import AVI, Source, av_errors, open_video
from .raw import ENDS, avi_repeats, fragments_duration, fragments_end, is_fragmented, matroska_ends

_END_TOLERANCE = Fraction(3, 2)  # frames by which the last one may fall short of a stream's stated end
_FRAGMENT_TOLERANCE = Fraction(1, 4)  # seconds; a fragment is longer, and tracks need not end together
_MP4 = "mp4"
_MATROSKA = "matroska"
_ENDS_IN_TIME = (_MATROSKA, "mxf")  # do not count frames; others do, or tell by their bytes, or have no stated end
_UNCOUNTED = ("ivf",)  # have a count of frames that writers do not keep


class Totals(NamedTuple):
    """The totals of a stream that was read: packets with and without bytes, where the last ends, the end of its frames.

    `last_byte` is a position in the file, `end` is in seconds, `rate` in frames per second.
    """

    packets: int
    repeats: int
    last_byte: int
    end: Fraction
    rate: Fraction


def stated_frames(source: Source) -> int | None:
    """Return the number of frames that the file's header states; None if it states none that can be relied on."""
    if source.format in _UNCOUNTED or _is_fragmented(source):
        return None
    return source.stream.frames or None


def check_whole(source: Source, read: Totals, passed: Callable[[], None]) -> None:
    """Raise MovqError if a file that was read to its end was cut before its true end.

    `passed` is called now and then.
    """
    if source.picture:
        return
    source.data.passed = passed
    expected = stated_frames(source) or 0
    there = read.packets + read.repeats
    if there < expected and (there := _all_packets(source, read, passed)) < expected:
        raise MovqError(f"is cut off: {there} of {expected} frames are there")
    stated = _stated_end(source)
    ends_well = ENDS.get(source.format)
    if stated is not None and read.end + _END_TOLERANCE / read.rate < stated and not _is_complete(source):
        raise MovqError(f"is cut off: it ends at {format_time(float(read.end))} of {format_time(float(stated))}")
    if ends_well is not None and not ends_well(source.data, read.last_byte):
        raise MovqError(f"is cut off: it does not end as a {source.format} file does")
    if _is_fragmented(source):
        _check_fragments(source)


def _is_fragmented(source: Source) -> bool:
    return _MP4 in source.format and is_fragmented(source.data)


def _check_fragments(source: Source) -> None:
    """Raise MovqError if fragments of an MP4 are missing at its end."""
    if not fragments_end(source.data):
        raise MovqError("is cut off: its last fragment is not complete")
    stated, found = fragments_duration(source.data), source.container.duration
    if stated is not None and found is not None and Fraction(found, av.time_base) + _FRAGMENT_TOLERANCE < stated:
        raise MovqError(f"is cut off: it ends at {format_time(found / av.time_base)} of {format_time(float(stated))}")


def _is_complete(source: Source) -> bool:
    """Return True if the bytes say that nothing is missing, though frames end earlier: recorders state wall-clock time."""
    return _MATROSKA in source.format and matroska_ends(source.data)


def _all_packets(source: Source, read: Totals, passed: Callable[[], None]) -> int:
    """Return the number of packets, including those that libav leaves out.

    They are the empty ones of an AVI, which repeat a frame, and those hidden by an edit list if all are key frames.
    """
    if source.format == AVI:
        return read.packets + (avi_repeats(source.data, source.stream.index) or 0)
    if _MP4 not in source.format:
        return read.packets + read.repeats
    with (
        open_video(source.path, source.stream.index, edit_list=False, max_pixels=source.max_pixels) as whole,
        av_errors("is damaged"),
    ):
        count = 0
        for packet in whole.container.demux(whole.stream):
            passed()
            count += packet.size > 0
        return count


def _stated_end(source: Source) -> Fraction | None:
    """Return where a file says that its video ends, in seconds of its own clock; None if it does not say."""
    container, stream = source.container, source.stream
    if not any(name in container.format.name for name in _ENDS_IN_TIME):
        return None
    text = stream.metadata.get("DURATION", "")  # Matroska, of one stream
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except ValueError:
        pass
    if container.format.name == "mxf" and stream.duration is not None and stream.time_base is not None:
        return stream.duration * Fraction(stream.time_base)
    if len(container.streams) == 1 and container.duration is not None:
        return Fraction(container.duration, av.time_base)
    return None
