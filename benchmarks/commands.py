"""Whole commands from a cold start: `movq encode` against scripts around diffusers, in wall time and peak memory.

    python benchmarks/commands.py [--size 128x128] [--frames 17 65] [--precision bf16] [--runs 3] [--tiling] [--json FILE]

All take turns, on one clip and with one set of random weights of the published size; script.py is what they are compared
with, untiled and, with --tiling, tiled. Peaks are of the process and its children, sampled every 20 ms. "off" is the root
mean square difference of the latents from the untiled script's, in standard deviations. Needs diffusers and imageio.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import diffusers_weights, synthetic, timed

SCRIPT = str(Path(__file__).with_name("script.py"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", nargs="+", default=["128x128"], metavar="WxH")
    parser.add_argument("--frames", nargs="+", type=int, default=[17, 65])
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tiling", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    import torch

    from movq_cli import open_latents
    from tests.tolerance import rms_off

    print(f"{args.precision}, medians of {args.runs} runs in turn\n")
    print("| size | frames | way | s | movq is faster by | peak MB | movq takes of it | off |")
    print("|---|---|---|---|---|---|---|---|")
    kept = {}
    with tempfile.TemporaryDirectory() as folder:
        vae = diffusers_weights(f"{folder}/vae")
        for size in args.size:
            for frames in args.frames:
                clip, out = f"{folder}/{size}-{frames}.mp4", f"{folder}/out"
                synthetic(clip, frames, *map(int, size.split("x")))
                movq = [sys.executable, "-m", "movq_cli", "encode", clip, "-o", f"{out} movq", "--weights", vae, "-q"]
                script = [sys.executable, SCRIPT, clip, vae]
                precise = ["--precision", args.precision]
                ways = {"movq": [*movq, "--force", *precise], "script": [*script, f"{out} script", *precise]}
                if args.tiling:
                    ways["script, tiled"] = [*script, f"{out} script, tiled", *precise, "--tiling"]
                runs = {way: [] for way in ways}
                for _ in range(args.runs):
                    for way, command in ways.items():
                        runs[way].append(timed(command))
                kept[f"{size} {frames}"] = runs
                judge = torch.load(f"{out} script")
                for way, results in runs.items():
                    seconds, memory = (statistics.median(r[i] for r in results) for i in (0, 1))
                    pairs = list(zip(results, runs["movq"], strict=True))
                    faster = statistics.median(theirs[0] / ours[0] for theirs, ours in pairs)
                    of = statistics.median(ours[1] / theirs[1] for theirs, ours in pairs)
                    made = open_latents(f"{out} movq").latents if way == "movq" else torch.load(f"{out} {way}")
                    print(
                        f"| {size} | {frames} | {way} | {seconds:.1f} | {'' if way == 'movq' else f'{faster:.2f}'} "
                        f"| {memory / 1e6:.0f} | {'' if way == 'movq' else f'{of:.0%}'} | {rms_off(made, judge):.1e} |",
                        flush=True,
                    )
    if args.json:
        args.json.write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
