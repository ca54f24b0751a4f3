"""The published decoder against diffusers', in one run: ratio of times and of peak memory.

    python benchmarks/decoder.py [--precision bf16] [--shape 5x16x16] [--runs 3]

Published size (ch 128, mult 1 2 2 4, 3 blocks, random weights), latents of L x H x W; both in windows of 2 latents. The two
take turns, each in a process of its own. Needs diffusers. Prints a Markdown table.
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

from benchmarks.common import network


def measure(which, precision, shape):
    """In a child process: one warm-up, one timed decoding; seconds and peak bytes."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    device = torch.device("cpu")
    torch.manual_seed(0)
    z = torch.randn(1, 16, *shape).to(dtype)
    if which == "movq":
        from movq_cli.codec import decode, decode_windows
        from movq_cli.model import Decoder3D

        decoder = network(Decoder3D, "published", dtype)

        def forward():
            at = iter(range(shape[0]))
            windows = decode_windows("diffusers", shape[0], 0, decoder.config)
            pieces = ([z[:, :, [next(at) for _ in range(n)]] for n in window] for window in windows)
            return sum(len(frames) for frames in decode(decoder, pieces, device, dtype))
    else:
        from diffusers import AutoencoderKLCogVideoX

        model = AutoencoderKLCogVideoX().eval().requires_grad_(False).to(dtype)
        del model.encoder

        def forward():
            with torch.inference_mode():
                return model.decode(z).sample.shape[2]

    assert forward() == 1 + 4 * (shape[0] - 1)
    started = time.perf_counter()
    forward()
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", nargs="+", choices=["bf16", "fp32"], default=["bf16"])
    parser.add_argument("--shape", default="5x16x16")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", choices=["movq", "diffusers"])
    args = parser.parse_args()
    if args.child:
        measure(args.child, args.precision[0], tuple(int(n) for n in args.shape.split("x")))
        return
    print(f"published size, latents of {args.shape}, medians of {args.runs} runs in turn\n")
    print("| precision | movq s | diffusers s | speed ratio | movq peak MB | diffusers peak MB |")
    print("|---|---|---|---|---|---|")
    for precision in args.precision:
        runs = {"movq": [], "diffusers": []}
        for _ in range(args.runs):
            for which, results in runs.items():
                command = [sys.executable, __file__, "--child", which, "--precision", precision, "--shape", args.shape]
                results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        ours, theirs = runs["movq"], runs["diffusers"]
        ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True))
        seconds = [statistics.median(r["seconds"] for r in results) for results in (ours, theirs)]
        peaks = [statistics.median(r["peak"] for r in results) / 1e6 for results in (ours, theirs)]
        print(
            f"| {precision} | {seconds[0]:.2f} | {seconds[1]:.2f} | {ratio:.2f} | {peaks[0]:.0f} | {peaks[1]:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
