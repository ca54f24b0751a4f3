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
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from movq_cli import BucketBatchSampler, MovqUsageError, MovqWarning, encode_batch

from .helpers import clips

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


STOPS = [(3, 2, 9), (10, 10)]  # twice in an epoch and in the next one; after the last batch


@pytest.mark.parametrize(("workers", "stops"), [(0, STOPS[0]), (0, STOPS[1]), (2, STOPS[0])])
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


@pytest.mark.parametrize("stops", STOPS)
@pytest.mark.parametrize(("workers", "every"), [(0, 1), (2, 1), pytest.param(2, 3, marks=pytest.mark.slow)])
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


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stateful_loader_after_a_whole_epoch_begins_the_next(workers):
    sampler = BucketBatchSampler(RESUMED, 2)
    loader = StatefulDataLoader(RESUMED, batch_sampler=sampler, num_workers=workers)
    first = batches(loader)
    state = loader.state_dict()
    sampler = BucketBatchSampler(RESUMED, 2)
    loader = StatefulDataLoader(RESUMED, batch_sampler=sampler, num_workers=workers)
    loader.load_state_dict(state)
    assert [first, batches(loader), batches(loader)] == uninterrupted()


def by_state(loader, sampler, stop):
    """Return what follows `stop` batches of an epoch: resumed by the state of the sampler."""
    if stop is None:
        return lambda step: sampler.state_dict(step)
    sampler.load_state_dict(stop)
    loader.set_epoch(sampler.epoch)
    return loader


def by_skipping(loader, sampler, stop):
    """The same, by accelerate's skip_first_batches."""
    if stop is None:
        return lambda step: step
    loader.set_epoch(1)
    return skip_first_batches(loader, stop)


def by_stateful_loader(loader, sampler, stop):
    """The same, by a DataLoader of accelerate's that torchdata counts for."""
    if stop is None:
        return lambda step: loader.state_dict()
    loader.load_state_dict(stop)
    loader.set_epoch(1)
    return loader


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("way", [by_state, by_skipping, by_stateful_loader])
def test_a_prepared_loader_goes_on_with_what_was_not_taken(way, world):
    wanted = [uninterrupted(rank=rank, world=world) for rank in range(world)]
    options = {"use_stateful_dataloader": way is by_stateful_loader}
    for rank in range(world):
        loader, sampler = (made[rank] for made in prepared(RESUMED, world, **options))
        assert batches(loader) == wanted[rank][0]
        seen, save = [], way(loader, sampler, None)
        for step, batch in enumerate(loader, 1):
            seen.append(batch.tolist())
            if step == 3:
                state = save(step)
                break
        loader, sampler = (made[rank] for made in prepared(RESUMED, world, **options))
        assert seen + batches(way(loader, sampler, state)) == wanted[rank][1]
        if way is not by_skipping:
            assert batches(loader) == wanted[rank][2]


def test_a_state_is_not_guessed_and_not_lost():
    sampler = BucketBatchSampler(RESUMED, 2)
    loader = DataLoader(RESUMED, batch_sampler=sampler, num_workers=2)
    untouched = sampler.state_dict()
    with pytest.raises(MovqUsageError, match="no pass has begun"):
        sampler.state_dict(1)
    ahead = iter(loader)
    next(ahead)
    with pytest.raises(MovqUsageError, match="taken: must be the number of batches that the loop took"):
        sampler.state_dict()
    with pytest.raises(MovqUsageError, match="taken: is 9, but this pass has given 5 batches"):
        sampler.state_dict(9)
    state = sampler.state_dict(1)
    steps = 1 + sum(1 for _ in ahead)
    assert sampler.state_dict(steps) == untouched | {"epoch": 1}

    other = BucketBatchSampler(RESUMED, 2)
    other.load_state_dict(state)
    assert other.state_dict() == state
    with pytest.raises(MovqUsageError, match="epoch: is 1, but the state that was loaded is of epoch 0"):
        other.set_epoch(1)
    assert list(other) == uninterrupted()[0][1:]
    other.set_epoch(7)  # what was loaded has been used
    other.load_state_dict(untouched)
    assert list(other) == uninterrupted()[0]
    with pytest.raises(MovqUsageError, match="is not from state_dict of a BucketBatchSampler"):
        other.load_state_dict({"epoch": 1})
    dealt = prepare_data_loader(loader, num_processes=2, process_index=0)
    sampler.load_state_dict(untouched | {"epoch": 1})
    with pytest.raises(MovqUsageError, match=r"under accelerate by set_epoch\(1\) of the prepared DataLoader"):
        next(iter(dealt))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"batch_size": 3}, "batch_size=2 then, 3 now"),
        ({"world": 2}, "world=1 then, 2 now"),
        ({"seed": 1}, "seed=0 then, 1 now"),
        ({"shuffle": False}, "shuffle=True then, False now"),
        ({"drop_last": True}, "drop_last=False then, True now"),
        ({"dataset": Buckets(9, 6, 5)}, r"items=\[9, 6, 4\] then, \[9, 6, 5\] now"),
    ],
)
def test_another_order_is_not_resumed_in_mid_epoch(change, text):
    sampler = BucketBatchSampler(RESUMED, 2)
    next(iter(sampler))
    state = sampler.state_dict(1)
    other = BucketBatchSampler(**{"dataset": RESUMED, "batch_size": 2} | change)
    other.load_state_dict(state)
    with pytest.raises(MovqUsageError, match=text):
        next(iter(other))
    other.load_state_dict(state | {"batches": 0})  # nothing was taken: any order will do
    list(other)


RANK = """
import json, sys
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader
from movq_cli import BucketBatchSampler, LatentDataset, MovqUsageError, collate

def loader_of(accelerator, **options):
    dataset = LatentDataset("latents", scale=1.0)
    batches = DataLoader(dataset, batch_sampler=BucketBatchSampler(dataset, 2, **options), num_workers=2, collate_fn=collate)
    return accelerator.prepare(batches)

accelerator = Accelerator(cpu=True)
rank, world = accelerator.process_index, accelerator.num_processes
epochs = []
for loader in loader_of(accelerator), loader_of(accelerator, rank=rank, world=world):
    for _ in range(2):
        taken = []
        for batch in loader:
            everyone = accelerator.gather(batch["latents"])  # fails or hangs if the ranks have several shapes
            assert len(everyone) == world * len(batch["latents"])
            assert batch["caption"] == [f"about {row['id']}" for row in batch["row"]]
            taken.append([row["id"] for row in batch["row"]])
        assert len(taken) == len(loader)
        epochs.append(taken)
dispatching = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=True))
try:
    next(iter(loader_of(dispatching)))
except MovqUsageError as error:
    refusal = str(error)
json.dump([epochs, refusal], open(f"{rank}.json", "w"))
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_of_accelerate_see_every_item_once(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(8):
        clips.write(tmp_path / "in" / f"{i}.mp4", clips.pictures(5, *((32, 48) if i < 5 else (48, 32))))
        (tmp_path / "in" / f"{i}.txt").write_text(f"about {i}.mp4")
    encode_batch([tmp_path / "in"], tmp_path / "latents", workers=0)
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(2):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own |= {"ACCELERATE_USE_CPU": "true"}  # what `accelerate launch --cpu --num_processes 2` sets
        env = os.environ | {name: str(value) for name, value in own.items()}
        ranks.append(subprocess.Popen([sys.executable, "-c", RANK], cwd=tmp_path, env=env, stderr=subprocess.PIPE))
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in ranks:
            process.kill()
    (first, refusal), (second, other) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert "dispatch_batches: does not go with BucketBatchSampler" in refusal == other
    assert first[:2] == first[2:]  # rank and world make no difference
    for ours, theirs in zip(first, second, strict=True):
        seen = Counter(name for batch in ours + theirs for name in batch)
        assert len(seen) == 8
        assert sum(seen.values()) == 6 + 4  # of 5 and of 3
