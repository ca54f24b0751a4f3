"""The cost of decoding: `movq encode` against decoding alone and encoding alone, on the same frames.

    python benchmarks/pipeline.py [CLIP ...] [--frames 49] [--runs 3] [--json FILE]
    python benchmarks/pipeline.py --device-seconds [S ...] [--clips 12]

Without clips it takes tests/data/city.mp4, and a synthetic one of 1920x1080. In one process, with weights loaded:
"decoding" reads all frames as the encoder gets them; "encoding" encodes the same frames from memory; "both" encodes the
video to its file. Then whole processes: "cold encoding" takes the same frames from a memory-mapped file, and "cold" is
the command `movq encode`; "start" is what the command takes besides "both": Python, torch, weights. Prints a Markdown
table.

With --device-seconds: a batch of 1920x1080 clips, one worker, and instead of a device a stand-in that takes S seconds
for a clip and none of the CPU (stand_in.py). Prints the share of time that it is busy, from its first chunk to its
last. Without S: 1.25 times the time of decoding a clip, and 0.5.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import stand_in  # noqa: E402
from benchmarks.common import Table, options, ratio, synthetic  # noqa: E402


def seconds_of(work):
    """Return the seconds that a function or a command takes."""
    started = time.perf_counter()
    if isinstance(work, list):
        subprocess.run(work, check=True, stdout=subprocess.DEVNULL)
    else:
        work()
    return time.perf_counter() - started


def computing(frames, encode_options):
    """Return a function that encodes frames (T, H, W, 3) and keeps nothing."""
    from movq_cli.codec import Chunker, encode
    from movq_cli.device import dtype_of
    from movq_cli.encode import VideoEncoder
    from movq_cli.model.cost import default_chunk_frames
    from movq_cli.schedule import ChunkSchedule
    from movq_cli.video import Frame

    encoder = VideoEncoder(encode_options)
    config = encoder.checkpoint.config

    def compute():
        held = (Frame(image, 0, 0, i) for i, image in enumerate(frames))
        chunk = default_chunk_frames(config, *frames.shape[1:3], "cpu")
        windows = Chunker(held, "pad", config).windows(ChunkSchedule.of_frames("frame", None, chunk, config).windows())
        for latents in encode(encoder.network, windows, encoder.device, dtype_of(encoder.precision)):
            latents.float()

    return compute


def busy_shares(wanted, frames, count, runs, file):
    """Add a row for each number of seconds that a clip takes on the device."""
    from movq_cli import EncodeOptions
    from movq_cli.encode import VideoEncoder
    from movq_cli.plan import start_reader

    chosen = EncodeOptions(precision="bf16")
    config = VideoEncoder(chosen).checkpoint.config
    with tempfile.TemporaryDirectory() as folder:
        clips = [f"{folder}/{i}.mp4" for i in range(count)]
        synthetic(clips[0], frames, 1920, 1080)
        for clip in clips[1:]:
            shutil.copy(clips[0], clip)

        def decode():
            with start_reader(clips[0], chosen, config) as reader:
                assert sum(1 for _ in reader) == frames

        decode()
        decoding = statistics.median(seconds_of(decode) for _ in range(max(3, runs)))
        print(
            f"{count} clips of {frames} frames of 1920x1080, decoding one takes {decoding:.2f} s; medians of {runs} runs\n"
        )
        table = Table(
            {
                "device s of a clip": ".2f",
                "of decoding": ".2f",
                "s of a clip": ".2f",
                "busy": ".0%",
                "least": ".0%",
                "most": ".0%",
            },
            file,
        )
        for seconds in wanted or [1.25 * decoding, 0.5]:
            found = [stand_in.busy(folder, clips, seconds / frames) for _ in range(runs)]
            shares = [one.share for one in found]
            table.add(
                seconds,
                seconds / decoding,
                statistics.median(one.seconds for one in found),
                statistics.median(shares),
                min(shares),
                max(shares),
            )


def main():
    import numpy as np

    from movq_cli import EncodeOptions, Selection
    from movq_cli.device import spare_page_faults
    from movq_cli.encode import VideoEncoder
    from movq_cli.plan import start_reader

    parser = options(__doc__)
    parser.add_argument("clips", nargs="*", metavar="CLIP")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--device-seconds", type=float, nargs="*")
    parser.add_argument("--clips", type=int, default=12, dest="count")
    parser.add_argument("--child", type=Path)
    args = parser.parse_args()
    if args.device_seconds is not None:
        busy_shares(args.device_seconds, args.frames, args.count, args.runs, args.json)
        return
    spare_page_faults()
    chosen = EncodeOptions(selection=Selection(frames=args.frames))
    if args.child:
        computing(np.load(args.child, mmap_mode="r"), chosen)()
        return
    print(f"at most {args.frames} frames, medians of {args.runs} runs in turn\n")
    table = Table(
        {
            "clip": "",
            "frames": "",
            "decoding s": ".2f",
            "encoding s": ".2f",
            "both s": ".2f",
            "of the longer": ".2f",
            "cold encoding s": ".2f",
            "cold s": ".2f",
            "of cold encoding": ".2f",
            "of it start": ".0%",
        },
        args.json,
    )
    with tempfile.TemporaryDirectory() as folder:
        clips, held, out = args.clips, f"{folder}/frames.npy", f"{folder}/out"
        if not clips:
            synthetic(f"{folder}/1080p.mp4", args.frames, 1920, 1080)
            clips = [str(ROOT / "tests/data/city.mp4"), f"{folder}/1080p.mp4"]
        for clip in clips:
            encoder = VideoEncoder(chosen)

            def read(clip=clip, config=encoder.checkpoint.config):
                with start_reader(clip, chosen, config) as reader:
                    return [frame.image for frame in reader]

            frames = np.stack(read())
            np.save(held, frames)
            cold = [sys.executable, "-m", "movq_cli", "encode", clip, "-o", out, "--force", "-q"]
            ways = {
                "decoding": read,
                "encoding": computing(frames, chosen),
                "both": lambda clip=clip, encoder=encoder: encoder.encode(clip, out, force=True),
                "cold encoding": [sys.executable, __file__, "--child", held],
                "cold": [*cold, "--frames", str(args.frames)],
            }
            runs = {name: [] for name in ways}
            for run in range(args.runs + 1):
                for name, way in ways.items():
                    seconds = seconds_of(way)
                    if run:  # the first run is a warm-up
                        runs[name].append(seconds)
            longer = list(map(max, runs["decoding"], runs["encoding"]))
            start = statistics.median((c - b) / c for b, c in zip(runs["both"], runs["cold"], strict=True))
            middle = {name: statistics.median(seconds) for name, seconds in runs.items()}
            table.add(
                Path(clip).name,
                len(frames),
                middle["decoding"],
                middle["encoding"],
                middle["both"],
                ratio(runs["both"], longer),
                middle["cold encoding"],
                middle["cold"],
                ratio(runs["cold"], runs["cold encoding"]),
                start,
            )


if __name__ == "__main__":
    main()
