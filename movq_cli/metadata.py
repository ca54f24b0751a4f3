"""`Metadata` of a latents file, and its text form in a safetensors header. See docs/format.md."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from .options import REPRESENTATIONS
from .values import is_numbers

FORMAT = "movq-latents"
FORMAT_VERSION, CODED_VERSION = "1", "2"
"""The versions of the format: 1 has floats, 2 what a reader of version 1 would take for something else."""
FORMAT_VERSIONS = (FORMAT_VERSION, CODED_VERSION)
_SEMANTICS = ("frame", "whole", "diffusers")


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The metadata of a latents file. `to_strings` and `from_strings` convert it to and from a safetensors header.

    `width` and `height` are those of the encoded picture, without `pad_right` and `pad_bottom`. `frames` does not
    include `frames_padded`; `frames_dropped` counts only what `--tail drop` dropped. Scaling factors are text, as in
    their source, "" if unknown. `latents_mean` and `latents_std` are lists of the model's config, which movq does not
    apply. `seed` is set only if latents were drawn, `windows` (frames of each) only if semantics
    is "diffusers".
    """

    representation: str
    seed: int | None = None
    semantics: str
    windows: list[int] | None = None
    model: str
    config: dict[str, Any]
    weights_digest: str
    weights_licence: str
    scaling_factor: str
    shift_factor: str
    invert_scale_latents: str
    latents_mean: list[float] | None = None
    latents_std: list[float] | None = None
    temporal_factor: int
    spatial_factor: int
    precision: str
    width: int
    height: int
    pad_right: int
    pad_bottom: int
    crop: list[int] | None
    frames: int
    frames_padded: int
    frames_dropped: int
    fps: Fraction | None
    duration: float
    preprocessing: dict[str, Any]
    source_name: str
    source_sha256: str
    movq_version: str

    @property
    def raw_bytes(self) -> int:
        """The size of the encoded frames as RGB, one byte per value."""
        return self.frames * self.width * self.height * 3

    @property
    def source_bytes(self) -> int:
        """The size of the source file in bytes; 0 if unknown."""
        size: int = self.preprocessing.get("source_bytes", 0)
        return size

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings that were given when these latents were made."""
        return tuple(self.preprocessing.get("warnings", ()))

    @property
    def partial(self) -> bool:
        """True if the video was cut off or damaged, and only the frames before that were encoded."""
        return bool(self.preprocessing.get("partial"))

    def to_strings(self, version: str = FORMAT_VERSION) -> dict[str, str]:
        """Return the metadata as texts for a safetensors header of this version. Fields at their default are left out."""
        strings = {"format": FORMAT, "format_version": version}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING or value != field.default:
                strings[field.name] = _TEXTS[str(field.type)].write(value)
        return strings

    @classmethod
    def from_strings(cls, strings: Mapping[str, str]) -> Metadata:
        """Return the metadata that a header holds.

        Raises KeyError for a missing field, and ValueError, ZeroDivisionError or RecursionError for an invalid one.
        """
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.default is dataclasses.MISSING or field.name in strings:
                values[field.name] = _TEXTS[str(field.type)].read(strings[field.name])
        if values["semantics"] not in _SEMANTICS:
            raise ValueError(f"semantics {values['semantics'][:40]!r}")
        if values["representation"] not in REPRESENTATIONS:
            raise ValueError(f"representation {values['representation']!r}")
        _check_preprocessing(values["preprocessing"])
        return cls(**values)


def _numbers(text: str) -> list[float]:
    numbers = json.loads(text)
    if not is_numbers(numbers):
        raise ValueError(f"numbers {text[:40]!r}")
    return numbers  # type: ignore[no-any-return]


_FPS = re.compile(r"\d{1,10}(/\d{1,10})?|\d{1,10}\.\d{1,10}")


def _fps(text: str) -> Fraction | None:
    if not text:
        return None
    if not _FPS.fullmatch(text) or not (fps := Fraction(text)):
        raise ValueError(f"fps {text[:40]!r}")
    return fps


class _Text(NamedTuple):
    """Functions that write and read a field of one type as header text."""

    write: Callable[[Any], str]
    read: Callable[[str], Any]


_PLAIN_JSON = _Text(lambda value: json.dumps(value, sort_keys=True, separators=(",", ":")), json.loads)
_TEXTS = {
    "str": _Text(str, str),
    "int": _Text(str, int),
    "int | None": _Text(str, int),
    "float": _Text(str, float),
    "Fraction | None": _Text(lambda value: "" if value is None else str(value), _fps),
    "dict[str, Any]": _PLAIN_JSON,
    "list[int] | None": _PLAIN_JSON,
    "list[float] | None": _Text(_PLAIN_JSON.write, _numbers),
}
"""The text form of each type that a field of Metadata is declared with."""


def _check_preprocessing(said: Any) -> None:
    if not isinstance(said, dict):
        raise ValueError("a preprocessing that is no object")
    warnings, size = said.get("warnings", []), said.get("source_bytes", 0)
    if not isinstance(warnings, list) or not all(isinstance(text, str) for text in warnings):
        raise ValueError("warnings that are no texts")
    if type(size) is not int or not 0 <= size < 2**63:
        raise ValueError("source_bytes that are no size")
