"""A network as a list of stages, and the one loop that runs it: for stage, for chunk of the window.

A GroupNorm over more than a frame is a barrier: it needs all of its window before it can give anything. Between two
barriers everything is causal and chunkable. So a stage is a run of layers with at most one norm, at its front.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from .causal import StreamCache
from .norms import GroupNorm, Moments
from .store import Claim, Store

Worked = Callable[[float], None]
"""Told, after each stage of each chunk, how many of the window's frames that work amounts to."""


@dataclass(frozen=True)
class Place:
    """Which chunk of its stream a carry is of. Frames are pixels in time, before an encoder and behind a decoder."""

    before: int
    """Frames of the stream in front of it."""
    frames: int
    """Its own: its share of the work."""
    last: bool
    """Whether it is known to be the stream's last."""

    @property
    def first(self) -> bool:
        return self.before == 0


@dataclass
class Carry:
    """What one chunk carries from stage to stage. A stage takes it apart, so that what is dead is freed while it runs."""

    x: Tensor
    """(B, C, T, H, W): the chunk itself."""
    h: Tensor | None = None
    """The second branch of a residual block that is cut in two, if inside one."""
    zq: Tensor | None = None
    """Decoder only: the latents the chunk is made from, which every norm reads."""
    place: Place = Place(0, 0, False)
    """Kept by the loop: stages need not pass it on."""

    @property
    def head(self) -> Tensor:
        """What the next stage's norm is about."""
        return self.x if self.h is None else self.h


class NotFinite(Exception):
    """A stage gave numbers that are not finite: which one, and the first frame of the stream that has to do with them."""

    def __init__(self, stage: str, frame: int) -> None:
        super().__init__(f"{stage} gives numbers that are not finite at frame {frame}")
        self.stage, self.frame = stage, frame


class _Run(Protocol):
    def __call__(self, carry: Carry, cache: StreamCache, moments: Moments | None) -> Carry: ...


@dataclass(frozen=True)
class Stage:
    """A run of layers between two barriers. `norm` is the GroupNorm at its front, if it has one.

    `work` is its cost per frame against that of other stages of the same network: weights times the pixels they meet.
    """

    name: str
    norm: GroupNorm | None
    run: _Run
    work: float

    def then(self, layer: Callable[[Tensor, StreamCache], Tensor], work: float) -> Stage:
        """This stage with a layer behind it that is not a barrier."""

        def run(carry: Carry, cache: StreamCache, moments: Moments | None) -> Carry:
            carry = self.run(carry, cache, moments)
            carry.x = layer(carry.x, cache)
            return carry

        return replace(self, run=run, work=self.work + work)


def run_window(
    stages: Sequence[Stage],
    window: Iterable[Carry],
    cache: StreamCache,
    *,
    store: Store | None = None,
    worked: Worked = lambda frames: None,
    check: bool = False,
) -> Iterator[Tensor]:
    """Runs the chunks of one window through every stage and yields what becomes of each.

    Statistics live within the window, the cache's past across windows.
    Between two stages chunks wait in the `store` (default: the device's memory). With gradients on, a window has one
    chunk: its norms then measure that chunk themselves, differentiably. With `check`, which costs a pass over memory per stage,
    raises NotFinite for the first stage that gives such numbers.
    """
    store = store or Store()
    total = sum(stage.work for stage in stages)
    moments: Moments | None = None
    carries: Iterable[Carry] = window

    def run(stage: Stage, carry: Carry) -> Carry:
        place = carry.place
        cache.first, cache.last = place.first, place.last
        carry = stage.run(carry, cache, moments)
        carry.place = place
        if check:
            _require_finite(stage, carry)
        worked(place.frames * stage.work / total)
        return carry

    with cache.guard():
        for stage, following in pairwise(stages):
            waiting: deque[_Waiting] = deque()
            gathered: Moments | None = None
            for carry in carries:
                if waiting and torch.is_grad_enabled():
                    raise ValueError("a window of several chunks has no gradient: use torch.no_grad()")
                carry = run(stage, carry)
                if following.norm is not None and following.norm.scope == "whole" and not torch.is_grad_enabled():
                    own = following.norm.measure(carry.head)
                    gathered = own if gathered is None else gathered.merge(own)
                waiting.append(_Waiting.put(carry, store))
            carries, moments = _taken(waiting), gathered
        for carry in carries:
            yield run(stages[-1], carry).x


def _require_finite(stage: Stage, carry: Carry) -> None:
    finite = carry.head.isfinite().all(dim=4).all(dim=3).all(dim=1).all(dim=0)
    if not bool(finite.all()):
        step, steps = finite.tolist().index(False), len(finite)
        raise NotFinite(stage.name, carry.place.before + first_frame(step, steps, carry.place.frames))


def first_frame(step: int, steps: int, frames: int) -> int:
    """The first frame that a step of a chunk is of. A stream's first chunk has an odd number, of which one is a step alone."""
    alone = frames % 2 if frames > steps else 0
    ratio = (frames - alone) // (steps - alone) if steps > alone else 1
    return step * ratio if not alone or step == 0 else alone + (step - alone) * ratio


@dataclass(frozen=True)
class _Waiting:
    """A carry whose tensors are in a store."""

    claim: Claim
    has_h: bool
    has_zq: bool
    place: Place

    @classmethod
    def put(cls, carry: Carry, store: Store) -> _Waiting:
        claim = store.put([t for t in (carry.x, carry.h, carry.zq) if t is not None])
        return cls(claim, carry.h is not None, carry.zq is not None, carry.place)

    def take(self) -> Carry:
        tensors = iter(self.claim())
        x, h, zq = next(tensors), next(tensors) if self.has_h else None, next(tensors) if self.has_zq else None
        return Carry(x, h, zq, self.place)


def _taken(waiting: deque[_Waiting]) -> Iterator[Carry]:
    """Gives carries away one by one, keeping no reference."""
    while waiting:
        yield waiting.popleft().take()
