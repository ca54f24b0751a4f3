"""Weights whose norms span frames: diffusers' windows against diffusers, whole clips in chunks, and the spill file."""

import json

import numpy as np
import pytest
import torch

from movq_cli import EncodeOptions, MovqUsageError, decode_video, encode_video, open_latents
from movq_cli.checkpoints.checkpoint import open_checkpoint
from movq_cli.codec import to_frames, to_pixels
from movq_cli.model import StreamCache
from movq_cli.model.stages import first_frame

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
        assert made.metadata.semantics == "diffusers"  # chosen by auto: the weights are in diffusers' layout
        assert sum(made.metadata.windows) == frames


@pytest.mark.parametrize("frames", LENGTHS)
def test_decoding_is_what_diffusers_decodes(tmp_path, vae, frames):
    """For an even number of latents diffusers makes 4 frames of the first one; there Decoder3D by hand is the judge."""
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
        different = np.abs(made.astype(int) - to_frames(to_pixels(expected)).numpy())
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
        different = np.abs(np.load(tmp_path / f"{name}.npy").astype(int) - to_frames(to_pixels(expected)).numpy())
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
    """Packets may promise more or fewer frames than decoding gives; the windows are then planned again, once."""
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
    """All frames of a whole clip in chunks are taken long before half of the work is done."""
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


def test_info_tells_the_windows(tmp_path, movq, vae):
    clip, _ = clip_of(tmp_path, 17)
    encode_video(clip, tmp_path / "a.safetensors", weights=vae.folder)
    values = json.loads(movq("info", "a.safetensors", "--json").stdout)
    assert (values["semantics"], values["windows"]) == ("diffusers", [9, 8])


def test_which_frame_a_step_is_of():
    """The first frame of a stream is a step of its own, also after chunks were halved in time."""
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
