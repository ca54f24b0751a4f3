"""`Decoder3D`: latents back to RGB video, the published MOVQDecoder3D. It decodes whole clips; it does not stream yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import AttnBlock2D, Level, Middle, ResnetBlock3D, Upsample3D
from .causal import LAYOUT, CausalConv3d
from .config import AutoencoderConfig
from .norms import SpatialNorm3D


class Decoder3D(nn.Module):
    """The published decoder of CogVideoX (CogVideo, movq_dec_3d.py), with its arguments, names and numbers.

    z (B, z_channels, L, H, W) becomes (B, out_ch, 1 + (L - 1) * 4, 8H, 8W) with the published arguments, in [-1, 1] or
    nearly. Its norms are SpatialNorm3D of z itself. `give_pre_end` returns what stands before norm_out.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int,
        z_channels: int,
        give_pre_end: bool = False,
        zq_ch: int | None = None,
        add_conv: bool = False,
        pad_mode: str = "first",
        temporal_compress_times: int = 4,
        norm_scope: str = "whole",
        **ignore_kwargs: Any,
    ) -> None:
        super().__init__()
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__", "ignore_kwargs")}
        self.config = config = AutoencoderConfig.from_dict({**arguments, **ignore_kwargs})

        def block(in_channels: int, out_channels: int) -> ResnetBlock3D:
            return ResnetBlock3D(
                in_channels=in_channels,
                out_channels=out_channels,
                dropout=dropout,
                temb_channels=0,
                pad_mode=pad_mode,
                norm_scope=norm_scope,
                zq_ch=config.zq_ch,
            )

        channels = config.level_channels(config.levels - 1)
        self.conv_in = CausalConv3d(z_channels, channels, 3, pad_mode)
        self.mid = Middle(block(channels, channels), block(channels, channels))
        levels = [Level() for _ in range(config.levels)]
        for i, level in reversed(list(enumerate(levels))):
            for _ in range(num_res_blocks + 1):
                level.block.append(block(channels, config.level_channels(i)))
                channels = config.level_channels(i)
                if resolution // 2**i in config.attn_resolutions:
                    level.attn.append(AttnBlock2D(channels, norm_scope, config.zq_ch))
            if i > 0:
                doubles_time = i >= config.levels - config.temporal_levels
                level.upsample = Upsample3D(channels, resamp_with_conv, compress_time=doubles_time)
        self.up = nn.ModuleList(levels)
        assert config.zq_ch is not None
        self.norm_out = SpatialNorm3D(channels, config.zq_ch, norm_scope)
        self.conv_out = CausalConv3d(channels, out_ch, 3, pad_mode)

    def forward(self, z: Tensor, zq: Tensor | None = None) -> Tensor:
        """z (B, z_channels, L, H, W) of a whole clip; zq, what the norms read, is z unless given."""
        zq = z if zq is None else zq
        h: Tensor = self.conv_in(z.contiguous(memory_format=LAYOUT))
        h = self.mid.block_1(h, zq=zq)
        h = self.mid.block_2(h, zq=zq)
        for i, level in reversed(list(enumerate(self.up))):
            assert isinstance(level, Level)
            for block, attn in level.pairs():
                h = block(h, zq=zq)
                if attn is not None:
                    h = attn(h, zq=zq)
            if i > 0:
                h = level.upsample(h)
        if self.config.give_pre_end:
            return h
        h = self.conv_out(F.silu(self.norm_out(h, zq)))
        return h


MOVQDecoder3D = Decoder3D
"""Its published name."""
