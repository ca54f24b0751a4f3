"""The networks `Encoder3D` and `Decoder3D` and all their layers, under their published names.

Importing this package does not import torch; the first use of a class does. `config` needs no torch at all.
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
    from .quantizers import FSQ, LFQ, Quantised, VectorQuantizer2

__getattr__, __dir__ = lazily(
    __name__,
    {
        "blocks": "AttnBlock2D DownSample3D ResnetBlock3D Upsample3D",
        "causal": "CausalConv3d StreamCache",
        "decoder": "Decoder3D MOVQDecoder3D",
        "encoder": "Encoder3D",
        "norms": "GroupNorm SpatialNorm3D",
        "quantizers": "FSQ LFQ Quantised VectorQuantizer2",
    },
)

__all__ = [
    "FSQ",
    "LFQ",
    "AttnBlock2D",
    "AutoencoderConfig",
    "CausalConv3d",
    "Decoder3D",
    "DownSample3D",
    "Encoder3D",
    "GroupNorm",
    "MOVQDecoder3D",
    "Quantised",
    "ResnetBlock3D",
    "SpatialNorm3D",
    "StreamCache",
    "Upsample3D",
    "VectorQuantizer2",
]
