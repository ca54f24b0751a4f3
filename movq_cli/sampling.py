"""Batches of what a LatentDataset holds: items of one shape, drawn by `BucketBatchSampler` and stacked by `collate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NotRequired, TypedDict

import numpy as np
import torch
from torch.utils.data import Sampler

from .batch.manifest import Line
from .dataset import LatentDataset, Sample
from .errors import MovqUsageError


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


class BucketBatchSampler(Sampler[list[int]]):
    """Yields batches whose items have one shape, as the `batch_sampler` of a DataLoader.

    At each step all `world` ranks get a batch of the same shape and size, so that none waits for another. Items left
    over in a shape make a smaller batch, and some are repeated if they cannot be shared out evenly; with `drop_last`
    they are left out. `shuffle` shuffles items and batches by `seed` and epoch. Each pass is the next epoch, unless
    `set_epoch` sets it.
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

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self._epoch = epoch

    def __len__(self) -> int:
        step = self._batch_size * self._world
        return sum(len(items) // step if self._drop_last else -(-len(items) // step) for items in self._buckets)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self._seed, self._epoch])
        self._epoch += 1
        steps = []
        for items in self._buckets:
            order = random.permutation(items).tolist() if self._shuffle else items
            size = self._batch_size * self._world
            for at in range(0, len(order), size):
                step = order[at : at + size]
                if len(step) < size and self._drop_last:
                    continue
                each = -(-len(step) // self._world)
                step += (order * self._world)[: each * self._world - len(step)]
                steps.append(step[self._rank * each : (self._rank + 1) * each])
        yield from (steps[i] for i in (random.permutation(len(steps)) if self._shuffle else range(len(steps))))
