"""torch's `Conv2d` and `Conv3d`, by the kernel that suits.

On a CPU torch does not always take oneDNN. For one clip in fp32 it goes by C * T * H, and up to 20,480 takes kernels of its own
that are 2 to 7 times slower (aten, Convolution.cpp, `use_mkldnn`; benchmarks/convolutions.py): chunks of few frames come below
that, and the layer that takes pixels nearly always does. For bf16 on a CPU that does not compute it, its kernels are tens of
times slower than fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor, nn

LAYOUT = torch.channels_last_3d
"""Memory layout of every activation: convolutions are fastest in it, and frames are slabs along its outermost axis."""

_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def cpu_computes_bf16() -> bool:
    """Return True if this CPU has instructions for bf16.

    oneDNN's own check also passes where bf16 is emulated. torch's checks are private; without them, bf16 counts as emulated.
    """
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in checks if hasattr(torch.cpu, name))


_BY_ONEDNN = {torch.float32} if cpu_computes_bf16() else {torch.float32, torch.bfloat16}
"""What it is told to compute, in fp32: bf16 is rounded to once, as where a CPU has it."""


class Conv3d(nn.Conv3d):
    """(B, C, T, H, W) to (B, C', T', H', W')."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolve(self, super()._conv_forward, input, weight, bias)


class Conv2d(nn.Conv2d):
    """(N, C, H, W) to (N, C', H', W')."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolve(self, super()._conv_forward, input, weight, bias)


def lay_out(x: Tensor) -> Tensor:
    """A weight, or an input, in the memory layout of activations; without a copy if it is in it."""
    formats = {4: torch.channels_last, 5: LAYOUT}
    return x.contiguous(memory_format=formats.get(x.dim(), torch.contiguous_format))


def round_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight of a convolution in `dtype`, each filter rounded as a whole: what one tap is off, the next makes up for.

    Neighbouring inputs are alike, so the errors of a filter's taps add up if each is rounded by itself, and cancel if their sum
    is nearly zero. In bf16 this was most of the error of the means, and costs nothing while encoding (benchmarks/rounding.py).
    """
    if weight.dim() < 4 or torch.finfo(dtype).bits >= 32:
        return weight.to(dtype)
    taps = weight.float().flatten(2).permute(2, 0, 1).contiguous()
    rounded = torch.empty_like(taps, dtype=dtype)
    error = torch.zeros_like(taps[0])
    for tap, out in zip(taps, rounded, strict=True):
        error += tap
        out.copy_(error)
        error -= out
    return rounded.permute(1, 2, 0).reshape(weight.shape)


def _convolve(
    layer: nn.Conv2d | nn.Conv3d,
    usual: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    alike = input.dtype == weight.dtype and input.dim() == weight.dim()
    suits = alike and input.device.type == "cpu" and input.dtype in _BY_ONEDNN
    padding = layer.padding
    if (
        not (_ONEDNN and suits and layer.padding_mode == "zeros")
        or isinstance(padding, str)
        or torch.compiler.is_compiling()
    ):
        return usual(input, weight, bias)
    x = _strided(lay_out(input.float()))
    out = torch.mkldnn_convolution(
        x, weight.float(), None if bias is None else bias.float(), padding, layer.stride, layer.dilation, layer.groups
    )
    del x  # in bf16 a copy, and not needed beside the next
    return out.to(input.dtype)


def _strided(x: Tensor) -> Tensor:
    """The same with the strides its layout gives: an axis of one may have any, and oneDNN then rounds otherwise."""
    _, c, *sides = x.shape
    *steps, outer = accumulate(reversed(sides), mul, initial=c)  # of W, H, ..., and B
    return x.as_strided(x.shape, (outer, 1, *reversed(steps)))
