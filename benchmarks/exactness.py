"""The differences between chunk sizes and between precisions on real footage, through the real command.

    python benchmarks/exactness.py [--frames 49] [--precision fp32 bf16]

Encodes tests/data/city.mp4 with the embedded weights; prints differences as in docs/exactness.md, and whether the two
files' metadata are equal.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main():
    from movq_cli import open_latents
    from tests.helpers.tolerance import difference, said

    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    args = parser.parse_args()
    frames = args.frames
    one = str(-(-frames // 4) * 4)
    with tempfile.TemporaryDirectory() as folder:

        def encoded(precision, chunk):
            path = f"{folder}/{precision}-{chunk}.safetensors"
            command = [sys.executable, "-m", "movq_cli", "encode", str(ROOT / "tests/data/city.mp4"), "-o", path, "-q"]
            command += ["--frames", str(frames), "--precision", precision, "--chunk-frames", chunk, "--force"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return open_latents(path)

        print("| what | against | difference | metadata equal |\n|---|---|---|---|")
        whole = {precision: encoded(precision, one) for precision in args.precision}
        rows = [(p, chunk, encoded(p, chunk), whole[p]) for p in whole for chunk in ("4", "8", "32")]
        if len(whole) == 2:
            rows.append(("bf16", "one", whole["bf16"], whole["fp32"]))
        for precision, chunk, a, b in rows:
            print(
                f"| {precision}, chunk {chunk} | {b.metadata.precision}, one chunk | {said(difference(a.latents, b.latents))} "
                f"| {a.metadata == b.metadata} |"
            )


if __name__ == "__main__":
    main()
