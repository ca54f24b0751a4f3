"""Scores that compare a reconstruction with its source: PSNR, SSIM, flicker, and a picture that shows the difference.

Pictures are RGB uint8 (H, W, 3); source and reconstruction have the same size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

PSNR_CAP = 100.0
"""The PSNR of equal pictures, in dB, and the most that other pictures get."""

WINDOW = 11
"""The width and height of SSIM's Gaussian window, in pixels."""

_SIGMA = 1.5
_BAND = 32  # rows computed at a time, so that they stay in the cache
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_GAP = 2  # white pixels between the pictures of a montage
_MOST_SIDE = 1280  # pixels of the longer side of a picture in a montage


def psnr(source: np.ndarray, reconstruction: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio over all values, in dB; PSNR_CAP if the pictures are equal."""
    total = 0
    for rows in _bands(len(source)):
        error = _error(source[rows], reconstruction[rows]).astype(np.int32)
        total += int(np.square(error).sum(dtype=np.int64))
    return min(PSNR_CAP, 10 * math.log10(255**2 / (total / source.size))) if total else PSNR_CAP


def ssim(source: np.ndarray, reconstruction: np.ndarray) -> float | None:
    """Return the structural similarity (Wang et al. 2004), or None for pictures smaller than the window.

    It is the mean over channels and over all positions where the whole window fits.
    """
    places = len(source) - WINDOW + 1
    if min(source.shape[:2]) < WINDOW:
        return None
    total = 0.0
    for band in _bands(places):
        rows = slice(band.start, band.stop + WINDOW - 1)
        total += _similarity(source[rows].astype(np.float64), reconstruction[rows].astype(np.float64))
    return total / float(places * (source.shape[1] - WINDOW + 1) * 3)


def _similarity(x: np.ndarray, y: np.ndarray) -> float:
    """Return the sum of the similarities of two float64 (H, W, 3).

    It is computed from their sum and difference, which takes four blurs instead of five.
    """
    plus, minus = x + y, x - y
    mean_plus, mean_minus = _blur(plus) ** 2, _blur(minus) ** 2
    var_plus, var_minus = _blur(plus**2) - mean_plus, _blur(minus**2) - mean_minus
    luminance = (mean_plus - mean_minus + 2 * _C1) / (mean_plus + mean_minus + 2 * _C1)
    structure = (var_plus - var_minus + 2 * _C2) / (var_plus + var_minus + 2 * _C2)
    return float((luminance * structure).sum())


def _blur(picture: np.ndarray) -> np.ndarray:
    """Return the Gaussian mean at every position where the window fits: (H, W, 3) to (H - 10, W - 10, 3)."""
    middle = WINDOW // 2
    weights = [math.exp(-((k - middle) ** 2) / (2 * _SIGMA**2)) for k in range(WINDOW)]
    for axis in (0, 1):
        shifted = np.lib.stride_tricks.sliding_window_view(picture, WINDOW, axis)
        picture = shifted[..., middle] * (weights[middle] / sum(weights))
        pair = np.empty_like(picture)
        for k in range(middle):
            np.add(shifted[..., k], shifted[..., WINDOW - 1 - k], out=pair)
            pair *= weights[k] / sum(weights)
            picture += pair
    return picture


def _bands(height: int) -> Iterator[slice]:
    return (slice(top, min(top + _BAND, height)) for top in range(0, height, _BAND))


def _error(source: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    error: np.ndarray = np.subtract(reconstruction, source, dtype=np.int16)
    return error


class FrameScores:
    """Collects the scores of a video frame by frame, in order. The only picture it keeps is the last difference."""

    def __init__(self) -> None:
        self.psnr: list[float] = []
        self.ssim: list[float | None] = []
        self._flicker: list[float] = []
        self._before: np.ndarray | None = None

    def add(self, source: np.ndarray, reconstruction: np.ndarray) -> None:
        """Add the next frame and its reconstruction."""
        self.psnr.append(psnr(source, reconstruction))
        self.ssim.append(ssim(source, reconstruction))
        error, before = _error(source, reconstruction), self._before
        if before is not None:
            changes = sum(int(abs(error[rows] - before[rows]).sum(dtype=np.int64)) for rows in _bands(len(error)))
            self._flicker.append(changes / error.size)
        self._before = error

    def report(self, times: Sequence[float], borders: Iterable[int]) -> dict[str, Any]:
        """Return all scores, ready for JSON.

        `times` are the frames' times in seconds. `borders` are the first frames of all chunks but the first. PSNR is in
        dB, and its mean is the mean of the frames' PSNR. `psnr_borders` is the mean over the frames on both sides of
        every border, `psnr_inside` over the others. `flicker` is the mean absolute difference between the
        reconstruction's change from frame to frame and the source's, in levels of 255. A mean over nothing is None.
        """
        near = {frame for border in borders for frame in (border - 1, border)}
        at_borders = [value for frame, value in enumerate(self.psnr) if frame in near]
        inside = [value for frame, value in enumerate(self.psnr) if frame not in near]
        known = [value for value in self.ssim if value is not None]
        return {
            "frames": len(self.psnr),
            "psnr_mean": _mean(self.psnr),
            "psnr_worst": _worst("psnr", self.psnr, times),
            "psnr_first": self.psnr[0],
            "ssim_mean": _mean(known),
            "ssim_worst": _worst("ssim", known, times),
            "ssim_first": self.ssim[0],
            "psnr_borders": _mean(at_borders),
            "psnr_inside": _mean(inside),
            "flicker": _mean(self._flicker),
        }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _worst(name: str, values: Sequence[float], times: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    frame = min(range(len(values)), key=values.__getitem__)
    return {"frame": frame, "time": float(times[frame]), name: values[frame]}


def montage(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return one picture with a row per pair: source | reconstruction | four times their absolute difference.

    Large pictures are scaled down by `montage_scale`, after their difference is taken.
    """
    scale = montage_scale(rows[0][0])
    height, width = (-(-side // scale) for side in rows[0][0].shape[:2])
    down, right = height + _GAP, width + _GAP
    sheet = np.full((down * len(rows) - _GAP, right * 3 - _GAP, 3), 255, np.uint8)
    for row, (source, reconstruction) in enumerate(rows):
        difference = np.minimum(abs(_error(source, reconstruction)) * 4, 255).astype(np.uint8)
        for column, picture in enumerate((source, reconstruction, difference)):
            top, left = down * row, right * column
            sheet[top : top + height, left : left + width] = _scaled_down(picture, scale)
    return sheet


def montage_scale(picture: np.ndarray) -> int:
    """Return the whole number that a picture's height and width are divided by in a montage."""
    height, width, _ = picture.shape
    return int(-(-max(height, width) // _MOST_SIDE))


def _scaled_down(picture: np.ndarray, scale: int) -> np.ndarray:
    """Return the means of blocks of scale x scale pixels; those at the right and bottom edge may be smaller."""
    if scale == 1:
        return picture
    height, width, _ = picture.shape
    padded = np.pad(picture, ((0, -height % scale), (0, -width % scale), (0, 0)), mode="edge")
    blocks = padded.reshape(len(padded) // scale, scale, padded.shape[1] // scale, scale, 3)
    scaled: np.ndarray = blocks.mean((1, 3), dtype=np.float32).round().astype(np.uint8)
    return scaled
