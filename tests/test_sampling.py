"""Batches of one shape: the same for all ranks, with and without accelerate, and resumed in the middle of an epoch."""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from movq_cli import BucketBatchSampler, MovqUsageError, MovqWarning

# Most tests have items that cannot be shared out evenly; the test of this warning catches it itself.
pytestmark = pytest.mark.filterwarnings("ignore:each pass:movq_cli.errors.MovqWarning")


class Buckets(Dataset):
    """Stands in for a dataset of which only the buckets matter. An item is its number and its bucket's."""

    def __init__(self, *sizes):
        ends = np.cumsum([0, *sizes]).tolist()
        self.made = [list(range(a, b)) for a, b in itertools.pairwise(ends)]
        self.of = {i: number for number, items in enumerate(self.made) for i in items}

    def buckets(self):
        return self.made

    def __len__(self):
        return len(self.of)

    def __getitem__(self, index):
        return index


def batches(loader):
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_get_the_same_shapes_at_each_step_and_all_items_once(world, drop_last):
    dataset = Buckets(7, 1, 12, 20)
    of = {i: number for number, items in enumerate(dataset.buckets()) for i in items}
    samplers = [BucketBatchSampler(dataset, 2, rank=r, world=world, drop_last=drop_last) for r in range(world)]
    epochs = []
    for _ in range(2):
        ranks = [list(sampler) for sampler in samplers]
        assert {len(rank) for rank in ranks} == {len(samplers[0])}
        for step in zip(*ranks, strict=True):
            assert len({of[i] for batch in step for i in batch}) == 1
            assert len(set(map(len, step))) == 1
        seen = [i for rank in ranks for batch in rank for i in batch]
        if drop_last:
            assert len(seen) == len(set(seen))
            assert all(len(batch) == 2 for rank in ranks for batch in rank)
            assert len(seen) == sum(n // (2 * world) * 2 * world for n in (7, 1, 12, 20))
        else:
            assert set(seen) == set(of)
            assert len(seen) - len(of) <= 4 * (world - 1)
        epochs.append(ranks)
    assert epochs[0] != epochs[1]
    for sampler in samplers:
        sampler.set_epoch(0)
    assert [list(sampler) for sampler in samplers] == epochs[0]
    plain = BucketBatchSampler(Buckets(3, 2), 2, shuffle=False)
    assert list(plain) == list(plain) == [[0, 1], [2], [3, 4]]
    with pytest.raises(MovqUsageError, match="rank"):
        BucketBatchSampler(dataset, 2, rank=2, world=2)


def prepared(dataset, world, *, given=False, drop_last=False, **options):
    """Return the DataLoaders that accelerate makes for each of `world` processes, and their samplers."""
    samplers = [
        BucketBatchSampler(dataset, 2, **({"rank": rank, "world": world} if given else {}), drop_last=drop_last)
        for rank in range(world)
    ]
    loaders = [
        prepare_data_loader(DataLoader(dataset, batch_sampler=sampler), num_processes=world, process_index=i, **options)
        for i, sampler in enumerate(samplers)
    ]
    return loaders, samplers


@pytest.mark.parametrize("even_batches", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("world", [2, 8])
def test_accelerate_deals_out_every_item_once_in_steps_of_one_shape(world, given, even_batches):
    dataset = Buckets(7, 1, 16, 33, 20)
    loaders, _ = prepared(dataset, world, given=given, even_batches=even_batches)
    own = [BucketBatchSampler(dataset, 2, rank=rank, world=world) for rank in range(world)]
    for _ in range(2):
        ranks = [batches(loader) for loader in loaders]
        assert {len(rank) for rank in ranks} == {len(loader) for loader in loaders}
        for step in zip(*ranks, strict=True):
            assert len({dataset.of[i] for batch in step for i in batch}) == 1
            assert len(set(map(len, step))) == 1
        seen = Counter(i for rank in ranks for batch in rank for i in batch)
        assert set(seen) == set(dataset.of)
        for items in dataset.buckets():  # a shape takes what is missing to a multiple of the ranks, and no more
            assert sum(seen[i] for i in items) == -(-len(items) // world) * world
        assert ranks == [list(sampler) for sampler in own]  # which are not prepared


def test_accelerate_leaves_out_what_drop_last_says_and_nothing_else():
    loaders, _ = prepared(Buckets(7, 1, 16), 2, drop_last=True)
    ranks = [batches(loader) for loader in loaders]
    seen = [i for rank in ranks for batch in rank for i in batch]
    assert len(seen) == len(set(seen)) == 4 + 0 + 16
    assert [len(rank) for rank in ranks] == [len(loader) for loader in loaders] == [5, 5]


def test_accelerate_with_other_numbers_is_refused():
    dataset = Buckets(8, 8)
    loader = DataLoader(dataset, batch_sampler=BucketBatchSampler(dataset, 2, rank=1, world=4))
    dealt = prepare_data_loader(loader, num_processes=2, process_index=1)
    with pytest.raises(MovqUsageError, match="world: is 4, but accelerate deals out batches to 2 processes"):
        next(iter(dealt))
    with pytest.raises(MovqUsageError, match="world: is 4"):
        len(dealt)
    assert len(batches(loader)) == len(loader) == 2  # the same sampler, without accelerate
    with pytest.raises(ValueError, match="split_batches"):
        prepare_data_loader(loader, num_processes=2, process_index=1, split_batches=True)


@pytest.mark.parametrize("world", [1, 2])
def test_the_epoch_of_a_prepared_loader_is_the_samplers(world):
    dataset = Buckets(20, 9)
    (loader, *_), _ = prepared(dataset, world)
    wanted = BucketBatchSampler(dataset, 2, world=world)
    wanted.set_epoch(5)
    loader.set_epoch(5)
    assert [batches(loader) for _ in range(2)] == [list(wanted) for _ in range(2)]


def texts_of(sampler):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            list(sampler)
    assert all(warning.category is MovqWarning for warning in caught)
    return [str(warning.message) for warning in caught]


def test_what_is_repeated_or_left_out_is_told_once_by_the_first_rank():
    dataset = Buckets(7, 1, 16)
    (text,) = texts_of(BucketBatchSampler(dataset, 2, world=8))
    assert text.startswith("each pass takes 8 of 24 items again, so that 8 ranks")
    (text,) = texts_of(BucketBatchSampler(dataset, 2, world=2, drop_last=True))
    assert text.startswith("each pass leaves out 4 of 24 items")
    assert "; 1 of them every time, as fewer than 4 items have their shape" in text
    (text,) = texts_of(BucketBatchSampler(Buckets(7), 2, drop_last=True))
    assert text == "each pass leaves out 1 of 7 items, as drop_last asks"
    assert texts_of(BucketBatchSampler(dataset, 2, rank=1, world=8)) == []
    assert texts_of(BucketBatchSampler(dataset, 2)) == []
    first, second = prepared(dataset, 2)[0]
    assert len(texts_of(first)) == 1
    assert texts_of(second) == []


EPOCHS = 3
RESUMED = Buckets(9, 6, 4)


def uninterrupted(**options):
    """Return the batches of each epoch."""
    sampler = BucketBatchSampler(RESUMED, 2, **options)
    return [list(sampler) for _ in range(EPOCHS)]


def train(loader, sampler, until, save):
    """Return the batches of each epoch up to number `until`, and what `save` then returned; None after the last epoch."""
    seen = {}
    for epoch in range(sampler.epoch, EPOCHS):
        sampler.set_epoch(epoch)
        seen[epoch] = []
        for step, batch in enumerate(loader, 1):
            seen[epoch].append(batch.tolist())
            if sum(map(len, seen.values())) == until:
                return seen, save(step)
    return seen, None


def joined(parts):
    return [[batch for part in parts for batch in part.get(epoch, ())] for epoch in range(EPOCHS)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stops", [(3, 2, 9), (10, 10), (1,)])  # twice in an epoch, into the next, and after whole ones
def test_a_loader_goes_on_with_what_was_not_taken(workers, stops):
    parts, state = [], None
    for until in (*stops, None):
        sampler = BucketBatchSampler(RESUMED, 2)
        loader = DataLoader(RESUMED, batch_sampler=sampler, num_workers=workers)
        if state:
            sampler.load_state_dict(json.loads(json.dumps(state)))
        part, state = train(loader, sampler, until, sampler.state_dict)
        parts.append(part)
    assert state is None
    assert joined(parts) == uninterrupted()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stops", [(3, 2, 9), (10, 10)])
@pytest.mark.parametrize("every", [1, 3])
def test_a_stateful_loader_goes_on_with_what_was_not_taken(workers, stops, every):
    parts, state = [], None
    for until in (*stops, None):
        sampler = BucketBatchSampler(RESUMED, 2)
        loader = StatefulDataLoader(RESUMED, batch_sampler=sampler, num_workers=workers, snapshot_every_n_steps=every)
        if state:
            loader.load_state_dict(state[0])
            sampler.set_epoch(state[1])
        part, state = train(loader, sampler, until, lambda step, a=loader, b=sampler: (a.state_dict(), b.epoch - 1))
        parts.append(part)
    assert joined(parts) == uninterrupted()
