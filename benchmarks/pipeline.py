"""Whether decoding costs anything: `movq encode` against decoding alone and encoding alone, on the same frames.

    python benchmarks/pipeline.py [CLIP ...] [--frames 49] [--runs 3]

Without clips: tests/data/city.mp4, and a synthetic one of 1920x1080. In one process, with weights loaded: "decoding" reads all
frames as the encoder gets them; "encoding" encodes the same frames out of memory; "both" encodes the video to its file. "cold" is
the command from its start, and "start" what it takes before its first frame: Python, torch, weights. Prints a Markdown table.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def seconds_of(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main():
    from benchmarks.common import synthetic, timed
    from movq_cli import EncodeOptions, Selection, plan_encode
    from movq_cli.codec import Chunker, encode, encode_windows
    from movq_cli.device import dtype_of, keep_freed_memory
    from movq_cli.encode import VideoEncoder
    from movq_cli.plan import start_reader

    parser = argparse.ArgumentParser()
    parser.add_argument("clips", nargs="*", metavar="CLIP")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    keep_freed_memory()
    options = EncodeOptions(selection=Selection(frames=args.frames))
    print(f"at most {args.frames} frames, medians of {args.runs} runs in turn\n")
    print("| clip | decoding s | encoding s | both s | of the longer | cold s | of it start |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        clips = args.clips
        if not clips:
            synthetic(f"{folder}/1080p.mp4", args.frames, 1920, 1080)
            clips = [str(ROOT / "tests/data/city.mp4"), f"{folder}/1080p.mp4"]
        for clip in clips:
            encoder = VideoEncoder(options)
            config, plan = encoder.checkpoint.config, plan_encode(clip, options)
            with start_reader(clip, options, config) as reader:
                held = list(reader)

            def read(clip=clip, config=config):
                with start_reader(clip, options, config) as reader:
                    for _ in reader:
                        pass

            def compute(held=held, plan=plan, encoder=encoder):
                chunker = Chunker(held, options.tail, encoder.checkpoint.config)
                lengths = encode_windows("frame", None, plan.budget.chunk_frames, encoder.checkpoint.config)
                windows = chunker.windows(lengths)
                for latents in encode(encoder.network, windows, encoder.device, dtype_of(plan.precision)):
                    latents.float()

            def whole(clip=clip, encoder=encoder):
                encoder.encode(clip, f"{folder}/out", force=True)

            command = [sys.executable, "-m", "movq_cli", "encode", clip, "-o", f"{folder}/out", "--force", "-q"]
            command += ["--frames", str(args.frames)]
            whole()
            runs = []
            for _ in range(args.runs):
                runs.append((*map(seconds_of, (read, compute, whole)), timed(command)[0]))
            decoding, encoding, both, cold = (statistics.median(run[i] for run in runs) for i in range(4))
            ratio = statistics.median(run[2] / max(run[:2]) for run in runs)
            start = statistics.median(run[3] - run[2] for run in runs)
            print(
                f"| {Path(clip).name} | {decoding:.2f} | {encoding:.2f} | {both:.2f} | {ratio:.2f} | {cold:.2f} "
                f"| {start / cold:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
