"""The time of an encoding besides its convolutions, and how getting memory from Linux affects it.

    python benchmarks/overhead.py [--size published|tiny] [--precision bf16 fp32] [--shape 17x128x128] [--runs 3] [--json FILE]

Every convolution gives zeros at once, so the time is that of norms, SiLU, padding, sums, halvings and, above all for
large pictures, page faults. "plain" is malloc with its defaults; "kept" tells it to keep freed memory, up to its limit
of 32 MB per tensor; "movq" is device.spare_page_faults, which the commands call. All take turns, each in a process of
its own; peaks are those of the network alone. Prints a Markdown table.
"""

import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import FASTER, SIZES, Table, default_windows, in_child, network, options, ratio


def measure(way, size, precision, shape):
    """Print this child process's seconds (the fastest of three runs after a warm-up), peak bytes and page faults."""
    from movq_cli.device import spare_page_faults

    if way != "plain":
        if way == "kept":
            os.environ["THP_MEM_ALLOC_ENABLE"] = "0"
        spare_page_faults()
    import ctypes

    import numpy as np
    import torch
    from torch import nn

    from movq_cli.codec import encode
    from movq_cli.model import Encoder3D

    if way == "kept":
        ctypes.CDLL(None).mallopt(-3, 32 << 20)

    def zeros(self, x):
        sides = zip(x.shape[2:], self.kernel_size, self.stride, self.padding, strict=True)
        shape = [x.shape[0], self.out_channels, *((n + 2 * p - k) // s + 1 for n, k, s, p in sides)]
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()]
        return torch.empty(shape, dtype=x.dtype, memory_format=layout).zero_()

    nn.Conv2d.forward = nn.Conv3d.forward = zeros
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    model = network(Encoder3D, size, dtype)
    images = (np.random.default_rng(0).random((*shape, 3)) * 255).astype(np.uint8)
    windows, seconds = default_windows(images, size, model.config), []
    for _ in range(4):
        started = time.perf_counter()
        for latents in encode(model, windows, torch.device("cpu"), dtype):
            del latents
        seconds.append(time.perf_counter() - started)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"s": min(seconds[1:]), "peak": used.ru_maxrss * 1024, "faults": used.ru_minflt}))


def main():
    parser = options(__doc__)
    parser.add_argument("--size", choices=SIZES, default="published")
    parser.add_argument("--precision", nargs="+", choices=["bf16", "fp32"], default=["bf16", "fp32"])
    parser.add_argument("--shape", nargs="+", default=["17x128x128"], metavar="TxHxW")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        measure(args.child, args.size, args.precision[0], tuple(int(n) for n in args.shape[0].split("x")))
        return
    print(f"{args.size} size, medians of {args.runs} runs in turn\n")
    table = Table(
        {"clip": "", "precision": "", "way": "", "s": ".2f", FASTER: ".2f", "page faults": ",", "peak MB": ".0f"},
        args.json,
    )
    for shape in args.shape:
        for precision in args.precision:
            runs = {"plain": [], "kept": [], "movq": []}
            for _ in range(args.runs):
                for way, results in runs.items():
                    child = in_child(
                        __file__, "--child", way, "--size", args.size, "--precision", precision, "--shape", shape
                    )
                    results.append(child)
            taken = {way: [run["s"] for run in results] for way, results in runs.items()}
            for way, results in runs.items():
                table.add(
                    shape,
                    precision,
                    way,
                    statistics.median(taken[way]),
                    None if way == "movq" else ratio(taken[way], taken["movq"]),
                    round(statistics.median(run["faults"] for run in results)),
                    statistics.median(run["peak"] for run in results) / 1e6,
                )


if __name__ == "__main__":
    main()
