"""The factors by which diffusion models multiply latents. Files hold latents unscaled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .errors import MovqUsageError
from .targets import TARGETS

SCALES = {name: target.scaling_factor for name, target in TARGETS.items()}
"""The factors by which diffusion models multiply latents (their VAE's scaling_factor). The VAE itself is the same."""


class Scaling(NamedTuple):
    """The scaling of latents for a diffusion model, which sees (latents - shift) * factor."""

    factor: float
    shift: float = 0.0


def scale_of(scale: float | str | None) -> float | None:
    """Return the factor that a number or the name of a model means; None for None. Raises MovqUsageError for another."""
    if scale is None:
        return None
    if isinstance(scale, str):
        name = scale.rpartition("/")[2].lower()
        if name in SCALES:
            return SCALES[name]
    try:
        factor = float(scale)
    except ValueError:
        raise MovqUsageError(f"must be a number or one of {', '.join(SCALES)}; got {scale!r}", "scale") from None
    if not 0 < factor < math.inf:
        raise MovqUsageError(f"must be a number above 0, or the name of a model; got {scale!r}", "scale")
    return factor


def scaling_of(said: Mapping[str, Any]) -> Scaling | None:
    """Return the scaling that a header's metadata gives; None without a scaling_factor above 0."""
    factor, shift = (_number(said.get(name)) for name in ("scaling_factor", "shift_factor"))
    return Scaling(factor, shift) if factor > 0 else None


def _number(text: Any) -> float:
    """Return the number in a text; 0 if it has none or it is not finite."""
    try:
        number = float(text)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return number if math.isfinite(number) else 0.0
