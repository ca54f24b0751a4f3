"""The encoder against diffusers, against the published operations in one chunk, and against its own bare convolutions.

    python benchmarks/encoder.py [--size published|tiny] [--precision bf16 fp32] [--shape 17x128x128 ...] [--runs 3] [--json FILE]

All take turns in one run, each in a process of its own, so that a busy machine affects all alike and peaks are their
own. "naive" is tests/helpers/published.py in one chunk: torch.cat and F.pad, x * sigmoid(x), every stage's output kept.
"convolutions" is every convolution that movq runs, on inputs of the same shapes and layout, and nothing else. At the
published size movq runs diffusers' windows, as diffusers does without tiling; movq-tiny has norms per frame, and its
default chunks. The default precision is the one that `auto` takes here (a CPU without native bf16 needs minutes for
what fp32 does in one). "in ..." compares with movq in this default. Needs diffusers for the published size. Prints a
Markdown table.
"""

import json
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import (
    FASTER,
    MEMORY,
    REST,
    SIZES,
    Table,
    default_windows,
    in_child,
    native_precision,
    network,
    options,
    ratio,
)


def measure(which, size, precision, shape):
    """Print this child process's seconds (the faster of two runs after a warm-up), peak bytes, GEMM rate and FLOPs."""
    import torch

    from movq_cli.codec import encode
    from movq_cli.device import spare_page_faults
    from movq_cli.model import Encoder3D
    from tests.helpers import published

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    torch.manual_seed(0)
    images = (torch.rand(*shape, 3) * 255).to(torch.uint8).numpy()
    if which == "diffusers":
        from diffusers import AutoencoderKLCogVideoX

        model = AutoencoderKLCogVideoX().eval().requires_grad_(False).to(dtype)
        del model.decoder
    elif which == "naive":
        model = Encoder3D(**SIZES[size], **REST).eval().requires_grad_(False).to(dtype)
    else:
        spare_page_faults()
        model = network(Encoder3D, size, dtype)
    x = torch.from_numpy(images).permute(3, 0, 1, 2)[None].float().div_(127.5).sub_(1).to(dtype)

    def movq():
        windows = default_windows(images, size, model.config)
        return [z.clone() for z in encode(model, windows, torch.device("cpu"), dtype)]

    def naive():
        return published.encode(model, x)

    def diffusers():
        return model.encode(x).latent_dist.parameters

    forward, timed = {"movq": movq, "convolutions": movq, "naive": naive, "diffusers": diffusers}[which], None
    with torch.inference_mode():
        if which == "convolutions":
            timed = bare_convolutions(model, forward)
        forward()
        results = []
        for _ in range(2):
            started = time.perf_counter()
            forward()
            results.append(time.perf_counter() - started)
        flops = 0
        if which == "naive":
            from torch.utils.flop_counter import FlopCounterMode

            with FlopCounterMode(display=False) as counter:
                published.encode(model.to("meta"), x.to("meta"))
            flops = counter.get_total_flops()
    seconds = timed if timed is not None else min(results)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak, "gemm": gemm_rate(dtype), "flops": flops}))


def bare_convolutions(model, forward):
    """Return the summed seconds of every convolution that a forward runs, each alone on an input of the same shape."""
    import torch
    from torch import nn

    calls = []

    def note(module, inputs):
        calls.append((module, inputs[0].shape, inputs[0].stride()))

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    forward()
    for hook in hooks:
        hook.remove()
    total = 0.0
    for layer, shape, stride in calls:
        x = torch.empty_strided(shape, stride, dtype=layer.weight.dtype).normal_()
        best = float("inf")
        for _ in range(3):  # the first run also prepares oneDNN
            started = time.perf_counter()
            layer(x)
            best = min(best, time.perf_counter() - started)
        total += best
    return total


def gemm_rate(dtype, n=4096):
    """Return the FLOP per second of a square matrix product, the best of four runs."""
    import torch

    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def main():
    parser = options(__doc__)
    parser.add_argument("--size", choices=SIZES, default="published")
    parser.add_argument("--precision", nargs="+", choices=["bf16", "fp32"])
    parser.add_argument("--shape", nargs="+", default=["17x128x128"], metavar="TxHxW")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        measure(args.child, args.size, args.precision[0], tuple(int(n) for n in args.shape[0].split("x")))
        return
    native = native_precision()
    precisions = args.precision or [native]
    ways = ["movq", "convolutions", "naive"] + (["diffusers"] if args.size == "published" else [])
    print(f"{args.size} size, medians of {args.runs} runs in turn\n")
    table = Table(
        {
            "clip": "",
            "way": "",
            "precision": "",
            "s": ".2f",
            "frames/s": ".1f",
            FASTER: ".2f",
            f"in {native}": ".2f",
            "of its convolutions alone": ".2f",
            "peak MB": ".0f",
            MEMORY: ".0%",
            "of GEMM rate": ".0%",
        },
        args.json,
    )
    for shape in args.shape:
        runs = {(way, precision): [] for precision in precisions for way in ways}
        for _ in range(args.runs):
            for (way, precision), results in runs.items():
                child = in_child(
                    __file__, "--child", way, "--size", args.size, "--precision", precision, "--shape", shape
                )
                results.append(child)

        def taken(way, precision, key="seconds", runs=runs):
            return [run[key] for run in runs[way, precision]]

        for precision in precisions:
            flops = taken("naive", precision, "flops")[0]
            for way in ways:
                if way == "convolutions":
                    continue
                own, seconds = way == "movq", statistics.median(taken(way, precision))
                table.add(
                    shape,
                    way,
                    precision,
                    seconds,
                    int(shape.split("x")[0]) / seconds,
                    None if own else ratio(taken(way, precision), taken("movq", precision)),
                    None if own or native not in precisions else ratio(taken(way, precision), taken("movq", native)),
                    ratio(taken("movq", precision), taken("convolutions", precision)) if own else None,
                    statistics.median(taken(way, precision, "peak")) / 1e6,
                    None if own else ratio(taken("movq", precision, "peak"), taken(way, precision, "peak")),
                    flops / seconds / statistics.median(taken(way, precision, "gemm")),
                )


if __name__ == "__main__":
    main()
