"""A network as a list of stages, and the one loop that runs it: for stage, for chunk of the window.

A GroupNorm over more than a frame is a barrier: it needs all of its window before it can give anything. Between two
barriers everything is causal and chunkable. So a stage is a run of layers with at most one norm, at its front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from .causal import StreamCache
from .norms import GroupNorm, Moments


@dataclass
class Carry:
    """What one chunk carries from stage to stage. A stage takes it apart, so that what is dead is freed while it runs."""

    x: Tensor
    """(B, C, T, H, W): the chunk itself."""
    h: Tensor | None = None
    """The second branch of a residual block that is cut in two, if inside one."""
    zq: Tensor | None = None
    """Decoder only: the latents the chunk is made from, which every norm reads."""

    @property
    def head(self) -> Tensor:
        """What the next stage's norm is about."""
        return self.x if self.h is None else self.h


class _Run(Protocol):
    def __call__(self, carry: Carry, cache: StreamCache, moments: Moments | None) -> Carry: ...


@dataclass(frozen=True)
class Stage:
    """A run of layers between two barriers. `norm` is the GroupNorm at its front, if it has one."""

    name: str
    norm: GroupNorm | None
    run: _Run

    def then(self, layer: Callable[[Tensor, StreamCache], Tensor]) -> Stage:
        """This stage with a layer behind it that is not a barrier."""

        def run(carry: Carry, cache: StreamCache, moments: Moments | None) -> Carry:
            carry = self.run(carry, cache, moments)
            carry.x = layer(carry.x, cache)
            return carry

        return replace(self, run=run)


def run_window(
    stages: Sequence[Stage], window: Iterable[Carry], cache: StreamCache, *, first: bool = True
) -> Iterator[Tensor]:
    """Runs the chunks of one window through every stage and yields what becomes of each.

    `first`: whether the window opens its stream. Statistics live within the window, the cache's past across windows.
    With gradients on, a window has one chunk: its norms then measure that chunk themselves, differentiably.
    """
    moments: Moments | None = None
    carries: Iterable[Carry] = window
    with cache.guard():
        for stage, following in pairwise(stages):
            done: list[Carry] = []
            gathered: Moments | None = None
            for carry in _opening(carries, cache, first):
                if done and torch.is_grad_enabled():
                    raise ValueError("a window of several chunks has no gradient: use torch.no_grad()")
                carry = stage.run(carry, cache, moments)
                if following.norm is not None and following.norm.scope == "whole" and not torch.is_grad_enabled():
                    own = following.norm.measure(carry.head)
                    gathered = own if gathered is None else gathered.merge(own)
                done.append(carry)
            carries, moments = _taken(done), gathered
        for carry in _opening(carries, cache, first):
            yield stages[-1].run(carry, cache, moments).x


def _opening(carries: Iterable[Carry], cache: StreamCache, first: bool) -> Iterator[Carry]:
    """Tells the cache, before each chunk, whether it is the stream's first."""
    for carry in carries:
        cache.first, first = first, False
        yield carry


def _taken(carries: list[Carry]) -> Iterator[Carry]:
    """Gives carries away one by one, keeping no reference."""
    carries.reverse()
    while carries:
        yield carries.pop()
