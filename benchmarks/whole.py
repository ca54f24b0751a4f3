"""What exact whole-clip norms cost in chunks and on disk, against one chunk: time, peak memory, difference of the latents.

    python benchmarks/whole.py [--frames 49] [--size 128x128] [--precision bf16] [--runs 3]

Encodes a synthetic clip by `movq encode --semantics whole` with random weights of the published size: in one chunk, in
chunks of 4 and 8, and with a memory budget of 64 MB, whose activations wait in a file. Prints a Markdown table.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SETTINGS = {
    "one chunk": [],
    "chunks of 4": ["--chunk-frames", "4"],
    "chunks of 8": ["--chunk-frames", "8"],
    "chunks of 8, 64 MB": ["--chunk-frames", "8", "--memory-budget", "64MB"],
}


def main():
    from benchmarks.common import peak, published_weights, synthetic

    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--size", default="128x128", metavar="WxH")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = published_weights(f"{folder}/weights.safetensors")
        synthetic(f"{folder}/clip.mp4", args.frames, *map(int, args.size.split("x")))
        results = {name: [] for name in SETTINGS}
        for _ in range(args.runs):
            for name, options in SETTINGS.items():
                command = [sys.executable, "-m", "movq_cli", "encode", f"{folder}/clip.mp4", "--semantics", "whole"]
                command += ["-o", f"{folder}/{name}", "--force", "-q", "--precision", args.precision, *options]
                command += ["--weights", weights]
                started = time.perf_counter()
                results[name].append((peak(command), time.perf_counter() - started))
        from movq_cli import open_latents
        from tests.tolerance import off

        print(f"{args.frames} frames of {args.size}, {args.precision}, medians of {args.runs} runs in turn\n")
        print("| setting | s | of one chunk | peak MB | of one chunk | largest difference from one chunk |")
        print("|---|---|---|---|---|---|")
        one = open_latents(f"{folder}/one chunk").latents.float()
        base = results["one chunk"]
        for name, runs in results.items():
            seconds = statistics.median(s for _, s in runs)
            memory = statistics.median(p for p, _ in runs)
            slower = statistics.median(s / t for (_, s), (_, t) in zip(runs, base, strict=True))
            larger = statistics.median(p / q for (p, _), (q, _) in zip(runs, base, strict=True))
            difference = off(open_latents(f"{folder}/{name}").latents.float(), one)
            print(f"| {name} | {seconds:.1f} | {slower:.2f} | {memory / 1e6:.0f} | {larger:.2f} | {difference:.1e} |")


if __name__ == "__main__":
    main()
