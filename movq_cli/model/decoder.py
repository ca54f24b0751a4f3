"""`Decoder3D`, published as MOVQDecoder3D: from latents to RGB video, a whole clip at once or chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .blocks import AttnBlock2D, Level, Middle, ResnetBlock3D, Upsample3D, conv_stage
from .causal import CausalConv3d, StreamCache
from .config import AutoencoderConfig
from .convolution import lay_out
from .norms import SpatialNorm3D
from .stages import Chunk, ChunkPosition, Stage, Worked, run_window
from .strips import OnStrip, as_it_is


class Decoder3D(nn.Module):
    """The published decoder of CogVideoX (CogVideo, movq_dec_3d.py), with the same arguments, names and results.

    With the published arguments, z (B, z_channels, L, H, W) becomes (B, out_ch, 1 + (L - 1) * 4, 8H, 8W), in [-1, 1] or
    nearly. Its norms are SpatialNorm3D and read z itself. With `give_pre_end` it returns the input of norm_out.
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
                if config.attends_at(i):
                    level.attn.append(AttnBlock2D(channels, norm_scope, config.zq_ch))
            if i > 0:
                level.upsample = Upsample3D(channels, resamp_with_conv, compress_time=config.doubles_time(i))
        self.up = nn.ModuleList(levels)
        assert config.zq_ch is not None
        self.norm_out = SpatialNorm3D(channels, config.zq_ch, norm_scope)
        self.conv_out = CausalConv3d(channels, out_ch, 3, pad_mode)

    def forward(
        self, z: Tensor, zq: Tensor | None = None, cache: StreamCache | None = None, *, use_cp: bool = False
    ) -> Tensor:
        """Decode z (B, z_channels, L, H, W). The norms read zq (B, zq_ch, L, H, W), which is z by default.

        Without a cache, z is a whole clip. With one, it is the stream's next chunk, of any length. The stream's first
        latent gives 1 frame, later ones give `temporal_factor`. With norm_scope "frame" the outputs of the chunks,
        joined, equal that of the whole clip. `use_cp` is ignored, as in the published MOVQDecoder3D.
        """
        (x,) = self.decode_window([(z, z if zq is None else zq)], StreamCache(ends=True) if cache is None else cache)
        return x

    def decode_window(
        self,
        chunks: Iterable[tuple[Tensor, Tensor]],
        cache: StreamCache,
        worked: Worked = lambda frames: None,
        finish: OnStrip = as_it_is,
    ) -> Iterator[Tensor]:
        """Decode the next window of a stream, with chunks (z, zq), and yield the frames of each chunk.

        The chunks share norm statistics and report to `worked` as in `Encoder3D.encode_window`. `finish` is applied to
        a strip of the frames, before strips become pictures.
        """
        config = self.config

        def admitted() -> Iterator[Chunk]:
            for z, zq in chunks:
                before = config.latents_to_frames(cache.frames) if cache.frames else 0
                cache.take(z.shape[2], factor=1, first_chunk_frames=config.latent_frames(config.first_chunk_frames))
                frames = config.latents_to_frames(cache.frames) - before
                z, zq = map(lay_out, (z, zq))
                yield Chunk(z, ChunkPosition(before, frames, cache.ends), zq)

        step = None if config.attends else config.strip_step
        yield from run_window(
            self.stages(), admitted(), cache, step, worked=worked, finish=finish, scale=config.spatial_factor
        )

    def stages(self) -> list[Stage]:
        """Return the layers in order, cut at every norm."""
        config = self.config

        def pixels(level: int) -> float:
            """Return the pixels that a level's blocks compute for each pixel of the output."""
            return 1 / (config.level_area(level) * config.decoder_level_time(level))

        lowest = pixels(config.levels - 1)
        stages = [conv_stage("conv_in", self.conv_in, lowest)]
        for name in ("block_1", "block_2"):
            stages += getattr(self.mid, name).stages(f"mid.{name}", lowest)
        for i, level in reversed(list(enumerate(self.up))):
            assert isinstance(level, Level)
            for j, (block, attn) in enumerate(level.pairs()):
                stages += block.stages(f"up.{i}.block.{j}", pixels(i))
                if attn is not None:
                    stages += attn.stages(f"up.{i}.attn.{j}", pixels(i))
            if i > 0:
                stages.append(level.upsample.stage(f"up.{i}.upsample", pixels(i - 1)))
        if config.give_pre_end:
            return stages
        return [*stages, conv_stage("conv_out", self.conv_out, 1.0, self.norm_out)]


MOVQDecoder3D = Decoder3D
"""The published name of `Decoder3D`."""
