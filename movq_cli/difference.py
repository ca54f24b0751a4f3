"""Differences between the latents of two settings, in meaningful units.

Means are compared in units of their own standard deviation, log variances in nats. A single number for both would hide
the error of the means, as log variances spread several times as far.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

_STEPS = 64  # histogram bins per doubling, so that a quantile is exact to 1.1 percent
_LEAST = 2.0**-64  # smaller numbers count as this


@dataclass(frozen=True)
class Spread:
    """The size of many differences: root mean square, 99.9th percentile and largest."""

    rms: float
    p999: float
    largest: float


@dataclass(frozen=True)
class Posterior:
    """The posterior of the first latents: its median `deviation`, and the `error_share`.

    `deviation` is in standard deviations of the means. `error_share` is the root mean square difference of the means
    divided by that median: its size relative to a draw's noise.
    """

    deviation: float
    error_share: float


@dataclass(frozen=True)
class Difference:
    """The differences of two sets of latents: `mean` in standard deviations of the first set's means, `logvar` in nats.

    `logvar` and `posterior` are None if only means were compared.
    """

    mean: Spread
    logvar: Spread | None
    posterior: Posterior | None

    def to_dict(self) -> dict[str, Any]:
        """Return the values as a dict for JSON."""
        return asdict(self)


class _Histogram:
    """Counts of positive numbers in bins whose edges have a constant ratio."""

    def __init__(self) -> None:
        self._counts = np.zeros(2 * 64 * _STEPS, np.int64)

    def add(self, values: np.ndarray) -> None:
        bins = (np.log2(np.maximum(values, _LEAST)) - math.log2(_LEAST)) * _STEPS
        bins = np.minimum(bins.astype(np.int64), len(self._counts) - 1)
        self._counts += np.bincount(bins.reshape(-1), minlength=len(self._counts))

    def quantile(self, part: float) -> float:
        """Return the upper edge of the bin that contains this quantile, from 0 to 1."""
        place = int(np.searchsorted(np.cumsum(self._counts), part * self._counts.sum()))
        return float(_LEAST * 2.0 ** ((place + 1) / _STEPS))


class _Errors:
    """Sums over numbers and over their differences from other numbers."""

    def __init__(self) -> None:
        self.count, self._sum, self._squares, self._error, self._largest = 0, 0.0, 0.0, 0.0, 0.0
        self._histogram = _Histogram()

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        error = np.abs(x - y)
        self.count += x.size
        self._sum += float(x.sum())
        self._squares += float(np.square(x).sum())
        self._error += float(np.square(error).sum())
        self._largest = max(self._largest, float(error.max(initial=0.0)))
        self._histogram.add(error)

    def spread(self, unit: float = 1.0) -> Spread:
        """Return the size of the differences, in this unit."""
        rms = math.sqrt(self._error / self.count) if self.count else 0.0
        p999 = min(self._histogram.quantile(0.999), self._largest)
        return Spread(rms / unit, p999 / unit, self._largest / unit)

    @property
    def deviation(self) -> float:
        """The standard deviation of the numbers themselves."""
        mean = self._sum / max(1, self.count)
        return math.sqrt(max(0.0, self._squares / max(1, self.count) - mean**2))


class Comparison:
    """Compares latents piece by piece: `add` each, then read the `difference`. Memory use is constant."""

    def __init__(self) -> None:
        self._mean, self._logvar, self._deviations = _Errors(), _Errors(), _Histogram()

    def add(self, first: torch.Tensor, second: torch.Tensor, moments: bool) -> None:
        """Compare one piece of latents (1, C, L, H, W). With `moments`, half of C is means, then half is log variances.

        Raises ValueError if shapes differ.
        """
        if first.shape != second.shape:
            raise ValueError(f"cannot compare {first.shape = } with {second.shape = }")
        pairs = zip(*(x.double().chunk(2, 1) if moments else (x.double(),) for x in (first, second)), strict=True)
        for errors, (x, y) in zip((self._mean, self._logvar), pairs, strict=False):
            errors.add(x.numpy(), y.numpy())
        if moments:
            self._deviations.add(np.exp(first.double().chunk(2, 1)[1].numpy() / 2))

    @property
    def difference(self) -> Difference:
        """The difference of everything added so far."""
        scale = self._mean.deviation or 1.0
        mean = self._mean.spread(scale)
        if not self._logvar.count:
            return Difference(mean, None, None)
        deviation = self._deviations.quantile(0.5) / scale
        return Difference(mean, self._logvar.spread(), Posterior(deviation, mean.rms / deviation))
