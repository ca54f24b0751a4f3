"""Convolutions by oneDNN give torch's numbers for any chunk size, and in bf16 also on a CPU without native bf16."""

import pytest
import torch
import torch.nn.functional as F

from movq_cli.checkpoints.checkpoint import open_checkpoint
from movq_cli.model.convolution import Conv2d, Conv3d, cpu_computes_bf16, lay_out, round_weight

from .helpers.tolerance import AGREE, off

CASES = {
    "pixels": (Conv3d(3, 32, 3, padding=(0, 1, 1)), (1, 3, 6, 40, 36)),
    "few frames": (Conv3d(64, 32, 3, padding=(0, 1, 1)), (1, 64, 3, 12, 20)),
    "strided in time": (Conv3d(32, 32, 3, stride=(2, 1, 1), dilation=(2, 1, 1), padding=(0, 1, 1)), (2, 32, 9, 8, 8)),
    "shortcut": (Conv3d(32, 64, 1, bias=False), (1, 32, 2, 9, 7)),
    "halving": (Conv2d(32, 32, 3, stride=2), (3, 32, 9, 11)),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    layer, shape = CASES[request.param]
    return layer, torch.randn(shape)


def judge(layer, x):
    convolve = {4: F.conv2d, 5: F.conv3d}[x.dim()]
    bias = None if layer.bias is None else layer.bias.double()
    return convolve(x.double(), layer.weight.double(), bias, layer.stride, layer.padding, layer.dilation)


def test_numbers_are_torchs(case):
    layer, x = case
    assert off(layer(x), judge(layer, x)) < AGREE
    assert torch.equal(layer(lay_out(x)), layer(x))
    x = x.requires_grad_()
    layer(x).square().sum().backward()
    (wanted,) = torch.autograd.grad(judge(layer, x).square().sum(), x)
    assert off(x.grad, wanted) < AGREE


def test_a_size_of_one_may_have_any_stride(case):
    """A frame gives the same result alone and as a part of several; oneDNN itself would round the two differently."""
    layer, x = case
    x = lay_out(x)[:1]
    if x.dim() == 5:
        x = x[:, :, : layer.dilation[0] * (layer.kernel_size[0] - 1) + 1]
    alone = torch.empty_like(x, memory_format=torch.preserve_format).copy_(x)
    odd = alone.as_strided(x.shape, (7, *alone.stride()[1:]))
    with torch.no_grad():
        assert torch.equal(layer(x), layer(alone))
        assert torch.equal(layer(odd), layer(alone))


def test_bf16_is_rounded_once(case):
    """A CPU without bf16 rounds to the nearest, at most 2^-8 away; one that has bf16 may be a step off."""
    layer, x = case
    x = x.bfloat16()
    rounded = type(layer)(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        bias=layer.bias is not None,
    ).bfloat16()
    rounded.load_state_dict(layer.state_dict())
    with torch.no_grad():
        made, wanted = rounded(x), judge(rounded, x)
    assert made.dtype == torch.bfloat16
    bound = 2**-7 if cpu_computes_bf16() else 2**-8
    assert ((made.double() - wanted).abs() <= bound * 1.01 * wanted.abs() + 1e-5).all()


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 3), (1, 1, 1)], ids=str)
def test_a_filter_is_rounded_as_a_whole(kernel):
    """The sum of its taps is kept to a step of its largest tap, and no tap is off by more than two steps."""
    torch.manual_seed(0)
    weight = torch.randn(64, 32, *kernel)
    rounded = round_weight(weight, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    off = (rounded.double() - weight.double()).flatten(2)
    step = 2.0 ** (weight.abs().flatten(2).amax(2).log2().floor() - 7)
    assert (off.sum(2).abs() <= step).all()
    assert (off.abs() <= 2 * step[..., None]).all()
    if len(kernel) > 1 and kernel[-1] > 1:
        plain = (weight.bfloat16().double() - weight.double()).flatten(2).sum(2)
        assert off.sum(2).pow(2).mean() < plain.pow(2).mean() / 4
    assert torch.equal(round_weight(rounded, torch.bfloat16), rounded)  # rounding again changes nothing
    assert torch.equal(round_weight(weight, torch.float32), weight)


def test_networks_are_loaded_with_filters_rounded_as_a_whole():
    checkpoint = open_checkpoint(None)
    exact, loaded = (checkpoint.load_encoder(dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    filters = {name: weight for name, weight in exact.named_parameters() if weight.dim() >= 4}
    assert filters
    for name, weight in filters.items():
        assert torch.equal(loaded.get_parameter(name), round_weight(weight, torch.bfloat16))
    assert any(not torch.equal(loaded.get_parameter(name), weight.bfloat16()) for name, weight in filters.items())
