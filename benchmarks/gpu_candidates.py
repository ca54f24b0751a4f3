"""The part of gpu.py that tries other ways to norm on CUDA, each compared with the plain way before it is timed.

The plain way (movq_cli/model/norms.py) norms as many frames at once as a bound allows. The others norm a frame at a
time, as on a CPU; in larger blocks; all frames at once in fewer steps, from sums of squares; and with two
Triton kernels. Triton is not a dependency of movq. TRITON_INTERPRET=1 runs its kernels on a CPU.
"""

import os
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F

from benchmarks.common import network
from benchmarks.gpu_networks import DTYPES, SHAPES, SMALL, encoding, make_images, plan_for, seconds_of
from movq_cli.model import norms
from movq_cli.model.convolution import lay_out
from movq_cli.model.norms import GroupNorm, NormStatistics

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


def candidates(part):
    """Time one encoding in every way, in bf16; in fp32, print how far its latents are from the plain way's."""
    device = part.device
    ways = {
        "plain": nullcontext,
        "a frame at a time": a_frame_at_a_time,
        "blocks of 2^28 numbers": lambda: blocks_of(2**28),
        "all frames at once, sums of squares": lambda: normed_by(statistics_at_once, apply_at_once),
    }
    if triton is not None and (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"):
        ways["Triton"] = lambda: normed_by(statistics_by_triton, apply_by_triton)
    else:
        part.say("without Triton")
    table = part.table(
        {
            "size": "",
            "clip": "",
            "way": "",
            "s": ".4f",
            "times as fast as plain": ".2f",
            "largest difference in fp32": ".1e",
            "rms": ".1e",
        }
    )
    cases = [("published", SHAPES[1]), ("tiny", SHAPES[1]), ("published", SHAPES[0])]
    for size, shape in [("tiny", SMALL[0])] if part.cpu else cases:
        images, expected, seconds = make_images(shape), None, None
        for name, way in ways.items():
            try:
                with way():
                    latents = torch.cat(encoded(size, images[: SHAPES[0][0]], "fp32", device)[1], 2)
                    run, _ = encoded(size, images, "bf16", device)
                    taken = seconds_of(run, device, budget=1.0)
            except Exception as error:  # one way failed; the others are still of interest
                part.say(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
                continue
            if expected is None:
                expected, seconds = latents, taken
            off = (latents - expected) / expected.std()
            clip = "x".join(map(str, shape))
            table.add(
                size, clip, name, taken, seconds / taken, off.abs().max().item(), off.square().mean().sqrt().item()
            )
            torch.cuda.empty_cache()


def encoded(size, images, precision, device):
    """Return (function that encodes the images again, their latents), with the same random weights each time."""
    from movq_cli.model import Encoder3D

    torch.manual_seed(0)
    model = network(Encoder3D, size, DTYPES[precision], device)
    plan = plan_for(model, images.shape[:3], precision, device)
    kept = []
    encoding(model, images, plan, precision, device, kept)()
    return encoding(model, images, plan, precision, device), kept


@contextmanager
def a_frame_at_a_time():
    """Have norms take a frame at a time."""
    usual, norms._block_size = norms._block_size, lambda x, picture: (1, x.shape[3])
    try:
        yield
    finally:
        norms._block_size = usual


@contextmanager
def blocks_of(numbers):
    """Have norms take this many numbers at a time."""
    usual, norms._DEVICE_BLOCK = norms._DEVICE_BLOCK, numbers
    try:
        yield
    finally:
        norms._DEVICE_BLOCK = usual


@contextmanager
def normed_by(statistics, apply):
    """Have every GroupNorm measure and write in another way."""
    measure, write = GroupNorm.measure, GroupNorm.write

    def measure_all(self, x, picture=None):
        x = lay_out(x)
        mean, m2 = statistics(x, self.num_groups, self.scope == "frame")
        count = x.shape[1] // self.num_groups * x.shape[3] * x.shape[4] * (1 if self.scope == "frame" else x.shape[2])
        return NormStatistics(count, mean.double(), m2.double())

    def write_all(self, x, out, stats=None, *, silu, modulate=None):
        assert modulate is None
        x = lay_out(x)
        stats = stats or self.measure(x)
        inverse = (stats.m2 / stats.count + self.eps).rsqrt()
        per_group = x.shape[1] // self.num_groups
        scale = inverse.float().repeat_interleave(per_group, 2) * self.weight.float()
        shift = self.bias.float() - stats.mean.float().repeat_interleave(per_group, 2) * scale
        apply(x, scale, shift, out, silu)

    GroupNorm.measure, GroupNorm.write = measure_all, write_all
    try:
        yield
    finally:
        GroupNorm.measure, GroupNorm.write = measure, write


def grouped(x, groups):
    """View a chunk (B, C, T, H, W) in channels-last memory as (B, T, H * W, groups, C / groups)."""
    b, c, t, h, w = x.shape
    return x.permute(0, 2, 3, 4, 1).reshape(b, t, h * w, groups, c // groups)


def statistics_at_once(x, groups, each_frame):
    """Return mean and M2, (B, T or 1, groups), of all frames, from sums and sums of squares."""
    y, dims = grouped(x, groups), (2, 4) if each_frame else (1, 2, 4)
    count = y.shape[2] * y.shape[4] * (1 if each_frame else y.shape[1])
    mean = y.sum(dims, dtype=torch.float32, keepdim=True) / count
    squares = torch.linalg.vector_norm(y, dim=dims, keepdim=True, dtype=torch.float32).square()
    shape = (x.shape[0], -1, groups)
    return mean.reshape(shape), (squares - count * mean.square()).clamp_min_(0).reshape(shape)


def apply_at_once(x, scale, shift, out, silu):
    """Write x * scale + shift, with SiLU if asked, for scale and shift (B, T or 1, C)."""
    scale, shift = (v.transpose(1, 2)[..., None, None] for v in (scale, shift))
    y = x * scale + shift
    out.copy_(F.silu(y) if silu else y)


if triton is not None:
    _TILE = 4096  # numbers that a program holds at a time
    _PROGRAMS = 1024  # programs of a launch, at least, if there is enough work

    @triton.jit
    def _measure(x, mean_out, m2_out, frame_stride, pixels, per_program, C: tl.constexpr, ROWS: tl.constexpr):
        """Measure mean and M2 of each channel over a run of a frame's pixels, tile by tile (Chan et al. 1979)."""
        frame, run = tl.program_id(0), tl.program_id(1)
        channels = tl.arange(0, C)
        begin = run * per_program
        end = tl.minimum(begin + per_program, pixels)
        mean = tl.zeros([C], tl.float32)
        m2 = tl.zeros([C], tl.float32)
        count = 0.0
        for at in range(begin, end, ROWS):
            rows = at + tl.arange(0, ROWS)
            inside = (rows < end)[:, None]
            place = frame.to(tl.int64) * frame_stride + rows[:, None] * C + channels[None, :]
            tile = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
            own = tl.minimum(end - at, ROWS).to(tl.float32)
            own_mean = tl.sum(tile, 0) / own
            off = tl.where(inside, tile - own_mean[None, :], 0.0)
            delta = own_mean - mean
            total = count + own
            m2 += tl.sum(off * off, 0) + delta * delta * (count * own / total)
            mean += delta * (own / total)
            count = total
        place = (frame * tl.num_programs(1) + run) * C + channels
        tl.store(mean_out + place, mean)
        tl.store(m2_out + place, m2)

    @triton.jit
    def _apply(
        x,
        scale,
        shift,
        out,
        x_stride,
        out_stride,
        v_stride,
        pixels,
        SILU: tl.constexpr,
        C: tl.constexpr,
        ROWS: tl.constexpr,
    ):
        """Write x * scale + shift for some pixels of a frame, with SiLU if asked."""
        frame, block = tl.program_id(0), tl.program_id(1)
        channels = tl.arange(0, C)
        rows = block * ROWS + tl.arange(0, ROWS)
        inside = (rows < pixels)[:, None]
        place = rows[:, None] * C + channels[None, :]
        a = tl.load(scale + frame * v_stride + channels)[None, :]
        b = tl.load(shift + frame * v_stride + channels)[None, :]
        y = tl.load(x + frame.to(tl.int64) * x_stride + place, mask=inside, other=0.0).to(tl.float32) * a + b
        if SILU:
            y = y * tl.sigmoid(y)
        tl.store(out + frame.to(tl.int64) * out_stride + place, y.to(out.dtype.element_ty), mask=inside)

    def statistics_by_triton(x, groups, each_frame):
        """Return the same as statistics_at_once, from means and M2 of runs of pixels.

        Needs B = 1 and channels that are a power of two.
        """
        b, c, t, h, w = x.shape
        assert b == 1
        pixels, rows = h * w, max(1, _TILE // c)
        runs = max(1, min(triton.cdiv(_PROGRAMS, t), triton.cdiv(pixels, 4 * rows)))
        per_program = triton.cdiv(triton.cdiv(pixels, runs), rows) * rows
        runs = triton.cdiv(pixels, per_program)
        mean, m2 = (torch.empty(t, runs, c, device=x.device) for _ in range(2))
        _measure[(t, runs)](x, mean, m2, x.stride(2), pixels, per_program, c, rows)
        sizes = torch.full((runs,), per_program, dtype=torch.float64, device=x.device)
        sizes[-1] = pixels - per_program * (runs - 1)
        mean, m2 = (v.double().view(1, t, runs, groups, c // groups) for v in (mean, m2))
        dims, weight = (2, 4) if each_frame else (1, 2, 4), sizes[:, None, None].expand(1, t, runs, groups, c // groups)
        center = (mean * weight).sum(dims, keepdim=True) / weight.sum(dims, keepdim=True)
        m2 = (m2 + (mean - center).square() * weight).sum(dims)
        return center.reshape(1, -1, groups), m2.reshape(1, -1, groups)

    def apply_by_triton(x, scale, shift, out, silu):
        """Write the same as apply_at_once, in one launch. Needs B = 1 and channels that are a power of two."""
        _, c, t, h, w = x.shape
        assert out.stride()[3:] == x.stride()[3:] == (w * c, c)
        rows = max(1, _TILE // c)
        stride = c if scale.shape[1] > 1 else 0
        grid = t, triton.cdiv(h * w, rows)
        _apply[grid](
            x, scale.contiguous(), shift.contiguous(), out, x.stride(2), out.stride(2), stride, h * w, silu, c, rows
        )
