"""The one place for tolerances, in standard deviations of what is compared."""

AGREE = 1e-4
"""Two ways of computing the same numbers in fp32."""

SAME = 1e-11
"""Two ways of computing the same numbers in float64."""


def off(got, expected):
    """Largest difference in standard deviations of the expected."""
    assert got.shape == expected.shape
    return ((got.double() - expected.double()).abs().max() / expected.double().std()).item()


def rms_off(got, expected):
    """Root mean square difference in standard deviations of the expected."""
    assert got.shape == expected.shape
    return ((got.double() - expected.double()).pow(2).mean().sqrt() / expected.double().std()).item()
