"""Checkpoints of diffusers and CogVideo: which layout a file has, movq's name of each tensor, and the config.

CogVideo's own files ("sat") name tensors as movq's modules do. diffusers renames them, and counts the decoder's levels
from the other end. A diffusers config.json is read; without one the config is inferred from shapes. No torch here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import MovqError, about
from ..files import os_reason
from ..model.config import NORM_EPS, NORM_GROUPS, AutoencoderConfig

LAYOUTS = {
    "movq": ("movq weights", "whole"),
    "diffusers": ("diffusers", "diffusers"),
    "sat": ("CogVideo names", "whole"),
}
"""By layout: what it is called, and how weights with whole-clip norms are run if their file does not say."""

JSON_BYTES = 1 << 20
"""The most bytes of a config or index file that is read."""

_RESOLUTION = 256
"""The `resolution` of the published models. It matters only if there is attention."""

_FIELDS = {
    "net": "encoder|decoder",
    "end": "conv_in|conv_out",
    "i": "0|[1-9][0-9]?",  # level
    "u": "0|[1-9][0-9]?",  # level, counted from the other end by diffusers
    "j": "0|[1-9][0-9]?",  # block
    "n": "norm1|norm2",
    "c": "conv1|conv2",
    "s": r"norm_layer|conv_y\.conv|conv_b\.conv",
    "q": "q|k|v|proj_out",
    "p": "weight|bias",
}
_BLOCKS = (
    ("encoder.down.{i}.block.{j}", "encoder.down_blocks.{i}.resnets.{j}"),
    ("encoder.mid.block_1", "encoder.mid_block.resnets.0"),
    ("encoder.mid.block_2", "encoder.mid_block.resnets.1"),
    ("decoder.mid.block_1", "decoder.mid_block.resnets.0"),
    ("decoder.mid.block_2", "decoder.mid_block.resnets.1"),
    ("decoder.up.{u}.block.{j}", "decoder.up_blocks.{u}.resnets.{j}"),
)
_PAIRS = [  # movq's name, diffusers' name
    ("{net}.{end}.conv.{p}", "{net}.{end}.conv.{p}"),
    ("encoder.norm_out.{p}", "encoder.norm_out.{p}"),
    ("decoder.norm_out.{s}.{p}", "decoder.norm_out.{s}.{p}"),
    ("encoder.down.{i}.downsample.conv.{p}", "encoder.down_blocks.{i}.downsamplers.0.conv.{p}"),
    ("decoder.up.{u}.upsample.conv.{p}", "decoder.up_blocks.{u}.upsamplers.0.conv.{p}"),
]
for _ours, _theirs in _BLOCKS:
    _norm = "{n}.{p}" if _ours.startswith("encoder") else "{n}.{s}.{p}"
    _PAIRS += [(f"{_ours}.{tail}", f"{_theirs}.{tail}") for tail in (_norm, "{c}.conv.{p}")]
    _PAIRS.append((f"{_ours}.nin_shortcut.{{p}}", f"{_theirs}.conv_shortcut.{{p}}"))
_OURS_ALONE = [
    "encoder.down.{i}.attn.{j}.norm.{p}",
    "decoder.up.{u}.attn.{j}.norm.{s}.{p}",
    "encoder.down.{i}.attn.{j}.{q}.{p}",
    "decoder.up.{u}.attn.{j}.{q}.{p}",
]


def _pattern(template: str) -> re.Pattern[str]:
    escaped = template.replace(".", r"\.")
    return re.compile(re.sub(r"\{(\w+)\}", lambda field: f"(?P<{field[1]}>{_FIELDS[field[1]]})", escaped))


_TO_DIFFUSERS = [(_pattern(ours), theirs) for ours, theirs in _PAIRS]
_FROM_DIFFUSERS = [(_pattern(theirs), ours) for ours, theirs in _PAIRS]
_OURS = [_pattern(ours) for ours, _ in _PAIRS] + [_pattern(ours) for ours in _OURS_ALONE]
_CODEBOOK = "quantize.embedding.weight"
"""The codebook of MoVQ's and VQGAN's checkpoints, whose other arguments change nothing of what is encoded."""
_BETWEEN = ("quant_conv.", "post_quant_conv.")
_BETA = 0.25


def to_diffusers(name: str, config: AutoencoderConfig) -> str:
    """Return diffusers' name for one of movq's tensor names.

    Raises MovqError if there is none, as for attention, which diffusers' autoencoder does not have.
    """
    theirs = _rename(name, _TO_DIFFUSERS, config.levels)
    if theirs is None:
        raise MovqError(f"{name} has no counterpart in diffusers' AutoencoderKLCogVideoX")
    return theirs


def _rename(name: str, rules: list[tuple[re.Pattern[str], str]], levels: int) -> str | None:
    for pattern, template in rules:
        if found := pattern.fullmatch(name):
            fields = found.groupdict()
            if "u" in fields:
                level = levels - 1 - int(fields["u"])
                if level < 0:
                    return None
                fields["u"] = str(level)
            return template.format(**fields)
    return None


@dataclass(frozen=True)
class Description:
    """A description of tensors that come without movq's metadata.

    `layout` is "diffusers" or "sat". `names` maps movq's name of each tensor to the stored one. If a config.json was
    read, `read_config` is True and `scaling` has scaling_factor, shift_factor and invert_scale_latents as text ("" if
    unknown); otherwise `scaling` is empty.
    """

    layout: str
    names: Mapping[str, str]
    config: AutoencoderConfig
    scaling: Mapping[str, str]
    read_config: bool


def describe(shapes: Mapping[str, tuple[int, ...]], config_file: str | None) -> Description:
    """Describe tensors by the shapes of their stored names, and by the config.json next to them, if any.

    A config.json is read only for diffusers' layout. Raises MovqError for a name that is not known, naming it, and for
    a config or shapes that make no network of movq's.
    """
    layout = (
        "diffusers" if any(re.match(r"\w+\.(down_blocks|up_blocks|mid_block)\.", name) for name in shapes) else "sat"
    )
    names = _from_diffusers(shapes) if layout == "diffusers" else _as_ours(shapes)
    if layout == "diffusers" and config_file is not None:
        values = read_object(config_file)
        with about(config_file):
            return Description(layout, names, _read_config(values), _scaling(values), True)
    config = _inferred_config({ours: shapes[stored] for ours, stored in names.items()})
    return Description(layout, names, config, {}, False)


def _from_diffusers(stored: Iterable[str]) -> dict[str, str]:
    levels = {network: set[str]() for network in ("down_blocks", "up_blocks")}
    for name in stored:
        if found := re.fullmatch(r"(?:encoder|decoder)\.(down_blocks|up_blocks)\.([0-9]+)\..*", name):
            levels[found[1]].add(found[2])
    count = len(levels["down_blocks"] or levels["up_blocks"])
    renamed = {name: _rename(name, _FROM_DIFFUSERS, count) for name in stored}
    _refuse_unknown([name for name, ours in renamed.items() if ours is None], "diffusers'")
    return {ours: name for name, ours in renamed.items() if ours is not None}


def _as_ours(stored: Iterable[str]) -> dict[str, str]:
    names = {name: name for name in stored if name == _CODEBOOK or any(one.fullmatch(name) for one in _OURS)}
    unknown = [name for name in stored if name not in names]
    if not names:
        raise MovqError("holds neither movq weights nor a CogVideoX autoencoder in diffusers' or CogVideo's names")
    if between := [name for name in unknown if name.startswith(_BETWEEN)]:
        raise MovqError(f"has {some(sorted(between))}: movq runs no layers between the networks and a quantiser")
    _refuse_unknown(unknown, "CogVideo's")
    return names


def _refuse_unknown(names: list[str], whose: str) -> None:
    if names:
        raise MovqError(f"has {some(sorted(names))}, which {whose} CogVideoX autoencoder has not")


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


_PUBLISHED: dict[str, Any] = {  # diffusers' defaults, for what config.json leaves out
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 256, 512],
    "latent_channels": 16,
    "layers_per_block": 3,
    "temporal_compression_ratio": 4,
}
_ONLY: dict[str, Any] = {  # fixed in movq's network; config.json may leave it out, but not differ
    "_class_name": "AutoencoderKLCogVideoX",
    "act_fn": "silu",
    "norm_num_groups": NORM_GROUPS,
    "norm_eps": NORM_EPS,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "latents_mean": None,
    "latents_std": None,
}
_BLOCK_TYPES = {"down_block_types": "CogVideoXDownBlock3D", "up_block_types": "CogVideoXUpBlock3D"}


def _read_config(values: Mapping[str, Any]) -> AutoencoderConfig:
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
    different = sorted(name for name, value in asdict(_read_config(theirs)).items() if ours[name] != value)
    if different:
        raise MovqError(f"diffusers' AutoencoderKLCogVideoX cannot have {some([f'{n} {ours[n]}' for n in different])}")
    return theirs


def _config(**values: Any) -> AutoencoderConfig:
    try:
        return AutoencoderConfig(resolution=_RESOLUTION, **values)
    except (ValueError, TypeError) as error:
        raise MovqError(f"makes no network: {error}") from None


def _scaling(values: Mapping[str, Any]) -> dict[str, str]:
    """Return as text how a diffusion model scales latents. Raises MovqError for values of the wrong type."""
    invert = values.get("invert_scale_latents")
    if invert is not None and type(invert) is not bool:
        raise MovqError(f"has invert_scale_latents {_json(invert)}, neither true nor false")
    said = {"invert_scale_latents": "" if invert is None else _json(invert)}
    for name in ("scaling_factor", "shift_factor"):
        value = values.get(name)
        if value is not None and (type(value) not in (int, float) or value in (math.inf, -math.inf)):
            raise MovqError(f"has {name} {_json(value)}, which is not a number")
        said[name] = "" if value is None else str(value)
    return said


def _json(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _inferred_config(shapes: Mapping[str, tuple[int, ...]]) -> AutoencoderConfig:
    """Infer the config from shapes by movq's names. Raises MovqError for shapes that make no network.

    Time is compressed by 4 and padded with the first frame, as in every published model.
    """
    ch, in_channels = _conv_channels(shapes, "encoder.conv_in.conv.weight")
    moments, _ = _conv_channels(shapes, "encoder.conv_out.conv.weight")
    z_channels, quantizer = _latent_channels(moments, shapes.get(_CODEBOOK))
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
        raise MovqError(f"gives {moments} channels, which its codebook {_CODEBOOK} of {list(codebook)} does not take")
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
