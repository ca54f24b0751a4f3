"""Every convolution of an encoder on a CPU in fp32: by the kernel that torch chooses and by movq's choice, in turn.

    python benchmarks/convolutions.py [--size tiny|published] [--shape 4x256x256] [--runs 5] [--json FILE]

The input is a chunk of T x H x W in the middle of a stream; each figure is the best of the runs. Prints a Markdown
table.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import SIZES, Table, network, options


def calls(model, frames, height, width):
    """Return (name, layer, input) of each convolution that a later chunk of a stream runs."""
    import torch

    from movq_cli.model import StreamCache
    from movq_cli.model.convolution import Conv2d, Conv3d

    found, cache = [], StreamCache()
    model(torch.rand(1, 3, 1 + frames, height, width), cache)
    for name, layer in model.named_modules():
        if isinstance(layer, Conv2d | Conv3d):
            layer.register_forward_pre_hook(
                lambda layer, inputs, name=name: found.append((name, layer, inputs[0].clone()))
            )
    model(torch.rand(1, 3, frames, height, width), cache)
    return found


def main():
    import torch
    from torch import nn

    from movq_cli.device import spare_page_faults
    from movq_cli.model import Encoder3D

    parser = options(__doc__, runs=5)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--shape", default="4x256x256", metavar="TxHxW")
    args = parser.parse_args()
    spare_page_faults()
    torch.set_grad_enabled(False)
    print(f"{args.size} size, {args.shape}, the best of {args.runs} runs in turn\n")
    table = Table({"layer": "", "input": "", "torch ms": ".1f", "movq ms": ".1f", "times faster": ".2f"}, args.json)
    total = [0.0, 0.0]
    for name, layer, x in calls(network(Encoder3D, args.size, torch.float32), *map(int, args.shape.split("x"))):
        usual = nn.Conv3d._conv_forward if isinstance(layer, nn.Conv3d) else nn.Conv2d._conv_forward
        best = [float("inf")] * 2
        for _ in range(args.runs):
            for i, way in enumerate((usual, type(layer)._conv_forward)):
                started = time.perf_counter()
                way(layer, x, layer.weight, layer.bias)
                best[i] = min(best[i], time.perf_counter() - started)
        theirs, ours = (1000 * seconds for seconds in best)
        table.add(name.removesuffix(".conv"), "x".join(map(str, x.shape[1:])), theirs, ours, theirs / ours)
        total = [a + b for a, b in zip(total, (theirs, ours), strict=True)]
    table.add("all", "", *total, total[0] / total[1])


if __name__ == "__main__":
    main()
