"""The times of frames in the whole ticks that a video file holds. No PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

# In seconds. Frames at 24, 25, 30 and 60 per second, also divided by 1.001, last a whole number of these.
_FINE = Fraction(1, 360000)
_SHORTEST = Fraction(1, 1000)
_SLACK = 1e-3  # seconds; tolerance for frames that were moved by a file that holds whole milliseconds


@dataclass(frozen=True)
class Clock:
    """The times of frames in whole ticks of `base` seconds: int64 (frames + 1,), from 0; the last is the end.

    `rate` is in frames per second, nominal if frames are not evenly spaced.
    """

    base: Fraction
    ticks: np.ndarray
    rate: Fraction
    notes: tuple[str, ...] = ()

    @property
    def even(self) -> bool:
        """True if all frames last equally long."""
        return bool((np.diff(self.ticks) == self.ticks[1]).all())


def clock_at_rate(seconds: np.ndarray, fps: Fraction | None) -> Clock:
    """Return a clock that ticks at the rate if every frame falls on a tick, else one with ticks too fine to matter.

    `seconds`: float64 (frames + 1,).
    """
    if fps is not None and max(fps.numerator, fps.denominator) < 1 << 31:
        places = seconds * float(fps)
        ticks = np.rint(places).astype(np.int64)
        near = abs(places - ticks) <= min(0.25, _SLACK * float(fps))
        if near.all() and (np.diff(ticks) > 0).all():
            return Clock(1 / fps, ticks, fps)
    return _free_clock(seconds, fps, _FINE)


def clock_of_format(seconds: np.ndarray, fps: Fraction | None, base: Fraction, holds: str) -> Clock:
    """Return the clock of a format that has ticks of its own, with a note if they move a frame.

    `seconds`: float64 (frames + 1,). `holds`: what the format holds, for the note.
    """
    clock = _free_clock(seconds, fps, base)
    moved = abs(seconds - clock.ticks * float(base)).max()
    if clock.notes or moved < float(_FINE):
        return clock
    return Clock(clock.base, clock.ticks, clock.rate, (f"{holds}: frame times are rounded to them",))


def _free_clock(seconds: np.ndarray, fps: Fraction | None, base: Fraction) -> Clock:
    """Return a clock with every frame at its nearest tick, but at least one tick after the frame before."""
    order = np.arange(len(seconds))
    wanted = np.rint(seconds / float(base)).astype(np.int64)
    ticks = np.maximum.accumulate(wanted - order) + order
    late = int((ticks != wanted)[:-1].sum())
    notes = (f"{late} frame times do not grow: those frames follow the one before at once",) if late else ()
    rate = fps or Fraction(len(wanted) - 1) / max(Fraction(float(seconds[-1])), _SHORTEST)
    rate = min(max(rate, Fraction(1, 100)), Fraction(1000)).limit_denominator(1 << 20)  # within what libav can hold
    return Clock(base, ticks, rate, notes)
