"""The networks: `Encoder3D`, `Decoder3D` and every layer of theirs, under their published names.

Importing this imports no torch; naming a class does. `config` is free of torch altogether.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import AutoencoderConfig

if TYPE_CHECKING:
    from .blocks import AttnBlock2D, DownSample3D, ResnetBlock3D, Upsample3D
    from .causal import CausalConv3d, StreamCache
    from .decoder import Decoder3D, MOVQDecoder3D
    from .encoder import Encoder3D
    from .norms import GroupNorm, SpatialNorm3D

_HOMES = {
    "AttnBlock2D": "blocks",
    "DownSample3D": "blocks",
    "ResnetBlock3D": "blocks",
    "Upsample3D": "blocks",
    "CausalConv3d": "causal",
    "StreamCache": "causal",
    "Decoder3D": "decoder",
    "MOVQDecoder3D": "decoder",
    "Encoder3D": "encoder",
    "GroupNorm": "norms",
    "SpatialNorm3D": "norms",
}

__all__ = [
    "AttnBlock2D",
    "AutoencoderConfig",
    "CausalConv3d",
    "Decoder3D",
    "DownSample3D",
    "Encoder3D",
    "GroupNorm",
    "MOVQDecoder3D",
    "ResnetBlock3D",
    "SpatialNorm3D",
    "StreamCache",
    "Upsample3D",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
