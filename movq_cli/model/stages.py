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
from .norms import GroupNorm, NormStatistics
from .store import Store

Worked = Callable[[float], None]
"""Told, after each stage of each chunk, how many of the window's frames that work amounts to."""


@dataclass(frozen=True)
class ChunkPosition:
    """Where a chunk is in its stream, in frames of video: `start` is its first, `length` how many it has.

    `is_last`: whether it is known to be the stream's last.
    """

    start: int
    length: int
    is_last: bool

    @property
    def is_first(self) -> bool:
        """Whether it is the stream's first."""
        return self.start == 0


@dataclass
class Carry:
    """What one chunk carries from stage to stage. A stage takes it apart, so that what is dead is freed while it runs."""

    x: Tensor
    """(B, C, T, H, W): the chunk itself."""
    h: Tensor | None = None
    """The second branch of a residual block that is cut in two, if inside one."""
    zq: Tensor | None = None
    """Decoder only: the latents the chunk is made from, which every norm reads."""
    position: ChunkPosition = ChunkPosition(0, 0, False)
    """Kept by the loop: stages need not pass it on."""

    @property
    def head(self) -> Tensor:
        """What the next stage's norm is about."""
        return self.x if self.h is None else self.h


class NotFiniteError(Exception):
    """A stage gave numbers that are not finite: which one, and the first frame of the stream that has to do with them."""

    def __init__(self, stage: str, frame: int) -> None:
        super().__init__(f"{stage} gives numbers that are not finite at frame {frame}")
        self.stage, self.frame = stage, frame


class _Run(Protocol):
    def __call__(self, carry: Carry, cache: StreamCache, stats: NormStatistics | None) -> Carry: ...


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

        def run(carry: Carry, cache: StreamCache, stats: NormStatistics | None) -> Carry:
            carry = self.run(carry, cache, stats)
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
    raises NotFiniteError for the first stage that gives such numbers.
    """
    store = store or Store()
    total = sum(stage.work for stage in stages)
    stats: NormStatistics | None = None
    carries: Iterable[Carry] = window

    def run(stage: Stage, carry: Carry) -> Carry:
        position = carry.position
        cache.first, cache.last = position.is_first, position.is_last
        carry = stage.run(carry, cache, stats)
        carry.position = position
        if check:
            _require_finite(stage, carry)
        worked(position.length * stage.work / total)
        return carry

    with cache.guard():
        for stage, following in pairwise(stages):
            waiting = deque[Callable[[], Carry]]()
            gathered: NormStatistics | None = None
            for carry in carries:
                if waiting and torch.is_grad_enabled():
                    raise ValueError("a window of several chunks has no gradient: use torch.no_grad()")
                carry = run(stage, carry)
                if following.norm is not None and following.norm.scope == "whole" and not torch.is_grad_enabled():
                    own = following.norm.measure(carry.head)
                    gathered = own if gathered is None else gathered.merge(own)
                waiting.append(_park(carry, store))
            carries, stats = _taken(waiting), gathered
        for carry in carries:
            yield run(stages[-1], carry).x


def _require_finite(stage: Stage, carry: Carry) -> None:
    finite = carry.head.isfinite().all(dim=4).all(dim=3).all(dim=1).all(dim=0)
    if not bool(finite.all()):
        step, steps = finite.tolist().index(False), len(finite)
        raise NotFiniteError(stage.name, carry.position.start + first_frame(step, steps, carry.position.length))


def first_frame(step: int, steps: int, frames: int) -> int:
    """The first frame that a step of a chunk is of. A stream's first chunk has an odd number, of which one is a step alone."""
    alone = frames % 2 if frames > steps else 0
    ratio = (frames - alone) // (steps - alone) if steps > alone else 1
    return step * ratio if not alone or step == 0 else alone + (step - alone) * ratio


def _park(carry: Carry, store: Store) -> Callable[[], Carry]:
    """Put a carry's tensors into a store. Return what gives the carry back, once."""
    names = [name for name in ("x", "h", "zq") if getattr(carry, name) is not None]
    claim, position = store.put([getattr(carry, name) for name in names]), carry.position
    return lambda: Carry(**dict(zip(names, claim(), strict=True)), position=position)


def _taken(waiting: deque[Callable[[], Carry]]) -> Iterator[Carry]:
    """Give carries back one by one, keeping no reference."""
    while waiting:
        yield waiting.popleft()()
