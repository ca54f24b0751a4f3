"""One video to one file, through the library: exactness, selection, tails, draws, and what is refused."""

import dataclasses
import hashlib
import os
import re
import threading
from fractions import Fraction
from itertools import chain

import numpy as np
import pytest
import torch

from movq_cli import (
    EncodeOptions,
    MovqError,
    MovqUsageError,
    Picture,
    Selection,
    encode_video,
    open_latents,
    plan_encode,
)
from movq_cli.checkpoints.checkpoint import open_checkpoint
from movq_cli.codec import Chunker, fit_tail
from movq_cli.posterior import draw_latents
from movq_cli.video import Frame

from .helpers import clips, published
from .helpers.processes import run_limited
from .helpers.tolerance import AGREE, moments_off, moments_rms_off, off

FP32 = EncodeOptions(precision="fp32")


@pytest.fixture
def clip(tmp_path):
    """Write 23 frames of 64x48 that keep every bit."""
    return clips.lossless(tmp_path / "clip.mkv", clips.pictures(23))


def as_input(images):
    return torch.from_numpy(np.stack(images)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def test_a_file_holds_what_the_network_gives_for_its_frames(tmp_path, clip, make_weights):
    """A file holds what the published operations give for the same pixels, padded by hand."""
    weights = make_weights(norm_scope="whole")
    result = encode_video(clip, tmp_path / "a.safetensors", FP32, weights=str(weights))
    shown = clips.pictures(23)
    x = as_input([*shown, shown[-1], shown[-1]])
    with torch.no_grad():
        expected = published.encode(open_checkpoint(weights).load_encoder(dtype=torch.float32), x)
    latents = open_latents(tmp_path / "a.safetensors")
    assert moments_rms_off(latents.latents, expected) < AGREE
    assert (result.metadata.frames, result.metadata.frames_padded) == (23, 2)
    assert result.metadata == latents.metadata
    assert result.shape == tuple(latents.shape) == (1, 8, 7, 6, 8)


@pytest.mark.parametrize("chunk", [4, 8, 32, 64])
def test_chunks_are_a_memory_knob(tmp_path, clip, chunk):
    for name, frames in (("one", 24), ("chunked", chunk)):
        encode_video(clip, tmp_path / name, FP32, chunk_frames=frames)
    one, chunked = open_latents(tmp_path / "one"), open_latents(tmp_path / "chunked")
    assert moments_off(chunked.latents, one.latents) < AGREE
    assert chunked.metadata == one.metadata


def test_strict_causality(tmp_path):
    """Two videos that agree on their first 13 frames give latents that agree on the first 4."""
    shown = clips.pictures(21)
    clips.lossless(tmp_path / "a.mkv", shown)
    clips.lossless(tmp_path / "b.mkv", shown[:13] + [255 - image for image in shown[13:]])
    a, b = (
        open_latents(encode_video(tmp_path / f"{n}.mkv", tmp_path / n, FP32).output_path).latents for n in ("a", "b")
    )
    assert torch.equal(a[:, :, :4], b[:, :, :4])
    assert (a[:, :, 4:] != b[:, :, 4:]).any()


def test_same_input_same_bytes(tmp_path, clip):
    for name in ("a", "b"):
        encode_video(clip, tmp_path / name, chunk_frames=8)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_the_file_says(tmp_path):
    clip = clips.write(tmp_path / "clip.mp4", clips.pictures(40, 90, 50), rotation=90)
    options = EncodeOptions(selection=Selection(start=1, frames=10), tail="drop", picture=Picture(width=40, height=60))
    encode_video(clip, tmp_path / "a", options)
    latents = open_latents(tmp_path / "a")
    m = latents.metadata
    assert (m.frames, m.frames_padded, m.frames_dropped) == (9, 0, 1)
    assert latents.frame_indices.tolist() == list(range(25, 34))
    assert latents.frame_times.tolist() == pytest.approx([1 + i / 25 for i in range(9)])
    assert m.duration == pytest.approx(9 / 25)
    assert (m.width, m.height, m.pad_right, m.pad_bottom) == (40, 60, 0, 4)
    assert m.crop == [0, 6, 40, 60]  # 50x90 turned, scaled to 40x72, cut to its middle
    assert m.preprocessing["rotation"] == 270
    assert (m.semantics, m.precision, m.fps) == ("frame", plan_encode(clip).precision, 25)
    assert m.source_sha256 == hashlib.sha256(clip.read_bytes()).hexdigest()
    assert m.weights_digest == open_checkpoint().digest
    assert any("dropped" in w for w in m.preprocessing["warnings"])


@pytest.mark.parametrize(
    ("frames", "tail", "expected"),
    [(1, "error", (0, 0)), (17, "error", (0, 0)), (16, "pad", (1, 0)), (14, "pad", (3, 0)), (16, "drop", (0, 3))],
)
def test_tail(frames, tail, expected):
    assert fit_tail(frames, tail, 4) == expected


@pytest.mark.parametrize("tail", ["pad", "drop"])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 8, 9, 12])
def test_every_length_and_tail(tmp_path, frames, tail):
    clip = clips.lossless(tmp_path / "clip.mkv", clips.pictures(frames))
    result = encode_video(clip, tmp_path / "a", tail=tail, chunk_frames=4)
    kept = frames if tail == "pad" else 1 + (frames - 1) // 4 * 4
    assert (result.metadata.frames, result.metadata.frames_dropped) == (kept, frames - kept)
    assert result.shape[2] == 1 + -(-(kept - 1) // 4)
    assert len(open_latents(tmp_path / "a").frame_times) == kept


def test_tail_error_refuses_before_the_work(tmp_path, clip):
    with pytest.raises(MovqError, match=r"has 23 frames .* 21 and 25 fit"):
        encode_video(clip, tmp_path / "a", tail="error", progress=lambda done, total: pytest.fail("encoding began"))
    assert not (tmp_path / "a").exists()


def test_mean_and_draws(tmp_path, clip):
    encode_video(clip, tmp_path / "moments", FP32)
    encode_video(clip, tmp_path / "mean", FP32, save="mean")
    moments, mean = open_latents(tmp_path / "moments"), open_latents(tmp_path / "mean")
    assert torch.equal(mean.latents, moments.mean)
    draws = {}
    for name, chunk, seed in (("a", 4, 0), ("b", 16, 0), ("c", 4, 1)):
        encode_video(clip, tmp_path / name, FP32, save="sample", chunk_frames=chunk, seed=seed)
        draws[name] = open_latents(tmp_path / name)
    assert off(draws["b"].latents, draws["a"].latents) < AGREE
    assert off(draws["c"].latents, draws["a"].latents) > 0.01
    assert draws["c"].metadata.seed == 1
    # The draw's noise, (sample - mean) / std, is standard normal.
    std = (0.5 * moments.latents[:, 16:].clamp(-30, 20)).exp()
    noise = (draws["a"].latents - moments.mean) / std
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5
    assert abs(noise.std() - 1) < 0.05
    frames = noise[0].transpose(0, 1).flatten(1)
    assert (torch.corrcoef(frames) - torch.eye(len(frames))).abs().max() < 0.15  # every latent has noise of its own


def test_draws_are_keyed_by_content_and_place():
    moments = torch.zeros(1, 4, 3, 8, 8)
    key = {"seed": 0, "source_sha256": "ab" * 32, "first_index": 0}
    drawn = draw_latents(moments, 0, **key)
    assert torch.equal(drawn[:, :, 1:], draw_latents(moments[:, :, 1:], 1, **key))
    for other in ({"seed": 1}, {"source_sha256": "cd" * 32}, {"first_index": 8}):
        assert not torch.equal(draw_latents(moments, 0, **key | other), drawn)


def test_store_dtype(tmp_path, clip):
    encode_video(clip, tmp_path / "a", FP32, store_dtype="fp16")
    encode_video(clip, tmp_path / "b", FP32)
    assert torch.equal(open_latents(tmp_path / "a").latents, open_latents(tmp_path / "b").latents.half())
    assert open_latents(tmp_path / "a").metadata.precision == "fp32"


def test_options_that_cannot_be(clip):
    with pytest.raises(MovqUsageError, match="tail"):
        EncodeOptions(tail="loop")
    with pytest.raises(MovqUsageError, match="short_side"):
        Picture(short_side=4, height=4)
    with pytest.raises(MovqUsageError, match="precision"):
        plan_encode(clip, EncodeOptions(precision="tf32", device="cpu"))
    with pytest.raises(MovqUsageError, match="device"):
        plan_encode(clip, EncodeOptions(device="tpu"))


def test_an_output_that_is_an_input_is_refused(tmp_path, clip, make_weights):
    before = clip.read_bytes()
    (tmp_path / "link").hardlink_to(clip)
    weights = make_weights()
    for output in (clip, tmp_path / "link", weights):
        with pytest.raises(MovqError, match="same file as the input"):
            encode_video(clip, output, weights=str(weights), force=True)
    assert clip.read_bytes() == before


def test_an_input_that_changes_meanwhile_is_refused(tmp_path, clip):
    def touch(done, total):
        os.utime(clip, ns=(0, 0))

    with pytest.raises(MovqError, match="changed while it was read"):
        encode_video(clip, tmp_path / "a", progress=touch)
    assert not (tmp_path / "a").exists()


def test_frames_fewer_than_asked_for_are_said(tmp_path, clip):
    result = encode_video(clip, tmp_path / "a", selection=Selection(frames=49))
    assert result.metadata.warnings == ("has 23 of the 49 frames asked for",)


def test_duration_with_fps(tmp_path):
    """A sampled frame is shown until the next one would be."""
    clip = clips.write(tmp_path / "clip.mp4", clips.pictures(150, 32, 32))
    encode_video(clip, tmp_path / "a", selection=Selection(fps=Fraction(1), frames=5))
    assert open_latents(tmp_path / "a").metadata.duration == 5
    encode_video(clip, tmp_path / "b", selection=Selection(fps=Fraction(1)), tail="drop")
    assert open_latents(tmp_path / "b").metadata.duration == 5  # six samples, the last dropped


def test_one_pixel_of_latents(tmp_path):
    """Pictures are 8x8, with one latent per chunk: memory layouts are ambiguous at this size."""
    clip = clips.lossless(tmp_path / "clip.mkv", clips.pictures(9, 8, 8))
    result = encode_video(clip, tmp_path / "a", chunk_frames=4)
    assert result.shape == (1, 32, 3, 1, 1)


def test_any_thread_may_encode(tmp_path, clip):
    """A library call needs no signal handlers and no main-module tricks."""
    results = []
    thread = threading.Thread(target=lambda: results.append(encode_video(clip, tmp_path / "a")))
    thread.start()
    thread.join()
    assert results[0].metadata.frames == 23


@pytest.mark.parametrize("tail", ["pad", "drop"])
@pytest.mark.parametrize("plan", [[[0]], [[5], [4], [4], [4]], [[9], [8]], [[5, 4], [4]], [[17], [4]]], ids=str)
@pytest.mark.parametrize("frames", [1, 5, 7, 13, 16, 17])
def test_the_last_chunk_is_known_before_it_is_given(frames, plan, tail):
    image = np.zeros((8, 8, 3), np.uint8)
    shown = [Frame(image, Fraction(i), Fraction(i + 1), i) for i in range(frames)]
    chunker, ended, told = Chunker(shown, tail, open_checkpoint().config), [], []
    for window in chunker.windows(iter(map(iter, plan)), ending=lambda: ended.append(True)):
        told += [(len(chunk), len(ended)) for chunk in window]
    wanted = 1 + (frames + (2 if tail == "pad" else -1)) // 4 * 4 if (frames - 1) % 4 else frames
    given = []
    for length in chain.from_iterable(plan):
        left = wanted - sum(given)
        given += [min(length or left, left)] if left else []
    cut = wanted > sum(given)  # the plan has too few frames
    assert [n for n, _ in told] == given
    assert [so_far for _, so_far in told] == [0] * (len(given) - 1) + [0 if cut else 1]


def test_results_are_plain_values(tmp_path, clip):
    result = encode_video(clip, tmp_path / "a")
    assert dataclasses.asdict(result)["output_bytes"] == os.path.getsize(tmp_path / "a")
    assert result.metadata.raw_bytes == 23 * 64 * 48 * 3


@pytest.mark.slow
def test_where_memory_runs_out_smaller_chunks_are_tried(tmp_path):
    """The process has address space for chunks of 4 frames, and not of 32."""
    clips.write(tmp_path / "a.mp4", clips.pictures(33, 256, 192))

    encode = "encode", "a.mp4", "-o"
    _, peak = run_limited(tmp_path, 0, *encode, "small.safetensors", "--chunk-frames", "4")
    large, _ = run_limited(tmp_path, int(peak * 1.2), *encode, "large.safetensors", "--chunk-frames", "32")
    assert large.returncode == 0, large.stderr
    assert "warning: ran out of memory, and was begun again in chunks of" in large.stderr
    made, wanted = open_latents(tmp_path / "large.safetensors"), open_latents(tmp_path / "small.safetensors")
    assert "ran out of memory" in made.metadata.preprocessing["warnings"][0]
    assert moments_off(made.latents, wanted.latents) < AGREE
    assert made.frame_times.equal(wanted.frame_times)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "large.safetensors", "small.safetensors"]


@pytest.mark.slow
def test_where_the_smallest_chunk_is_too_large_lower_strips_are_tried(tmp_path):
    clips.write(tmp_path / "a.mp4", clips.pictures(5, 512, 384))

    encode = "encode", "a.mp4", "-o"
    _, peak = run_limited(tmp_path, 0, *encode, "small.safetensors", "--strip-rows", "96")
    large, _ = run_limited(tmp_path, int(peak * 1.05), *encode, "large.safetensors")
    assert large.returncode == 0, large.stderr
    assert re.search("ran out of memory, and was begun again in strips of (192|96|64|32) rows", large.stderr)
    made, wanted = (open_latents(tmp_path / f"{name}.safetensors") for name in ("large", "small"))
    assert made.metadata == wanted.metadata  # strips change no header
    assert moments_off(made.latents, wanted.latents) < AGREE


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"chunk_frames": 4}, {"strip_rows": 32}])
@pytest.mark.parametrize("scope", ["frame", "whole"])
def test_numbers_that_are_not_finite_are_traced_to_stage_and_frame(tmp_path, make_weights, scope, options):
    """Finite weights see only colour and multiply it until it overflows; pictures are white before frame 10."""

    def overflow(tensors):
        for name in ("conv_in", "down.0.block.0.conv1"):
            tensors[f"encoder.{name}.conv.bias"].zero_()
        taps = tensors["encoder.conv_in.conv.weight"]
        taps[:, 0] = taps[:, 0].sign() / 8  # powers of two, so that white, 1.0, cancels exactly
        taps[:, 1], taps[:, 2] = -taps[:, 0], 0
        tensors["encoder.down.0.block.0.norm2.weight"].mul_(100)
        tensors["encoder.down.0.block.0.conv2.conv.weight"].mul_(1e38)

    weights = str(make_weights(change=overflow, norm_scope=scope, num_res_blocks=2))
    white = np.full((48, 64, 3), 255, np.uint8)
    clip = clips.lossless(tmp_path / "a.mkv", [white] * 10 + clips.pictures(7))
    stage = r"not finite in fp32, first in down\.0\.block\.0\.conv2 at frame "
    first = r"10 \(0:00\.4\)" if scope == "frame" else r"\d+ \(.*\)"  # a norm over the clip changes white frames too
    first += r", rows (0 to 31|32 to 47)" if "strip_rows" in options else ""
    with pytest.raises(MovqError, match=f"a.mkv: gives numbers that are {stage}{first}: nothing was written"):
        encode_video(clip, tmp_path / "a.safetensors", FP32, weights=weights, **options)
    assert sorted(os.listdir(tmp_path)) == ["a.mkv", "weights.safetensors"]
