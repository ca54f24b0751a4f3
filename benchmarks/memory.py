"""Peak memory of `movq encode`: flat in the length of the video, and as predicted by --dry-run; also of `movq decode`.

    python benchmarks/memory.py [--frames 65 1025] [--size 128x128] [--precision bf16] [--semantics frame] [--decode]
                                [--runs 3] [--json FILE]

`--semantics frame` takes the embedded weights; other semantics take random weights of the published size.

Makes synthetic clips at 10 frames per second, encodes each in a process of its own and reads ru_maxrss of that process.
The decoding process is another one, whose memory is not added.
"""

import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import Table, native_precision, options, peak, published_weights, synthetic


def main():
    parser = options(__doc__)
    parser.add_argument("--frames", nargs="+", type=int, default=[65, 1025])
    parser.add_argument("--size", nargs="+", default=["128x128"], metavar="WxH")
    parser.add_argument("--precision", nargs="+", choices=["bf16", "fp32"])
    parser.add_argument("--chunk-frames", nargs="+", default=["auto"])
    parser.add_argument("--semantics", nargs="+", default=["frame"], metavar="frame|diffusers|whole")
    parser.add_argument("--decode", action="store_true", help="measure decoding to .mp4, which predicts nothing")
    args = parser.parse_args()
    print(f"medians of {args.runs} runs\n")
    table = Table(
        {
            "norms": "",
            "size": "",
            "frames": "",
            "precision": "",
            "chunk": "",
            "peak MB": ".0f",
            "lowest": ".0f",
            "highest": ".0f",
            "predicted MB": ".0f",
            "predicted / peak": ".2f",
        },
        args.json,
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = published_weights(f"{folder}/weights.safetensors") if args.semantics != ["frame"] else ""
        for norms, size, frames, precision, chunk in itertools.product(
            args.semantics, args.size, args.frames, args.precision or [native_precision()], args.chunk_frames
        ):
            clip = f"{folder}/{size}-{frames}.mp4"
            if not os.path.exists(clip):
                synthetic(clip, frames, *map(int, size.split("x")))
            command = [sys.executable, "-m", "movq_cli", "encode", clip, "-o", f"{folder}/out.safetensors"]
            command += ["--force", "-q", "--precision", precision, "--chunk-frames", chunk]
            if norms != "frame":
                command += ["--weights", weights, "--semantics", norms]
            predicted = None
            if args.decode:
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                command[3:7] = ["decode", f"{folder}/out.safetensors", "-o", f"{folder}/out.mp4"]
            else:
                plan = subprocess.run([*command, "--dry-run"], check=True, capture_output=True, text=True)
                number, unit = re.search(r"peak memory\s+about ([\d.]+) (\w+)", plan.stdout).groups()
                predicted = float(number) * {"MB": 1, "GB": 1000}[unit]
            peaks = [peak(command) / 1e6 for _ in range(args.runs)]
            middle = statistics.median(peaks)
            of = predicted and predicted / middle
            table.add(norms, size, frames, precision, chunk, middle, min(peaks), max(peaks), predicted, of)


if __name__ == "__main__":
    main()
