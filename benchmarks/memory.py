"""Peak memory of `movq encode`: flat in the length of the video, and as predicted by --dry-run; of `movq decode` too.

    python benchmarks/memory.py [--frames 65 1025] [--size 128x128] [--precision bf16] [--runs 3] [--decode]

Makes synthetic clips at 10 frames per second, encodes each in a process of its own and reads ru_maxrss of that process; the
decoding process, which is another, is printed beside it.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def synthetic(path, frames, width, height):
    import av
    import numpy as np

    from tests.clips import picture

    wide = picture(width + 64, height)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            at = 3 * i % 64
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(wide[:, at : at + width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def peak(command):
    """ru_maxrss in bytes of a command's own process, which begins at what this process holds: little."""
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, 1, 0)])
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    return usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", nargs="+", type=int, default=[65, 1025])
    parser.add_argument("--size", nargs="+", default=["128x128"], metavar="WxH")
    parser.add_argument("--precision", nargs="+", default=["bf16"])
    parser.add_argument("--chunk-frames", nargs="+", default=["auto"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--decode", action="store_true", help="measure decoding to .mp4, which predicts nothing")
    args = parser.parse_args()
    print(f"medians of {args.runs} runs\n")
    print("| size | frames | precision | chunk | peak MB | lowest to highest | predicted MB | predicted / peak |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for size in args.size:
            width, height = map(int, size.split("x"))
            for frames in args.frames:
                clip = f"{folder}/{size}-{frames}.mp4"
                synthetic(clip, frames, width, height)
                for precision in args.precision:
                    for chunk in args.chunk_frames:
                        command = [sys.executable, "-m", "movq_cli", "encode", clip, "-o", f"{folder}/out.safetensors"]
                        command += ["--force", "-q", "--precision", precision, "--chunk-frames", chunk]
                        predicted = float("nan")
                        if args.decode:
                            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                            command[3:7] = ["decode", f"{folder}/out.safetensors", "-o", f"{folder}/out.mp4"]
                        else:
                            plan = subprocess.run([*command, "--dry-run"], check=True, capture_output=True, text=True)
                            number, unit = re.search(r"peak memory\s+about ([\d.]+) (\w+)", plan.stdout).groups()
                            predicted = float(number) * {"MB": 1, "GB": 1000}[unit]
                        peaks = [peak(command) / 1e6 for _ in range(args.runs)]
                        middle = statistics.median(peaks)
                        print(
                            f"| {size} | {frames} | {precision} | {chunk} | {middle:.0f} | {min(peaks):.0f} to {max(peaks):.0f} "
                            f"| {predicted:.0f} | {predicted / middle:.2f} |",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
