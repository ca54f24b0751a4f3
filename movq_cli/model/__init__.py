"""The networks: `Encoder3D`, `Decoder3D` and every layer of theirs, under their published names.

Importing this imports no torch; naming a class does. `config` is free of torch altogether.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily
from .config import AutoencoderConfig

if TYPE_CHECKING:
    from .blocks import AttnBlock2D, DownSample3D, ResnetBlock3D, Upsample3D
    from .causal import CausalConv3d, StreamCache
    from .decoder import Decoder3D, MOVQDecoder3D
    from .encoder import Encoder3D
    from .norms import GroupNorm, SpatialNorm3D

__getattr__, __dir__ = lazily(
    __name__,
    {
        "blocks": "AttnBlock2D DownSample3D ResnetBlock3D Upsample3D",
        "causal": "CausalConv3d StreamCache",
        "decoder": "Decoder3D MOVQDecoder3D",
        "encoder": "Encoder3D",
        "norms": "GroupNorm SpatialNorm3D",
    },
)

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
