"""The cost of computing in less than fp32: latents and pictures of each precision against those of fp32, on real clips.

    python benchmarks/precision.py [CLIP ...] [--precision bf16] [--frames 17] [--weights FILE] [--device cpu]

Without clips it takes six shots of tests/data/city.mp4. Differences of means are in their own standard deviations,
those of log variances in nats. "of a draw's noise" is the means' rms divided by the median deviation of the posterior.
"dB lost" is the loss of mean PSNR against the source, compared with fp32; "dB apart" is the PSNR of one reconstruction
against the other. Prints Markdown.
"""

import statistics
import sys
from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import Table, options  # noqa: E402

CITY = ROOT / "tests" / "data" / "city.mp4"
SHOTS = [Fraction(n, 5) for n in (0, 4, 8, 12, 16, 20)]
"""Seconds at which parts of city.mp4 begin; the parts do not overlap."""
COLUMNS = {
    "clip": "",
    "precision": "",
    "means rms": ".4f",
    "99.9%": ".3f",
    "largest": ".2f",
    "log variances rms": ".4f",
    "of a draw's noise": ".1f",
    "dB lost": ".3f",
    "dB apart": ".1f",
}


def compare(table, clips, precisions, frames, weights=None, device="auto", **picture):
    """Add a row for each clip and precision to a table of COLUMNS, and rows of the worst and of the medians.

    "int8" is computed in fp32, and stored so. `picture` are options of the picture.
    """
    from movq_cli import EncodeOptions, Picture, Selection, evaluate_video

    rows = {precision: [] for precision in precisions}
    for name, path, start in clips:
        for precision in precisions:
            fp32 = EncodeOptions(
                precision="fp32",
                weights=weights,
                device=device,
                selection=Selection(start=start, frames=frames),
                picture=Picture(**picture),
            )
            change = {"store_dtype": "int8"} if precision == "int8" else {"precision": precision}
            made = evaluate_video(path, fp32, against=EncodeOptions(**vars(fp32) | change), pairs=[])
            mean, logvar, posterior = made.difference.mean, made.difference.logvar, made.difference.posterior
            lost = made.scores["psnr_mean"] - made.other.scores["psnr_mean"]
            values = mean.rms, mean.p999, mean.largest, logvar.rms, posterior.error_share, lost, made.picture_psnr
            rows[precision].append(values)
            table.add(name, precision, *values)
    for precision, found in rows.items():
        *most, apart = zip(*found, strict=True)
        table.add("**worst**", precision, *map(max, most), min(apart))
        table.add("**median**", precision, *map(statistics.median, most), statistics.median(apart))


def shots(count=6):
    """Return (name, path, start) of parts of the real clip."""
    return [(f"city.mp4 from {float(start):g} s", CITY, start) for start in SHOTS[:count]]


def precision(part):
    """Run the part of gpu.py: on CUDA all precisions, on a CPU one clip in bf16."""
    table = part.table(COLUMNS)
    if part.cpu:
        compare(table, shots(1), ["bf16"], 5, device="cpu")
    else:
        compare(table, shots(), ["tf32", "bf16", "fp16"], 17, device="cuda")


def main():
    parser = options(__doc__)
    parser.add_argument("clips", nargs="*", type=Path, metavar="CLIP")
    parser.add_argument("--precision", nargs="+", default=["bf16"])
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--weights")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    clips = [(path.name, path, Fraction(0)) for path in args.clips] or shots()
    table = Table(COLUMNS, args.json)
    compare(table, clips, args.precision, args.frames, args.weights, args.device)


if __name__ == "__main__":
    main()
