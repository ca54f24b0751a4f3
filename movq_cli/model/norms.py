"""GroupNorm for streams: statistics are merged over chunks, and output is written where the next layer reads it.

In inference both work on blocks. On a CPU a block is a part of a frame, small enough to stay in the cache, so that
normalising and SiLU take one pass over memory. On other devices a block has as many frames as the limit allows, so that
the number of kernel launches hardly grows with the frames. With gradients on, differentiable torch functions compute
the same on the whole tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .causal import CausalConv3d, fold_frames, unfold_frames
from .config import NORM_EPS, NORM_GROUPS, NORM_SCOPES
from .convolution import LAYOUT, lay_out
from .strips import Picture

_CPU_BLOCK = 2**20
"""Numbers per block on a CPU, 2 to 4 MB. Larger blocks lose digits in their fp32 sums and do not stay in the cache."""

_DEVICE_BLOCK = 2**24
"""Numbers per block on other devices, where every kernel launch costs time. In fp32 that is 64 MB; at most three blocks
are alive."""


@dataclass(frozen=True)
class NormStatistics:
    """The statistics of one GroupNorm, in float64: count, mean, and M2, the sum of squared distances from the mean.

    `mean` and `m2` have shape (B, N, groups). N is T for statistics of each frame, 1 for those of a window.
    """

    count: int
    mean: Tensor
    m2: Tensor

    def merge(self, later: NormStatistics) -> NormStatistics:
        """Return the statistics of both sets together (Chan, Golub and LeVeque 1979)."""
        count = self.count + later.count
        delta = later.mean - self.mean
        return NormStatistics(
            count,
            self.mean + delta * (later.count / count),
            self.m2 + later.m2 + delta**2 * (self.count * later.count / count),
        )


class GroupNorm(nn.GroupNorm):
    """GroupNorm(32, eps 1e-6, affine) over (C / 32, T, H, W), or with scope "frame" over (C / 32, H, W) of each frame.

    "whole" is the published norm. It spans all the frames it is given, so it sees the future, and a chunk needs the
    statistics of its whole window.
    """

    def __init__(self, num_channels: int, scope: str = "whole") -> None:
        if scope not in NORM_SCOPES:
            raise ValueError(f"norm_scope must be one of {', '.join(NORM_SCOPES)}, got {scope!r}")
        super().__init__(NORM_GROUPS, num_channels, eps=NORM_EPS)
        self.scope = scope

    def forward(self, x: Tensor, stats: NormStatistics | None = None) -> Tensor:
        """Return x (B, C, T, H, W) normalised by these statistics, or by its own as in `write`."""
        out = torch.empty_like(x, memory_format=LAYOUT)
        self.write(x, out, stats, silu=False)
        return out

    def measure(self, x: Tensor, picture: Picture | None = None) -> NormStatistics:
        """Return the statistics of x (B, C, T, H, W): a chunk, or a strip of it whose pictures are cut as `picture` says.

        On a CPU a picture of more than one block is summed in blocks that lie in one strip, however it is cut. So the
        statistics of its strips, merged, are its own, but for the order of a sum in float64.
        """
        x = lay_out(x)
        b, c, t, h, w = x.shape
        each = self.scope == "frame"
        # torch has only one reduction over a channels-last block that is exact (two passes, fp32 from bf16) and fast.
        # It returns fp32 only if it is given fp32 running statistics to update, so it gets some that are not used.
        unused = [torch.zeros(c, dtype=_sum_dtype(x), device=x.device) for _ in range(2)]
        means, variances, sizes = [], [], []
        for i, frames, rows in _blocks(x, picture):
            block = _fold(x, i, frames, rows)
            if each and len(block) > 1:
                var, mean = torch.var_mean(block.to(_sum_dtype(x)), (2, 3), correction=0)
                sizes += [h * w] * len(block)
            else:
                mean, var = torch.ops.aten.batch_norm_update_stats(block, *unused, 0.0)
                sizes.append(len(block) * block.shape[2] * w)
            means.append(mean.view(-1, c))
            variances.append(var.view(-1, c))
        shape = (b, t if each else 1, -1, self.num_groups, c // self.num_groups)  # the third axis is merged
        mean, var = (torch.cat(parts).double().view(shape) for parts in (means, variances))
        weight = torch.tensor(sizes, dtype=torch.float64).to(x.device, non_blocking=True)
        weight = weight.view(shape[:3])[..., None, None].expand_as(mean)
        center = (mean * weight).sum((2, 4), keepdim=True) / weight.sum((2, 4), keepdim=True)
        m2 = ((var + (mean - center) ** 2) * weight).sum((2, 4))
        count = h * w * (c // self.num_groups) * (1 if each else t)
        return NormStatistics(count, center[:, :, 0, :, 0], m2)

    def write(
        self,
        x: Tensor,
        out: Tensor,
        stats: NormStatistics | None = None,
        *,
        silu: bool,
        modulate: Callable[[Tensor, int, slice, slice], Tensor] | None = None,
    ) -> None:
        """Normalise x (B, C, T, H, W), apply SiLU if asked, and write the result into `out`.

        x is normalised by `stats`; without them, or with gradients on, by its own statistics. `modulate` is called
        before SiLU with each normalised block (frames, C, rows, W) and its place (batch, frames, rows), and returns the
        block to go on with. With gradients on it is not called.
        """
        if torch.is_grad_enabled():
            y = self.differentiable(x)
            out.copy_(F.silu(y) if silu else y)
            return
        x = lay_out(x)
        stats = stats or self.measure(x)
        per_group = x.shape[1] // self.num_groups
        dtype = _sum_dtype(x)
        mean = stats.mean.to(dtype).repeat_interleave(per_group, dim=2)
        var = (stats.m2 / stats.count).to(dtype).repeat_interleave(per_group, dim=2)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        for i, frames, rows in _blocks(x):
            block = _fold(x, i, frames, rows)
            own = frames if mean.shape[1] > 1 else slice(0, 1)
            if len(mean[i, own]) == 1:
                block = F.batch_norm(block, mean[i, own][0], var[i, own][0], weight, bias, False, 0.0, self.eps)
            else:
                scale = weight / (var[i, own] + self.eps).sqrt()
                shift = bias - mean[i, own] * scale
                block = torch.addcmul(
                    shift[..., None, None], block, scale[..., None, None], out=torch.empty_like(block)
                )
            if modulate:
                block = modulate(block, i, frames, rows)
            target = _fold(out, i, frames, rows)
            if silu:
                torch.ops.aten.silu.out(block, out=target)
            else:
                target.copy_(block)

    def differentiable(self, x: Tensor) -> Tensor:
        """Return x normalised by its own statistics, computed by differentiable torch functions."""
        y = fold_frames(x) if self.scope == "frame" else x
        # For channels-last input, torch's group_norm on a CPU uses plain fp32 sums and loses three digits.
        y = F.group_norm(y.contiguous(), self.num_groups, self.weight, self.bias, self.eps)
        return unfold_frames(y, x.shape[0]) if self.scope == "frame" else y


class SpatialNorm3D(nn.Module):
    """A GroupNorm scaled and shifted by the latents: norm(f) * conv_y(up(zq)) + conv_b(up(zq)) (MoVQ, arXiv:2209.09002).

    f is (B, f_channels, T, H, W) and zq is (B, zq_channels, L, h, w). `up` enlarges to f's size by nearest neighbour,
    where the stream's first latent is one frame. The 1x1x1 convolutions commute with `up`, so they run at the latents'
    size.
    """

    def __init__(self, f_channels: int, zq_channels: int, scope: str = "whole") -> None:
        super().__init__()
        self.norm_layer = GroupNorm(f_channels, scope)
        self.conv_y = CausalConv3d(zq_channels, f_channels, kernel_size=1)
        self.conv_b = CausalConv3d(zq_channels, f_channels, kernel_size=1)

    def forward(self, f: Tensor, zq: Tensor, stats: NormStatistics | None = None, *, first: bool = True) -> Tensor:
        """Return f (B, f_channels, T, H, W) normalised, then scaled and shifted by zq."""
        out = torch.empty_like(f, memory_format=LAYOUT)
        self.write(f, out, zq, stats, silu=False, first=first)
        return out

    def write(
        self, f: Tensor, out: Tensor, zq: Tensor, stats: NormStatistics | None = None, *, silu: bool, first: bool
    ) -> None:
        """Normalise f, scale and shift it by zq, apply SiLU if asked, and write it into `out`, as in `GroupNorm.write`.

        `first`: the chunk is its stream's first, so that its first latent is one frame.
        """
        y, b = self.conv_y(zq), self.conv_b(zq)
        latent_of = _frame_to_latent(f.shape[2], zq.shape[2], first)
        if torch.is_grad_enabled():
            index = torch.tensor(latent_of, device=f.device)
            up_y, up_b = (_up(fold_frames(z[:, :, index]), f) for z in (y, b))
            g = self.norm_layer.differentiable(f)
            g = g * unfold_frames(up_y, f.shape[0]) + unfold_frames(up_b, f.shape[0])
            out.copy_(F.silu(g) if silu else g)
            return
        ready: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}  # scale and shift of the last used latents, enlarged

        def modulate(block: Tensor, i: int, frames: slice, rows: slice) -> Tensor:
            place = i, *latent_of[frames]
            if place not in ready:
                ready.clear()
                scale, shift = (torch.cat([z[i : i + 1, :, latent] for latent in place[1:]]) for z in (y, b))
                ready[place] = _up(scale, f), _up(shift, f)
            scale, shift = ready[place]
            return torch.addcmul(shift[:, :, rows], block, scale[:, :, rows], out=block)

        self.norm_layer.write(f, out, stats, silu=silu, modulate=modulate)


def _frame_to_latent(frames: int, latents: int, first: bool) -> list[int]:
    """Return the index of the latent that each frame of a chunk belongs to."""
    alone = 1 if first and latents > 1 else 0
    ratio, rest = divmod(frames - alone, latents - alone)
    if rest:
        raise ValueError(f"{frames} frames cannot be divided among {latents} latents")
    return [0] * alone + [alone + i // ratio for i in range(frames - alone)]


def _up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def _sum_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which the statistics of x are computed and applied: at least fp32."""
    return torch.promote_types(x.dtype, torch.float32)


def _block_size(x: Tensor, picture: Picture | None) -> tuple[int, int]:
    """Return the frames and rows of a block: on a CPU rows of one frame, on other devices as many frames as fit."""
    _, c, _, h, w = x.shape
    if x.device.type != "cpu":
        return max(1, _DEVICE_BLOCK // (c * h * w)), h
    rows = max(1, _CPU_BLOCK // (c * w))
    if picture is not None and rows < picture.height:
        rows = min(1 << (rows.bit_length() - 1), picture.step)  # powers of two: one divides the other
    return 1, min(h, rows)


def _blocks(x: Tensor, picture: Picture | None = None) -> Iterator[tuple[int, slice, slice]]:
    """Yield (batch, frames, rows) of every block, in memory order."""
    b, _, t, h, _ = x.shape
    frames, rows = _block_size(x, picture)
    return ((i, j, r) for i in range(b) for j in _slices(t, frames) for r in _slices(h, rows))


def _slices(length: int, step: int) -> list[slice]:
    return [slice(at, min(at + step, length)) for at in range(0, length, step)]


def _fold(x: Tensor, i: int, frames: slice, rows: slice) -> Tensor:
    """Return a block of x (B, C, T, H, W) as (frames, C, rows, W), a view."""
    return x[i, :, frames, rows].transpose(0, 1)
