"""Find the source of bf16's error: run the encoder with the activations of one part in fp32 and all others in bf16.

    python benchmarks/rounding.py [CLIP ...] [--frames 9] [--size 256] [--weights FILE]

The figures are those of benchmarks/precision.py, against fp32 everywhere, as medians over the clips (by default six
shots of tests/data/city.mp4), of the middle `--size` squared. Weights are rounded in all rows but the last. "plain"
rounds each weight separately; "filters" rounds them as movq does (model/convolution.py, round_weight), and each row
below it is one change to that. The network is run by the few lines below and not by movq, as only here each part can
have a precision of its own; "movq" is movq in bf16, to show that both agree. Norms compute in fp32 in every row. Prints
Markdown.
"""

import statistics
import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from benchmarks.common import Table, options  # noqa: E402
from benchmarks.precision import shots  # noqa: E402
from movq_cli.checkpoints.checkpoint import open_checkpoint  # noqa: E402
from movq_cli.codec import to_input, to_planes  # noqa: E402
from movq_cli.difference import Comparison  # noqa: E402
from movq_cli.model.causal import fold_frames, unfold_frames  # noqa: E402
from movq_cli.model.convolution import round_weight  # noqa: E402
from movq_cli.options import Selection  # noqa: E402
from movq_cli.video import read_frames  # noqa: E402

LOW, FULL = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Parts:
    """The precision of each part: pixels, convolutions by stage, residual stream, results of norms, and moments."""

    pixels: torch.dtype = LOW
    conv_in: torch.dtype = LOW
    levels: tuple[torch.dtype, ...] = (LOW,) * 4
    mid: torch.dtype = LOW
    conv_out: torch.dtype = LOW
    stream: torch.dtype = LOW
    inside: torch.dtype = LOW  # the result of a block's first convolution
    moments: torch.dtype = LOW
    weights: str = "filters"  # rounded by "filters" or "plain", or not at all: "fp32"

    def weight(self, weight):
        """Return a convolution's weight, rounded, in fp32."""
        if self.weights == "fp32":
            return weight
        return round_weight(weight, LOW).float() if self.weights == "filters" else weight.to(LOW).float()


def conv(module, x, dtype, out, parts):
    """Run a convolution in `dtype`, causal in time if it is 3-D; its result is rounded once, to `out`.

    A convolution of bf16 adds up in fp32, so bf16 is computed here by a convolution of fp32 with rounded numbers.
    """
    inner = getattr(module, "conv", module)
    weight, bias = parts.weight(inner.weight), inner.bias.to(dtype).float()
    x = x.to(dtype).float()
    if weight.dim() == 5:
        past = weight.shape[2] - 1
        x = torch.cat([x[:, :, :1].expand(-1, -1, past, -1, -1), x], 2) if past else x
        edge = weight.shape[3] // 2
        return F.conv3d(x, weight, bias, padding=(0, edge, edge)).to(out)
    return F.conv2d(x, weight, bias, stride=inner.stride).to(out)


def norm(module, x, dtype):
    """Run GroupNorm on each frame, then SiLU, computed in fp32 and rounded once."""
    y = F.group_norm(fold_frames(x.float()).contiguous(), module.num_groups, module.weight, module.bias, module.eps)
    return unfold_frames(F.silu(y), x.shape[0]).to(dtype)


def block(module, x, dtype, parts):
    """Run a residual block."""
    h = conv(module.conv1, norm(module.norm1, x, dtype), dtype, parts.inside if dtype == LOW else FULL, parts)
    h = norm(module.norm2, h, dtype)
    stream = parts.stream if dtype == LOW else FULL
    h = conv(module.conv2, h, dtype, stream, parts)
    if module.nin_shortcut is not None:
        x = conv(module.nin_shortcut, x, dtype, stream, parts)
    return h.to(stream) + x.to(stream)


def down(module, x, dtype, parts):
    """Halve time, then height and width."""
    if module.compress_time:
        x = torch.cat([x[:, :, :1], (x[:, :, 1::2] + x[:, :, 2::2]) * 0.5], 2)
    frames = F.pad(fold_frames(x), (0, 1, 0, 1))
    return unfold_frames(conv(module.conv, frames, dtype, parts.stream if dtype == LOW else FULL, parts), x.shape[0])


def encode(network, pixels, parts):
    """Return the moments of a whole clip (1, 3, T, H, W) of fp32 in [-1, 1]. The network is in fp32, norms per frame."""
    x = pixels.to(parts.pixels)
    x = conv(network.conv_in, x, parts.conv_in, parts.stream if parts.conv_in == LOW else FULL, parts)
    for level, dtype in zip(network.down, parts.levels, strict=True):
        for inner in level.block:
            x = block(inner, x, dtype, parts)
        if hasattr(level, "downsample"):
            x = down(level.downsample, x, dtype, parts)
    for inner in (network.mid.block_1, network.mid.block_2):
        x = block(inner, x, parts.mid, parts)
    return conv(network.conv_out, norm(network.norm_out, x, parts.conv_out), parts.conv_out, parts.moments, parts)


def ways():
    """Return {name: Parts} of the rows."""
    usual = Parts()
    found = {
        "plain": replace(usual, weights="plain"),
        "filters": usual,
        "filters; pixels and input convolution in fp32": replace(usual, pixels=FULL, conv_in=FULL),
    }
    for i in range(4):
        found[f"filters; level {i} in fp32"] = replace(usual, levels=tuple(FULL if i == j else LOW for j in range(4)))
    found |= {
        "filters; middle in fp32": replace(usual, mid=FULL),
        "filters; last convolution in fp32": replace(usual, conv_out=FULL, moments=FULL),
        "filters; moments in fp32": replace(usual, moments=FULL),
        "filters; between a block's convolutions in fp32": replace(usual, inside=FULL),
        "filters; residual stream in fp32": replace(usual, stream=FULL),
        "plain; residual stream in fp32": replace(usual, stream=FULL, weights="plain"),
    }
    exact = Parts(FULL, FULL, (FULL,) * 4, FULL, FULL, FULL, FULL, FULL)
    found |= {f"{name}, all else in fp32": replace(exact, weights=name) for name in ("plain", "filters")}
    return found | {"weights in fp32, all else in bf16": replace(usual, weights="fp32")}


def main():
    parser = options(__doc__)
    parser.add_argument("clips", nargs="*", type=Path, metavar="CLIP")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--weights")
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.weights)
    exact = checkpoint.load_encoder(torch.device("cpu"), FULL)
    rounded = checkpoint.load_encoder(torch.device("cpu"), LOW)
    whole = Parts(FULL, FULL, (FULL,) * 4, FULL, FULL, FULL, FULL, FULL, "fp32")
    found = {name: [] for name in ("movq", *ways())}
    for _, path, start in [(p.name, p, Fraction(0)) for p in args.clips] or shots():
        with read_frames(path, Selection(start=start, frames=args.frames)) as reader:
            images = torch.stack([torch.from_numpy(frame.image) for frame in reader])
        top, left = (max(0, (n - args.size) // 2) for n in images.shape[1:3])
        images = images[:, top : top + args.size // 8 * 8, left : left + args.size // 8 * 8]
        images = images[:, : images.shape[1] // 8 * 8, : images.shape[2] // 8 * 8].contiguous()
        with torch.inference_mode():
            pixels = to_input(to_planes(images), FULL)
            wanted = encode(exact, pixels, whole)
            off = float((wanted - exact(pixels)).abs().max())
            assert off < 1e-3, f"the lines above are not movq's network: {off}"
            rows = {name: encode(exact, pixels, parts) for name, parts in ways().items()}
            rows["movq"] = rounded(pixels.to(LOW))
        for name, moments in rows.items():
            comparison = Comparison()
            comparison.add(wanted, moments.float(), True)
            found[name].append(comparison.difference)
    table = Table(
        {"weights; change": "", "means rms": ".4f", "largest": ".2f", "log variances rms": ".4f", "of plain": ".2f"},
        args.json,
    )
    usual = statistics.median(d.mean.rms for d in found["plain"])
    for name, differences in found.items():
        values = [(d.mean.rms, d.mean.largest, d.logvar.rms) for d in differences]
        rms, largest, logvar = map(statistics.median, zip(*values, strict=True))
        table.add(name, rms, largest, logvar, rms / usual)


if __name__ == "__main__":
    main()
