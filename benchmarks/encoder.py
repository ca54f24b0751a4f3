"""The encoder against the published operations, in one run: ratio of times and of peak memory, share of the GEMM rate.

    python benchmarks/encoder.py [--size published|tiny] [--precision bf16 fp32] [--shape 17x128x128] [--runs 3]

The two take turns, each in a process of its own, so that a busy machine hits both and peaks are their own. `published` is
tests/published.py in one chunk: torch.cat and F.pad, x * sigmoid(x), every stage's output kept. Prints a Markdown table.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

SIZES = {
    "published": dict(ch=128, ch_mult=(1, 2, 2, 4), num_res_blocks=3),
    "tiny": dict(ch=32, ch_mult=(1, 2, 4, 4), num_res_blocks=1, norm_scope="frame"),
}
REST = dict(out_ch=3, attn_resolutions=[], in_channels=3, resolution=256, z_channels=16)


def measure(which, size, precision, shape):
    """In a child process: one warm-up, one timed forward; seconds, peak bytes, FLOPs, GEMM rate."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from movq_cli.model import Encoder3D
    from movq_cli.model.causal import lay_out
    from tests import published

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    torch.manual_seed(0)
    with torch.inference_mode():
        encoder = Encoder3D(**SIZES[size], **REST).eval().to(dtype)
        x = (torch.rand(1, 3, *shape) * 2 - 1).to(dtype)
        if which == "movq":
            for parameter in encoder.parameters():
                parameter.data = lay_out(parameter.data)
            forward = encoder
        elif SIZES[size].get("norm_scope") == "frame":
            raise SystemExit("the published operations norm over the clip; only --size published compares")
        else:

            def forward(v):
                return published.encode(encoder, v)

        forward(x)
        started = time.perf_counter()
        forward(x)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        gemm = gemm_rate(dtype)
        with FlopCounterMode(display=False) as counter:  # of the same convolutions, on shapes alone
            published.encode(encoder.to("meta"), x.to("meta"))
    print(json.dumps({"seconds": seconds, "peak": peak, "gemm": gemm, "flops": counter.get_total_flops()}))


def gemm_rate(dtype, n=4096):
    """FLOP per second of a square matrix product, the best of three."""
    import torch

    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="published")
    parser.add_argument("--precision", nargs="+", choices=["bf16", "fp32"], default=["bf16", "fp32"])
    parser.add_argument("--shape", default="17x128x128")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", choices=["movq", "published"])
    args = parser.parse_args()
    shape = tuple(int(n) for n in args.shape.split("x"))
    if args.child:
        measure(args.child, args.size, args.precision[0], shape)
        return
    print(f"{args.size} size, {args.shape}, medians of {args.runs} runs in turn\n")
    print("| precision | movq s | published s | speed ratio | movq peak MB | published peak MB | movq share of GEMM |")
    print("|---|---|---|---|---|---|---|")
    for precision in args.precision:
        runs = {"movq": [], "published": []}
        for _ in range(args.runs):
            for which, results in runs.items():
                command = [sys.executable, __file__, "--child", which, "--size", args.size]
                command += ["--precision", precision, "--shape", args.shape]
                results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        ours, theirs = runs["movq"], runs["published"]
        ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True))
        share = statistics.median(r["flops"] / r["seconds"] / r["gemm"] for r in ours)

        def median(results, key):
            return statistics.median(r[key] for r in results)

        print(
            f"| {precision} | {median(ours, 'seconds'):.2f} | {median(theirs, 'seconds'):.2f} | {ratio:.2f} "
            f"| {median(ours, 'peak') / 1e6:.0f} | {median(theirs, 'peak') / 1e6:.0f} | {share:.0%} |"
        )


if __name__ == "__main__":
    main()
