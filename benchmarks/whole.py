"""The cost of exact whole-clip norms in chunks and on disk, against one chunk: time, peak memory, change of latents.

    python benchmarks/whole.py [--frames 49] [--size 128x128] [--precision bf16] [--runs 3] [--json FILE]

Encodes a synthetic clip by `movq encode --semantics whole` with random weights of the published size: in one chunk, in
chunks of 4 and 8, and with a memory budget of 64 MB, so that activations wait in a file. Prints a Markdown table.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import Table, native_precision, options, peak, published_weights, ratio, synthetic

SETTINGS = {
    "one chunk": [],
    "chunks of 4": ["--chunk-frames", "4"],
    "chunks of 8": ["--chunk-frames", "8"],
    "chunks of 8, 64 MB": ["--chunk-frames", "8", "--memory-budget", "64MB"],
}


def main():
    parser = options(__doc__)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--size", default="128x128", metavar="WxH")
    parser.add_argument("--precision", choices=["bf16", "fp32"])
    args = parser.parse_args()
    precision = args.precision or native_precision()
    with tempfile.TemporaryDirectory() as folder:
        weights = published_weights(f"{folder}/weights.safetensors")
        synthetic(f"{folder}/clip.mp4", args.frames, *map(int, args.size.split("x")))
        results = {name: [] for name in SETTINGS}
        for _ in range(args.runs):
            for name, more in SETTINGS.items():
                command = [sys.executable, "-m", "movq_cli", "encode", f"{folder}/clip.mp4", "--semantics", "whole"]
                command += ["-o", f"{folder}/{name}", "--force", "-q", "--precision", precision, *more]
                command += ["--weights", weights]
                started = time.perf_counter()
                results[name].append((peak(command), time.perf_counter() - started))
        from movq_cli import open_latents
        from tests.helpers.tolerance import moments_off

        print(f"{args.frames} frames of {args.size}, {precision}, medians of {args.runs} runs in turn\n")
        table = Table(
            {
                "setting": "",
                "s": ".1f",
                "s, of one chunk": ".2f",
                "peak MB": ".0f",
                "MB, of one chunk": ".2f",
                "largest difference from one chunk": ".1e",
            },
            args.json,
        )
        one = open_latents(f"{folder}/one chunk").latents
        peaks, seconds = ({name: [run[i] for run in runs] for name, runs in results.items()} for i in (0, 1))
        for name in SETTINGS:
            table.add(
                name,
                statistics.median(seconds[name]),
                ratio(seconds[name], seconds["one chunk"]),
                statistics.median(peaks[name]) / 1e6,
                ratio(peaks[name], peaks["one chunk"]),
                moments_off(open_latents(f"{folder}/{name}").latents, one),
            )


if __name__ == "__main__":
    main()
