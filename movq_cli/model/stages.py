"""A network as a list of stages, and the one loop that runs it.

    for stage of the network: for chunk of the window: for strip of the chunk

A GroupNorm is a barrier: it needs its whole window, or with norms per frame a whole frame, before it can give any output.
Between two barriers everything is causal in time, so that it can be chunked, and sees one row up and down, so that it can
be cut into strips. So a stage is a series of layers with at most one norm, at its start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, repeat
from typing import Protocol

import torch
from torch import Tensor

from .causal import StreamCache
from .norms import GroupNorm, NormStatistics
from .store import Store, return_freed_memory
from .strips import Band, Halo, OnStrip, StripQueue, as_it_is

Worked = Callable[[float], None]
"""Called after each stage of each strip with the work done, in equivalent frames."""


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


@dataclass(frozen=True)
class Chunk:
    """A chunk of a window: x (B, C, T, H, W), its position, and in a decoder the latents zq, which every norm reads."""

    x: Tensor
    position: ChunkPosition
    zq: Tensor | None = None


@dataclass
class Carry:
    """The inputs of a stage: one strip of a chunk. A stage empties the bands, so that their memory is freed early."""

    x: Band
    h: Band | None = None
    """The second branch of a residual block, between the block's two stages; None elsewhere."""
    zq: Band | None = None
    """The same rows of the latents, which every norm of a decoder reads; None in an encoder."""


class NotFiniteError(Exception):
    """Raised if a stage gives numbers that are not finite.

    Has the stage's name, the first affected frame, and words for the rows of the strip, "" if the picture is not cut.
    """

    def __init__(self, stage: str, frame: int, rows: slice | None = None) -> None:
        self.stage, self.frame = stage, frame
        self.rows = f", rows {rows.start} to {rows.stop - 1}" if rows else ""
        super().__init__(f"{stage} gives numbers that are not finite at frame {frame}{self.rows}")


class _Run(Protocol):
    def __call__(self, carry: Carry, cache: StreamCache, stats: NormStatistics | None) -> Tensor: ...


@dataclass(frozen=True)
class Stage:
    """A series of layers between two barriers. `norm` is the GroupNorm at its start, if it has one.

    `work` is its cost per frame relative to other stages of the same network: weights times the pixels they are applied
    to. A stage that `branches` gives h, the second branch of a residual block, and leaves x as it is.
    """

    name: str
    norm: GroupNorm | None
    run: _Run
    work: float
    branches: bool = False
    halo: Halo = Halo(1, 1)

    def then(self, layer: Callable[[Tensor, StreamCache], Tensor], work: float, rows_below: int = 0) -> Stage:
        """Return this stage with another layer after it, which needs `rows_below` more rows below and must not be a barrier."""

        def run(carry: Carry, cache: StreamCache, stats: NormStatistics | None) -> Tensor:
            return layer(self.run(carry, cache, stats), cache)

        halo = self.halo._replace(below=self.halo.below + rows_below)
        return replace(self, run=run, work=self.work + work, halo=halo)


def run_window(
    stages: Sequence[Stage],
    window: Iterable[Chunk],
    cache: StreamCache,
    strip_step: int | None,
    *,
    worked: Worked = lambda frames: None,
    check: bool = False,
    prepare: OnStrip = as_it_is,
    finish: OnStrip = as_it_is,
    scale: int = 1,
) -> Iterator[Tensor]:
    """Run the chunks of one window through every stage and yield the result of each chunk.

    Statistics last for the window, the cache's past for the stream. Between two stages strips wait in the cache's store.
    With gradients on, a window must be one chunk of one strip, which its norms measure themselves by differentiable
    functions; raises ValueError for more. With `check`, which costs a pass over memory per stage, raises NotFiniteError
    for the first stage that gives numbers that are not finite. `prepare` makes a strip of a chunk the network's input,
    `finish` is applied to a strip of its result. Heights of strips are multiples of `strip_step` in rows of the picture,
    of which a row of a chunk stands for `scale`; if it is None, pictures must not be cut.
    """
    cut = partial(cache.cut, step=strip_step, scale=scale)
    run = _Window(window, cache, cut, sum(stage.work for stage in stages), worked, check, prepare)
    with cache.guard():
        stats: Iterable[NormStatistics | None] = repeat(None)
        for stage, following in pairwise(stages):
            stats = run.advance(stage, stats, following.norm)
        yield from _joined(run.results(stages[-1], stats, final=True), cache, finish)


def _joined(strips: Iterator[Tensor], cache: StreamCache, finish: OnStrip) -> Iterator[Tensor]:
    """Yield the result of each chunk, whose strips are given from top to bottom."""
    whole: Tensor | None = None
    for strip in strips:
        finished = finish(strip)
        del strip  # it would be alive while the next is computed
        if cache.is_whole:
            whole = finished
        else:
            if whole is None:
                whole = cache.unfilled_picture(finished)
            whole[:, :, :, cache.rows(finished)] = finished
        del finished
        if cache.bottom:
            yield whole
            whole = None


class _Window:
    """A window on its way through the stages. Its strips wait in queues: x, h of residual blocks, and zq."""

    def __init__(
        self,
        chunks: Iterable[Chunk],
        cache: StreamCache,
        cut: Callable[[Tensor], list[Tensor]],
        work: float,
        worked: Worked,
        check: bool,
        prepare: OnStrip,
    ) -> None:
        self._chunks, self._cache, self._work, self._worked, self._check = chunks, cache, work, worked, check
        self._cut, self._source = cut, StripQueue(Store(), prepare)
        self._x, self._h, self._zq = (StripQueue(cache.store) for _ in range(3))
        self._positions: list[ChunkPosition] = []

    def advance(
        self, stage: Stage, stats: Iterable[NormStatistics | None], norm: GroupNorm | None
    ) -> Iterable[NormStatistics | None]:
        """Run every chunk through a stage, and return the statistics of each for the norm that follows."""
        target = self._h if stage.branches else self._x
        gathered: list[NormStatistics] = []
        for out in self.results(stage, stats):
            if torch.is_grad_enabled():
                if target:
                    raise ValueError("a window of several chunks or strips has no gradient: use torch.no_grad()")
            elif norm is not None:
                own = norm.measure(out, self._cache.picture(out))
                if gathered and not (norm.scope == "frame" and self._cache.top):
                    own = gathered.pop().merge(own)
                gathered.append(own)
            target.put(out)
            del out  # it would be alive while the next is computed
        if not self._cache.is_whole:
            return_freed_memory()  # strips of the next stage may have another size
        if norm is not None and norm.scope == "frame" and gathered:
            return gathered
        return repeat(gathered[0] if gathered else None)

    def results(self, stage: Stage, stats: Iterable[NormStatistics | None], final: bool = False) -> Iterator[Tensor]:
        """Yield the result of each strip of each chunk, and keep no reference to it. `final`: the last stage."""
        cache = self._cache
        ready, chunks = (self._x, self._positions) if self._positions else (self._source, self._admitted())
        forked = len(self._h) > 0
        for position, own in zip(chunks, stats, strict=False):
            cache.first, cache.last, cache.halo = position.is_first, position.is_last, stage.halo
            reads_zq = stage.norm is not None and len(self._zq) > 0
            for number in range(len(cache.spans)):
                cache.strip = number
                at = cache.halo, cache.bottom
                zq = self._zq.take(*at, keep=not final) if reads_zq else None
                carry = Carry(ready.take(*at, keep=stage.branches), self._h.take(*at) if forked else None, zq)
                yield self._computed(stage, carry, own, position)

    def _admitted(self) -> Iterator[ChunkPosition]:
        for chunk in self._chunks:
            for strip in self._cut(chunk.x):
                self._source.put(strip)
            for strip in [] if chunk.zq is None else self._cut(chunk.zq):
                self._zq.put(strip)
            self._positions.append(chunk.position)
            del chunk, strip  # they would be alive while they are computed
            yield self._positions[-1]

    def _computed(self, stage: Stage, carry: Carry, stats: NormStatistics | None, position: ChunkPosition) -> Tensor:
        out = stage.run(carry, self._cache, stats)
        if self._check:
            _require_finite(stage.name, out, position, self._cache)
        self._worked(position.length * self._cache.share * stage.work / self._work)
        return out


def _require_finite(stage: str, x: Tensor, position: ChunkPosition, cache: StreamCache) -> None:
    finite = x.isfinite().all(dim=4).all(dim=3).all(dim=1).all(dim=0)
    if not bool(finite.all()):
        step, steps = finite.tolist().index(False), len(finite)
        frame = position.start + first_frame(step, steps, position.length)
        raise NotFiniteError(stage, frame, None if cache.is_whole else cache.spans[cache.strip])


def first_frame(step: int, steps: int, frames: int) -> int:
    """Return the first frame that time step `step` covers, in a chunk of `steps` steps that stand for `frames` frames.

    A stream's first chunk has an odd number of frames; its first step covers only one of them.
    """
    alone = frames % 2 if frames > steps else 0
    ratio = (frames - alone) // (steps - alone) if steps > alone else 1
    return step * ratio if not alone or step == 0 else alone + (step - alone) * ratio
