"""Batches of what a LatentDataset holds: items of one shape, drawn by `BucketBatchSampler` and stacked by `collate`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from types import FrameType
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch.utils.data import Sampler

from .batch.manifest import Line
from .dataset import LatentDataset, Sample
from .errors import MovqUsageError, MovqWarning


class Batch(TypedDict):
    """Samples of one shape: `latents` (B, C, T, H, W), `frames_per_latent` (B, T), and lists of captions and rows.

    `first_frame` (B, 3, H, W) and `first_frame_latents` (B, C, 1, H, W) are there if all samples have them.
    """

    latents: torch.Tensor
    caption: list[str]
    row: list[Line]
    frames_per_latent: torch.Tensor
    first_frame: NotRequired[torch.Tensor]
    first_frame_latents: NotRequired[torch.Tensor]


def collate(samples: Sequence[Sample]) -> Batch:
    """Return a batch of samples of one shape, for a DataLoader: latents are stacked, captions and rows listed.

    Raises MovqUsageError if the samples have several shapes.
    """
    shapes = sorted({tuple(sample["latents"].shape) for sample in samples})
    if len(shapes) > 1:
        raise MovqUsageError(f"has latents of {shapes[0]} and {shapes[1]}: use a BucketBatchSampler", "a batch")
    batch = Batch(
        latents=torch.stack([sample["latents"] for sample in samples]),
        caption=[sample["caption"] for sample in samples],
        row=[sample["row"] for sample in samples],
        frames_per_latent=torch.stack([sample["frames_per_latent"] for sample in samples]),
    )
    if all("first_frame" in sample for sample in samples):
        batch["first_frame"] = torch.stack([sample["first_frame"] for sample in samples])
    if all("first_frame_latents" in sample for sample in samples):
        batch["first_frame_latents"] = torch.stack([sample["first_frame_latents"] for sample in samples])
    return batch


class SamplerState(TypedDict):
    """The place of a BucketBatchSampler: `batches` of `epoch` were taken. `order` is what their order depends on."""

    epoch: int
    batches: int
    order: dict[str, Any]


@dataclass
class _Pass:
    """A pass over an epoch of `steps`: the first `skipped` were taken before, `given` more were asked for."""

    epoch: int
    skipped: int
    steps: int
    order: dict[str, Any]
    given: int = 0
    is_over: bool = False


class BucketBatchSampler(Sampler[list[int]]):
    """Yields batches whose items have one shape, as the `batch_sampler` of a DataLoader.

    At each step all `world` ranks get a batch of the same shape and size, so that none waits for another. Items left
    over in a shape make a smaller batch, and some are repeated if they cannot be shared out evenly; with `drop_last`
    they are left out. The first pass warns (MovqWarning) how many. `shuffle` shuffles items and batches by `seed` and
    epoch. Each pass is the next epoch, unless `set_epoch` sets it.

    A DataLoader that accelerate has prepared deals out batches one by one, the first to rank 0, the second to rank 1.
    The sampler notices this, and gives the batches of all ranks in turn, with or without `rank` and `world`. It raises
    MovqUsageError if `world` is another number of processes, and with accelerate's `dispatch_batches`.

    `state_dict` and `load_state_dict` resume a pass: what follows is what had not been taken, in the same order.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise MovqUsageError(f"must be above 0, got {batch_size}", "batch_size")
        if not 0 <= rank < world:
            raise MovqUsageError(f"must be 0 to world - 1, got {rank} of {world}", "rank")
        self._buckets = dataset.buckets()
        self._batch_size, self._rank, self._world = batch_size, rank, world
        self._shuffle, self._seed, self._drop_last = shuffle, seed, drop_last
        self._epoch = 0
        self._loaded: SamplerState | None = None  # until the next pass begins
        self._pass: _Pass | None = None  # the last one that began
        self._has_warned = False

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return self._epoch

    @property
    def sampler(self) -> BucketBatchSampler:
        """The sampler itself: accelerate looks for `set_epoch` under this name."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass. Raises MovqUsageError if `load_state_dict` has just set another."""
        if self._loaded and epoch != self._epoch:
            raise MovqUsageError(
                f"is {epoch}, but the state that was loaded is of epoch {self._epoch}: begin with that one, under "
                f"accelerate by set_epoch({self._epoch}) of the prepared DataLoader",
                "epoch",
            )
        self._epoch = epoch
        self._pass = None

    def state_dict(self, taken: int | None = None) -> SamplerState:
        """Return where training is, for `load_state_dict`, after the loop took `taken` batches from the DataLoader.

        A DataLoader asks for batches before the loop takes them, so that the sampler cannot know. Only torchdata's
        StatefulDataLoader keeps count, and calls this without `taken`. Raises MovqUsageError if `taken` is missing, or
        is more than this pass has given.
        """
        begun = self._pass
        if begun is None:
            if taken:
                raise MovqUsageError(f"is {taken}, but no pass has begun", "taken")
            return self._loaded or SamplerState(epoch=self._epoch, batches=0, order=self._order(self._world))
        is_counted = taken is None and any(_frames_of("torchdata"))
        if is_counted:
            taken = begun.given
        if taken is None:
            raise MovqUsageError("must be the number of batches that the loop took in this pass", "taken")
        if not 0 <= taken <= begun.given:
            raise MovqUsageError(f"is {taken}, but this pass has given {begun.given} batches", "taken")
        batches = begun.skipped + taken
        if batches == begun.steps and (begun.is_over or not is_counted):
            return SamplerState(epoch=begun.epoch + 1, batches=0, order=begun.order)
        return SamplerState(epoch=begun.epoch, batches=batches, order=begun.order)

    def load_state_dict(self, state: SamplerState) -> None:
        """Make the next pass go on where `state_dict` was called. That pass raises MovqUsageError if its order differs."""
        if set(state) != SamplerState.__required_keys__:
            raise MovqUsageError("is not from state_dict of a BucketBatchSampler", "state")
        self._loaded, self._epoch, self._pass = state, state["epoch"], None

    def __len__(self) -> int:
        ranks, world = self._ranks(_dealer())
        step = self._batch_size * world
        steps = sum(len(items) // step if self._drop_last else -(-len(items) // step) for items in self._buckets)
        return steps * len(ranks)

    def __iter__(self) -> Iterator[list[int]]:
        dealer = _dealer()
        ranks, world = self._ranks(dealer)
        if (dealer.process_index if dealer else self._rank) == 0 and not self._has_warned:
            self._has_warned = True
            self._warn(world)
        return self._batches(ranks, world)

    def _ranks(self, dealer: Any) -> tuple[range, int]:
        """Return the ranks whose batches are asked for, and the number of ranks."""
        if dealer is None:
            return range(self._rank, self._rank + 1), self._world
        if self._world not in (1, dealer.num_processes):
            raise MovqUsageError(
                f"is {self._world}, but accelerate deals out batches to {dealer.num_processes} processes: leave rank "
                "and world out, or do not prepare this DataLoader",
                "world",
            )
        return range(dealer.num_processes), dealer.num_processes

    def _order(self, world: int) -> dict[str, Any]:
        """Return what the order of batches depends on, with the number of items in each bucket."""
        return {
            "batch_size": self._batch_size,
            "world": world,
            "shuffle": self._shuffle,
            "seed": self._seed,
            "drop_last": self._drop_last,
            "items": [len(items) for items in self._buckets],
        }

    def _batches(self, ranks: range, world: int) -> Iterator[list[int]]:
        """Yield the batches of these ranks, step by step, from where the loaded state says."""
        order, skipped = self._order(world), self._loaded["batches"] if self._loaded else 0
        if self._loaded and skipped and self._loaded["order"] != order:
            was = self._loaded["order"]
            changed = [
                f"{name}={was.get(name)} then, {order[name]} now" for name in order if was.get(name) != order[name]
            ]
            raise MovqUsageError(
                f"is after {skipped} batches of epoch {self._epoch} in another order: {'; '.join(changed)}; to begin the "
                f"next epoch instead, call set_epoch({self._epoch + 1}) without load_state_dict",
                "state",
            )
        steps = self._steps(self._epoch, world)
        begun = self._pass = _Pass(self._epoch, skipped, len(steps), order)
        self._epoch, self._loaded = self._epoch + 1, None
        for step in steps[skipped:]:
            begun.given += 1
            each = len(step) // world
            for rank in ranks:
                yield step[rank * each : (rank + 1) * each]
        begun.is_over = True

    def _steps(self, epoch: int, world: int) -> list[list[int]]:
        """Return the items of each step of an epoch: the batches of all ranks, one after the other."""
        random = np.random.default_rng([self._seed, epoch])
        size = self._batch_size * world
        steps = []
        for items in self._buckets:
            order = random.permutation(items).tolist() if self._shuffle else items
            for at in range(0, len(order), size):
                step = order[at : at + size]
                if len(step) == size or not self._drop_last:
                    steps.append(step + list(islice(cycle(order), -len(step) % world)))
        return [steps[i] for i in random.permutation(len(steps))] if self._shuffle else steps

    def _warn(self, world: int) -> None:
        """Warn of items that each pass repeats or leaves out."""
        sizes, step = [len(items) for items in self._buckets], self._batch_size * world
        repeated, left_out = sum(-size % world for size in sizes), sum(size % step for size in sizes)
        if self._drop_last and left_out:
            never = sum(size for size in sizes if size < step)
            text = f"each pass leaves out {left_out} of {sum(sizes)} items, as drop_last asks"
            text += f"; {never} of them every time, as fewer than {step} items have their shape" if never else ""
            warnings.warn(MovqWarning(text), stacklevel=3)
        elif repeated and not self._drop_last:
            text = (
                f"each pass takes {repeated} of {sum(sizes)} items again, so that {world} ranks get batches of one size"
            )
            warnings.warn(MovqWarning(f"{text} at each step"), stacklevel=3)


def _frames_of(package: str) -> Iterator[FrameType]:
    """Yield the frames on the call stack that run code of a package, the innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        if f"{frame.f_globals.get('__name__')}.".startswith(f"{package}."):
            yield frame
        frame = frame.f_back


def _dealer() -> Any:
    """Return accelerate's BatchSamplerShard that asks for batches, or None. Raises MovqUsageError with its dispatcher.

    BatchSamplerShard iterates over the whole sampler in each process, and passes on each `num_processes`-th batch. It
    tells the sampler nothing, but is on the call stack. Without `prepare` it is not, so that nothing is taken for it.
    """
    for frame in _frames_of("accelerate.data_loader"):
        asker: Any = frame.f_locals.get("self")
        if isinstance(asker, frame.f_globals["BatchSamplerShard"]) and asker.num_processes > 1:
            return asker
        if isinstance(asker, frame.f_globals["DataLoaderDispatcher"]) and asker.state.num_processes > 1:
            raise MovqUsageError("does not go with BucketBatchSampler: leave it out of accelerate", "dispatch_batches")
    return None
