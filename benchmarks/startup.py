"""How fast the command answers, against importing torch, in one run: medians and ratios.

python benchmarks/startup.py [--runs 7]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
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
        for _ in range(runs):
            for name, command in commands.items():
                started = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                times[name].append(time.perf_counter() - started)
    torch_seconds = statistics.median(times['python -c "import torch"'])
    print(f"medians of {runs} runs in turn\n\n| command | s | of importing torch |\n|---|---|---|")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"| `{name}` | {middle:.2f} | {middle / torch_seconds:.2f} |")


if __name__ == "__main__":
    main()
