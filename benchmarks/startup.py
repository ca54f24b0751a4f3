"""The time until the command answers, against importing torch, in one run: medians and ratios.

python benchmarks/startup.py [--runs 7] [--json FILE]
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import Table, options, ratio  # noqa: E402


def main():
    args = options(__doc__, runs=7).parse_args()
    movq = [sys.executable, "-m", "movq_cli"]
    with tempfile.TemporaryDirectory() as folder:
        latents = f"{folder}/a.safetensors"
        encode = [*movq, "encode", str(ROOT / "tests/data/city.mp4"), "-o", latents, "--frames", "1", "-q"]
        subprocess.run(encode, check=True, stdout=subprocess.DEVNULL)
        commands = {
            'python -c "import torch"': [sys.executable, "-c", "import torch"],
            "movq --help": [*movq, "--help"],
            "movq info LATENTS": [*movq, "info", latents],
            "movq info VIDEO": [*movq, "info", str(ROOT / "tests/data/city.mp4")],
        }
        times = {name: [] for name in commands}
        for _ in range(args.runs):
            for name, command in commands.items():
                started = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                times[name].append(time.perf_counter() - started)
    print(f"medians of {args.runs} runs in turn\n")
    table = Table({"command": "", "s": ".2f", "of importing torch": ".2f"}, args.json)
    for name, seconds in times.items():
        of = ratio(seconds, times['python -c "import torch"'])
        table.add(f"`{name}`", statistics.median(seconds), of)


if __name__ == "__main__":
    main()
