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
NORM_GROUPS = 32
NORM_EPS = 1e-6
_MOST_LEVELS = 10
WINDOW_FRAMES = 8
"""Frames of a window when AutoencoderKLCogVideoX of diffusers encodes; its first window may have more."""
WINDOW_LATENTS = 2
"""Latents of a window when diffusers, or CogVideo's own code, decodes."""
STRIP_STEP = 32
"""Strips are multiples of so many rows of a picture: less would make them slow."""


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

    def _check_quantizer(self, quantizer: Any) -> None:
        """Check the quantiser's arguments, by which alone it is built."""
        sizes = _codes_and_channels(quantizer)
        if sizes is None:
            raise ValueError(
                f"a quantizer must be one of {', '.join(_ARGUMENTS)}, with its arguments, got {quantizer!r}"
            )
        dim = quantizer.get("dim") or sizes[1]
        if dim != self.z_channels:
            raise ValueError(f"its quantizer takes {dim} channels, not {self.z_channels}")

    @property
    def codes(self) -> int:
        """The number of codes of the quantiser; 0 without one."""
        sizes = None if self.quantizer is None else _codes_and_channels(self.quantizer)
        return 0 if sizes is None else sizes[0]

    @property
    def codebooks(self) -> int:
        """The number of codes at each position of a latent."""
        return 0 if self.quantizer is None else int(self.quantizer.get("num_codebooks") or 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AutoencoderConfig:
        """Make a config of these values. A key that neither network knows is ignored, with a warning that names it.

        Raises ValueError if a required key is missing or a value is invalid.
        """
        if not isinstance(values, Mapping):
            raise ValueError("is not a JSON object")
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
        """Pixels per latent position along height and width. Videos are padded to multiples of it."""
        return int(2 ** (self.levels - 1))

    @property
    def attends(self) -> bool:
        """True if the networks have attention, which sees the whole picture."""
        return any(map(self.attends_at, range(self.levels)))

    def attends_at(self, level: int) -> bool:
        """Return True if attention follows the blocks of this level."""
        return self.resolution >> level in self.attn_resolutions

    @property
    def strip_step(self) -> int:
        """The height of a strip is a multiple of so many rows of a picture, so that every level has whole rows of it."""
        return max(STRIP_STEP, self.spatial_factor)

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


_BOOKS = {"num_codebooks": int, "keep_num_codebooks_dim": bool}
_ARGUMENTS: Mapping[str, Mapping[str, type]] = {
    "VectorQuantizer2": {"n_e": int, "e_dim": int, "beta": float, "legacy": bool, "sane_index_shape": bool},
    "FSQ": {"levels": list, "dim": int, "scale": float} | _BOOKS,
    "LFQ": {
        **dict.fromkeys(("dim", "codebook_size"), int),
        **dict.fromkeys(("entropy_loss_weight", "commitment_loss_weight", "diversity_gamma"), float),
        **dict.fromkeys(("codebook_scale", "frac_per_sample_entropy"), float),
        **_BOOKS,
    },
}
"""The quantisers that a config may have, with their arguments; see quantizers.py."""
_LEVELS = range(2, 1001)  # of FSQ: its range is a thousandth wider than its levels
_MOST_CHANNELS = 1 << 12
_MOST_CODES = 1 << 31


def _codes_and_channels(quantizer: Any) -> tuple[int, int] | None:
    """Return how many codes a quantiser has and how many channels its codebooks take; None if it cannot be."""
    if not isinstance(quantizer, dict) or quantizer.get("kind") not in _ARGUMENTS:
        return None
    given = {name: value for name, value in quantizer.items() if name != "kind" and value is not None}
    kinds = _ARGUMENTS[quantizer["kind"]]
    if not all(name in kinds and _is_a(value, kinds[name]) for name, value in given.items()):
        return None
    books = given.get("num_codebooks", 1)
    if books > 1 and not given.get("keep_num_codebooks_dim", True):
        return None
    codes, channels = 0, 0
    if "n_e" in given and "e_dim" in given and "beta" in given:
        codes, channels = given["n_e"], given["e_dim"]
    elif "levels" in given and len(given["levels"]) < _MOST_CHANNELS and all(n in _LEVELS for n in given["levels"]):
        codes, channels = math.prod(given["levels"]), len(given["levels"]) * books
    elif quantizer["kind"] == "LFQ" and given.get("dim", 1) < _MOST_CHANNELS:
        codes = given.get("codebook_size") or 2 ** given.get("dim", 0)
        channels = (codes.bit_length() - 1) * books if codes.bit_count() == 1 else 0
    return (codes, channels) if 1 < codes < _MOST_CODES and 0 < channels < _MOST_CHANNELS else None


def _is_a(value: Any, kind: type) -> bool:
    if kind is list:
        return isinstance(value, list) and all(type(n) is int for n in value)
    if kind is int:
        return type(value) is int and value > 0
    return type(value) is kind or (kind is float and type(value) is int and abs(value) < _MOST_CODES)
