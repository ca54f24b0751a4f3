"""The networks as training runs them: movq's modules hold the weights, plain functions do the work.

movq's own code is for inference: a stream of chunks, stage by stage, written into buffers. Here a clip is whole, each
frame is normed separately, activations are (B, T, H, W, C), and nothing is written in place: one graph, which
torch.compile takes whole. A step of training on a CPU takes half the time (weights/README.md). tests/test_weights.py
compares both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from movq_cli.model.blocks import DownSample3D, ResnetBlock3D, Upsample3D
from movq_cli.model.causal import CausalConv3d
from movq_cli.model.decoder import Decoder3D
from movq_cli.model.encoder import Encoder3D
from movq_cli.model.norms import GroupNorm, SpatialNorm3D


def encode(encoder: Encoder3D, x: Tensor) -> Tensor:
    """Return the moments (B, T', H / 8, W / 8, 2 * z_channels), in fp32, of x (B, T, H, W, 3) in the precision to compute in."""
    h = _causal(encoder.conv_in, x)
    for i, level in enumerate(encoder.down):
        for block in level.block:
            h = _residual(block, h)
        if i < len(encoder.down) - 1:
            h = _down(level.downsample, h)
    for block in (encoder.mid.block_1, encoder.mid.block_2):
        h = _residual(block, h)
    return _causal(encoder.conv_out, _norm_silu(encoder.norm_out, h)).float()


def decode(decoder: Decoder3D, z: Tensor) -> Tensor:
    """Return the frames (B, T, H, W, 3), in fp32, of latents (B, T', H / 8, W / 8, z_channels)."""
    h = _causal(decoder.conv_in, z)
    for block in (decoder.mid.block_1, decoder.mid.block_2):
        h = _residual(block, h, z)
    for i, level in reversed(list(enumerate(decoder.up))):
        for block in level.block:
            h = _residual(block, h, z)
        if i > 0:
            h = _up(level.upsample, h)
    return _causal(decoder.conv_out, _norm_silu(decoder.norm_out, h, z)).float()


def _residual(block: ResnetBlock3D, x: Tensor, zq: Tensor | None = None) -> Tensor:
    h = _causal(block.conv1, _norm_silu(block.norm1, x, zq))
    h = _causal(block.conv2, _norm_silu(block.norm2, h, zq))
    return (x if block.nin_shortcut is None else _pointwise(block.nin_shortcut, x)) + h


def _causal(layer: CausalConv3d, x: Tensor) -> Tensor:
    """Run a causal convolution; the first frame stands for the frames before it."""
    weight, bias = _parameters(layer.conv, x.dtype)
    time, height, width = layer.conv.kernel_size
    padding = (height // 2, width // 2)
    if x.shape[1] == 1:  # all taps in time see the same frame
        weight = weight.sum(2).contiguous(memory_format=torch.channels_last)
        return _each_frame(x, lambda frames: F.conv2d(frames, weight, bias, padding=padding))
    x = torch.cat([x[:, :1]] * (time - 1) + [x], 1)
    weight = weight.contiguous(memory_format=torch.channels_last_3d)
    y = F.conv3d(rearrange(x, "b t h w c -> b c t h w"), weight, bias, padding=(0, *padding))
    return rearrange(y, "b c t h w -> b t h w c")


def _pointwise(layer: nn.Conv3d, x: Tensor) -> Tensor:
    weight, bias = _parameters(layer, x.dtype)
    return F.linear(x, weight.flatten(1), bias)


def _down(layer: DownSample3D, x: Tensor) -> Tensor:
    if layer.compress_time and x.shape[1] > 1:
        x = torch.cat([x[:, :1], (x[:, 1::2] + x[:, 2::2]) * 0.5], 1)
    assert layer.conv is not None
    weight, bias = _parameters(layer.conv, x.dtype)
    return _each_frame(F.pad(x, (0, 0, 0, 1, 0, 1)), lambda frames: F.conv2d(frames, weight, bias, stride=2))


def _up(layer: Upsample3D, x: Tensor) -> Tensor:
    assert layer.conv is not None
    weight, bias = _parameters(layer.conv, x.dtype)
    x = repeat(x, "b t h w c -> b t (h 2) (w 2) c")
    x = _each_frame(x, lambda frames: F.conv2d(frames, weight, bias, padding=1))
    return _later_repeated(x, 2) if layer.compress_time else x


def _norm_silu(norm: GroupNorm | SpatialNorm3D, x: Tensor, zq: Tensor | None = None) -> Tensor:
    """Apply a norm and SiLU, computed in fp32; the input and the result have the precision of x."""
    group = norm.norm_layer if isinstance(norm, SpatialNorm3D) else norm
    y = rearrange(x.float(), "b t h w (g c) -> b t h w g c", g=group.num_groups)
    var, mean = torch.var_mean(y, (2, 3, 5), correction=0, keepdim=True)
    y = rearrange((y - mean) * (var + group.eps).rsqrt(), "b t h w g c -> b t h w (g c)")
    y = y * group.weight + group.bias
    if isinstance(norm, SpatialNorm3D):
        assert zq is not None
        times = max(1, (x.shape[1] - 1) // max(1, zq.shape[1] - 1))
        scale, shift = (
            rearrange(_later_repeated(_pointwise(layer.conv, zq), times), "b t h w c -> b t h 1 w 1 c")
            for layer in (norm.conv_y, norm.conv_b)
        )
        y = rearrange(y, "b t (h p) (w q) c -> b t h p w q c", h=zq.shape[2], w=zq.shape[3]) * scale + shift
        y = rearrange(y, "b t h p w q c -> b t (h p) (w q) c")
    return F.silu(y).to(x.dtype)


def _later_repeated(x: Tensor, times: int) -> Tensor:
    """Repeat every frame but the first this many times."""
    return torch.cat([x[:, :1], repeat(x[:, 1:], "b t h w c -> b (t n) h w c", n=times)], 1)


def _each_frame(x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
    y = layer(rearrange(x, "b t h w c -> (b t) c h w"))
    return rearrange(y, "(b t) c h w -> b t h w c", b=len(x))


def _parameters(layer: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    weight, bias = layer.weight.to(dtype), layer.bias.to(dtype)  # type: ignore[operator, union-attr]
    return (weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight), bias
