"""`movq eval`: measurements against numbers made by hand; two settings; the picture; bad videos among good ones."""

import json
import os

import numpy as np
import pytest
import torch

from movq_cli import (
    EncodeOptions,
    MovqError,
    Selection,
    decode_video,
    encode_video,
    evaluate_video,
    open_latents,
    read_frames,
)
from movq_cli.metrics import psnr, ssim

from .helpers import clips
from .helpers.tolerance import AGREE, off, rms_off

FP32 = EncodeOptions(precision="fp32")


@pytest.fixture
def clip(tmp_path):
    return clips.lossless(tmp_path / "clip.mkv", clips.pictures(11, 64, 48))


def test_scores_are_those_of_the_decoded_file(tmp_path, clip):
    made = evaluate_video(clip, FP32, pairs=[2, 5])
    encode_video(clip, tmp_path / "latents", FP32)
    decode_video(tmp_path / "latents", tmp_path / "back.npy", precision="fp32")
    back, source = np.load(tmp_path / "back.npy"), np.stack(clips.pictures(11, 64, 48))
    values = [psnr(a, b) for a, b in zip(source, back, strict=True)]
    assert made.scores["frames"] == 11
    assert made.scores["psnr_mean"] == pytest.approx(np.mean(values))
    assert made.scores["psnr_worst"]["frame"] == int(np.argmin(values))
    assert made.scores["psnr_first"] == pytest.approx(values[0])
    assert made.scores["ssim_mean"] == pytest.approx(np.mean([ssim(a, b) for a, b in zip(source, back, strict=True)]))
    assert list(made.pairs) == [2, 5]
    for frame, (before, after) in made.pairs.items():
        assert np.array_equal(before, source[frame])
        assert np.array_equal(after, back[frame])


def test_frames_at_chunk_borders(clip):
    """11 frames and a repeated one in chunks of 5, 4 and 4 have borders before frames 5 and 9."""
    made = evaluate_video(clip, chunk_frames=4, pairs=range(11))
    values = [psnr(*pair) for pair in made.pairs.values()]
    assert made.scores["psnr_borders"] == pytest.approx(np.mean([values[i] for i in (4, 5, 8, 9)]))
    assert made.scores["psnr_inside"] == pytest.approx(np.mean([values[i] for i in (0, 1, 2, 3, 6, 7, 10)]))
    assert evaluate_video(clip, EncodeOptions(chunk_frames=16)).scores["psnr_borders"] is None


def test_the_first_the_worst_and_the_last_are_kept(clip):
    made = evaluate_video(clip)
    assert set(made.pairs) == {0, made.scores["psnr_worst"]["frame"], 10}


@pytest.mark.slow
def test_two_settings(tmp_path, clip, vae):
    settings = [EncodeOptions(precision="fp32", weights=vae.folder, semantics=name) for name in ("whole", "diffusers")]
    made = evaluate_video(clip, settings[0], against=settings[1])
    encode_video(clip, tmp_path / "one", settings[0])
    encode_video(clip, tmp_path / "two", settings[1])
    one, two = (open_latents(tmp_path / name) for name in ("one", "two"))
    logvars = [latents.latents.float().chunk(2, 1)[1] for latents in (one, two)]
    mean, logvar = made.difference.mean, made.difference.logvar
    assert mean.largest == pytest.approx(off(two.mean, one.mean), rel=1e-3)
    assert mean.rms == pytest.approx(rms_off(two.mean, one.mean), rel=1e-3)
    errors = (two.mean - one.mean).abs().flatten() / one.mean.std()
    assert mean.p999 == pytest.approx(errors.quantile(0.999).item(), rel=0.02)
    assert logvar.largest == pytest.approx((logvars[1] - logvars[0]).abs().max().item(), rel=1e-3)
    deviation = (logvars[0] / 2).exp().median() / one.mean.std()
    assert made.difference.posterior.deviation == pytest.approx(deviation.item(), rel=0.02)
    assert made.difference.posterior.error_share == pytest.approx(mean.rms / deviation.item(), rel=0.02)
    for name in ("one", "two"):
        decode_video(tmp_path / name, tmp_path / f"{name}.npy", precision="fp32", weights=vae.folder)
    backs = zip(*(np.load(tmp_path / f"{name}.npy") for name in ("one", "two")), strict=True)
    assert made.picture_psnr == pytest.approx(np.mean([psnr(*pair) for pair in backs]))
    assert (made.encoded.metadata.semantics, made.other.encoded.metadata.semantics) == ("whole", "diffusers")
    same = evaluate_video(clip, FP32, against=FP32)
    assert (same.difference.mean.largest, same.difference.logvar.largest, same.picture_psnr) == (0.0, 0.0, 100.0)


@pytest.mark.slow
def test_against_diffusers_with_tiling(tmp_path, vae):
    """Tiles begin past 240x360; a smaller picture has one tile, and the numbers are those of diffusers' windows."""
    small = clips.lossless(tmp_path / "small.mkv", clips.pictures(9, 64, 48))
    made = evaluate_video(small, EncodeOptions(precision="fp32", weights=vae.folder), against="tiled")
    assert made.difference.mean.largest < AGREE
    assert made.picture_psnr is None
    wide = clips.lossless(tmp_path / "wide.mkv", clips.pictures(5, 400, 64))
    made = evaluate_video(wide, EncodeOptions(precision="fp32", weights=vae.folder), against="tiled")
    x = torch.from_numpy(np.stack(clips.pictures(5, 400, 64))).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    vae.model.enable_tiling()
    try:
        with torch.no_grad():
            tiled = vae.model.encode(x).latent_dist.mean
    finally:
        vae.model.disable_tiling()
    with torch.no_grad():
        plain = vae.model.encode(x).latent_dist.mean
    assert made.difference.mean.rms == pytest.approx(rms_off(tiled, plain), rel=1e-2)
    assert made.difference.mean.rms > 0.01


def test_frames_that_are_not_there(clip):
    with pytest.raises(MovqError, match="no frame 11: 11 were encoded"):
        evaluate_video(clip, pairs=[11])


def test_what_cannot_be_is_refused_before_the_work(tmp_path, clip, make_weights):
    def never(done, total):
        raise AssertionError("begun")

    half = EncodeOptions(weights=str(make_weights()))
    for options, against in ((half, None), (FP32, half), (FP32, EncodeOptions(chunk_frames=7)), (FP32, "tiled")):
        with pytest.raises(MovqError):
            evaluate_video(clip, options, against=against, progress=never)


def test_only_what_was_encoded_is_compared(clip):
    made = evaluate_video(clip, EncodeOptions(selection=Selection(frames=7), tail="drop"))
    assert made.scores["frames"] == 5


def test_the_command(tmp_path, clip, movq):
    """JSON keys are as in docs/evaluation.md; a bad video is refused in a line, others go on; nothing stays behind."""
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    before = {"clip.mkv", "bad.mp4", "out.png", "temporary"}
    (tmp_path / "temporary").mkdir()
    env = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    result = movq(
        "eval",
        "bad.mp4",
        "clip.mkv",
        "--frames",
        "5",
        "--json",
        "--against",
        "--precision fp32 --chunk-frames 4",
        env=env,
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "bad.mp4" in result.stderr
    values = json.loads(result.stdout)
    (video,) = values["videos"]
    assert video["source"] == "clip.mkv"
    assert {"psnr_mean", "ssim_mean", "psnr_worst", "psnr_first", "psnr_borders", "flicker"} <= video.keys()
    assert video["against"]["difference"].keys() == {"mean", "logvar", "posterior"}
    assert video["against"]["difference"]["mean"].keys() == {"rms", "p999", "largest"}
    assert 20 < video["against"]["picture_psnr"] <= 100
    assert (video["against"]["precision"], video["against"]["chunk_frames"]) == ("fp32", 4)
    assert [problem["source"] for problem in values["failed"]] == ["bad.mp4"]
    drawn = movq("eval", "clip.mkv", "--frames", "5", "--picture", "out.png", "--picture-frame", "1", env=env)
    assert drawn.returncode == 0, drawn.stderr
    assert "PSNR" in drawn.stdout
    (frame,) = read_frames(tmp_path / "out.png")
    assert frame.image.shape[0] == 48
    assert np.array_equal(frame.image[:, :64], clips.pictures(2, 64, 48)[1])
    assert {p.name for p in tmp_path.iterdir()} == before
    assert not list((tmp_path / "temporary").iterdir())


def test_settings_that_are_none(clip, movq):
    for text, word in (
        ("--precision", "--precision"),
        ("--tail drop", "--tail"),
        ("'", "quotation"),
        ("--precision fp8", "fp8"),
    ):
        result = movq("eval", clip, "--against", text)
        assert result.returncode == 2, result.stdout
        assert result.stderr.count("\n") == 1
        assert word in result.stderr
    two = movq("eval", clip, clip, "--picture", "a.png")
    assert two.returncode == 2
