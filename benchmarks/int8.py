"""Compare latents in int8 with fp32 for quality on real clips, and with fp16 for size and time.

    python benchmarks/int8.py [CLIP ...] [--frames 9] [--published] [--runs 3] [--json FILE]

Without clips it takes six shots of tests/data/city.mp4. The quality is that of the same latents in fp32 on one side and
int8 on the other, as benchmarks/precision.py has it; --published takes random weights of the published size and pictures
of 96 lines, and its "dB lost" says nothing: the pictures are noise. Then one encode of a clip and one epoch of a LatentDataset,
int8 and fp16 in turn: sizes, and ratios of time. Prints Markdown.
"""

import statistics
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import Table, diffusers_weights, options, ratio  # noqa: E402
from benchmarks.precision import COLUMNS, compare, shots  # noqa: E402


def costs(clips, folder, runs, frames):
    """Print the bytes and times of int8 and fp16: encoding a clip, and reading a batch of all of them."""
    from movq_cli import LatentDataset, encode_batch, encode_video

    dtypes = ("int8", "fp16")
    table = Table({"": "", "int8": ",.0f", "fp16": ",.0f", "int8 / fp16": ".2f"})
    seconds = {(what, dtype): [] for what in ("encode", "epoch") for dtype in dtypes}
    size = {}
    for dtype in dtypes:
        encode_batch([path for _, path, _ in clips], folder / dtype, store_dtype=dtype, workers=0, frames=frames)
        size[dtype] = sum(path.stat().st_size for path in (folder / dtype).glob("*.safetensors"))
    for _ in range(runs):
        for dtype in dtypes:
            started = time.perf_counter()
            encode_video(clips[0][1], folder / "one.safetensors", store_dtype=dtype, frames=frames, force=True)
            seconds["encode", dtype].append(time.perf_counter() - started)
            data = LatentDataset(folder / dtype)
            started = time.perf_counter()
            for _ in range(20):
                for index in range(len(data)):
                    data[index]
            seconds["epoch", dtype].append((time.perf_counter() - started) / 20)
    table.add("bytes", *size.values(), size["int8"] / size["fp16"])
    for what in ("encode", "epoch"):
        ours, theirs = (seconds[what, dtype] for dtype in dtypes)
        table.add(f"{what}, ms", *(1000 * statistics.median(one) for one in (ours, theirs)), ratio(ours, theirs))


def main():
    parser = options(__doc__)
    parser.add_argument("clips", nargs="*", type=Path, metavar="CLIP")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--published", action="store_true")
    args = parser.parse_args()
    clips = [(path.name, path, Fraction(0)) for path in args.clips] or shots()
    with tempfile.TemporaryDirectory() as folder:
        weights = str(diffusers_weights(Path(folder) / "published")) if args.published else None
        picture = {"short_side": 96} if args.published else {}
        compare(Table(COLUMNS, args.json), clips, ["int8"], args.frames, weights, **picture)
        if not args.published:
            print()
            costs(clips, Path(folder), args.runs, args.frames)


if __name__ == "__main__":
    main()
