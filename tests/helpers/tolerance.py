"""The one place for tolerances, and for what they are measured in."""

from movq_cli.difference import Comparison

AGREE = 1e-4
"""Two ways of computing the same numbers in fp32, in standard deviations of what is compared."""

SAME = 1e-11
"""Two ways of computing the same numbers in float64, likewise."""


def off(got, expected):
    """Largest difference in standard deviations of the expected."""
    assert got.shape == expected.shape
    return ((got.double() - expected.double()).abs().max() / expected.double().std()).item()


def rms_off(got, expected):
    """Root mean square difference in standard deviations of the expected."""
    assert got.shape == expected.shape
    return ((got.double() - expected.double()).pow(2).mean().sqrt() / expected.double().std()).item()


def difference(got, expected):
    """Difference of moments (1, 2z, L, H, W), as `movq eval --against` gives it: means apart from log variances."""
    comparison = Comparison()
    comparison.add(expected, got, moments=True)
    return comparison.difference


def moments_off(got, expected):
    """Largest difference of moments: of means in their standard deviations, or of log variances in nats."""
    found = difference(got, expected)
    return max(found.mean.largest, found.logvar.largest)


def moments_rms_off(got, expected):
    """Root mean square difference of moments, of means or of log variances, whichever is more."""
    found = difference(got, expected)
    return max(found.mean.rms, found.logvar.rms)


def said(found):
    """A difference as the README's table has it: means' rms and largest, log variances' rms and largest in nats."""
    mean, logvar = found.mean, found.logvar
    return f"means {mean.rms:.1e}, {mean.largest:.1e}; log variances {logvar.rms:.1e}, {logvar.largest:.1e}"
