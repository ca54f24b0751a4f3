"""A network as a list of stages, and the one loop that runs it: for each stage, for each chunk of the window.

A GroupNorm over more than a frame is a barrier: it needs its whole window before it can give any output. Between two
barriers everything is causal and can be chunked. So a stage is a series of layers with at most one norm, at its start.
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
"""Called after each stage of each chunk with the work done, in equivalent frames."""


@dataclass(frozen=True)
class ChunkPosition:
    """The position of a chunk in its stream, in frames of video: its first frame and how many it has.

    `is_last` is True if it is known to be the stream's last chunk.
    """

    start: int
    length: int
    is_last: bool

    @property
    def is_first(self) -> bool:
        """True for the stream's first chunk."""
        return self.start == 0


@dataclass
class Carry:
    """The tensors that one chunk takes from stage to stage. A stage removes them, so that they are freed early."""

    x: Tensor
    """(B, C, T, H, W): the chunk itself."""
    h: Tensor | None = None
    """The second branch of a residual block, between the block's two stages; None elsewhere."""
    zq: Tensor | None = None
    """The latents of the chunk, which every norm of a decoder reads; None in an encoder."""
    position: ChunkPosition = ChunkPosition(0, 0, False)
    """The chunk's position, which the loop keeps: stages need not pass it on."""

    @property
    def head(self) -> Tensor:
        """The tensor that the next stage's norm reads."""
        return self.x if self.h is None else self.h


class NotFiniteError(Exception):
    """Raised if a stage gives numbers that are not finite. Has the stage's name and the first affected frame."""

    def __init__(self, stage: str, frame: int) -> None:
        super().__init__(f"{stage} gives numbers that are not finite at frame {frame}")
        self.stage, self.frame = stage, frame


class _Run(Protocol):
    def __call__(self, carry: Carry, cache: StreamCache, stats: NormStatistics | None) -> Carry: ...


@dataclass(frozen=True)
class Stage:
    """A series of layers between two barriers. `norm` is the GroupNorm at its start, if it has one.

    `work` is its cost per frame relative to other stages of the same network: weights times the pixels they are applied
    to.
    """

    name: str
    norm: GroupNorm | None
    run: _Run
    work: float

    def then(self, layer: Callable[[Tensor, StreamCache], Tensor], work: float) -> Stage:
        """Return this stage with another layer after it, which must not be a barrier."""

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
    """Run the chunks of one window through every stage and yield the result of each chunk.

    Statistics last for the window, the cache's past for the stream. Between two stages chunks wait in the `store`
    (default: the device's memory). With gradients on, a window must be one chunk, which its norms measure themselves by
    differentiable functions; raises ValueError for several. With `check`, which costs a pass over memory per stage,
    raises NotFiniteError for the first stage that gives numbers that are not finite.
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
    """Return the first frame that time step `step` covers, in a chunk of `steps` steps that stand for `frames` frames.

    A stream's first chunk has an odd number of frames; its first step covers only one of them.
    """
    alone = frames % 2 if frames > steps else 0
    ratio = (frames - alone) // (steps - alone) if steps > alone else 1
    return step * ratio if not alone or step == 0 else alone + (step - alone) * ratio


def _park(carry: Carry, store: Store) -> Callable[[], Carry]:
    """Put a carry's tensors into a store, and return a function that gives the carry back, once."""
    names = [name for name in ("x", "h", "zq") if getattr(carry, name) is not None]
    claim, position = store.put([getattr(carry, name) for name in names]), carry.position
    return lambda: Carry(**dict(zip(names, claim(), strict=True)), position=position)


def _taken(waiting: deque[Callable[[], Carry]]) -> Iterator[Carry]:
    """Yield waiting carries one by one, keeping no reference to them."""
    while waiting:
        yield waiting.popleft()()
