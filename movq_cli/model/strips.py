"""Strips: a picture cut into bands of rows, so that computing needs memory for a strip and not for a picture.

A 3x3 convolution needs one row above and one below the rows that it gives, so a strip is read as a `Band`, with rows of
its neighbours. The zeros around a picture are added at its own edges alone. So every layer gives the rows that it would
give of the whole picture. A picture that is not cut is one strip.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .convolution import LAYOUT
from .store import Held, Store

OnStrip = Callable[[Tensor], Tensor]
"""A function of a strip (B, C, T, rows, W) that keeps its rows."""


def as_it_is(strip: Tensor) -> Tensor:
    """Return the strip; an OnStrip that changes nothing."""
    return strip


class Halo(NamedTuple):
    """The numbers of rows of the strips above and below that are read with a strip."""

    above: int
    below: int


class Picture(NamedTuple):
    """The picture that a strip is of: its height, and the step that heights of strips are multiples of, a power of two."""

    height: int
    step: int


@dataclass
class Band:
    """A strip of a tensor (B, C, T, rows, W), and the rows beside it: None at the picture's edge, or if not needed."""

    above: Tensor | None
    own: Tensor
    below: Tensor | None

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """The shape (B, C, T, rows, W) with the rows above and below."""
        b, c, t, _, w = self.own.shape
        return b, c, t, sum(rows.stop - rows.start for _, rows in self.pieces()), w

    @property
    def own_rows(self) -> slice:
        """The rows of the band that are the strip's own."""
        first = 0 if self.above is None else self.above.shape[3]
        return slice(first, first + self.own.shape[3])

    def pieces(self) -> Iterator[tuple[Tensor, slice]]:
        """Yield the tensors from top to bottom, each with the rows of the band that it fills."""
        row = 0
        for piece in (self.above, self.own, self.below):
            if piece is not None:
                yield piece, slice(row, row + piece.shape[3])
                row += piece.shape[3]

    def inner(self) -> Band:
        """Return the rows that a 3x3 convolution of this band gives: one fewer beside each neighbour."""
        above, below = self.above, self.below
        return Band(
            above[:, :, :, 1:] if above is not None and above.shape[3] > 1 else None,
            self.own,
            below[:, :, :, :-1] if below is not None and below.shape[3] > 1 else None,
        )

    def empty(self) -> None:
        """Let go of the tensors, so that their memory is free before the band is."""
        self.above = self.own = self.below = None  # type: ignore[assignment]

    def move(self, write: Callable[[Tensor, Tensor], object], out: Tensor) -> None:
        """Call `write(piece, rows of out)` for every piece in the order of `pieces`, and empty the band."""
        for piece, rows in self.pieces():
            write(piece, out[:, :, :, rows])
        self.empty()


class StripQueue:
    """Strips on their way from one layer to the next, from top to bottom of one picture after another.

    They wait in a store. `prepare` is applied to a strip when it is fetched.
    """

    def __init__(self, store: Store, prepare: OnStrip = as_it_is) -> None:
        self._store, self._prepare = store, prepare
        self._waiting = deque[Held]()
        self._above: Tensor | None = None
        self._next: tuple[Held, Tensor] | None = None

    def __len__(self) -> int:
        """Return how many strips wait."""
        return len(self._waiting) + (self._next is not None)

    def put(self, strip: Tensor) -> None:
        """Add the strip that follows the last one."""
        self._waiting.append(self._store.put(strip))

    def take(self, halo: Halo, bottom: bool, keep: bool = False) -> Band:
        """Return the next strip, the last of its picture if `bottom`, with its neighbours' rows.

        With `keep` it waits again, behind all others. The strip below is fetched too, so that on a CUDA device its copy
        overlaps the computing of this one.
        """
        (held, own), self._next = self._next or self._fetch(), None
        if keep:
            self._waiting.append(held)
        else:
            held.free()
        band, self._above = Band(self._above, own, None), None
        if not bottom:
            self._next = self._fetch()
            if halo.below:
                band.below = self._next[1][:, :, :, : halo.below]
            if halo.above:
                rows = own[:, :, :, -halo.above :]
                self._above = torch.empty_like(rows, memory_format=LAYOUT).copy_(rows)
        return band

    def _fetch(self) -> tuple[Held, Tensor]:
        held = self._waiting.popleft()
        return held, self._prepare(held.get())
