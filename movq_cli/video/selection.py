"""Which frames of a video: `--stream`, `--start`, `--duration`, `--fps`, `--every`, `--frames`, in this order. Times only,
no pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any, Generic, TypeVar

from ..errors import MovqError, MovqUsageError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Selection:
    """`start` and `duration` in seconds from the first frame shown; `fps` frames per second; then each `every`-th of these.

    Of what is left, `skip` frames are passed over and at most `frames` taken. `allow_partial`: where a video is cut off or
    damaged, what comes before is all there is, instead of nothing.
    Raises MovqUsageError for values that no video could satisfy.
    """

    stream: int | None = None
    start: Fraction = Fraction(0)
    duration: Fraction | None = None
    fps: Fraction | None = None
    fps_repeat: bool = False
    every: int = 1
    skip: int = 0
    frames: int | None = None
    allow_partial: bool = False

    def __post_init__(self) -> None:
        if self.start < 0:
            raise MovqUsageError(f"must not be negative, got {float(self.start):g}", "--start")
        for name in ("duration", "fps", "every", "frames"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise MovqUsageError(f"must be above 0, got {float(value):g}", f"--{name}")
        if self.fps_repeat and self.fps is None:
            raise MovqUsageError("needs --fps", "--fps-repeat")

    def to_dict(self) -> dict[str, Any]:
        """For JSON and `from_dict`."""
        return {k: str(v) if isinstance(v, Fraction) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Selection:
        exact = {k: Fraction(values[k]) for k in ("start", "duration", "fps") if values[k] is not None}
        return cls(**{**values, **exact})


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
                    f"is slower than {float(fps):g} frames per second: at {float(here.time):.3f} s the next frame comes "
                    f"after {gap:.3f} s; lower --fps, or show frames twice with --fps-repeat"
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
