"""Windows and chunks as numbers."""

from functools import partial

import pytest

from movq_cli.checkpoints.checkpoint import open_checkpoint
from movq_cli.schedule import ChunkSchedule

SCHEDULES = ChunkSchedule.of_frames, ChunkSchedule.of_latents


def test_windows_are_those_of_diffusers():
    config = open_checkpoint().config
    frames, latents = (partial(make, "diffusers", chunk_frames=0, config=config) for make in SCHEDULES)
    windows = [frames(count).window_lengths() for count in (1, 5, 9, 13, 17, 49)]
    assert windows == [[1], [5], [9], [13], [9, 8], [9, 8, 8, 8, 8, 8]]
    assert [latents(count).window_lengths() for count in (1, 2, 3, 4, 5)] == [[1], [2], [3], [2, 2], [3, 2]]


@pytest.mark.parametrize(
    ("semantics", "count", "chunk", "frames", "latents"),
    [
        ("frame", 17, 4, [5, 4, 4, 4], [2, 1, 1, 1]),
        ("frame", 14, 8, [9, 5], [3, 1]),
        ("frame", 9, 0, [9], [3]),
        ("whole", 17, 8, [9, 8], [3, 2]),
        ("whole", 17, 0, [17], [5]),
        ("diffusers", 25, 4, [5, 4, 4, 4, 4, 4], [2, 1, 1, 1, 1, 1]),
        ("diffusers", 25, 0, [9, 8, 8], [3, 2, 2]),
    ],
)
def test_chunks_come_to_all_there_is(semantics, count, chunk, frames, latents):
    config = open_checkpoint().config
    counts = count, config.latent_frames(count)
    for make, among, wanted in zip(SCHEDULES, counts, (frames, latents), strict=True):
        schedule = make(semantics, among, chunk, config)
        assert list(schedule.lengths()) == wanted
        assert (schedule.longest, schedule.chunks) == (max(wanted), len(wanted))
    assert ChunkSchedule.of_frames("frame", None, 8, config).longest == 9
