"""GroupNorm that streams: its statistics, merged over chunks, and its application, written where the next layer reads.

On inference both run over blocks of a frame, small enough to stay in a CPU's cache, so that normalising and SiLU cost
one pass over memory. With gradients on, the same numbers come from differentiable torch functions, whole.
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

_CPU_BLOCK = 2**20  # elements: 2 to 4 MB; larger blocks lose digits in their fp32 sums and fall out of the cache


@dataclass(frozen=True)
class Moments:
    """Count, mean and M2 (sum of squared distances from the mean) of what one GroupNorm sees, in float64.

    mean and m2 have shape (B, N, groups): N is T for statistics of each frame, 1 for those of a window.
    """

    count: int
    mean: Tensor
    m2: Tensor

    def merge(self, later: Moments) -> Moments:
        """Of both sets together (Chan, Golub and LeVeque 1979)."""
        count = self.count + later.count
        delta = later.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (later.count / count),
            self.m2 + later.m2 + delta**2 * (self.count * later.count / count),
        )


class GroupNorm(nn.GroupNorm):
    """GroupNorm(32, eps 1e-6, affine) over (C / 32, T, H, W), or with scope "frame" over (C / 32, H, W) of each frame.

    "whole" is the published norm: over all the frames it is given, so it sees the future, and a chunk needs the
    `Moments` of its whole window.
    """

    def __init__(self, num_channels: int, scope: str = "whole") -> None:
        if scope not in NORM_SCOPES:
            raise ValueError(f"norm_scope must be one of {', '.join(NORM_SCOPES)}, got {scope!r}")
        super().__init__(NORM_GROUPS, num_channels, eps=NORM_EPS)
        self.scope = scope

    def forward(self, x: Tensor, moments: Moments | None = None) -> Tensor:
        """x (B, C, T, H, W), normalised. Without moments, by its own."""
        out = torch.empty_like(x, memory_format=LAYOUT)
        self.write(x, out, moments, silu=False)
        return out

    def measure(self, x: Tensor) -> Moments:
        """The statistics of a chunk (B, C, T, H, W)."""
        x = lay_out(x)
        b, c, t, h, w = x.shape
        rows = _block_rows(x)
        # torch's only reduction over a channels-last block that is exact (two passes, fp32 from bf16) and fast. It
        # returns fp32 only where it has fp32 running statistics to update; those are not used.
        unused = [torch.zeros(c, dtype=_sum_dtype(x), device=x.device) for _ in range(2)]
        measure = torch.ops.aten.batch_norm_update_stats
        pairs = [measure(x[i : i + 1, :, j, r], *unused, 0.0) for i, j, r in _blocks(x, rows)]
        mean = torch.stack([m for m, _ in pairs]).double().view(b, t, -1, self.num_groups, c // self.num_groups)
        var = torch.stack([v for _, v in pairs]).double().view_as(mean)
        sizes = [len(range(h)[r]) * w for r in _row_slices(h, rows)]
        weight = torch.tensor(sizes, dtype=torch.float64, device=x.device)[:, None, None].expand_as(mean)
        dims = (2, 4) if self.scope == "frame" else (1, 2, 4)
        total = weight.sum(dims, keepdim=True)
        center = (mean * weight).sum(dims, keepdim=True) / total
        m2 = ((var + (mean - center) ** 2) * weight).sum(dims, keepdim=True)
        shape = (b, t if self.scope == "frame" else 1, self.num_groups)
        count = sum(sizes) * (c // self.num_groups) * (1 if self.scope == "frame" else t)
        return Moments(count, center.view(shape), m2.view(shape))

    def write(
        self,
        x: Tensor,
        out: Tensor,
        moments: Moments | None = None,
        *,
        silu: bool,
        modulate: Callable[[Tensor, int, int, slice], Tensor] | None = None,
    ) -> None:
        """Normalises x (B, C, T, H, W), by its own moments if none are given, applies SiLU if asked, into `out`.

        `modulate` is given each normalised block with its place (batch, frame, rows) before SiLU; no gradient passes it.
        """
        if torch.is_grad_enabled():
            y = self.differentiable(x)
            out.copy_(F.silu(y) if silu else y)
            return
        x = lay_out(x)
        moments = moments or self.measure(x)
        per_group = x.shape[1] // self.num_groups
        dtype = _sum_dtype(x)
        mean = moments.mean.to(dtype).repeat_interleave(per_group, dim=2)
        var = (moments.m2 / moments.count).to(dtype).repeat_interleave(per_group, dim=2)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        for i, j, r in _blocks(x, _block_rows(x)):
            n = min(j, mean.shape[1] - 1)
            block = F.batch_norm(x[i : i + 1, :, j, r], mean[i, n], var[i, n], weight, bias, False, 0.0, self.eps)
            if modulate:
                block = modulate(block, i, j, r)
            target = out[i : i + 1, :, j, r]
            if silu:
                torch.ops.aten.silu.out(block, out=target)
            else:
                target.copy_(block)

    def differentiable(self, x: Tensor) -> Tensor:
        """What `forward` gives by x's own moments, by functions that autograd knows."""
        y = fold_frames(x) if self.scope == "frame" else x
        # In channels-last, torch's group_norm on a CPU sums plainly in fp32 and loses three digits.
        y = F.group_norm(y.contiguous(), self.num_groups, self.weight, self.bias, self.eps)
        return unfold_frames(y, x.shape[0]) if self.scope == "frame" else y


class SpatialNorm3D(nn.Module):
    """A GroupNorm scaled and shifted by the latents: norm(f) * conv_y(up(zq)) + conv_b(up(zq)) (MoVQ, arXiv:2209.09002).

    f (B, f_channels, T, H, W), zq (B, zq_channels, L, h, w); up is nearest to f's size, the stream's first frame apart.
    The 1x1x1 convolutions commute with it and run at the latents' size.
    """

    def __init__(self, f_channels: int, zq_channels: int, scope: str = "whole") -> None:
        super().__init__()
        self.norm_layer = GroupNorm(f_channels, scope)
        self.conv_y = CausalConv3d(zq_channels, f_channels, kernel_size=1)
        self.conv_b = CausalConv3d(zq_channels, f_channels, kernel_size=1)

    def forward(self, f: Tensor, zq: Tensor, moments: Moments | None = None, *, first: bool = True) -> Tensor:
        out = torch.empty_like(f, memory_format=LAYOUT)
        self.write(f, out, zq, moments, silu=False, first=first)
        return out

    def write(
        self, f: Tensor, out: Tensor, zq: Tensor, moments: Moments | None = None, *, silu: bool, first: bool
    ) -> None:
        """As GroupNorm's. `first`: whether the chunk is its stream's first, whose first latent is one frame."""
        y, b = self.conv_y(zq), self.conv_b(zq)
        latent_of = _frame_to_latent(f.shape[2], zq.shape[2], first)
        if torch.is_grad_enabled():
            index = torch.tensor(latent_of, device=f.device)
            up_y, up_b = (_up(fold_frames(z[:, :, index]), f) for z in (y, b))
            g = self.norm_layer.differentiable(f)
            g = g * unfold_frames(up_y, f.shape[0]) + unfold_frames(up_b, f.shape[0])
            out.copy_(F.silu(g) if silu else g)
            return
        ready: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # of the latent frame last needed, enlarged

        def modulate(block: Tensor, i: int, j: int, rows: slice) -> Tensor:
            place = i, latent_of[j]
            if place not in ready:
                ready.clear()
                ready[place] = _up(y[i : i + 1, :, place[1]], f), _up(b[i : i + 1, :, place[1]], f)
            scale, shift = ready[place]
            return torch.addcmul(shift[:, :, rows], block, scale[:, :, rows], out=block)

        self.norm_layer.write(f, out, moments, silu=silu, modulate=modulate)


def _frame_to_latent(frames: int, latents: int, first: bool) -> list[int]:
    """The latent frame that each frame of a chunk lies in."""
    alone = 1 if first and latents > 1 else 0
    ratio, rest = divmod(frames - alone, latents - alone)
    if rest:
        raise ValueError(f"{frames} frames cannot be divided among {latents} latents")
    return [0] * alone + [alone + i // ratio for i in range(frames - alone)]


def _up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def _sum_dtype(x: Tensor) -> torch.dtype:
    """What statistics of x are computed and applied in: fp32, also for half precision."""
    return torch.promote_types(x.dtype, torch.float32)


def _block_rows(x: Tensor) -> int:
    """Rows of a frame that make one block: all of them, but for CPUs, whose caches are small."""
    _, c, _, h, w = x.shape
    return h if x.device.type != "cpu" else min(h, max(1, _CPU_BLOCK // (c * w)))


def _row_slices(height: int, rows: int) -> list[slice]:
    return [slice(r, min(r + rows, height)) for r in range(0, height, rows)]


def _blocks(x: Tensor, rows: int) -> Iterator[tuple[int, int, slice]]:
    """(batch, frame, rows) of every block, in memory order."""
    b, _, t, h, _ = x.shape
    return ((i, j, r) for i in range(b) for j in range(t) for r in _row_slices(h, rows))
