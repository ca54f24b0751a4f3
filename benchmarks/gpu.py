"""Measure everything about movq on one CUDA device, in about eight minutes.

    python benchmarks/gpu.py [--only machine,encoder] [--json FILE] [--minutes 9]
    python benchmarks/gpu.py --cpu          # the same code, small, on a CPU, so that only the device is new on the day

Each part runs in a process of its own, the most useful first, and is ended when its time is over; what it has printed
by then counts, and the next part begins. Prints Markdown as it goes; the JSON file is written again after every part.

    machine     the card, its rates of products and copies
    tests       the tests marked gpu, with the rows of the table of what is exact
    encoder     frames per second, next to the bare convolutions and diffusers; memory against movq's estimate
    chunks      the tiny encoder with chunks of several lengths
    candidates  other ways to norm, compared with the plain one before they are timed
    profile     the time of one encoding, kernel by kernel
    commands    whole commands on real clips, against a script around diffusers; batches; how many decoders a device needs
    decoder     the decoder against diffusers', with its memory
    precision   tf32, bf16 and fp16 against fp32, in latents and pictures

Without diffusers or PyAV the rows that need them are left out, with a line that says so.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

PARTS = {  # module, function, and the most seconds that it may take
    "machine": ("benchmarks.gpu_networks", "machine", 20),
    "tests": ("benchmarks.gpu", "tests", 75),
    "encoder": ("benchmarks.gpu_networks", "encoder", 90),
    "chunks": ("benchmarks.gpu_networks", "chunks", 25),
    "candidates": ("benchmarks.gpu_candidates", "candidates", 70),
    "profile": ("benchmarks.gpu_networks", "profile", 25),
    "commands": ("benchmarks.gpu_commands", "commands", 170),
    "decoder": ("benchmarks.gpu_networks", "decoder", 70),
    "precision": ("benchmarks.precision", "precision", 60),
}
_LEAST = 5  # seconds that a part needs in order to begin


def tests(part):
    """Run the tests marked gpu; print the rows that they print, and how they ended."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print("| what | against | where | largest difference in standard deviations |\n|---|---|---|---|")
    rest = []
    for line in process.stdout:
        if line.startswith("| "):
            print(line, end="", flush=True)
        elif line.strip(".FEs\n"):
            rest.append(line)
    print("\n```\n" + "".join(rest[-30:]) + "```", flush=True)
    if process.wait():
        raise SystemExit("tests failed")


class Part:
    """A part's settings: where to compute, whether small, and where its tables go."""

    def __init__(self, name, cpu, folder):
        self.name, self.cpu, self._folder, self._tables = name, cpu, folder, 0

    @property
    def device(self):
        import torch

        return torch.device("cpu") if self.cpu else torch.device("cuda", 0)

    def table(self, columns):
        """Begin a table, which is written to a file as it grows."""
        from benchmarks.common import Table

        self._tables += 1
        print(flush=True)
        return Table(columns, Path(self._folder) / f"{self.name}-{self._tables}.json")

    def say(self, text):
        print(f"\n{text}\n", flush=True)


def run(name, arguments, seconds):
    """Run one part in its own process group, for at most `seconds`. Return how it ended, its time and its tables."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | ({"OMP_NUM_THREADS": "1"} if arguments.cpu else {})
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--part", name, "--tables", folder, *(["--cpu"] if arguments.cpu else [])]
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            code = process.wait(seconds)
            how = "whole" if code == 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            how = f"ended after {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        taken = round(time.perf_counter() - started, 1)
        tables = [json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())]
    return {"how": how, "seconds": taken, "tables": tables}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PARTS", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all rows as JSON too")
    parser.add_argument("--minutes", type=float, default=9, help="for all parts together")
    parser.add_argument("--cpu", action="store_true", help="small, on a CPU")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--tables", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        module, function, _ = PARTS[arguments.part]
        if arguments.cpu:
            from benchmarks.gpu_networks import shrink

            shrink()
        getattr(import_module(module), function)(Part(arguments.part, arguments.cpu, arguments.tables))
        return 0
    chosen = arguments.only.split(",") if arguments.only else list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--only: no such part: {', '.join(sorted(unknown))}")
    end = time.perf_counter() + 60 * arguments.minutes
    found = {}
    for name in chosen:
        print(f"\n## {name}\n", flush=True)
        seconds = min(end - time.perf_counter(), PARTS[name][2])
        found[name] = (
            run(name, arguments, seconds) if seconds > _LEAST else {"how": "not begun", "seconds": 0, "tables": []}
        )
        print(f"\n{name}: {found[name]['how']}, {found[name]['seconds']:.0f} s", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return any(part["how"] != "whole" for part in found.values())


if __name__ == "__main__":
    sys.exit(main())
