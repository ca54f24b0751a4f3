"""The plan of an encoding: chunks, memory and disk, before the work."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch

from movq_cli import (
    EncodeOptions,
    MovqError,
    MovqUsageError,
    Picture,
    encode_batch,
    encode_video,
    open_latents,
    plan_encode,
)
from movq_cli.budget import Budget
from movq_cli.checkpoints.checkpoint import open_checkpoint
from movq_cli.cli import run
from movq_cli.memory import EncodeMemory
from movq_cli.model import StreamCache
from movq_cli.model.cost import decode_cost, encode_cost
from movq_cli.model.store import Held, Store
from movq_cli.schedule import ChunkSchedule

from .helpers import clips, models


@pytest.fixture
def clip(tmp_path):
    """Write 23 frames of 64x48 that keep every bit."""
    return clips.lossless(tmp_path / "clip.mkv", clips.pictures(23))


def test_a_plan_keeps_its_word(tmp_path, clip):
    options = EncodeOptions(chunk_frames=8, save="mean", store_dtype="fp32")
    plan = plan_encode(clip, options)
    counted = []
    result = encode_video(clip, tmp_path / "a", options, progress=lambda done, total: counted.append((done, total)))
    assert plan.latent_shape == result.shape
    assert (plan.frames, plan.frames_padded) == (result.metadata.frames, result.metadata.frames_padded)
    assert plan.chunks == 3
    assert counted[0] == (0, 23)
    assert counted[-1] == (23, 23)
    assert counted == sorted(counted)
    assert abs(result.output_bytes - plan.output_bytes) < 8192


@pytest.mark.slow
def test_what_does_not_fit_is_lowered_or_refused(tmp_path, clip, make_weights):
    small, large = (
        plan_encode(clip, EncodeOptions(chunk_frames=n, precision="fp32")).budget.memory_bytes for n in (4, 64)
    )
    assert small < large
    lowered = plan_encode(clip, EncodeOptions(precision="fp32", memory_budget=small + 1000))
    assert lowered.budget.chunk_frames == 4
    assert any("instead of" in w for w in lowered.budget.warnings)
    with pytest.raises(MovqError, match=r"needs about .* where .* chunk_frames=4 fits"):
        plan_encode(clip, EncodeOptions(precision="fp32", chunk_frames=64, memory_budget=small + 1000))
    with pytest.raises(
        MovqError, match=r"64x48 in strips of 32 rows needs about .* where 1.0 kB may be used; memory_budget"
    ):
        plan_encode(clip, EncodeOptions(memory_budget=1000))


def test_a_budget_that_is_too_small_is_refused_with_what_is_enough(tmp_path):
    """The budget that is named is enough, and a megabyte less is not."""
    clip = clips.write(tmp_path / "a.mp4", clips.pictures(5, 640, 400), options={"preset": "ultrafast"})
    options = EncodeOptions(precision="fp32", memory_budget=400_000_000, strip_rows=320)
    with pytest.raises(
        MovqError, match=r"4 frames of 640x400 in strips of 320 rows needs about .* is enough$"
    ) as caught:
        plan_encode(clip, options)
    enough = int(re.search(r"memory_budget=(\d+)MB is enough", caught.value.reason)[1]) * 10**6
    budget = plan_encode(clip, dataclasses.replace(options, memory_budget=enough)).budget
    assert (budget.strips, budget.chunk_frames, budget.spill_bytes > 0) == (2, 4, True)
    with pytest.raises(MovqError, match="is enough"):
        plan_encode(clip, dataclasses.replace(options, memory_budget=enough - 10**6))


@pytest.mark.parametrize("chunk", [0, 3, 10])
def test_chunks_that_split_a_latent_name_their_neighbours(clip, chunk):
    near = {0: "use 4", 3: "use 4", 10: "use 8 or 12"}[chunk]
    with pytest.raises(MovqUsageError, match=near):
        plan_encode(clip, EncodeOptions(chunk_frames=chunk))


@pytest.mark.slow
def test_a_picture_is_planned_as_one_frame_and_a_huge_one_in_strips(tmp_path):
    path = clips.still(tmp_path / "a.png", clips.picture(3000, 2000), "png")
    plan = plan_encode(path, EncodeOptions(memory_budget=10**12))
    assert plan.chunks == 1
    clip = clips.write(tmp_path / "a.mp4", clips.pictures(2, 3840, 2160))
    plan = plan_encode(clip, EncodeOptions(memory_budget=10**12))
    assert (plan.budget.strips, plan.budget.strip_rows, plan.budget.spill_bytes) == (2, 1088, 0)
    assert "as a whole picture has a tensor of more than 1,073,741,824 numbers" in plan.budget.remarks[0]
    one_piece = EncodeOptions(memory_budget=10**12, strip_rows=2176)
    with pytest.raises(MovqError, match=r"1,073,741,824 numbers; .* short_side; the largest that fits is ") as caught:
        plan_encode(clip, one_piece)
    height = int(caught.value.reason.rpartition("x")[2])
    fits = dataclasses.replace(one_piece, picture=Picture(short_side=height))
    assert plan_encode(clip, fits).budget.strips == 1
    with pytest.raises(MovqError, match="1,073,741,824 numbers"):
        plan_encode(clip, dataclasses.replace(fits, picture=Picture(short_side=height + 8)))
    cropped = dataclasses.replace(one_piece, picture=Picture(multiple=64, edge="crop"))
    with pytest.raises(MovqError, match="the largest that fits is ") as caught:
        plan_encode(clip, cropped)
    width, height = map(int, caught.value.reason.rpartition(" ")[2].split("x"))
    fits = dataclasses.replace(cropped, picture=Picture(multiple=64, edge="crop", short_side=height))
    geometry = plan_encode(clip, fits).geometry
    assert (geometry.width, geometry.height) == (width, height)


@pytest.mark.slow
def test_a_chunk_that_is_asked_for_is_taken_if_it_fits_in_any_strips(tmp_path):
    """With more memory a plan that has to wait on disk is not refused for one that need not."""
    clip = clips.write(tmp_path / "a.mp4", clips.pictures(33, 1280, 720))
    for budget in ("2GB", "3GB", "8GB"):
        assert plan_encode(clip, precision="bf16", chunk_frames=32, memory_budget=budget).budget.chunk_frames == 32


@pytest.mark.parametrize(("frames", "chunk"), [(13, 4), (17, 4), (21, 4), (25, 8), (33, 0)])
def test_what_waits_in_strips_is_never_more_than_planned(vae, frames, chunk):
    """The plan covers several windows, whose pasts wait too, and exceeds what waits by at most a fifth."""
    checkpoint = open_checkpoint(vae.folder)
    whole = ChunkSchedule.of_frames("diffusers", frames, 0, checkpoint.config)
    memory = EncodeMemory(checkpoint, whole, (40, 264), 8, torch.device("cpu"), "fp32")
    need = memory.need(memory.longest(chunk), 32)
    cache = StreamCache(store=Watched(), strip_rows=32)
    schedule = ChunkSchedule.of_frames("diffusers", frames, chunk, checkpoint.config)
    encoder, left = checkpoint.load_encoder(), frames

    def chunks(lengths):
        nonlocal left
        for length in lengths:
            left -= length
            if not left:
                cache.end()
            yield torch.zeros(1, 3, length, 264, 40)

    with torch.inference_mode():
        for lengths in schedule.windows():
            list(encoder.encode_window(chunks(lengths), cache))
    assert left == 0
    assert 0.8 * need.waiting <= 4 * cache.store.most <= need.waiting + need.spare


class Watched(Store):
    """A store that knows the most elements that it has held at a time."""

    def __init__(self):
        super().__init__()
        self.held = self.most = 0

    def put(self, tensor):
        kept, size = super().put(tensor), tensor.numel()
        self.held += size
        self.most = max(self.most, self.held)

        def free():
            self.held -= size
            kept.free()

        return Held(kept.get, free)


def test_predicted_cost_counts_every_convolution():
    """The prediction equals the past of a real run, element for element, in one piece and in strips."""
    checkpoint = open_checkpoint()
    encoder = checkpoint.load_encoder(dtype=torch.float32)
    for rows in (0, 32):
        cache = StreamCache(store=Watched(), strip_rows=rows)
        with torch.inference_mode():
            encoder(torch.zeros(1, 3, 9, 64, 48), cache)
        assert encode_cost(checkpoint.config, 9, 64, 48, rows).caches == cache.store.held


@pytest.mark.slow
def test_a_clip_of_one_chunk_is_planned_without_what_another_would_need(tmp_path, vae):
    """The same 9 frames are planned as the only window, and as the first of two."""
    config = open_checkpoint(vae.folder).config
    one, two = (clips.lossless(tmp_path / f"{n}.mkv", clips.pictures(n, 256, 192)) for n in (9, 17))
    options = dataclasses.replace(EncodeOptions(precision="fp32"), weights=vae.folder)
    plans = [plan_encode(clip, options) for clip in (one, two)]
    spared = plans[1].budget.memory_bytes - plans[0].budget.memory_bytes
    read_ahead = 8 * 192 * 256 * 3
    assert spared == encode_cost(config, 9, 192, 256).caches * 4 + read_ahead


def test_predicted_waiting_is_what_waits(vae):
    """The prediction is exact, element for element, at the worst barrier, for encoder and decoder."""
    checkpoint = open_checkpoint(vae.folder)
    config, z = checkpoint.config, torch.zeros(1, 16, 3, 4, 6)

    def most(run, ends=True):
        cache.store.most, cache.ends = 0, ends
        with torch.inference_mode():
            list(run)
        return cache.store.most

    encoder, decoder = checkpoint.load_encoder(), checkpoint.load_decoder()
    cache = StreamCache(store=Watched())
    x = torch.zeros(1, 3, 9, 32, 48)
    assert most(encoder.encode_window([x], cache)) == encode_cost(config, 9, 32, 48).waiting
    cache = StreamCache(store=Watched())
    assert most(decoder.decode_window([(z, z)], cache)) == decode_cost(config, 9, 32, 48).waiting
    # In a later window no first frame stands alone; the past of the first waits with it.
    cache, z = StreamCache(store=Watched()), z[:, :, :2]
    most(decoder.decode_window([(z, z)], cache), ends=False)
    cost, past = decode_cost(config, 8, 32, 48), cache.store.held
    assert past == cost.caches
    assert cost.waiting < most(decoder.decode_window([(z, z)], cache)) <= cost.waiting + past
    # In strips the part that is being computed is elsewhere, and everything else waits.
    x = torch.zeros(1, 3, 9, 128, 48)
    cache = StreamCache(store=Watched(), strip_rows=32)
    waiting = encode_cost(config, 9, 128, 48, 32).waiting
    assert 0.7 * waiting < most(encoder.encode_window([x], cache)) <= waiting
    z = torch.zeros(1, 16, 3, 16, 6)
    cache = StreamCache(store=Watched(), strip_rows=32)
    waiting = decode_cost(config, 9, 128, 48, 32).waiting
    assert 0.7 * waiting < most(decoder.decode_window([(z, z)], cache)) <= waiting


@pytest.mark.parametrize("sizes", [(5, 7, 0), (5, 0, 3), (0, 0, 3), (5, 0, 0)])
def test_a_budget_gives_its_tiers_their_limits(tmp_path, sizes):
    device, host, spill = sizes
    with Budget(4, 64, 3, 0, device, host, spill, str(tmp_path)).stream() as cache:
        assert cache.store._limits == [device, host]
        assert (cache.store._spill is None) == (spill == 0)
        assert len(cache.cut(torch.zeros(1, 3, 1, 150, 8), 32)) == 3


def test_a_disk_too_small_is_refused_before_the_work(tmp_path, vae, monkeypatch):
    clip = clips.lossless(tmp_path / "clip.mkv", clips.pictures(17, 48, 32))
    options = EncodeOptions(weights=vae.folder, semantics="whole", chunk_frames=4, memory_budget=1000)
    plan = plan_encode(clip, options)
    assert plan.budget.spill_bytes > 1e6
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(MovqError, match=r"12.1 MB of activations have to wait on disk.*spill_dir"):
        encode_video(clip, tmp_path / "a", options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mkv"]


def test_a_folder_that_is_not_there_is_refused(tmp_path, vae):
    clip = clips.lossless(tmp_path / "clip.mkv", clips.pictures(17, 48, 32))
    options = EncodeOptions(
        weights=vae.folder, semantics="whole", chunk_frames=4, memory_budget=1000, spill_dir=str(tmp_path / "none")
    )
    with pytest.raises(MovqError, match="spill_dir"):
        encode_video(clip, tmp_path / "a", options)


def test_a_plan_says_what_it_will_do(tmp_path, movq, vae):
    clip = clips.lossless(tmp_path / "clip.mkv", clips.pictures(21, 48, 32))
    result = movq("encode", clip, "-o", "a.safetensors", "--weights", vae.folder, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "1 of 13, 1 of 8" in result.stdout
    assert "semantics diffusers" in result.stdout
    whole = movq("encode", clip, "-o", "a.safetensors", "--weights", vae.folder, "--dry-run", "--semantics", "whole",
                 "--chunk-frames", "4", "--memory-budget", "64MB")  # fmt: skip
    assert "spilled" in whole.stdout


def test_pictures_are_padded_to_a_multiple_and_odd_latents_are_remarked_on(tmp_path, monkeypatch, capsys):
    """CogVideoX's transformer takes patches of 2x2 latents, and leaves an odd row out without a word."""
    monkeypatch.chdir(tmp_path)
    models.small_vae().save_pretrained(tmp_path / "model" / "vae")
    clips.write(tmp_path / "a.mp4", clips.pictures(3, 72, 40))
    command = ["encode", "a.mp4", "--frames", "1", "--weights", "model", "--force"]
    assert run(command) == 0
    assert "latents of 5x9: CogVideoX's transformer" in capsys.readouterr().err
    assert run([*command, "--dry-run"]) == 0
    assert "latents of 5x9" in capsys.readouterr().err
    assert run([*command, "--multiple", "16"]) == 0
    assert "transformer" not in capsys.readouterr().err
    latents = open_latents("a.safetensors")
    m = latents.metadata
    assert (latents.shape[3:], m.width, m.height, m.pad_right, m.pad_bottom) == ((6, 10), 72, 40, 8, 8)
    assert run(["decode", "a.safetensors", "-o", "back.npy", "--weights", "model"]) == 0
    assert np.load("back.npy").shape == (1, 40, 72, 3)
    assert run(["encode", "a.mp4", "-o", "b.safetensors", "--frames", "1", "--multiple", "12"]) == 2
    assert "--multiple: must be a multiple of 8, got 12" in capsys.readouterr().err


def test_buckets_keep_the_multiple(tmp_path, capsys):
    clips.write(tmp_path / "a.mp4", clips.pictures(5, 72, 40))
    with pytest.raises(
        MovqUsageError, match="5x40x64 is not a multiple of 16 in height and width; the nearest is 5x32x64"
    ):
        encode_batch(tmp_path / "a.mp4", tmp_path / "out", buckets="5x40x64", multiple=16)
    result = encode_batch(tmp_path / "a.mp4", tmp_path / "out", buckets="5x32x64", multiple=16, workers=0)
    assert [line["shape"][2:] for line in result.made] == [[2, 4, 8]]
    assert result.made[0]["options"]["multiple"] == 16
    whole = encode_batch(tmp_path / "a.mp4", tmp_path / "whole", multiple=16, workers=0)
    assert whole.made[0]["shape"][3:] == [3 * 2, 5 * 2]
