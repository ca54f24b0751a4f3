"""Weights whose norms span frames: diffusers' windows against diffusers itself, whole clips in chunks, what waits on disk."""

import json
import os
import shutil
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch

from movq_cli import EncodeOptions, MovqError, MovqUsageError, decode_video, encode_video, open_latents, plan_encode
from movq_cli.budget import Budget
from movq_cli.checkpoints.checkpoint import open_checkpoint
from movq_cli.codec import to_pixels
from movq_cli.model import StreamCache
from movq_cli.model.cost import decode_cost, encode_cost
from movq_cli.model.stages import first_frame
from movq_cli.model.store import SpillFile, Store
from movq_cli.schedule import ChunkSchedule

from .helpers import clips
from .helpers.tolerance import AGREE, moments_off

FP32 = EncodeOptions(precision="fp32")
LENGTHS = (1, 5, 9, 13, 17, pytest.param(49, marks=pytest.mark.slow))


def clip_of(folder, frames, width=48, height=32):
    images = clips.pictures(frames, width, height)
    path = clips.lossless(folder / f"{frames}.mkv", images)
    return path, torch.from_numpy(np.stack(images)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


@pytest.mark.slow
@pytest.mark.parametrize("frames", LENGTHS)
def test_encoding_is_what_diffusers_encodes(tmp_path, vae, frames):
    clip, x = clip_of(tmp_path, frames)
    with torch.no_grad():
        expected = vae.model.encode(x).latent_dist.parameters
    for chunk in (None, 4, 8) if frames == 17 else (None, 4):
        encode_video(clip, tmp_path / f"{chunk}", FP32, weights=vae.folder, chunk_frames=chunk)
        made = open_latents(tmp_path / f"{chunk}")
        assert moments_off(made.latents, expected) < AGREE, chunk
        assert made.metadata.semantics == "diffusers"  # by itself: the weights are in diffusers' layout
        assert sum(made.metadata.windows) == frames


def test_windows_are_those_of_diffusers():
    config = open_checkpoint().config
    frames, latents = (partial(make, "diffusers", chunk_frames=0, config=config) for make in SCHEDULES)
    windows = [frames(count).window_lengths() for count in (1, 5, 9, 13, 17, 49)]
    assert windows == [[1], [5], [9], [13], [9, 8], [9, 8, 8, 8, 8, 8]]
    assert [latents(count).window_lengths() for count in (1, 2, 3, 4, 5)] == [[1], [2], [3], [2, 2], [3, 2]]


SCHEDULES = ChunkSchedule.of_frames, ChunkSchedule.of_latents


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


@pytest.mark.parametrize("frames", LENGTHS)
def test_decoding_is_what_diffusers_decodes(tmp_path, vae, frames):
    """For an even number of latents diffusers makes 4 frames of the first one; there the judge is Decoder3D by hand."""
    clip, _ = clip_of(tmp_path, frames)
    encode_video(clip, tmp_path / "latents", FP32, weights=vae.folder)
    mean = open_latents(tmp_path / "latents").mean
    with torch.no_grad():
        if mean.shape[2] % 2:
            expected = vae.model.decode(mean).sample
        else:
            decoder, cache = open_checkpoint(vae.folder).load_decoder(dtype=torch.float32), StreamCache()
            expected = torch.cat([decoder(z, cache=cache) for z in mean.split(2, dim=2)], dim=2)
    assert expected.shape[2] == frames
    for chunk in (None, 4, 8) if frames == 17 else (4,):
        options = dict(precision="fp32", weights=vae.folder, chunk_frames=chunk)
        decode_video(tmp_path / "latents", tmp_path / f"{chunk}.npy", **options)
        made = np.load(tmp_path / f"{chunk}.npy")
        assert made.shape == (frames, 32, 48, 3)
        different = np.abs(made.astype(int) - to_pixels(expected).numpy())
        assert different.max() <= 1  # a value between two bytes may round either way
        assert (different > 0).mean() < 1e-3


@pytest.mark.parametrize("frames", [17, pytest.param(49, marks=pytest.mark.slow)])
def test_whole_clips_in_chunks(tmp_path, vae, frames):
    clip, x = clip_of(tmp_path, frames)
    with torch.no_grad():
        expected = open_checkpoint(vae.folder).load_encoder(dtype=torch.float32)(x)
    for name, chunk, budget in (("one", None, None), ("4", 4, None), ("8", 8, None), ("spilled", 4, 64 << 20)):
        options = dict(weights=vae.folder, semantics="whole", chunk_frames=chunk, memory_budget=budget)
        result = encode_video(clip, tmp_path / name, FP32, **options)
        assert result.metadata.semantics == "whole"
        made = open_latents(tmp_path / name)
        assert moments_off(made.latents, expected) < AGREE, name
        assert made.metadata.windows is None
    assert torch.equal(open_latents(tmp_path / "spilled").latents, open_latents(tmp_path / "4").latents)


def test_whole_clips_decoded_in_chunks(tmp_path, vae):
    clip, _ = clip_of(tmp_path, 17)
    encode_video(clip, tmp_path / "latents", FP32, weights=vae.folder)
    with torch.no_grad():
        expected = open_checkpoint(vae.folder).load_decoder(dtype=torch.float32)(
            open_latents(tmp_path / "latents").mean
        )
    for name, chunk, budget in (("one", None, None), ("4", 4, None), ("spilled", 8, 64 << 20)):
        options = dict(weights=vae.folder, semantics="whole", chunk_frames=chunk, memory_budget=budget)
        decode_video(tmp_path / "latents", tmp_path / f"{name}.npy", precision="fp32", **options)
        different = np.abs(np.load(tmp_path / f"{name}.npy").astype(int) - to_pixels(expected).numpy())
        assert different.max() <= 1
        assert (different > 0).mean() < 1e-3


def test_the_two_semantics_differ(tmp_path, vae):
    clip, _ = clip_of(tmp_path, 17)
    for name in ("whole", "diffusers"):
        encode_video(clip, tmp_path / name, FP32, weights=vae.folder, semantics=name)
    assert moments_off(open_latents(tmp_path / "whole").latents, open_latents(tmp_path / "diffusers").latents) > 0.01


def test_frame_norms_have_one_way(tmp_path, movq, embedded):
    clip, _ = clip_of(tmp_path, 5)
    result = movq("encode", clip, "-o", "a.safetensors", "--semantics", "whole", "-q")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "--semantics" in result.stderr
    with pytest.raises(MovqUsageError, match="must be one of auto, whole, diffusers"):
        EncodeOptions(semantics="tiled")


def test_a_count_that_lies_is_corrected(tmp_path, vae):
    """Packets may promise other frames than decoding gives: then the windows are made anew, once."""
    clip, x = clip_of(tmp_path, 21)
    from movq_cli import encoding as module

    counted = module.count_frames
    try:
        module.count_frames = lambda *arguments: counted(*arguments) - 8
        encode_video(clip, tmp_path / "a", FP32, weights=vae.folder)
        module.count_frames = lambda *arguments: counted(*arguments) + 4
        encode_video(clip, tmp_path / "b", FP32, weights=vae.folder)
    finally:
        module.count_frames = counted
    with torch.no_grad():
        expected = vae.model.encode(x).latent_dist.parameters
    for name in ("a", "b"):
        assert moments_off(open_latents(tmp_path / name).latents, expected) < AGREE


def test_progress_counts_work(tmp_path, vae):
    """Of a whole clip in chunks, every frame is taken long before half of the work is done."""
    clip, _ = clip_of(tmp_path, 17)
    seen = []
    encode_video(
        clip,
        tmp_path / "a",
        weights=vae.folder,
        semantics="whole",
        chunk_frames=4,
        progress=lambda done, total: seen.append(done),
    )
    assert seen == sorted(seen)
    assert seen[-1] == 17
    assert len(set(seen)) > 10
    assert seen[4] < 3  # all four chunks have passed conv_in


# What waits


def test_a_ring_gives_back_what_it_was_given(tmp_path):
    ring = SpillFile(str(tmp_path), 1000)
    given = [np.random.default_rng(i).integers(0, 256, 37 * i % 400 + 1, np.uint8) for i in range(60)]
    waiting = []
    with ring:
        for item in given:
            while waiting and sum(map(len, waiting)) + len(item) > 1000:
                back = np.empty_like(waiting[0])
                ring.pop(back.data)
                assert np.array_equal(back, waiting.pop(0))
            ring.push(item.data)
            waiting.append(item)
            assert os.listdir(tmp_path) == []
        with pytest.raises(RuntimeError, match="planned for 1000"):
            ring.push(np.zeros(1000, np.uint8).data)


def test_a_store_keeps_what_it_may_and_spills_the_rest(tmp_path):
    def chunk(i):
        x = torch.randn(1, 32, 4, 6, 5, generator=torch.Generator().manual_seed(i), dtype=torch.float32)
        return [x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last_3d), x[:, :8].double()]

    size = sum(t.numel() * t.element_size() for t in chunk(0))
    with SpillFile(str(tmp_path), 4 * size) as spill:
        store = Store(2 * size, 0, spill)
        claims = [store.put(chunk(i)) for i in range(4)]
        assert spill._held == 2 * size
        for i, claim in enumerate(claims):
            for got, expected in zip(claim(), chunk(i), strict=True):
                assert torch.equal(got, expected)
        assert spill._held == 0
        store.put(chunk(0))
        assert spill._held == 0  # room again


def test_predicted_waiting_is_what_waits(vae):
    """Element for element, at the worst barrier, for encoder and decoder."""

    class Watched(Store):
        held = most = 0

        def put(self, tensors):
            size = sum(t.numel() for t in tensors)
            Watched.held += size
            Watched.most = max(Watched.most, Watched.held)
            claim = super().put(tensors)

            def take():
                Watched.held -= size
                return claim()

            return take

    checkpoint = open_checkpoint(vae.folder)
    with torch.inference_mode():
        encoder = checkpoint.load_encoder()
        list(encoder.encode_window([torch.zeros(1, 3, 9, 32, 48)], StreamCache(), Watched()))
        assert Watched.most == encode_cost(checkpoint.config, 9, 32, 48).waiting
        Watched.most = 0
        decoder = checkpoint.load_decoder()
        z = torch.zeros(1, 16, 3, 4, 6)
        list(decoder.decode_window([(z, z)], StreamCache(), Watched()))
        assert Watched.most == decode_cost(checkpoint.config, 9, 32, 48).waiting
        Watched.most, cache = 0, StreamCache()
        z = z[:, :, :2]
        list(decoder.decode_window([(z, z)], cache, Watched()))
        assert Watched.most == decode_cost(checkpoint.config, 5, 32, 48).waiting
        Watched.most = 0
        list(decoder.decode_window([(z, z)], cache, Watched()))  # a later window: no frame stands alone
        assert Watched.most == decode_cost(checkpoint.config, 8, 32, 48).waiting


@pytest.mark.parametrize("sizes", [(5, 7, 0), (5, 0, 3), (0, 0, 3), (5, 0, 0)])
def test_a_budget_gives_its_tiers_their_limits(tmp_path, sizes):
    device, host, spill = sizes
    with Budget(4, 0, device, host, spill, str(tmp_path), ()).store() as store:
        assert store._limits == [device, host]
        assert (store._spill is None) == (spill == 0)
    with Budget(0, 0, 0, 0, 0, "", ()).store() as store:
        assert store._limits == [None, None]


def test_a_disk_too_small_is_refused_before_the_work(tmp_path, vae, monkeypatch):
    clip, _ = clip_of(tmp_path, 17)
    options = EncodeOptions(weights=vae.folder, semantics="whole", chunk_frames=4, memory_budget=1000)
    plan = plan_encode(clip, options)
    assert plan.budget.spill_bytes > 1e6
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(MovqError, match=r"GB of activations have to wait on disk.*spill_dir"):
        encode_video(clip, tmp_path / "a", options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["17.mkv"]


def test_a_folder_that_is_not_there_is_refused(tmp_path, vae):
    clip, _ = clip_of(tmp_path, 17)
    options = EncodeOptions(
        weights=vae.folder, semantics="whole", chunk_frames=4, memory_budget=1000, spill_dir=str(tmp_path / "none")
    )
    with pytest.raises(MovqError, match="spill_dir"):
        encode_video(clip, tmp_path / "a", options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_of_a_spill_file(zygote, tmp_path, vae, number):
    """It has no name even while it is written."""
    clip, _ = clip_of(tmp_path, 197)
    spill = tmp_path / "spill"
    spill.mkdir()
    command = ["encode", clip, "-o", tmp_path / "a.safetensors", "--weights", vae.folder]
    command += ["--semantics", "whole", "--chunk-frames", "4", "--memory-budget", "1MB", "--spill-dir", spill]
    process = zygote.start(*command, cwd=tmp_path)
    until = time.monotonic() + 60
    while not _spilled(process.pid, str(spill)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    assert os.listdir(spill) == []
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert os.listdir(spill) == []
    assert not (tmp_path / "a.safetensors").exists()


def _spilled(pid, folder):
    """Whether a process holds a file of the folder with something in it."""
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            link = f"/proc/{pid}/fd/{fd}"
            if os.readlink(link).startswith(folder) and os.stat(link).st_size:
                return True
    except OSError:
        pass
    return False


def test_a_plan_says_what_it_will_do(tmp_path, movq, vae):
    clip, _ = clip_of(tmp_path, 21)
    result = movq("encode", clip, "-o", "a.safetensors", "--weights", vae.folder, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "1 of 13, 1 of 8" in result.stdout
    assert "semantics diffusers" in result.stdout
    whole = movq("encode", clip, "-o", "a.safetensors", "--weights", vae.folder, "--dry-run", "--semantics", "whole",
                 "--chunk-frames", "4", "--memory-budget", "64MB")  # fmt: skip
    assert "spilled" in whole.stdout


def test_info_tells_the_windows(tmp_path, movq, vae):
    clip, _ = clip_of(tmp_path, 17)
    encode_video(clip, tmp_path / "a.safetensors", weights=vae.folder)
    values = json.loads(movq("info", "a.safetensors", "--json").stdout)
    assert (values["semantics"], values["windows"]) == ("diffusers", [9, 8])


def test_which_frame_a_step_is_of():
    """Of chunks of so many frames, halved in time so often: a stream's first frame is a step of its own."""
    for frames, steps, expected in (
        (17, 17, range(17)),
        (4, 4, range(4)),
        (9, 5, [0, 1, 3, 5, 7]),
        (9, 3, [0, 1, 5]),
        (5, 2, [0, 1]),
        (8, 4, [0, 2, 4, 6]),
        (8, 2, [0, 4]),
        (4, 1, [0]),
        (1, 1, [0]),
    ):
        assert [first_frame(step, steps, frames) for step in range(steps)] == list(expected), (frames, steps)
