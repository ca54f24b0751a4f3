"""The one place for tolerances, and for the units they are measured in."""

from movq_cli.difference import Comparison

AGREE = 1e-4
"""Tolerance between two ways of computing the same numbers in fp32, in standard deviations of what is compared."""

SAME = 1e-11
"""The same tolerance in float64."""


def off(got, expected):
    """Return the largest difference, in standard deviations of `expected`."""
    assert got.shape == expected.shape
    return ((got.double() - expected.double()).abs().max() / expected.double().std()).item()


def rms_off(got, expected):
    """Return the root mean square difference, in standard deviations of `expected`."""
    assert got.shape == expected.shape
    return ((got.double() - expected.double()).pow(2).mean().sqrt() / expected.double().std()).item()


def difference(got, expected):
    """Return the difference of moments (1, 2z, L, H, W), as in `movq eval --against`: means and log variances apart."""
    comparison = Comparison()
    comparison.add(expected, got, moments=True)
    return comparison.difference


def moments_off(got, expected):
    """Return the largest difference of moments: of means in their standard deviations, or of log variances in nats."""
    found = difference(got, expected)
    return max(found.mean.largest, found.logvar.largest)


def moments_rms_off(got, expected):
    """Return the root mean square difference of moments: that of means or of log variances, whichever is more."""
    found = difference(got, expected)
    return max(found.mean.rms, found.logvar.rms)


def said(found):
    """Format a difference as in docs/exactness.md: means' rms and largest, log variances' rms and largest in nats."""
    mean, logvar = found.mean, found.logvar
    return f"means {mean.rms:.1e}, {mean.largest:.1e}; log variances {logvar.rms:.1e}, {logvar.largest:.1e}"
