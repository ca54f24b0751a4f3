"""The short form of every benchmark that compares movq with something else, and who wins where, losses included.

    python benchmarks/short.py [--runs 1] [--json FILE]

It takes an hour or less: one run each, small pictures. A ratio within 2 % of 1 is a draw. --json keeps every row of
every benchmark.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import FASTER, MEMORY, options

SHORT = (
    ("encoder.py", "--shape", "17x128x128"),
    ("encoder.py", "--size", "tiny", "--shape", "17x256x256"),
    ("decoder.py",),
    ("commands.py", "--frames", "17", "--tiling"),
    ("pipeline.py", "--frames", "13"),
    ("whole.py", "--frames", "17"),
    ("batch.py", "throughput", "--clips", "6", "--frames", "17"),
    ("startup.py",),
)


def main():
    args = options(__doc__, runs=1).parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows")
        for script, *more in SHORT:
            command = [script, *more, "--runs", str(args.runs)]
            print(f"\n`python benchmarks/{' '.join(command)}`\n", flush=True)
            command[0] = str(Path(__file__).with_name(script))
            subprocess.run([sys.executable, *command, "--json", str(rows)], check=True)
            found += [{"benchmark": " ".join([script, *more]), **row} for row in json.loads(rows.read_text())]
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    print("\n| benchmark | against | time | memory |\n|---|---|---|---|")
    for row in found:
        if row.get(FASTER) is not None:
            time = verdict(row[FASTER], "faster", "slower")
            memory = verdict(1 / row[MEMORY], "less", "more")
            print(f"| {row['benchmark']} | {row['way']} | {time} | {memory} |")


def verdict(times, better, worse):
    """Return a ratio in words; above 1 movq wins."""
    if 0.98 < times < 1.02:
        return f"a draw: {times:.2f}"
    return f"movq wins: {times:.2f} times {better}" if times > 1 else f"movq LOSES: {1 / times:.2f} times {worse}"


if __name__ == "__main__":
    main()
