"""The layers of the published encoder and decoder, under their published names (CogVideo, movq_enc_3d.py, movq_dec_3d.py).

Each takes (B, C, T, H, W), and a cache if it streams. A call without a cache is a whole clip.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .causal import CausalConv3d, StreamCache, fold_frames, unfilled, unfold_frames
from .convolution import LAYOUT, Conv2d, Conv3d
from .norms import GroupNorm, NormStatistics, SpatialNorm3D
from .stages import Carry, Stage
from .strips import Band, Halo

Norm = GroupNorm | SpatialNorm3D


class DownSample3D(nn.Module):
    """Halves height and width; with `compress_time` also time, except for the stream's first frame, which is kept.

    (B, C, T, H, W) to (B, C, T', H // 2, W // 2). With `compress_time`, T' is 1 + (T - 1) // 2 for the first chunk of a
    stream and T // 2 for later ones. Frames are averaged in pairs. Height and width are halved by a 3x3 convolution of
    stride 2, padded on the right and below, or without `with_conv` by an average.
    """

    def __init__(self, in_channels: int, with_conv: bool, compress_time: bool = False) -> None:
        super().__init__()
        self.compress_time = compress_time
        self.conv = Conv2d(in_channels, in_channels, kernel_size=3, stride=2) if with_conv else None

    @property
    def rows_below(self) -> int:
        """The number of rows below a strip that this layer reads."""
        return 0 if self.conv is None else 1

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        """Return x (B, C, T, H, W) at half the height and width, and with `compress_time` half the frames.

        In a strip with another below it, x has `rows_below` more rows.
        """
        b, c, t, h, w = x.shape
        alone = 1 if self.compress_time and (cache is None or cache.first) else 0
        pairs = (t - alone) // 2 if self.compress_time else t
        right = 0 if self.conv is None else 1
        below = right if cache is None or cache.bottom else 0
        # Averages are written straight into the convolution's padded input, which saves a copy.
        padded = unfilled((b, c, alone + pairs, h + below, w + right), x, cache)
        padded[..., h:, :].zero_()
        padded[..., w:].zero_()
        body = padded[..., :h, :w]
        if self.compress_time:
            body[:, :, :alone] = x[:, :, :alone]
            even, odd = (x[:, :, alone + i : alone + 2 * pairs : 2] for i in (0, 1))
            if torch.is_grad_enabled():
                body[:, :, alone:] = (even + odd) * 0.5
            else:
                torch.add(even, odd, out=body[:, :, alone:]).mul_(0.5)
        else:
            body.copy_(x)
        frames = fold_frames(padded)
        y = F.avg_pool2d(frames, 2) if self.conv is None else self.conv(frames)
        return unfold_frames(y, b)


class Upsample3D(nn.Module):
    """Doubles height and width; with `compress_time` also time, except for the stream's first frame, which is kept.

    (B, C, T, H, W) to (B, C, T', 2H, 2W): nearest neighbour, then with `with_conv` a 3x3 convolution. With
    `compress_time`, T' is 2T - 1 for the first chunk of a stream and 2T for later ones. Frames are repeated.
    """

    def __init__(self, in_channels: int, with_conv: bool, compress_time: bool = False) -> None:
        super().__init__()
        self.compress_time = compress_time
        self.conv = Conv2d(in_channels, in_channels, kernel_size=3, padding=1) if with_conv else None

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        """Return x (B, C, T, H, W) at twice the height and width, and with `compress_time` twice the frames."""
        return self._run(Carry(Band(None, x, None)), cache or StreamCache(), None)

    def stage(self, name: str, pixels: float) -> Stage:
        """Return the layer as a stage. `pixels` is how many pixels it computes, relative to the network's other layers."""
        halo = Halo(0, 0) if self.conv is None else Halo(1, 1)
        return Stage(name, None, self._run, num_parameters(self) * pixels, halo=halo)

    def _run(self, carry: Carry, cache: StreamCache, stats: NormStatistics | None) -> Tensor:
        band = carry.x
        b, c, t, h, w = band.own.shape
        beside = 0 if self.conv is None or cache.is_whole else 1
        shape = b, c, t, beside + 2 * h + beside, 2 * w
        up = unfilled(shape, band.own, None if self.conv is None else cache)
        _write_twice(band.own, up[:, :, :, beside : beside + 2 * h])
        if beside:  # each row of a neighbour becomes two, of which the convolution reads the nearer one
            for row, out in ((band.above, up[:, :, :, :1]), (band.below, up[:, :, :, -1:])):
                out.zero_() if row is None else out.view(b, c, t, 1, w, 2).copy_(row[..., None])
        band.empty()
        y = fold_frames(up)
        if self.conv is not None:  # it is per frame, so a repeated frame is convolved only once
            y = self.conv.of_rows(y) if beside else self.conv(y)
        y = unfold_frames(y, b)
        if not self.compress_time:
            return y
        twice = y.repeat_interleave(2, dim=2)
        return twice[:, :, 1:] if cache.first else twice


class ResnetBlock3D(nn.Module):
    """A residual block: norm1, SiLU, conv1, + temb_proj(SiLU(temb)), norm2, SiLU, dropout, conv2, + shortcut of x.

    forward(x, temb) takes x (B, in_channels, T, H, W) and temb (B, temb_channels) or None. If the numbers of channels
    differ, the shortcut is a 1x1x1 convolution (`nin_shortcut`) or, with `conv_shortcut`, a causal 3x3x3 one. With
    `zq_ch` the norms are SpatialNorm3D, and forward needs zq too.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        conv_shortcut: bool = False,
        dropout: float,
        temb_channels: int = 512,
        pad_mode: str = "constant",
        norm_scope: str = "whole",
        zq_ch: int | None = None,
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels

        def norm(channels: int) -> Norm:
            return GroupNorm(channels, norm_scope) if zq_ch is None else SpatialNorm3D(channels, zq_ch, norm_scope)

        self.norm1 = norm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, 3, pad_mode)
        self.temb_proj = nn.Linear(temb_channels, out_channels) if temb_channels > 0 else None
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = CausalConv3d(out_channels, out_channels, 3, pad_mode)
        self.conv_shortcut: CausalConv3d | None = None
        self.nin_shortcut: Conv3d | None = None
        if in_channels != out_channels:
            if conv_shortcut:
                self.conv_shortcut = CausalConv3d(in_channels, out_channels, 3, pad_mode)
            else:
                self.nin_shortcut = Conv3d(in_channels, out_channels, kernel_size=1)

    def forward(
        self, x: Tensor, temb: Tensor | None = None, cache: StreamCache | None = None, *, zq: Tensor | None = None
    ) -> Tensor:
        """Return the block's output (B, out_channels, T, H, W) for x (B, in_channels, T, H, W)."""
        cache = cache or StreamCache()
        h = self._first(Carry(Band(None, x, None), zq=_whole(zq)), cache, None, temb)
        return self._second(Carry(Band(None, x, None), Band(None, h, None), _whole(zq)), cache, None)

    def stages(self, name: str, pixels: float) -> list[Stage]:
        """Return two stages, one for each norm. The first gives h, and leaves x for the second.

        `pixels` is how many pixels the block computes, relative to the network's other layers.
        """
        first, second = (num_parameters(conv) for conv in (self.conv1, self.conv2))
        second += num_parameters(self.conv_shortcut) + num_parameters(self.nin_shortcut)
        return [
            Stage(f"{name}.conv1", _group_norm(self.norm1), self._first, first * pixels, branches=True),
            Stage(f"{name}.conv2", _group_norm(self.norm2), self._second, second * pixels),
        ]

    def _first(
        self, carry: Carry, cache: StreamCache, stats: NormStatistics | None, temb: Tensor | None = None
    ) -> Tensor:
        h = norm_silu_conv(self.conv1, carry.x, cache, self.norm1, stats, carry.zq)
        if self.temb_proj is not None and temb is not None:
            h = h + self.temb_proj(F.silu(temb))[:, :, None, None, None]
        return h

    def _second(self, carry: Carry, cache: StreamCache, stats: NormStatistics | None) -> Tensor:
        assert carry.h is not None
        out = norm_silu_conv(self.conv2, carry.h, cache, self.norm2, stats, carry.zq, self.dropout)
        if self.conv_shortcut is not None:
            return out.add_(norm_silu_conv(self.conv_shortcut, carry.x, cache))
        carry.x.inner().move(lambda x, rows: rows.add_(x if self.nin_shortcut is None else self.nin_shortcut(x)), out)
        carry.x.empty()
        return out


class AttnBlock2D(nn.Module):
    """Self-attention among the pixels of each frame, with one head.

    x + proj_out(softmax(q k / sqrt(C)) v), where q, k and v are 1x1 convolutions of norm(x).
    """

    def __init__(self, in_channels: int, norm_scope: str = "whole", zq_ch: int | None = None) -> None:
        super().__init__()
        self.norm: Norm = (
            GroupNorm(in_channels, norm_scope) if zq_ch is None else SpatialNorm3D(in_channels, zq_ch, norm_scope)
        )
        self.q, self.k, self.v, self.proj_out = (Conv2d(in_channels, in_channels, 1) for _ in range(4))

    def forward(self, x: Tensor, cache: StreamCache | None = None, *, zq: Tensor | None = None) -> Tensor:
        """Return x (B, C, T, H, W) plus its attention."""
        return self._run(Carry(Band(None, x, None), zq=_whole(zq)), cache or StreamCache(), None)

    def stages(self, name: str, pixels: float) -> list[Stage]:
        """Return its only stage. `pixels` is how many pixels it computes, relative to the network's other layers."""
        return [Stage(name, _group_norm(self.norm), self._run, num_parameters(self) * pixels)]

    def _run(self, carry: Carry, cache: StreamCache, stats: NormStatistics | None) -> Tensor:
        x = carry.x.own
        normed = torch.empty_like(x, memory_format=LAYOUT)
        _write_norm(self.norm, x, normed, _own(carry.zq), cache, stats, silu=False)
        frames = fold_frames(normed)
        q, k, v = (rearrange(conv(frames), "n c h w -> n 1 (h w) c") for conv in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)  # softmax in fp32, scaled by 1 / sqrt(C)
        y = self.proj_out(rearrange(y, "n 1 (h w) c -> n c h w", h=frames.shape[2]))
        return x + unfold_frames(y, x.shape[0])


class Level(nn.Module):
    """One resolution: its residual blocks, an attention after each or none, and the resampling to the next level."""

    downsample: DownSample3D
    upsample: Upsample3D

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleList()
        self.attn = nn.ModuleList()

    def pairs(self) -> list[tuple[ResnetBlock3D, AttnBlock2D | None]]:
        """Return the blocks in order, each with the attention that follows it, or None."""
        attn: list[AttnBlock2D | None] = [*self.attn] if self.attn else [None] * len(self.block)
        return list(zip(self.block, attn, strict=True))  # type: ignore[arg-type]


class Middle(nn.Module):
    """The two residual blocks at the lowest resolution."""

    def __init__(self, block_1: ResnetBlock3D, block_2: ResnetBlock3D) -> None:
        super().__init__()
        self.block_1 = block_1
        self.block_2 = block_2


def num_parameters(module: nn.Module | None) -> int:
    """Return the number of parameters of a module, 0 for None. This is about its work per pixel."""
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def conv_stage(name: str, conv: CausalConv3d, pixels: float, norm: Norm | None = None) -> Stage:
    """Return a causal convolution as a stage; if a norm is given, norm and SiLU come first."""

    def run(carry: Carry, cache: StreamCache, stats: NormStatistics | None) -> Tensor:
        return norm_silu_conv(conv, carry.x, cache, norm, stats, carry.zq)

    return Stage(name, None if norm is None else _group_norm(norm), run, num_parameters(conv) * pixels)


def norm_silu_conv(
    conv: CausalConv3d,
    band: Band,
    cache: StreamCache,
    norm: Norm | None = None,
    stats: NormStatistics | None = None,
    zq: Band | None = None,
    dropout: nn.Dropout | None = None,
) -> Tensor:
    """Return the convolution of SiLU(norm(band)), or without a norm of the band itself. The band is emptied.

    The norm of a decoder reads the same rows of the latents, zq: one row of each neighbour, as the convolution does.
    """
    latents = iter([] if zq is None else [piece for piece, _ in zq.pieces()])

    def write(x: Tensor, body: Tensor) -> None:
        if norm is None:
            body.copy_(x)
            return
        _write_norm(norm, x, body, next(latents, None), cache, stats, silu=True)
        if dropout is not None and dropout.training and dropout.p > 0:
            body.copy_(dropout(body))

    return conv.run(band, cache, write)


def _whole(zq: Tensor | None) -> Band | None:
    return None if zq is None else Band(None, zq, None)


def _own(zq: Band | None) -> Tensor | None:
    return None if zq is None else zq.own


def _write_twice(x: Tensor, out: Tensor) -> None:
    """Write x (B, C, T, H, W) into `out` (B, C, T, 2H, 2W), enlarged by nearest neighbour."""
    b, c, t, h, w = x.shape
    out.view(b, c, t, h, 2, w, 2).copy_(x[:, :, :, :, None, :, None])


def _group_norm(norm: Norm) -> GroupNorm:
    return norm.norm_layer if isinstance(norm, SpatialNorm3D) else norm


def _write_norm(
    norm: Norm,
    x: Tensor,
    out: Tensor,
    zq: Tensor | None,
    cache: StreamCache,
    stats: NormStatistics | None,
    *,
    silu: bool,
) -> None:
    if isinstance(norm, GroupNorm):
        norm.write(x, out, stats, silu=silu)
        return
    if zq is None:
        raise ValueError("a SpatialNorm3D needs zq, the latents")
    norm.write(x, out, zq, stats, silu=silu, first=cache.first)
