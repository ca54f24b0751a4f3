"""Choose the frames of a `Selection` by their times. No pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Generic, TypeVar

from ..errors import MovqError, option
from ..options import Selection
from ..values import format_time

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Shown(Generic[T_co]):
    """A frame in presentation order: its index among all frames shown, its time and end in seconds, and a payload."""

    index: int
    time: Fraction
    end: Fraction
    payload: T_co


_NTSC = tuple(Fraction(rate, 1001) for rate in (24000, 30000, 60000))
_NEAR = Fraction(1, 500)


def is_same_rate(asked: Fraction, rate: Fraction | None) -> bool:
    """Return True if two rates are one of NTSC's, exactly or as people write it: 23.976, 23.98 and 24, for example."""
    return rate is not None and any(
        abs(asked / standard - 1) <= _NEAR and abs(rate / standard - 1) <= _NEAR for standard in _NTSC
    )


def select(
    shown: Iterable[Shown[T]],
    selection: Selection,
    rate: Fraction | None = None,
    passed: Callable[[], None] = lambda: None,
    origin: Fraction | None = None,
) -> Iterator[Shown[T]]:
    """Yield the frames of the selection, in order, taking no more of `shown` than needed.

    `origin` is the time of the video's first frame, if `shown` begins later.

    `rate` is the video's, if it has one: a selection of the same rate follows the video's clock, which takes the frames
    of a constant rate one by one. `passed` is called for each frame taken. Raises MovqError if `fps` needs a frame twice
    and repeating is not allowed.
    """
    kept = _span(shown, selection, passed, origin)
    if selection.fps is not None:
        followed = rate if is_same_rate(selection.fps, rate) else None
        kept = _nearest(kept, selection.fps, selection.fps_repeat, followed)
    if selection.every > 1:
        kept = _every(kept, selection.every)
    return islice(kept, selection.skip, None if selection.frames is None else selection.skip + selection.frames)


def _span(
    shown: Iterable[Shown[T]], selection: Selection, passed: Callable[[], None], origin: Fraction | None
) -> Iterator[Shown[T]]:
    start: Fraction | None = None
    stop: Fraction | None = None
    for frame in shown:
        passed()
        if start is None:
            start = (frame.time if origin is None else origin) + selection.start
            stop = None if selection.duration is None else start + selection.duration
        if stop is not None and frame.time >= stop:
            return
        if frame.time >= start:
            end = frame.end if stop is None else min(frame.end, stop)
            yield Shown(frame.index, frame.time, end, frame.payload)


def _nearest(frames: Iterable[Shown[T]], fps: Fraction, repeat: bool, followed: Fraction | None) -> Iterator[Shown[T]]:
    """Yield the frame nearest to each time that is due; of two equally near, the earlier.

    The first frame is due, and then one every 1 / fps. With a rate that is `followed`, it is that rate, and what is due
    is counted from the last frame that was in time.
    """
    step, due = 1 / (followed or fps), Fraction(0)
    here: Shown[T] | None = None
    for following in frames:
        if here is None:
            here, due = following, following.time
            continue
        times = 0
        while due <= (here.time + following.time) / 2:
            if times and not repeat:
                gap = float(following.time - here.time)
                raise MovqError(
                    f"is slower than {float(fps):g} frames per second: frames at {format_time(float(here.time))} are "
                    f"{gap:.3f} s apart ({1 / gap:.4g} frames per second); lower {option('fps')}, or repeat frames with "
                    f"{option('fps_repeat', True)}"
                )
            in_time = followed and not times and abs(here.time - due) <= step / 2
            due = (here.time if in_time else due) + step
            times += 1
            yield replace(here, end=due)
        here = following
    if here is None:
        return
    times = 0
    while due < here.end and (repeat or not times):
        due, times = due + step, times + 1
        yield replace(here, end=min(here.end, due))


def _every(frames: Iterable[Shown[T]], step: int) -> Iterator[Shown[T]]:
    """Yield each `step`-th frame, beginning with the first. It lasts until the end of the frames left out after it."""
    frames = iter(frames)
    for frame in frames:
        yield replace(frame, end=max((left.end for left in islice(frames, step - 1)), default=frame.end))
