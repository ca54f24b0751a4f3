"""`Encoder3D`: from RGB video in [-1, 1] to the moments of its latents, a whole clip at once or chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .blocks import AttnBlock2D, DownSample3D, Level, Middle, ResnetBlock3D, conv_stage, num_parameters
from .causal import CausalConv3d, StreamCache
from .config import AutoencoderConfig
from .norms import GroupNorm
from .stages import Chunk, ChunkPosition, Stage, Worked, run_window
from .strips import OnStrip, as_it_is


class Encoder3D(nn.Module):
    """The published encoder of CogVideoX (CogVideo, movq_enc_3d.py), with the same arguments, names and results.

    With the published arguments, x (B, in_channels, T, H, W) in [-1, 1] becomes (B, 2 * z_channels, 1 + (T - 1) // 4,
    H / 8, W / 8): mean, then log variance. `norm_scope` is "whole" (published) or "frame" (strictly causal; see
    norms.py). Unknown arguments are ignored, as in the published code, but with a warning that names them. Raises
    ValueError for arguments that make no network, and for chunks that cannot follow.
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
        double_z: bool = True,
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
            )

        self.conv_in = CausalConv3d(in_channels, ch, 3, pad_mode)
        self.down = nn.ModuleList()
        channels = ch
        for i in range(config.levels):
            level = Level()
            for _ in range(num_res_blocks):
                level.block.append(block(channels, config.level_channels(i)))
                channels = config.level_channels(i)
                if config.attends_at(i):
                    level.attn.append(AttnBlock2D(channels, norm_scope))
            if i < config.levels - 1:
                level.downsample = DownSample3D(channels, resamp_with_conv, compress_time=i < config.temporal_levels)
            self.down.append(level)
        self.mid = Middle(block(channels, channels), block(channels, channels))
        self.norm_out = GroupNorm(channels, norm_scope)
        self.conv_out = CausalConv3d(channels, config.moment_channels, 3, pad_mode)

    def forward(self, x: Tensor, cache: StreamCache | None = None, *, use_cp: bool = False) -> Tensor:
        """Encode x (B, in_channels, T, H, W) to moments (B, moment_channels, T', H // s, W // s), s the spatial factor.

        H and W are at least s; what is left over at the right and bottom moves only the latents next to it and the
        norms, as in the published module. Without a cache, x is a whole clip. With one, it is the stream's next chunk:
        1 + n * factor frames, then n * factor (see `StreamCache.take`). With norm_scope "frame" the outputs of the
        chunks, joined, equal that of the whole clip. `use_cp` is the published flag of context parallelism, which the
        published module ignores too.
        """
        (z,) = self.encode_window([x], StreamCache(ends=True) if cache is None else cache)
        return z

    def encode_window(
        self,
        chunks: Iterable[Tensor],
        cache: StreamCache,
        worked: Worked = lambda frames: None,
        check: bool = False,
        prepare: OnStrip = as_it_is,
    ) -> Iterator[Tensor]:
        """Encode the next window of a stream, whose chunks share norm statistics, and yield the moments of each chunk.

        With norm_scope "whole", a stream must be one window if its outputs are to equal those of the whole clip. With
        "frame", windows make no difference. `worked` is called with the work done, in frames. With `check`, raises
        NotFiniteError, which names the first stage whose values are not finite. `prepare` makes a strip of a chunk the
        network's input; without it, chunks are that.
        """
        config, s = self.config, self.config.spatial_factor
        short: list[Tensor] = []

        def admitted() -> Iterator[Chunk]:
            for x in chunks:
                b, _, t, h, w = x.shape
                if h < s or w < s:
                    raise ValueError(f"height and width must be at least {s}, got {h}x{w}")
                if h % s and cache.cuts(h):
                    raise ValueError(
                        f"only pictures whose height is a multiple of {s} are cut into strips, got {h}x{w}"
                    )
                before = cache.frames
                if cache.take(t, factor=config.temporal_factor, first_chunk_frames=config.first_chunk_frames):
                    yield Chunk(x, ChunkPosition(before, t, cache.ends))
                else:  # at the end of a stream, fewer frames than a latent needs
                    short.append(x.new_empty(b, config.moment_channels, 0, h // s, w // s))

        step = None if config.attends else config.strip_step
        yield from run_window(self.stages(), admitted(), cache, step, worked=worked, check=check, prepare=prepare)
        yield from short

    def stages(self) -> list[Stage]:
        """Return the layers in order, cut at every norm."""
        stages = [conv_stage("conv_in", self.conv_in, 1.0)]
        pixels = 1.0  # pixels that the next layers compute for each pixel of the input
        for i, level in enumerate(self.down):
            assert isinstance(level, Level)
            pixels = 1 / (self.config.level_area(i) * self.config.level_time(i))
            for j, (block, attn) in enumerate(level.pairs()):
                stages += block.stages(f"down.{i}.block.{j}", pixels)
                if attn is not None:
                    stages += attn.stages(f"down.{i}.attn.{j}", pixels)
            if i < self.config.levels - 1:
                area = self.config.level_area(i + 1) * self.config.level_time(i + 1)
                down = level.downsample
                stages[-1] = stages[-1].then(down, num_parameters(down) / area, down.rows_below)
        for name in ("block_1", "block_2"):
            stages += getattr(self.mid, name).stages(f"mid.{name}", pixels)
        return [*stages, conv_stage("conv_out", self.conv_out, pixels, self.norm_out)]
