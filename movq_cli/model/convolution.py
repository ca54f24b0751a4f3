"""torch's `Conv2d` and `Conv3d`, run by the faster kernel.

On a CPU torch does not always use oneDNN. For one clip in fp32 it decides by C * T * H: up to 20,480 it uses its own
kernels, which are 2 to 7 times slower (aten, Convolution.cpp, `use_mkldnn`; benchmarks/convolutions.py). Chunks of few
frames are below that limit, and the layer that takes pixels nearly always is. For bf16, on a CPU that does not compute
it, torch's kernels are tens of times slower than fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from operator import mul

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYOUT = torch.channels_last_3d
"""The memory layout of every activation. Convolutions are fastest in it, and each frame is contiguous."""

_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def cpu_computes_bf16() -> bool:
    """Return True if this CPU has instructions for bf16.

    oneDNN's own check also passes if bf16 is emulated. torch's checks are private; without them, bf16 counts as
    emulated.
    """
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in checks if hasattr(torch.cpu, name))


_BY_ONEDNN = {torch.float32} if cpu_computes_bf16() else {torch.float32, torch.bfloat16}
"""The dtypes that oneDNN is given, as fp32. bf16 results are rounded once, as on a CPU that has bf16."""


class Conv3d(nn.Conv3d):
    """A 3-D convolution, (B, C, T, H, W) to (B, C', T', H', W')."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolve(self, super()._conv_forward, input, weight, bias, self.padding)

    def of_rows(self, input: Tensor) -> Tensor:
        """Convolve rows of a picture together with the rows above and below, so that none are padded."""
        return _of_rows(self, F.conv3d, input)


class Conv2d(nn.Conv2d):
    """A 2-D convolution, (N, C, H, W) to (N, C', H', W')."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolve(self, super()._conv_forward, input, weight, bias, self.padding)

    def of_rows(self, input: Tensor) -> Tensor:
        """Convolve rows of a picture together with the rows above and below, so that none are padded."""
        return _of_rows(self, F.conv2d, input)


def lay_out(x: Tensor) -> Tensor:
    """Return a weight or an input in the memory layout of activations, without a copy if it already has it."""
    formats = {4: torch.channels_last, 5: LAYOUT}
    return x.contiguous(memory_format=formats.get(x.dim(), torch.contiguous_format))


def round_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight of a convolution in `dtype`, adding the rounding error of each tap of a filter to the next tap.

    Neighbouring inputs are similar. If each tap is rounded separately, the errors of a filter's taps add up; if the
    errors sum to nearly zero, they cancel. In bf16 separate rounding caused most of the error of the means, and
    avoiding it costs nothing while encoding (benchmarks/rounding.py).
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


def _of_rows(layer: nn.Conv2d | nn.Conv3d, function: Callable[..., Tensor], input: Tensor) -> Tensor:
    assert not isinstance(layer.padding, str)
    *before, _, width = layer.padding
    padding = *before, 0, width

    def usual(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return function(input, weight, bias, layer.stride, padding, layer.dilation, layer.groups)

    return _convolve(layer, usual, input, layer.weight, layer.bias, padding)


def _convolve(
    layer: nn.Conv2d | nn.Conv3d,
    usual: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: str | tuple[int, ...],
) -> Tensor:
    alike = input.dtype == weight.dtype and input.dim() == weight.dim()
    suits = alike and input.device.type == "cpu" and input.dtype in _BY_ONEDNN
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
    del x  # In bf16 this is a copy, which is freed before the output is copied.
    return out.to(input.dtype)


def _strided(x: Tensor) -> Tensor:
    """Return x with the strides that its layout implies.

    In torch an axis of length 1 may have any stride, but oneDNN rounds differently with other strides.
    """
    _, c, *sides = x.shape
    *steps, outer = accumulate(reversed(sides), mul, initial=c)  # strides of W, H, ..., and of B
    return x.as_strided(x.shape, (outer, 1, *reversed(steps)))
