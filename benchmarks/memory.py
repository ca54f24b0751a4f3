"""Peak memory of `movq encode`: flat in the length of the video, and as predicted by --dry-run; also of `movq decode`.

    python benchmarks/memory.py [--frames 65 1025] [--size 128x128] [--precision bf16] [--semantics frame] [--decode]
                                [--runs 3] [--json FILE]
    python benchmarks/memory.py --writers [--frames 1 33 100] [--size 1920x1080 3840x2160]

`--semantics frame` takes the embedded weights; other semantics take random weights of the published size.

Makes synthetic clips at 10 frames per second, encodes each in a process of its own and reads ru_maxrss of that process.
The decoding process is another one, whose memory is not added.

`--writers` measures what each kind of output takes to be written, frame by frame, next to what movq counts on.
"""

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import Table, in_child, native_precision, options, peak, published_weights, synthetic

WRITERS = ".mp4", ".mkv", ".webm", ".gif", ".npy", ".png", ".jpg"


def writers(args):
    table = Table(
        {"output": "", "size": "", "frames": "", "MB": ".0f", "bytes per pixel": ".0f", "counted": ".0f"}, args.json
    )
    for suffix, size, frames in itertools.product(WRITERS, args.size, args.frames):
        if suffix in (".png", ".jpg") and frames > 1:
            continue
        width, height = map(int, size.split("x"))
        found = in_child(__file__, "--writer", suffix, "--size", size, "--frames", frames)
        pixels = width * height
        table.add(suffix, size, frames, found["taken"] / 1e6, found["taken"] / pixels, found["counted"] / pixels)


def write(suffix, size, frames):
    """Print what writing a moving picture to this kind of output adds to the peak memory of this process."""
    import numpy as np

    from movq_cli.video import open_writer

    width, height = map(int, size.split("x"))
    tiles = np.random.default_rng(0).integers(0, 256, (1, height // 8 + 1, width // 8 + 9, 3), np.uint8)
    picture = tiles.repeat(8, 1).repeat(8, 2)
    times = [i / 25 for i in range(frames)]

    def resident(name):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    with (
        tempfile.TemporaryDirectory() as folder,
        open_writer(f"{folder}/a{suffix}", width=width, height=height, times=times, duration=frames / 25) as writer,
    ):
        for i in range(frames):
            writer.write(picture[:, :height, i % 64 : i % 64 + width])
        writer.finish()
        print(json.dumps({"taken": resident("VmHWM") - before, "counted": writer.memory_bytes}))


def main():
    parser = options(__doc__)
    parser.add_argument("--frames", nargs="+", type=int)
    parser.add_argument("--size", nargs="+", metavar="WxH")
    parser.add_argument("--precision", nargs="+", choices=["bf16", "fp32"])
    parser.add_argument("--chunk-frames", nargs="+", default=["auto"])
    parser.add_argument("--semantics", nargs="+", default=["frame"], metavar="frame|diffusers|whole")
    parser.add_argument("--decode", action="store_true", help="measure decoding to .mp4, which predicts nothing")
    parser.add_argument("--writers", action="store_true")
    parser.add_argument("--writer", choices=WRITERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.frames = args.frames or ([1, 33, 100] if args.writers else [65, 1025])
    args.size = args.size or (["1920x1080", "3840x2160"] if args.writers else ["128x128"])
    if args.writer:
        write(args.writer, *args.size, *args.frames)
        return
    if args.writers:
        writers(args)
        return
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
