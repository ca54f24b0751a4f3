"""Scores of a reconstruction, against scikit-image's and by hand."""

import json
from itertools import pairwise

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from movq_cli.metrics import FrameScores, montage, montage_scale, psnr, ssim

from .helpers import clips


def pair(width, height, strength, seed=0):
    source = clips.picture(width, height)
    noise = np.random.default_rng(seed).normal(0, strength, source.shape)
    return source, np.clip(np.rint(source + noise), 0, 255).astype(np.uint8)


def judged(source, reconstruction):
    return structural_similarity(
        source,
        reconstruction,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=2,
        data_range=255,
    )


@pytest.mark.parametrize("strength", [0.5, 3, 40])
@pytest.mark.parametrize("size", [(96, 64), (11, 11), (12, 40), (333, 27), (21, 140)], ids=str)
def test_agrees_with_scikit_image(size, strength):
    source, made = pair(*size, strength)
    assert ssim(source, made) == pytest.approx(judged(source, made), abs=1e-9)
    assert psnr(source, made) == pytest.approx(peak_signal_noise_ratio(source, made, data_range=255), abs=1e-9)


def test_extremes():
    dark, bright = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    assert psnr(dark, bright) == psnr(bright, dark) == 0
    assert ssim(dark, bright) == pytest.approx(judged(dark, bright), abs=1e-9)
    assert (psnr(dark, dark), ssim(dark, dark)) == (100, 1)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert ssim(noise, 255 - noise) == pytest.approx(judged(noise, 255 - noise), abs=1e-9)


def test_no_picture_but_an_equal_one_is_above_the_cap():
    source = np.zeros((1200, 1200, 3), np.uint8)
    made = source.copy()
    made[0, 0, 0] = 1  # 114 dB without the cap
    assert psnr(source, made) == psnr(source, source) == 100


@pytest.mark.parametrize("size", [(10, 64), (64, 10), (1, 1)], ids=str)
def test_ssim_needs_room_for_its_window(size):
    assert ssim(*pair(*size, 3)) is None


def test_read_only_pictures():
    source, made = pair(32, 32, 3)
    source.flags.writeable = made.flags.writeable = False
    assert ssim(source, made) == pytest.approx(judged(source, made), abs=1e-9)


def scored(pairs):
    scores = FrameScores()
    for source, made in pairs:
        scores.add(source, made)
    return scores


def plain(value):
    """Return True if JSON holds the value as it is: no numpy, no inf, no NaN."""
    if isinstance(value, dict):
        return all(type(k) is str and plain(v) for k, v in value.items())
    return value is None or type(value) in (int, float)


def test_report():
    strengths = [1, 2, 4, 30, 8, 3]
    pairs = [pair(48, 32, s, seed) for seed, s in enumerate(strengths)]
    times = [0.5 + 0.1 * i for i in range(6)]
    report = scored(pairs).report(np.array(times), np.array([2, 5]))
    db = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs]
    similar = [judged(a, b) for a, b in pairs]
    assert report == {
        "frames": 6,
        "psnr_mean": pytest.approx(np.mean(db)),
        "psnr_worst": {"frame": 3, "time": times[3], "psnr": pytest.approx(db[3])},
        "psnr_first": pytest.approx(db[0]),
        "ssim_mean": pytest.approx(np.mean(similar)),
        "ssim_worst": {"frame": 3, "time": times[3], "ssim": pytest.approx(similar[3])},
        "ssim_first": pytest.approx(similar[0]),
        "psnr_borders": pytest.approx(np.mean([db[1], db[2], db[4], db[5]])),
        "psnr_inside": pytest.approx(np.mean([db[0], db[3]])),
        "flicker": pytest.approx(
            np.mean(
                [
                    np.abs((b1.astype(float) - b0) - (a1.astype(float) - a0)).mean()
                    for (a0, b0), (a1, b1) in pairwise(pairs)
                ]
            )
        ),
    }
    assert plain(report)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_flicker_is_of_change_and_not_of_error():
    """A steady error does not flicker; one that comes and goes does, by its own size, even at the ends of the scale."""
    still = np.full((16, 16, 3), 100, np.uint8)
    assert scored([(still, still + 9)] * 4).report(range(4), [])["flicker"] == 0
    assert scored([(still, still + 9), (still, still)] * 2).report(range(4), [])["flicker"] == 9
    moving = clips.pictures(5, 32, 32)
    assert scored([(p, p) for p in moving]).report(range(5), [])["flicker"] == 0
    dark, bright = np.zeros_like(still), np.full_like(still, 255)
    assert scored([(dark, bright), (bright, dark)]).report(range(2), [])["flicker"] == 510


def test_report_of_one_small_equal_frame():
    tiny = clips.picture(5, 5)
    assert scored([(tiny, tiny)]).report([1.5], []) == {
        "frames": 1,
        "psnr_mean": 100,
        "psnr_worst": {"frame": 0, "time": 1.5, "psnr": 100},
        "psnr_first": 100,
        "ssim_mean": None,
        "ssim_worst": None,
        "ssim_first": None,
        "psnr_borders": None,
        "psnr_inside": 100,
        "flicker": None,
    }


def test_every_frame_at_a_border():
    frames = [pair(16, 16, 3)] * 2
    report = scored(frames).report([0, 1], [1])
    assert report["psnr_inside"] is None
    assert report["psnr_borders"] == report["psnr_mean"]


def test_montage():
    one = clips.picture(20, 10)
    two = one.copy()
    two[3, 4] = one[3, 4] - np.array([2, 0, 70], np.uint8)
    sheet = montage([(one, two), (two, one)])
    assert sheet.dtype == np.uint8
    gap = sheet.shape[0] - 20
    assert sheet.shape[1:] == (60 + 2 * gap, 3)
    assert 0 < gap < 5
    first, second = sheet[:10], sheet[10 + gap :]
    for row, (left, middle) in ((first, (one, two)), (second, (two, one))):
        assert np.array_equal(row[:, :20], left)
        assert np.array_equal(row[:, 20 + gap : 40 + gap], middle)
        difference = row[:, -20:]
        assert list(difference[3, 4]) == [8, 0, 255]
        assert difference.sum() == 8 + 255


def test_a_montage_of_large_pictures_is_scaled_down_after_the_difference_is_taken():
    """Blocks of 2x2 pixels become their mean; a difference of +10 and -10 does not cancel."""
    source = np.full((9, 1300, 3), 100, np.uint8)
    reconstruction = source.copy()
    reconstruction[:, ::2] += 10
    reconstruction[:, 1::2] -= 10
    assert montage_scale(source) == 2
    assert montage_scale(source[:, :1280]) == 1
    sheet = montage([(source, reconstruction)])
    assert sheet.shape == (5, 3 * 650 + 4, 3)
    assert (sheet[:, :650] == 100).all()
    assert (sheet[:, 652:1302] == 100).all()
    assert (sheet[:, 1304:] == 40).all()
