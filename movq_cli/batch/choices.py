"""The options of a command, as a line of the manifest records them, and how two commands differ."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ..errors import option
from ..files import short
from ..options import SHORT_IN_BATCH, EncodeOptions
from ..values import format_fraction
from .item import Item
from .manifest import Line

ALLOWING = ("allow_partial", "max_pixels")
"""Options that only decide if a file is refused."""
MADE_BY = ("weights_digest", "semantics", "precision")


def made_alike(line: Line, other: Line) -> bool:
    """Return whether two lines name the same weights, semantics and precision."""
    return all(line.get(name) == other.get(name) for name in MADE_BY)


def options_of(line: Line, without: Line | None = None) -> dict[str, Any]:
    """Return the options of a line that matter to its latents.

    `upscale` only allows more, so it is left out if the line `without` was made without it.
    """
    options = {name: value for name, value in line.get("options", {}).items() if name not in ALLOWING}
    if without is not None and "upscale" not in without.get("options", {}):
        options.pop("upscale", None)  # it would not have changed those latents
    computed = line.get("precision", "")
    if options.get("store_dtype") == {"tf32": "fp32"}.get(computed, computed):
        del options["store_dtype"]  # `auto` stores the same
    return options


def choices_of(line: Line, item: Item, without: Line | None = None) -> dict[str, Any]:
    """Return the options of the command that made a line, by name, without those of the item's own row.

    If items are cut to buckets, `buckets` and `frames` stand for the sizes and lengths that follow from them. `without`
    is as in options_of.
    """
    options, cut = options_of(line, without), line.get("cut", {})
    for name in ("start", "duration"):
        if getattr(item, name) is not None:
            options.pop(name, None)
    options.pop("skip", None)  # the first frame of a span, which differs between items
    if "buckets" in cut:
        for name in ("frames", "height", "width"):
            options.pop(name, None)
        options |= {"buckets": cut["buckets"]} | ({"frames": cut["frames"]} if "frames" in cut else {})
    return options | {"weights": line.get("weights_digest")} | {name: line.get(name) for name in MADE_BY[1:]}


def describe_difference(
    made: dict[str, Any], wanted: dict[str, Any], models: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """Return the options in which two commands differ, with the values of each: ("--tail pad", "--tail drop").

    `models` maps digests of weights to names of models.
    """
    names = [name for name in {"weights": None} | made | wanted if made.get(name) != wanted.get(name)]
    if "weights" in names:  # other weights bring other semantics, and may be computed in another precision
        names = [name for name in names if name not in ("semantics", "precision")]

    def say(values: dict[str, Any]) -> str:
        return ", ".join(_say(name, values.get(name), models or {}) for name in names)

    return say(made), say(wanted)


def _say(name: str, value: Any, models: Mapping[str, str]) -> str:
    """Return an option with its value, as a message shows it; with its default if it was not given."""
    if name == "weights":
        return models.get(value) or f"weights {short(value or '?')}"
    if value is None:
        value = _DEFAULTS.get(name)
    if name == "frames" and value is None:
        return "all frames"
    if isinstance(value, list):
        return " ".join(option(name, one) for one in value)
    if name in ("start", "duration", "fps") and isinstance(value, str):
        value = format_fraction(Fraction(value))
    if value is None or value is False:
        return f"no {option(name)}"
    return option(name, value)


_DEFAULTS = EncodeOptions().flat() | {"short": SHORT_IN_BATCH[0]}
