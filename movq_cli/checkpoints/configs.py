"""The config of other people's checkpoints: read from diffusers' config.json, or inferred from the tensors' shapes.

JSON files are read strictly. No torch here, and no names of tensors but movq's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..errors import MovqError
from ..files import os_reason
from ..model.config import NORM_EPS, NORM_GROUPS, AutoencoderConfig
from ..values import is_numbers

JSON_BYTES = 1 << 20
"""The most bytes of a config or index file that is read."""

CODEBOOK = "quantize.embedding.weight"
"""The codebook of MoVQ's and VQGAN's checkpoints, whose other arguments change nothing of what is encoded."""
_BETA = 0.25

LISTS = ("latents_mean", "latents_std")
"""Keys of a config.json with a number for each channel. diffusers never applies them for these models, nor does movq."""

_RESOLUTION = 256
"""The `resolution` of the published models. It matters only if there is attention."""


def some(names: list[str]) -> str:
    """Return the first three names, and how many more there are, as text."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_object(path: str) -> dict[str, Any]:
    """Return the JSON object in a file. Raises MovqError if it cannot be read or is not a valid one."""
    try:
        with open(path, "rb") as file:
            return parse_object(file.read(JSON_BYTES + 1))
    except OSError as error:
        raise MovqError(os_reason(error), path) from None
    except ValueError as error:
        raise MovqError(f"cannot be used: {error}", path) from None


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError with the reason if it is not valid, as when a name occurs twice."""
    if len(text) > JSON_BYTES:
        raise ValueError(f"is more than {JSON_BYTES} bytes long")
    try:
        values = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("is not a JSON object")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"names {twice!r} twice")
    return values


def _refuse_constant(text: str) -> None:
    raise ValueError(f"has the number {text}")


_CLASS = "AutoencoderKLCogVideoX"
_PUBLISHED: dict[str, Any] = {  # diffusers' defaults, for what config.json leaves out
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 256, 512],
    "latent_channels": 16,
    "layers_per_block": 3,
    "temporal_compression_ratio": 4,
}
_ONLY: dict[str, Any] = {  # fixed in movq's network; config.json may leave it out, but not differ
    "act_fn": "silu",
    "norm_num_groups": NORM_GROUPS,
    "norm_eps": NORM_EPS,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_BLOCK_TYPES = {"down_block_types": "CogVideoXDownBlock3D", "up_block_types": "CogVideoXUpBlock3D"}


def other_model(values: Mapping[str, Any]) -> str:
    """Return which other model a config.json is of, by its class in diffusers or transformers; "" if it names none."""
    named = values.get("_class_name")
    if named is None:
        architectures = values.get("architectures")
        named = architectures[0] if isinstance(architectures, list) and architectures else values.get("model_type")
    return "" if named in (None, _CLASS) else _json(named)


def config_of(values: Mapping[str, Any]) -> AutoencoderConfig:
    """Return the config that a config.json of diffusers gives. Raises MovqError if movq has no such network."""
    for name, only in _ONLY.items():
        if values.get(name, only) != only:
            raise MovqError(f"has {name} {_json(values[name])}; movq's network has {_json(only)}")
    said = {name: values.get(name, default) for name, default in _PUBLISHED.items()}
    channels = said["block_out_channels"]
    if not isinstance(channels, list) or not channels or not all(type(n) is int and n > 0 for n in channels):
        raise MovqError(f"has block_out_channels {_json(channels)}, not a list of whole numbers above 0")
    if any(n % channels[0] for n in channels):
        raise MovqError(f"has block_out_channels {_json(channels)}, which are not multiples of the first")
    for name, only in _BLOCK_TYPES.items():
        if values.get(name, [only] * len(channels)) != [only] * len(channels):
            raise MovqError(
                f"has {name} {_json(values[name])}; movq's network has {only} at each of {len(channels)} levels"
            )
    ratio = said["temporal_compression_ratio"]
    return _config(
        ch=channels[0],
        ch_mult=tuple(n // channels[0] for n in channels),
        num_res_blocks=said["layers_per_block"],
        in_channels=said["in_channels"],
        out_ch=said["out_channels"],
        z_channels=said["latent_channels"],
        temporal_compress_times=int(ratio) if isinstance(ratio, float) and ratio.is_integer() else ratio,
        attn_resolutions=(),
        zq_ch=None,
    )


def diffusers_config(config: AutoencoderConfig) -> dict[str, Any]:
    """Return the config from which diffusers builds the same network. Raises MovqError if it cannot build it."""
    theirs = {
        "in_channels": config.in_channels,
        "out_channels": config.out_ch,
        "block_out_channels": [config.level_channels(i) for i in range(config.levels)],
        "latent_channels": config.z_channels,
        "layers_per_block": config.num_res_blocks,
        "temporal_compression_ratio": config.temporal_factor,
        **{name: [kind] * config.levels for name, kind in _BLOCK_TYPES.items()},
    }
    ours = asdict(config) | {"dropout": 0.0, "resolution": _RESOLUTION}
    different = sorted(name for name, value in asdict(config_of(theirs)).items() if ours[name] != value)
    if different:
        raise MovqError(f"diffusers' {_CLASS} cannot have {some([f'{n} {ours[n]}' for n in different])}")
    return theirs


def _config(**values: Any) -> AutoencoderConfig:
    try:
        return AutoencoderConfig(resolution=_RESOLUTION, **values)
    except (ValueError, TypeError) as error:
        raise MovqError(f"makes no network: {error}") from None


def scaling_in(values: Mapping[str, Any]) -> dict[str, str]:
    """Return as text how a diffusion model scales latents, with those of LISTS that the config has.

    Raises MovqError for values of the wrong type.
    """
    invert = values.get("invert_scale_latents")
    if invert is not None and type(invert) is not bool:
        raise MovqError(f"has invert_scale_latents {_json(invert)}, neither true nor false")
    said = {"invert_scale_latents": "" if invert is None else _json(invert)}
    for name in ("scaling_factor", "shift_factor"):
        value = values.get(name)
        if value is not None and (type(value) not in (int, float) or value in (math.inf, -math.inf)):
            raise MovqError(f"has {name} {_json(value)}, which is not a number")
        said[name] = "" if value is None else str(value)
    for name in LISTS:
        value = values.get(name)
        if value is not None and not is_numbers(value):
            raise MovqError(f"has {name} {_json(value)}, which is not a list of numbers")
        said |= {} if value is None else {name: json.dumps(value)}
    return said


def _json(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def inferred_config(shapes: Mapping[str, tuple[int, ...]]) -> AutoencoderConfig:
    """Infer the config from shapes by movq's names. Raises MovqError for shapes that make no network.

    Time is compressed by 4 and padded with the first frame, as in every published model.
    """
    ch, in_channels = _conv_channels(shapes, "encoder.conv_in.conv.weight")
    moments, _ = _conv_channels(shapes, "encoder.conv_out.conv.weight")
    z_channels, quantizer = _latent_channels(moments, shapes.get(CODEBOOK))
    levels, blocks = _levels(shapes, "encoder.down")
    widths = [_conv_channels(shapes, f"encoder.down.{i}.block.0.conv1.conv.weight")[0] for i in range(levels)]
    if any(width % ch for width in widths):
        raise MovqError(f"has levels of {', '.join(map(str, widths))} channels, which are not multiples of {ch}")
    out_ch, zq_ch = in_channels, None
    if any(name.startswith("decoder.") for name in shapes):
        out_ch, _ = _conv_channels(shapes, "decoder.conv_out.conv.weight")
        _, zq_ch = _conv_channels(shapes, "decoder.norm_out.conv_y.conv.weight")
        if _levels(shapes, "decoder.up") != (levels, blocks + 1):
            raise MovqError(
                f"has an encoder of {levels} levels of {blocks} blocks, and a decoder not of {levels} levels of {blocks + 1}"
            )
    attention = (i for i in range(levels) if any(name.startswith(f"encoder.down.{i}.attn.") for name in shapes))
    return _config(
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=blocks,
        in_channels=in_channels,
        out_ch=out_ch,
        z_channels=z_channels,
        double_z=moments == 2 * z_channels,
        quantizer=quantizer,
        attn_resolutions=tuple(_RESOLUTION // 2**i for i in attention),
        zq_ch=zq_ch,
    )


def _latent_channels(moments: int, codebook: tuple[int, ...] | None) -> tuple[int, dict[str, Any] | None]:
    """Return how many channels latents have, and the quantiser of a codebook of this shape, if there is one.

    Raises MovqError if the encoder gives neither such latents nor their mean and log variance.
    """
    if codebook is None:
        if moments % 2:
            raise MovqError(f"gives {moments} channels, which are not mean and log variance")
        return moments // 2, None
    if len(codebook) != len(("entries", "channels")) or moments not in (codebook[1], 2 * codebook[1]):
        raise MovqError(f"gives {moments} channels, which its codebook {CODEBOOK} of {list(codebook)} does not take")
    entries, channels = codebook
    return channels, {"kind": "VectorQuantizer2", "n_e": entries, "e_dim": channels, "beta": _BETA}


def _conv_channels(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, int]:
    """Return the output and input channels of a 3-D convolution's weight."""
    if name not in shapes:
        raise MovqError(f"lacks {name}")
    if len(shapes[name]) != 5 or 0 in shapes[name]:
        raise MovqError(f"tensor {name} has shape {list(shapes[name])}, which is no 3-D convolution's")
    return shapes[name][0], shapes[name][1]


def _levels(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> tuple[int, int]:
    """Return the number of levels, and the number of blocks in each. Raises MovqError if blocks are missing."""
    blocks: dict[int, set[int]] = {}
    for name in shapes:
        if found := re.match(rf"{re.escape(prefix)}\.([0-9]+)\.block\.([0-9]+)\.", name):
            blocks.setdefault(int(found[1]), set()).add(int(found[2]))
    each = [len(blocks[i]) for i in sorted(blocks)]
    if sorted(blocks) != list(range(len(blocks))) or any(blocks[i] != set(range(each[0])) for i in blocks):
        listed = "; ".join(f"{i}: {', '.join(map(str, sorted(blocks[i])))}" for i in sorted(blocks))
        raise MovqError(f"lacks blocks: every level of {prefix} has as many, here are {listed}")
    if not blocks:
        raise MovqError(f"lacks {prefix}.0.block.0")
    return len(blocks), each[0]
