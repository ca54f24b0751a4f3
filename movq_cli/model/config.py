"""The config of an autoencoder: one frozen dataclass, read from the flat JSON of a weights file. No torch here.

It has every key of `Encoder3D` and of `Decoder3D`. Code that needs a factor of 4, 8 or 16 takes it from here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import MovqWarning

PAD_MODES = ("first", "constant", "reflect")
NORM_SCOPES = ("whole", "frame")
QUANTIZERS = ("VectorQuantizer2", "FSQ", "LFQ")
NORM_GROUPS = 32
NORM_EPS = 1e-6
_MOST_LEVELS = 10
WINDOW_FRAMES = 8
"""Frames of a window when AutoencoderKLCogVideoX of diffusers encodes; its first window may have more."""
WINDOW_LATENTS = 2
"""Latents of a window when diffusers, or CogVideo's own code, decodes."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Constructor arguments of the published MoVQ encoder and decoder, `norm_scope`, and `quantizer`.

    `quantizer` has the `kind` of the quantiser of these weights, a class in quantizers.py, and its arguments.

    Raises ValueError, with the reason, if no network can be built from them.
    """

    ch: int
    out_ch: int
    in_channels: int
    resolution: int
    z_channels: int
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    ch_mult: tuple[int, ...] = (1, 2, 4, 8)
    dropout: float = 0.0
    resamp_with_conv: bool = True
    double_z: bool = True
    pad_mode: str = "first"
    temporal_compress_times: int = 4
    norm_scope: str = "whole"
    zq_ch: int | None = None
    add_conv: bool = False
    give_pre_end: bool = False
    quantizer: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_levels()
        if self.quantizer is not None:
            self._check_quantizer(self.quantizer)
        for name, value, known in (
            ("pad_mode", self.pad_mode, PAD_MODES),
            ("norm_scope", self.norm_scope, NORM_SCOPES),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.add_conv:
            raise ValueError("add_conv=True is not supported (no published model has it)")

    def _check_numbers(self) -> None:
        for name in ("attn_resolutions", "ch_mult"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not all(type(v) is int for v in value):
                raise ValueError(f"{name} must be a list of whole numbers, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        if self.zq_ch is None:
            object.__setattr__(self, "zq_ch", self.z_channels)
        for name in ("ch", "out_ch", "in_channels", "resolution", "z_channels", "num_res_blocks", "zq_ch"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number above 0, got {value!r}")

    def _check_levels(self) -> None:
        if not 1 <= len(self.ch_mult) <= _MOST_LEVELS:
            raise ValueError(f"ch_mult has {len(self.ch_mult)} levels; there must be 1 to {_MOST_LEVELS}")
        for mult in self.ch_mult:
            if mult < 1 or (self.ch * mult) % NORM_GROUPS:
                raise ValueError(
                    f"every level needs a multiple of {NORM_GROUPS} channels (GroupNorm has {NORM_GROUPS} groups), "
                    f"got ch {self.ch} x {mult}"
                )
        times = self.temporal_compress_times
        if type(times) is not int or times < 1 or times & (times - 1):
            raise ValueError(f"temporal_compress_times must be a power of two, got {times!r}")
        if self.temporal_levels > self.levels - 1:
            raise ValueError(
                f"temporal_compress_times {times} needs {self.temporal_levels} downsampling levels, "
                f"ch_mult of {self.levels} levels has {self.levels - 1}"
            )

    def _check_quantizer(self, quantizer: Mapping[str, Any]) -> None:
        """Check what the number of codes follows from; its other arguments are those of the class."""
        sizes = _codes_and_channels(quantizer)
        if sizes is None or not 1 < sizes[0] < 2**31 or sizes[1] < 1:
            raise ValueError(
                f"a quantizer must be one of {', '.join(QUANTIZERS)}, with its arguments, got {quantizer!r}"
            )
        if quantizer.get("dim", sizes[1]) not in (None, self.z_channels) or (
            quantizer.get("dim") is None and sizes[1] != self.z_channels
        ):
            raise ValueError(f"its quantizer takes {quantizer.get('dim') or sizes[1]} channels, not {self.z_channels}")

    @property
    def codes(self) -> int:
        """The number of codes of the quantiser; 0 without one."""
        sizes = None if self.quantizer is None else _codes_and_channels(self.quantizer)
        return 0 if sizes is None else sizes[0]

    @property
    def codebooks(self) -> int:
        """The number of codes at each position of a latent."""
        return 0 if self.quantizer is None else int(self.quantizer.get("num_codebooks", 1))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AutoencoderConfig:
        """Make a config of these values. A key that neither network knows is ignored, with a warning that names it.

        Raises ValueError if a required key is missing or a value is invalid.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in sorted(set(values) - known):
            warnings.warn(f"unknown config key {name!r} is ignored", MovqWarning, stacklevel=3)
        given = {k: v for k, v in values.items() if k in known}
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in given and f.default is dataclasses.MISSING]
        if missing:
            raise ValueError(f"config lacks {', '.join(missing)}")
        return cls(**given)

    def to_json(self) -> str:
        """Return all keys and values as JSON, sorted and without spaces, so that equal configs give equal text."""
        return json.dumps(self._values(), sort_keys=True, separators=(",", ":"))

    def _values(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        if self.quantizer is None:
            del values["quantizer"]
        return values

    def identity_json(self) -> str:
        """Return `to_json` without what cannot change a latent: dropout, and resolution if there is no attention."""
        values = self._values()
        del values["dropout"]
        if not self.attn_resolutions:
            del values["resolution"]
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @property
    def levels(self) -> int:
        """The number of resolutions."""
        return len(self.ch_mult)

    @property
    def temporal_levels(self) -> int:
        """The number of levels that halve time (encoder) or double it (decoder): log2 of the temporal factor."""
        return int(math.log2(self.temporal_compress_times))

    @property
    def temporal_factor(self) -> int:
        """Frames per latent, except for the first latent, which has one frame."""
        return self.temporal_compress_times

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position along height and width. A picture's height and width must be multiples of it."""
        return int(2 ** (self.levels - 1))

    @property
    def moment_channels(self) -> int:
        """Channels of the encoder's output: mean and log variance with `double_z`, otherwise only the mean."""
        return 2 * self.z_channels if self.double_z else self.z_channels

    @property
    def first_chunk_frames(self) -> int:
        """The fewest frames of a stream's first chunk if a second follows; more for `reflect`, which looks ahead."""
        return 1 + 2 * self.temporal_factor if self.pad_mode == "reflect" else 1

    def level_channels(self, level: int) -> int:
        """Return the number of channels of a level."""
        return self.ch * self.ch_mult[level]

    def level_area(self, level: int) -> int:
        """Return the ratio of the picture's pixels to those that the blocks of this level see."""
        return int(4**level)

    def level_time(self, level: int) -> int:
        """Return the ratio of the input's frames to those that the encoder's blocks of this level see."""
        return int(2 ** min(level, self.temporal_levels))

    def doubles_time(self, level: int) -> bool:
        """Return True if the decoder doubles time after the blocks of this level."""
        return level > 0 and level >= self.levels - self.temporal_levels

    def decoder_level_time(self, level: int) -> int:
        """Return the ratio of the output's frames to those that the decoder's blocks of this level see."""
        return int(2 ** sum(self.doubles_time(i) for i in range(level + 1)))

    def latent_frames(self, frames: int) -> int:
        """Return how many latents T frames give: 1 + (T - 1) // factor, rounded down as in the published encoder."""
        return 1 + (frames - 1) // self.temporal_factor if frames > 0 else 0

    def latents_to_frames(self, latents: int) -> int:
        """Return how many frames the first `latents` latents of a stream cover: 1 + (latents - 1) * factor."""
        return 1 + (latents - 1) * self.temporal_factor

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        """Return the shape (1, C, T', H', W') of the moments of one clip."""
        s = self.spatial_factor
        return 1, self.moment_channels, self.latent_frames(frames), height // s, width // s


def _codes_and_channels(quantizer: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return how many codes a quantiser has and how many channels its codebooks take; None if it cannot be."""
    kind, books = quantizer.get("kind"), quantizer.get("num_codebooks", 1)
    try:
        if kind == "VectorQuantizer2":
            return int(quantizer["n_e"]), int(quantizer["e_dim"])
        if kind == "FSQ":
            levels = [int(level) for level in quantizer["levels"]]
            return (math.prod(levels), len(levels) * books) if min(levels) > 1 else None
        if kind == "LFQ":
            codes = int(quantizer.get("codebook_size") or 2 ** int(quantizer["dim"]))
            return codes, (codes.bit_length() - 1) * books
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    return None
