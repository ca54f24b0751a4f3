"""Checkpoints of diffusers and CogVideo: which layout a file has, and movq's name of each tensor.

CogVideo's own files ("sat") name tensors as movq's modules do. diffusers renames them, and counts the decoder's levels
from the other end. Wrappers (`module.`) and files of several networks (`vae.`) put a prefix in front. No torch here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import MovqError, MovqWarning, about
from ..model.config import AutoencoderConfig
from .configs import CODEBOOK, config_of, inferred_config, other_model, read_object, scaling_in, some

LAYOUTS = {
    "movq": ("movq weights", "whole"),
    "diffusers": ("diffusers", "diffusers"),
    "sat": ("CogVideo names", "whole"),
}
"""By layout: what it is called, and how weights with whole-clip norms are run if their file does not say."""

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
_BETWEEN = ("quant_conv.", "post_quant_conv.")
_ANY = "encoder.conv_in.conv.weight"
"""A name that the encoder has in every layout."""


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
    unknown), and latents_mean and latents_std if the config has them; otherwise `scaling` is empty.
    """

    layout: str
    names: Mapping[str, str]
    config: AutoencoderConfig
    scaling: Mapping[str, str]
    read_config: bool


def describe(shapes: Mapping[str, tuple[int, ...]], config_file: str | None) -> Description:
    """Describe tensors by the shapes of their stored names, and by the config.json next to them, if any.

    A config.json is read only for diffusers' layout, and passed over with a warning if it is another model's. Raises
    MovqError for a name that is not known, naming it, and for a config or shapes that make no network of movq's.
    """
    plain = without_prefix(shapes)
    layout = (
        "diffusers" if any(re.match(r"\w+\.(down_blocks|up_blocks|mid_block)\.", name) for name in plain) else "sat"
    )
    ours = _from_diffusers(plain) if layout == "diffusers" else _as_ours(plain)
    names = {name: plain[stored] for name, stored in ours.items()}
    if layout == "diffusers" and config_file is not None:
        values = read_object(config_file)
        other = other_model(values)
        with about(config_file):
            if not other:
                return Description(layout, names, config_of(values), scaling_in(values), True)
        text = f"the weights' config.json is another model's, {other}: it is passed over, and shapes of tensors give the config"
        warnings.warn(MovqWarning(text), stacklevel=2)
    config = inferred_config({name: shapes[stored] for name, stored in names.items()})
    return Description(layout, names, config, {}, False)


def without_prefix(stored: Iterable[str]) -> dict[str, str]:
    """Map the names of an autoencoder's tensors without their common prefix, if they have one, to the stored names.

    Tensors without the prefix are other networks'; they are left out with a warning. Raises MovqError for several
    autoencoders.
    """
    names = list(stored)
    prefixes = {name.removesuffix(_ANY) for name in names if name.endswith(f".{_ANY}")}
    if not prefixes or _ANY in names:
        return {name: name for name in names}
    if len(prefixes) > 1:
        raise MovqError(f"holds several autoencoders, under {some(sorted(prefixes))}: movq needs a file of one")
    (prefix,) = prefixes
    plain = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    if others := sorted(set(names) - set(plain.values())):
        networks = sorted({name.split(".", 1)[0] for name in others})
        text = f"the weights come with other networks ({some(networks)}): only the tensors under {prefix} are taken"
        warnings.warn(MovqWarning(text), stacklevel=2)
    return plain


def _from_diffusers(plain: Mapping[str, str]) -> dict[str, str]:
    levels = {network: set[str]() for network in ("down_blocks", "up_blocks")}
    for name in plain:
        if found := re.fullmatch(r"(?:encoder|decoder)\.(down_blocks|up_blocks)\.([0-9]+)\..*", name):
            levels[found[1]].add(found[2])
    count = len(levels["down_blocks"] or levels["up_blocks"])
    renamed = {name: _rename(name, _FROM_DIFFUSERS, count) for name in plain}
    _refuse_unknown([plain[name] for name, ours in renamed.items() if ours is None], "diffusers'")
    return {ours: name for name, ours in renamed.items() if ours is not None}


def _as_ours(plain: Mapping[str, str]) -> dict[str, str]:
    names = {name: name for name in plain if name == CODEBOOK or any(one.fullmatch(name) for one in _OURS)}
    unknown = [name for name in plain if name not in names]
    if not names:
        raise MovqError(
            "holds neither movq weights nor a CogVideoX autoencoder in diffusers' or CogVideo's names; "
            f"its tensors are {some(sorted(plain.values())) or 'none'}"
        )
    if between := [plain[name] for name in unknown if name.startswith(_BETWEEN)]:
        raise MovqError(f"has {some(sorted(between))}: movq runs no layers between the networks and a quantiser")
    _refuse_unknown([plain[name] for name in unknown], "CogVideo's")
    return names


def _refuse_unknown(names: list[str], whose: str) -> None:
    if names:
        raise MovqError(f"has {some(sorted(names))}, which {whose} CogVideoX autoencoder has not")
