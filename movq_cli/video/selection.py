"""Which frames of a video are those of a `Selection`. Times only, no pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Generic, TypeVar

from ..errors import MovqError, option
from ..options import Selection

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Shown(Generic[T_co]):
    """A frame as the video shows it: its place among those shown, its time and end in seconds, and whatever goes along."""

    index: int
    time: Fraction
    end: Fraction
    payload: T_co


def select(
    shown: Iterable[Shown[T]], selection: Selection, passed: Callable[[], None] = lambda: None
) -> Iterator[Shown[T]]:
    """The frames of the selection, in order. Takes no more of `shown` than it needs; `passed` is called for each it takes.

    Raises MovqError where `fps` would need a frame twice and repeating is not allowed.
    """
    kept = _span(shown, selection, passed)
    if selection.fps is not None:
        kept = _nearest(kept, selection.fps, selection.fps_repeat)
    if selection.every > 1:
        kept = _every(kept, selection.every)
    return islice(kept, selection.skip, None if selection.frames is None else selection.skip + selection.frames)


def _span(shown: Iterable[Shown[T]], selection: Selection, passed: Callable[[], None]) -> Iterator[Shown[T]]:
    start: Fraction | None = None
    stop: Fraction | None = None
    for frame in shown:
        passed()
        if start is None:
            start = frame.time + selection.start
            stop = None if selection.duration is None else start + selection.duration
        if stop is not None and frame.time >= stop:
            return
        if frame.time >= start:
            end = frame.end if stop is None else min(frame.end, stop)
            yield Shown(frame.index, frame.time, end, frame.payload)


def _nearest(frames: Iterable[Shown[T]], fps: Fraction, repeat: bool) -> Iterator[Shown[T]]:
    """Frame k is the one whose time is nearest to the first frame's time + k / fps; between two, the earlier."""
    k = 0
    origin: Fraction | None = None
    here: Shown[T] | None = None
    for following in frames:
        if here is None or origin is None:
            here, origin = following, following.time
            continue
        times = 0
        while origin + k / fps <= (here.time + following.time) / 2:
            if times and not repeat:
                gap = float(following.time - here.time)
                raise MovqError(
                    f"is slower than {float(fps):g} frames per second: frames at {float(here.time):.3f} s are "
                    f"{gap:.3f} s apart ({1 / gap:.4g} frames per second); lower {option('fps')}, or repeat frames with "
                    f"{option('fps_repeat', True)}"
                )
            k, times = k + 1, times + 1
            yield replace(here, end=origin + k / fps)
        here = following
    if here is None or origin is None:
        return
    times = 0
    while origin + k / fps < here.end and (repeat or not times):
        k, times = k + 1, times + 1
        yield replace(here, end=min(here.end, origin + k / fps))


def _every(frames: Iterable[Shown[T]], step: int) -> Iterator[Shown[T]]:
    """Each `step`-th frame, the first among them; it stands until the next one does."""
    frames = iter(frames)
    for frame in frames:
        yield replace(frame, end=max((left.end for left in islice(frames, step - 1)), default=frame.end))
