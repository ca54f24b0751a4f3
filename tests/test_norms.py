"""Statistics of norms and their merging, against torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from movq_cli.model import Decoder3D, Encoder3D, GroupNorm, SpatialNorm3D, norms

from .helpers.models import SMALL
from .helpers.tolerance import AGREE, SAME, off


@pytest.mark.parametrize("shape", [(1, 32, 5, 8, 8), (2, 64, 3, 16, 12), (1, 128, 2, 100, 128)], ids=str)
@pytest.mark.parametrize("scope", ["whole", "frame"])
def test_group_norm_is_torchs(shape, scope):
    torch.manual_seed(0)
    norm = GroupNorm(shape[1], scope).double()
    x = torch.randn(shape, dtype=torch.float64) * 0.3 + 2
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
        if scope == "whole":
            expected = F.group_norm(x, 32, norm.weight, norm.bias, 1e-6)
        else:
            frames = [F.group_norm(x[:, :, t], 32, norm.weight, norm.bias, 1e-6) for t in range(shape[2])]
            expected = torch.stack(frames, 2)
        assert off(norm(x), expected) < SAME
        assert off(norm.float()(x.float()), expected) < AGREE / 10
    with torch.enable_grad():
        assert off(norm.double()(x).detach(), expected) < AGREE / 10


def test_means_far_from_zero_keep_their_digits():
    """Plain fp32 sums of squares lose them: the mean is 100 standard deviations, a group has half a million numbers."""
    torch.manual_seed(0)
    x = torch.randn(1, 32, 8, 256, 256) + 100
    with torch.no_grad():
        stats = GroupNorm(32).measure(x)
    true = x.double().reshape(32, -1)
    assert ((stats.m2[0, 0] / stats.count) / true.var(1, correction=0) - 1).abs().max() < 1e-5
    assert (stats.mean[0, 0] / true.mean(1) - 1).abs().max() < 2e-6


def test_half_precision_statistics_are_fp32():
    torch.manual_seed(0)
    x = (torch.randn(1, 64, 4, 32, 32) + 3).bfloat16()
    with torch.no_grad():
        stats = GroupNorm(64).measure(x)
    true = x.double().reshape(32, -1)
    assert (stats.mean[0, 0] - true.mean(1)).abs().max() < 1e-5  # bf16 itself would be off by 4e-3


def test_merging_statistics_is_measuring_together():
    torch.manual_seed(0)
    x = torch.randn(2, 64, 7, 8, 8, dtype=torch.float64) + torch.arange(7.0).view(7, 1, 1)
    norm = GroupNorm(64).double()
    with torch.no_grad():
        whole = norm.measure(x)
        merged = norm.measure(x[:, :, :1]).merge(norm.measure(x[:, :, 1:5])).merge(norm.measure(x[:, :, 5:]))
    assert merged.count == whole.count
    assert off(merged.mean, whole.mean) < SAME
    assert off(merged.m2, whole.m2) < SAME


def test_spatial_norm_against_its_formula():
    """The formula is norm(f) * conv_y(up(zq)) + conv_b(up(zq)): zq is enlarged first, its first frame apart."""
    torch.manual_seed(0)
    norm = SpatialNorm3D(32, 4).double()
    f, zq = torch.randn(2, 32, 5, 8, 8, dtype=torch.float64), torch.randn(2, 4, 3, 4, 4, dtype=torch.float64)
    up = torch.cat(
        [
            F.interpolate(zq[:, :, :1], size=(1, 8, 8), mode="nearest"),
            F.interpolate(zq[:, :, 1:], size=(4, 8, 8), mode="nearest"),
        ],
        2,
    )
    with torch.no_grad():
        expected = F.group_norm(f, 32, norm.norm_layer.weight, norm.norm_layer.bias, 1e-6)
        expected = expected * norm.conv_y.conv(up) + norm.conv_b.conv(up)
        assert off(norm(f, zq), expected) < SAME
    with torch.enable_grad():
        assert off(norm(f, zq).detach(), expected) < SAME


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scope", ["whole", "frame"])
def test_blocks_of_several_frames_are_normed_as_one_by_one(monkeypatch, scope, dtype):
    torch.manual_seed(0)
    norm, spatial = GroupNorm(64, scope).to(dtype), SpatialNorm3D(64, 4, scope).to(dtype)
    f = (torch.randn(2, 64, 5, 8, 6) * 0.3 + torch.arange(64.0).view(1, 64, 1, 1, 1) / 8).to(dtype)
    zq = torch.randn(2, 4, 3, 4, 3).to(dtype)
    with torch.no_grad():
        one = norm(f), spatial(f, zq), norm.measure(f)
        monkeypatch.setattr(norms, "_block_size", lambda x, picture: (2, x.shape[3]))
        several = norm(f), spatial(f, zq), norm.measure(f)
    bound = {torch.float64: SAME, torch.float32: AGREE / 10, torch.bfloat16: 2**-6}[dtype]  # bf16 rounds twice
    for a, b in zip(one[:2], several[:2], strict=True):
        assert a.dtype == b.dtype == dtype
        assert off(b, a) < bound
    assert off(several[2].mean, one[2].mean) < (SAME if dtype == torch.float64 else 1e-6)
    assert ((several[2].m2 / one[2].m2) - 1).abs().max() < (SAME if dtype == torch.float64 else AGREE / 10)


class Operators(TorchDispatchMode):
    """Count the operators that torch runs, without views, and note the shapes of copies."""

    def __init__(self):
        super().__init__()
        self.count, self.copied = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.count += not function.is_view
        if function.overloadpacket in (torch.ops.aten.clone, torch.ops.aten._to_copy, torch.ops.aten.copy_):
            self.copied.append(tuple(out.shape))
        return out


def operators(network, *inputs):
    with torch.inference_mode(), Operators() as found:
        network(*inputs)
    return found


@pytest.mark.parametrize("scope", ["whole", "frame"])
def test_launches_on_a_device_do_not_grow_with_the_frames(monkeypatch, scope):
    monkeypatch.setattr(norms, "_block_size", lambda x, picture: (x.shape[2], x.shape[3]))
    encoder, decoder = (kind(**SMALL | {"norm_scope": scope}).eval() for kind in (Encoder3D, Decoder3D))
    for network, channels, few, many, size in ((encoder, 3, 9, 17, 16), (decoder, 4, 3, 5, 2)):
        counts = [operators(network, torch.zeros(1, channels, t, size, size)).count for t in (few, many)]
        assert counts[0] == counts[1] > 0


def test_activations_are_not_copied_on_their_way():
    """Only pixels (to be padded) are copied, and chunks whose height and width are halved but not their time."""
    found = operators(Encoder3D(**SMALL).eval(), torch.zeros(1, 3, 17, 16, 16))
    whole = [shape for shape in found.copied if len(shape) == 5 and shape[2] > 2]
    assert whole == [(1, 3, 17, 16, 16), (1, 64, 5, 4, 4)]
