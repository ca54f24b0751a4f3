"""The differences between chunk sizes, strips and precisions on real footage, through the real command.

    python benchmarks/exactness.py [--frames 49] [--precision fp32 bf16] [--strips]

Encodes tests/data/city.mp4 with the embedded weights; prints differences as in docs/exactness.md, and whether the two
files' metadata are equal. With --strips it compares strips of 32, 64 and 128 rows with one piece, of 640x360 and of the
same scaled to 1280x720, encoded and decoded; else chunks with one chunk, and precisions. Frames are compared in levels of 255,
with the share of values that differ at all.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SIZES = {"640x360": [], "1280x720": ["--short-side", "720", "--upscale"]}


def main():
    import numpy as np

    from movq_cli import open_latents
    from tests.helpers.tolerance import difference, said

    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--strips", action="store_true")
    args = parser.parse_args()
    one = ["--chunk-frames", str(-(-args.frames // 4) * 4)]
    with tempfile.TemporaryDirectory() as folder:

        def encoded(precision, options):
            path = f"{folder}/{precision} {' '.join(options)}.safetensors"
            command = [sys.executable, "-m", "movq_cli", "encode", str(ROOT / "tests/data/city.mp4"), "-o", path, "-q"]
            command += ["--frames", str(args.frames), "--precision", precision, "--force", *options]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return open_latents(path)

        def decoded(latents, precision, options):
            path = f"{folder}/frames.npy"
            command = [sys.executable, "-m", "movq_cli", "decode", latents.path, "-o", path, "-q", "--force"]
            subprocess.run([*command, "--precision", precision, *options], check=True, stdout=subprocess.DEVNULL)
            return np.load(path).astype(np.int16)

        def compare(what, against, made, expected):
            off = said(difference(made.latents, expected.latents))
            print(f"| {what} | {against} | {off} | {made.metadata == expected.metadata} |", flush=True)

        print("| what | against | difference | metadata equal |\n|---|---|---|---|")
        for precision in args.precision:
            if not args.strips:
                whole = encoded(precision, one)
                for chunk in ("4", "8", "32"):
                    made = encoded(precision, ["--chunk-frames", chunk])
                    compare(f"{precision}, chunk {chunk}", "one chunk", made, whole)
                if precision == "bf16" and "fp32" in args.precision:
                    compare("bf16, one chunk", "fp32, one chunk", whole, encoded("fp32", one))
                continue
            for size, options in SIZES.items():
                whole = encoded(precision, [*options, "--strip-rows", "2048"])
                for rows in ("32", "64", "128"):
                    made = encoded(precision, [*options, "--strip-rows", rows])
                    compare(f"{precision}, {size}, strips of {rows} rows", "one piece", made, whole)
                one_piece = decoded(whole, precision, ["--strip-rows", "2048"])
                for rows in ("32", "64", "128"):
                    off = abs(decoded(whole, precision, ["--strip-rows", rows]) - one_piece)
                    words = f"levels {off.max()}, in {(off > 0).mean():.1e} of values; mean {off.mean():.1e}"
                    print(f"| decode, {precision}, {size}, strips of {rows} rows | one piece | {words} | |", flush=True)


if __name__ == "__main__":
    main()
