"""Latents back to video: counts, sizes and times, chunks, draws, and weights that did not make them."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from movq_cli import (
    EncodeOptions,
    MovqError,
    MovqUsageError,
    Picture,
    Selection,
    decode_video,
    encode_video,
    open_latents,
    read_frames,
)
from movq_cli.checkpoints.checkpoint import FORMER, embedded_weights, open_checkpoint
from movq_cli.codec import to_frames, to_pixels
from movq_cli.model import StreamCache
from movq_cli.posterior import draw_latents

from .helpers import clips
from .helpers.tolerance import SAME, off


@pytest.fixture
def clip(tmp_path):
    return clips.lossless(tmp_path / "clip.mkv", clips.pictures(23, 64, 48))


@pytest.fixture
def latents(tmp_path, clip):
    encode_video(clip, tmp_path / "latents", precision="fp32")
    return tmp_path / "latents"


@pytest.mark.slow
@pytest.mark.parametrize("frames", range(1, 21))
def test_every_count_comes_back(tmp_path, clip, frames):
    encode_video(clip, tmp_path / "latents", selection=Selection(frames=frames), picture=Picture(height=16))
    decode_video(tmp_path / "latents", tmp_path / "back.npy")
    assert np.load(tmp_path / "back.npy").shape == (frames, 16, 21, 3)


def test_it_is_the_clip_and_not_another(tmp_path, clip, latents):
    decode_video(latents, tmp_path / "back.npy")
    back = np.load(tmp_path / "back.npy").astype(float)
    source = np.stack(clips.pictures(23, 64, 48)).astype(float)
    assert np.sqrt(((back - source) ** 2).mean()) < 12  # levels of 255: 26 dB
    assert np.sqrt(((back[1:] - source[:-1]) ** 2).mean()) > np.sqrt(((back - source) ** 2).mean())


def test_odd_sizes_come_back(tmp_path):
    path = clips.lossless(tmp_path / "odd.mkv", clips.pictures(5, 67, 45))
    encode_video(path, tmp_path / "latents")
    result = decode_video(tmp_path / "latents", tmp_path / "odd.mp4")
    assert any("odd" in warning for warning in result.warnings)
    frames = list(read_frames(tmp_path / "odd.mp4"))
    assert [frame.image.shape for frame in frames] == [(45, 67, 3)] * 5
    decode_video(tmp_path / "latents", tmp_path / "back.mkv")
    decode_video(tmp_path / "latents", tmp_path / "back.npy")
    lossless = np.stack([frame.image for frame in read_frames(tmp_path / "back.mkv")])
    assert np.array_equal(lossless, np.load(tmp_path / "back.npy"))


def test_times_come_back(tmp_path):
    times = [0.0, 0.04, 0.12, 0.2, 0.21, 0.5]
    path = clips.write(tmp_path / "vfr.mp4", clips.pictures(6), times=times)
    encode_video(path, tmp_path / "latents")
    decode_video(tmp_path / "latents", tmp_path / "back.mp4")
    assert [float(frame.time) for frame in read_frames(tmp_path / "back.mp4")] == pytest.approx(times, abs=1e-4)


def test_a_streaming_decoder_is_the_whole_one():
    """With norms per frame, any chunks of latents give the whole clip's frames, in float64."""
    decoder = open_checkpoint().load_decoder(dtype=torch.float64)
    z = torch.randn(1, 16, 6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = decoder(z)
        for lengths in ([1, 1, 1, 1, 1, 1], [2, 4], [3, 1, 2]):
            cache = StreamCache()
            pieces = [decoder(part, cache=cache) for part in z.split(lengths, dim=2)]
            assert [p.shape[2] for p in pieces] == [4 * n - 3 * (i == 0) for i, n in enumerate(lengths)]
            assert off(torch.cat(pieces, dim=2), whole) < SAME


@pytest.mark.slow
def test_chunks_do_not_matter(tmp_path, latents):
    for name, chunk in (("4", 4), ("16", 16), ("one", 24)):
        decode_video(latents, tmp_path / f"{name}.npy", chunk_frames=chunk, precision="fp32")
    one = np.load(tmp_path / "one.npy").astype(int)
    for name in ("4", "16"):
        different = np.abs(np.load(tmp_path / f"{name}.npy") - one)
        assert different.max() <= 1
        assert (different > 0).mean() < 1e-3


@pytest.mark.slow
def test_moments_are_decoded_from_the_mean_or_a_draw(tmp_path, latents):
    opened, decoder = open_latents(latents), open_checkpoint().load_decoder(dtype=torch.float32)
    sha256 = opened.metadata.source_sha256
    draw = draw_latents(opened.latents, 0, seed=7, source_sha256=sha256, first_index=0)
    for name, options, z in (("mean", {}, opened.mean), ("draw", dict(draw=True, seed=7), draw)):
        decode_video(latents, tmp_path / f"{name}.npy", precision="fp32", chunk_frames=4, **options)
        with torch.no_grad():
            expected = to_frames(to_pixels(decoder(z))).numpy()[:23]
        assert np.abs(np.load(tmp_path / f"{name}.npy").astype(int) - expected).max() <= 1
    assert not np.array_equal(np.load(tmp_path / "mean.npy"), np.load(tmp_path / "draw.npy"))


def test_means_and_samples_are_decoded_as_they_are(tmp_path, clip, latents):
    decode_video(latents, tmp_path / "moments.npy", precision="fp32")
    encode_video(clip, tmp_path / "m", precision="fp32", save="mean")
    decode_video(tmp_path / "m", tmp_path / "mean.npy", precision="fp32")
    assert np.array_equal(np.load(tmp_path / "mean.npy"), np.load(tmp_path / "moments.npy"))
    encode_video(clip, tmp_path / "s", precision="fp32", save="sample", seed=3)
    decode_video(tmp_path / "s", tmp_path / "sample.npy", precision="fp32")
    decode_video(latents, tmp_path / "drawn.npy", precision="fp32", draw=True, seed=3)
    assert np.abs(np.load(tmp_path / "sample.npy").astype(int) - np.load(tmp_path / "drawn.npy")).max() <= 1
    with pytest.raises(MovqError, match="leave draw out"):
        decode_video(tmp_path / "m", tmp_path / "x.npy", draw=True)


def test_weights_are_found_by_their_digest(tmp_path, clip, vae, movq, make_weights, embedded):
    """The embedded weights need no name, and a copy may have any; other weights must be named and be the right ones."""
    encode_video(clip, tmp_path / "theirs", weights=vae.folder, selection=Selection(frames=5))
    encode_video(clip, tmp_path / "ours", selection=Selection(frames=5))
    shutil.copy(embedded, tmp_path / "copy.safetensors")
    assert movq("decode", "ours", "-o", "a.mp4", "--weights", "copy.safetensors").returncode == 0
    assert movq("decode", "theirs", "-o", "b.mp4", "--weights", vae.folder).returncode == 0
    missing = movq("decode", "theirs", "-o", "c.mp4")
    wrong = movq("decode", "theirs", "-o", "c.mp4", "--weights", "copy.safetensors")
    encoder_alone = make_weights()
    encode_video(clip, tmp_path / "small", weights=str(encoder_alone), selection=Selection(frames=5))
    half = movq("decode", "small", "-o", "c.mp4", "--weights", encoder_alone)
    for result, word in ((missing, "--weights"), (wrong, "others"), (half, "no decoder")):
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert word in result.stderr
    digest = open_latents(tmp_path / "theirs").metadata.weights_digest[:16]
    assert digest in missing.stderr
    assert digest in wrong.stderr
    assert not (tmp_path / "c.mp4").exists()


def edited(path, to, *, tensors=None, **metadata):
    """Copy a latents file with other tensors or metadata."""
    with safe_open(path, framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = file.metadata()
    save_file(held | (tensors or {}), to, metadata=said | metadata)
    return to


def test_latents_of_earlier_embedded_weights_are_refused_by_where_those_are(tmp_path, latents, monkeypatch):
    digest = "e" * 64
    monkeypatch.setitem(FORMER, digest, ("weights/old.safetensors", "c0ffee"))
    old = edited(latents, tmp_path / "old", weights_digest=digest, model="old")
    with pytest.raises(
        MovqError, match=r"old .*`git show c0ffee:weights/old.safetensors > old.safetensors` in a clone"
    ):
        decode_video(old, tmp_path / "x.npy")
    with pytest.raises(MovqError, match="are others"):
        decode_video(old, tmp_path / "x.npy", weights=embedded_weights())


def test_latents_that_lie_are_refused(tmp_path, latents):
    opened = open_latents(latents)
    broken = opened.latents.clone()
    broken[0, 3, 4] = float("nan")
    cases = {
        "not finite": dict(tensors={"latents": broken}),
        "too few latents": dict(
            tensors={
                n: torch.zeros(26, dtype=d) for n, d in (("frame_times", torch.float64), ("frame_indices", torch.int64))
            },
            frames="26",
            frames_padded="2",
        ),
        "cannot have made": dict(tensors={"latents": opened.latents[:, :6].contiguous()}),
    }
    for reason, changes in cases.items():
        path = edited(latents, tmp_path / "edited", **changes)
        with pytest.raises(MovqError, match=reason):
            decode_video(path, tmp_path / "x.npy")
        assert not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize(
    "said",
    [
        dict(fps="1e400"),
        dict(fps="1e300000000"),
        dict(fps="0"),
        dict(duration="nan"),
        dict(duration="-1"),
        dict(crop="5"),
        dict(preprocessing="[]"),
        dict(preprocessing='{"warnings":5}'),
        dict(preprocessing=f'{{"source_bytes":{10**300}}}'),
        dict(width="55"),
    ],
)
def test_metadata_that_cannot_be(tmp_path, latents, said):
    with pytest.raises(MovqError, match="says what cannot be"):
        open_latents(edited(latents, tmp_path / "edited", **said))


def test_values_that_are_not_finite_are_not_made_black(tmp_path, latents):
    """The latents are finite, but the decoder overflows on them."""
    large = torch.full_like(open_latents(latents).latents, 1e38)
    large[:, ::2] *= -1
    with pytest.raises(MovqError, match="not finite; try precision=fp32"):
        decode_video(edited(latents, tmp_path / "edited", tensors={"latents": large}), tmp_path / "x.npy")
    assert not (tmp_path / "x.npy").exists()


def test_an_output_that_cannot_be(tmp_path, latents, movq):
    (tmp_path / "there.mp4").write_bytes(b"mine")
    for output, code, word in (("there.mp4", 1, "--force"), ("none/a.mp4", 1, "does not exist"), ("a.webp", 2, ".mp4")):
        result = movq("decode", "latents", "-o", output)
        assert result.returncode == code, result.stderr
        assert result.stderr.count("\n") == 1
        assert word in result.stderr
    assert (tmp_path / "there.mp4").read_bytes() == b"mine"
    with pytest.raises(MovqError, match="same file as the input"):
        decode_video(latents, latents, force=True)
    with pytest.raises(MovqUsageError, match="crf"):
        decode_video(latents, tmp_path / "a.mp4", crf=99)


def test_the_command_says_what_it_did(tmp_path, latents, movq):
    result = movq("decode", "latents", "-o", "frames/")
    assert result.returncode == 0, result.stderr
    assert "23 frames, 64x48" in result.stdout
    assert len(list((tmp_path / "frames").glob("*.png"))) == 23
    assert json.loads(movq("info", "latents", "--json").stdout)["frames"] == 23
    assert EncodeOptions().semantics == "auto"
