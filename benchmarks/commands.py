"""Whole commands from a cold start: `movq encode` against scripts around diffusers, in wall time and peak memory.

    python benchmarks/commands.py [--size 128x128 ...] [--frames 17 65 ...] [--channels 128 256 256 512] [--precision bf16]
                                  [--tiling] [--runs 3] [--json FILE]

All take turns, on one clip and with one set of random weights, of the published size unless --channels makes them
smaller. movq is compared with script.py, untiled and, with --tiling, also tiled. Peaks are those of the process and its
children, sampled every 20 ms. "off" is the root mean square difference of the latents' means from the untiled script's,
in standard deviations. The default precision is the one that `auto` takes here. Needs diffusers and imageio. Prints a
Markdown table.
"""

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import (
    FASTER,
    MEMORY,
    Table,
    diffusers_weights,
    native_precision,
    options,
    ratio,
    synthetic,
    timed,
)

SCRIPT = str(Path(__file__).with_name("script.py"))


def main():
    parser = options(__doc__)
    parser.add_argument("--size", nargs="+", default=["128x128"], metavar="WxH")
    parser.add_argument("--frames", nargs="+", type=int, default=[17, 65])
    parser.add_argument("--channels", nargs="+", type=int, default=[128, 256, 256, 512])
    parser.add_argument("--precision", choices=["bf16", "fp32"])
    parser.add_argument("--tiling", action="store_true")
    args = parser.parse_args()
    import torch

    from movq_cli import open_latents
    from tests.helpers.tolerance import difference

    precise = ["--precision", args.precision or native_precision()]
    print(f"{precise[1]}, channels {args.channels}, medians of {args.runs} runs in turn\n")
    table = Table(
        {"size": "", "frames": "", "way": "", "s": ".1f", FASTER: ".2f", "peak MB": ".0f", MEMORY: ".0%", "off": ".1e"},
        args.json,
    )
    with tempfile.TemporaryDirectory() as folder:
        vae = diffusers_weights(f"{folder}/vae", args.channels)
        for size in args.size:
            for frames in args.frames:
                clip, out = f"{folder}/{size}-{frames}.mp4", f"{folder}/out"
                synthetic(clip, frames, *map(int, size.split("x")))
                movq = [sys.executable, "-m", "movq_cli", "encode", clip, "-o", f"{out} movq", "--weights", vae, "-q"]
                script = [sys.executable, SCRIPT, clip, vae]
                ways = {"movq": [*movq, "--force", *precise], "script": [*script, f"{out} script", *precise]}
                if args.tiling:
                    ways["script, tiled"] = [*script, f"{out} script, tiled", *precise, "--tiling"]
                seconds, peaks = ({way: [] for way in ways} for _ in range(2))
                for _ in range(args.runs):
                    for way, command in ways.items():
                        for kept, value in zip((seconds, peaks), timed(command), strict=True):
                            kept[way].append(value)
                judge = torch.load(f"{out} script")
                for way in ways:
                    own = way == "movq"
                    made = open_latents(f"{out} movq").latents if own else torch.load(f"{out} {way}")
                    table.add(
                        size,
                        frames,
                        way,
                        statistics.median(seconds[way]),
                        None if own else ratio(seconds[way], seconds["movq"]),
                        statistics.median(peaks[way]) / 1e6,
                        None if own else ratio(peaks["movq"], peaks[way]),
                        difference(made.float(), judge.float()).mean.rms,
                    )


if __name__ == "__main__":
    main()
