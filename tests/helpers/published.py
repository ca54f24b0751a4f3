"""The published encoder's operations, one by one, over the weights of our `Encoder3D`.

Written from the published code (CogVideo, movq_enc_3d.py) as plainly as it runs: padding by torch.cat and F.pad,
x * sigmoid(x), every stage's output kept to the end. In fp32 it prints the numbers of tests/golden to the last bit on
the machine that made them, so it stands for the published module in benchmarks and wherever golden numbers are missing.
"""

import torch
import torch.nn.functional as F
from einops import rearrange


def encode(m, x):
    hs = [conv(m.conv_in, x)]
    for i, level in enumerate(m.down):
        for j, b in enumerate(level.block):
            h = block(b, hs[-1])
            if level.attn:
                h = attention(level.attn[j], h)
            hs.append(h)
        if i < len(m.down) - 1:
            hs.append(downsample(level.downsample, hs[-1]))
    h = block(m.mid.block_2, block(m.mid.block_1, hs[-1]))
    return conv(m.conv_out, nonlinearity(norm(m.norm_out, h)))


def conv(m, x):
    x = torch.cat([x[:, :, :1]] * m.time_pad + [x], dim=2)
    h, w = m.conv.kernel_size[1] // 2, m.conv.kernel_size[2] // 2
    return F.conv3d(F.pad(x, (w, w, h, h)), m.conv.weight, m.conv.bias)


def plain(m, x):
    """Run torch's convolution, with the kernel that torch chooses."""
    return {4: F.conv2d, 5: F.conv3d}[x.dim()](x, m.weight, m.bias, m.stride, m.padding)


def norm(m, x):
    if getattr(m, "scope", "whole") == "frame":  # movq's own norms, which the published code does not have
        frames = F.group_norm(rearrange(x, "b c t h w -> (b t) c h w"), 32, m.weight, m.bias, 1e-6)
        return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])
    return F.group_norm(x, 32, m.weight, m.bias, 1e-6)


def nonlinearity(x):
    return x * torch.sigmoid(x)


def block(m, x):
    h = conv(m.conv1, nonlinearity(norm(m.norm1, x)))
    h = conv(m.conv2, nonlinearity(norm(m.norm2, h)))
    return (x if m.nin_shortcut is None else plain(m.nin_shortcut, x)) + h


def downsample(m, x):
    b, _, _, height, width = x.shape
    if m.compress_time:
        x = rearrange(x, "b c t h w -> (b h w) c t")
        first, rest = x[..., :1], x[..., 1:]
        if rest.shape[-1] > 0:
            rest = F.avg_pool1d(rest, kernel_size=2, stride=2)
        x = rearrange(torch.cat([first, rest], dim=-1), "(b h w) c t -> b c t h w", b=b, h=height, w=width)
    x = rearrange(x if m.conv is None else F.pad(x, (0, 1, 0, 1)), "b c t h w -> (b t) c h w")
    return rearrange(F.avg_pool2d(x, 2) if m.conv is None else plain(m.conv, x), "(b t) c h w -> b c t h w", b=b)


def attention(m, x):
    b, c, _, h, w = x.shape
    y = rearrange(norm(m.norm, x), "b c t h w -> (b t) c h w")
    q, k, v = (rearrange(plain(layer, y), "n c h w -> n c (h w)") for layer in (m.q, m.k, m.v))
    weight = F.softmax(torch.bmm(q.permute(0, 2, 1) * c**-0.5, k), dim=2)
    y = rearrange(torch.bmm(v, weight.permute(0, 2, 1)), "n c (h w) -> n c h w", h=h, w=w)
    return x + rearrange(plain(m.proj_out, y), "(b t) c h w -> b c t h w", b=b)
