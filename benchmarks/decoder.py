"""The published decoder against diffusers' in one run: ratios of time and of peak memory.

    python benchmarks/decoder.py [--precision bf16] [--shape 5x16x16] [--runs 3] [--json FILE]

Published size (ch 128, mult 1 2 2 4, 3 blocks, random weights), latents of L x H x W; both decode in windows of 2
latents. The two take turns, each in a process of its own. The default precision is the one that `auto` takes here.
Needs diffusers. Prints a Markdown table.
"""

import json
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import FASTER, MEMORY, Table, in_child, native_precision, network, options, ratio


def measure(which, precision, shape):
    """Print the seconds and peak bytes of this child process: one decoding to warm up, one timed."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    device = torch.device("cpu")
    torch.manual_seed(0)
    z = torch.randn(1, 16, *shape).to(dtype)
    if which == "movq":
        from movq_cli.codec import decode
        from movq_cli.model import Decoder3D
        from movq_cli.schedule import ChunkSchedule

        decoder = network(Decoder3D, "published", dtype)

        def forward():
            at = iter(range(shape[0]))
            windows = ChunkSchedule.of_latents("diffusers", shape[0], 0, decoder.config).windows()
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
    parser = options(__doc__)
    parser.add_argument("--precision", nargs="+", choices=["bf16", "fp32"])
    parser.add_argument("--shape", default="5x16x16", metavar="LxHxW")
    parser.add_argument("--child", choices=["movq", "diffusers"])
    args = parser.parse_args()
    if args.child:
        measure(args.child, args.precision[0], tuple(int(n) for n in args.shape.split("x")))
        return
    print(f"published size, medians of {args.runs} runs in turn\n")
    table = Table(
        {"latents": "", "way": "", "precision": "", "s": ".2f", FASTER: ".2f", "peak MB": ".0f", MEMORY: ".0%"},
        args.json,
    )
    for precision in args.precision or [native_precision()]:
        runs = {"movq": [], "diffusers": []}
        for _ in range(args.runs):
            for which, results in runs.items():
                results.append(in_child(__file__, "--child", which, "--precision", precision, "--shape", args.shape))
        seconds, peaks = ({way: [run[key] for run in runs[way]] for way in runs} for key in ("seconds", "peak"))
        for way in runs:
            table.add(
                args.shape,
                way,
                precision,
                statistics.median(seconds[way]),
                None if way == "movq" else ratio(seconds[way], seconds["movq"]),
                statistics.median(peaks[way]) / 1e6,
                None if way == "movq" else ratio(peaks["movq"], peaks[way]),
            )


if __name__ == "__main__":
    main()
