"""Batches: a tree of hostile clips, kills, the time to resume, and throughput against a shell loop.

    python benchmarks/batch.py tree [--good 270] [--bad 30] [--kills 5]
    python benchmarks/batch.py scan [--clips 10000] [--lines 100000] [--rows 1000000] [--against CHECKOUT]
    python benchmarks/batch.py throughput [--clips 16] [--frames 49] [--size 256x256] [--runs 3]
    python benchmarks/batch.py tiny [--clips 2000] [--against CHECKOUT]

`tree` encodes a tree of tests/faults/nasty.py, runs again, then encodes it into another folder, killing the whole
process group --kills times on the way, and compares the results byte for byte. `scan` times what encodes nothing, with
--against also by another checkout of movq; at the end half of the videos are deleted, and their outputs are removed. `tiny`
measures the cost of clips of 10 frames of 64x48, with one worker of one thread, and with --against also for another
checkout of movq. It counts the CPU time of the whole machine, so run nothing else. Prints Markdown.
"""

import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402
from benchmarks.common import Table, ratio  # noqa: E402
from tests.faults import nasty  # noqa: E402
from tests.helpers import clips  # noqa: E402

MOVQ = [sys.executable, "-m", "movq_cli"]


def run(*arguments, cwd, **more):
    """Run movq and return (seconds, CPU seconds, peak MB of the largest process, result)."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result = subprocess.run([*MOVQ, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, **more)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, after.ru_maxrss / 1000, result


def contents(folder):
    """Map each file's relative path to its bytes, and "manifest" to the manifest's lines without `seconds`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "manifest.jsonl":
            lines = map(json.loads, path.open())
            found["manifest"] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
        elif path.is_file():
            found[os.path.relpath(path, folder)] = path.read_bytes()
    return found


def tree(folder, options):
    reasons = nasty.build(folder / "in", options.good, options.bad)
    print("| run | s | exit | says |\n|---|---|---|---|")
    for name in ("first", "second"):
        seconds, _, _, result = run("batch-encode", "in", "-o", "out", cwd=folder)
        print(f"| {name} | {seconds:.1f} | {result.returncode} | {result.stdout.strip()} |", flush=True)
    lines = [json.loads(line) for line in (folder / "out" / "manifest.jsonl").open()]
    assert len({line["id"] for line in lines}) == len(lines) == options.good + options.bad
    failed = {line["id"]: line["reason"] for line in lines if line["status"] == "failed"}
    assert set(failed) == set(reasons)
    assert all(reasons[name] in reason for name, reason in failed.items())
    from movq_cli import decode_video

    for i, line in enumerate(line for line in lines if line["status"] == "done"):
        made = decode_video(folder / "out" / line["output"], folder / f"{i}.npy")
        assert made.frames == line["frames"]
        (folder / f"{i}.npy").unlink()
    print(
        f"\n{len(lines) - len(failed)} outputs decoded, each to its frames; {len(failed)} failed, each with its reason."
    )
    moments, kills = random.Random(1), 0
    for _ in range(options.kills):
        process = subprocess.Popen(
            [*MOVQ, "batch-encode", "in", "-o", "killed"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(moments.uniform(1, 20))
        kills += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    seconds, _, _, _ = run("batch-encode", "in", "-o", "killed", cwd=folder)
    same = contents(folder / "killed") == contents(folder / "out")
    left = list((folder / "killed").rglob(".*"))
    verdict = "the same bytes" if same else "OTHER BYTES"
    print(f"After {kills} kills, the rest in {seconds:.1f} s: {verdict}, {len(left)} files left over.")


def scan(folder, options):
    (folder / "in").mkdir()
    clip = clips.write(folder / "in" / "0.mp4", clips.pictures(5))
    run("batch-encode", "in", "-o", "out", cwd=folder)
    (line,) = map(json.loads, (folder / "out" / "manifest.jsonl").open())
    latents = folder / "out" / line["output"]

    def manifest(path, count, copied):
        with open(path, "w") as file:
            for i in range(count):
                name = f"{i:06d}.mp4"
                source = folder / "in" / name
                if copied:
                    shutil.copy(clip, source)
                    shutil.copy(latents, folder / "out" / f"{name}.safetensors")
                    found = source.stat()
                    line["source"] = [found.st_size, found.st_mtime_ns, found.st_ino]
                changed = {"id": name, "path": str(source), "output": f"{name}.safetensors"}
                file.write(json.dumps(line | changed) + "\n")

    manifest(folder / "out" / "manifest.jsonl", options.clips, True)
    clip.unlink(), latents.unlink()
    (folder / "many").mkdir()
    manifest(folder / "many" / "manifest.jsonl", options.lines, False)
    with open(folder / "list.txt", "w") as file:  # files are missing, so that only the list is measured
        file.writelines(f"clips/{i % 1000:03d}/clip-{i:07d}.mp4\n" for i in range(options.rows))
    print("| command | s | peak MB | before: s | peak MB | says |\n|---|---|---|---|---|---|")
    for arguments in (
        ["batch-encode", "in", "-o", "out", "-q"],
        ["batch-encode", "in", "-o", "out", "-q", "--dry-run"],
        ["batch-encode", "in", "-o", "out", "-q", "--verify"],
        ["info", "out"],
        ["info", "many"],
        ["batch-encode", "--list", "list.txt", "-o", "none", "--dry-run"],
        ["batch-encode", "in", "-o", "out", "-q", "--prune", "--yes"],
    ):
        before = []
        if "--prune" in arguments:
            for name in sorted(os.listdir(folder / "in"))[::2]:
                os.unlink(folder / "in" / name)
        elif options.against:
            seconds, _, peak, _ = measured(arguments, folder, options.against)
            before = [f"{seconds:.2f}", f"{peak:.0f}"]
        seconds, _, peak, result = measured(arguments, folder)
        says = [
            line
            for line in result.stdout.splitlines()
            if any(word in line for word in ("nothing new", "kind", "items", "removed"))
        ]
        row = [f"{seconds:.2f}", f"{peak:.0f}", *(before or ["", ""]), " ".join(says)]
        print(f"| `movq {' '.join(arguments)}` | {' | '.join(row)} |", flush=True)


def measured(arguments, folder, checkout=ROOT):
    """Call `run` in a process without other children, so that the peak is that of this command, of a checkout of movq."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from benchmarks.batch import run; "
        "s, c, p, r = run(*sys.argv[3:], cwd=sys.argv[2]); print(json.dumps([s, c, p, r.returncode, r.stdout, r.stderr]))"
    )
    command = [sys.executable, "-c", code, str(ROOT), str(folder), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(checkout).resolve())}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    seconds, cpu, peak, *rest = json.loads(done.stdout)
    return seconds, cpu, peak, subprocess.CompletedProcess(arguments, *rest)


def throughput(folder, options):
    width, height = map(int, options.size.split("x"))
    (folder / "in").mkdir()
    for i in range(options.clips):
        images = [clips.picture(width, height, 3 * n + 40 * i) for n in range(options.frames)]
        clips.write(folder / "in" / f"{i:02d}.mp4", images)
    encode = f'"{sys.executable}" -m movq_cli encode "$clip" -o loop/$(basename "$clip").safetensors -q'
    shell = f"mkdir -p loop; for clip in in/*.mp4; do {encode}; done"
    settings = {
        "shell loop of `movq encode`": None,
        "batch, 1 worker of 1 thread": ["--workers", "1"],
        "batch, 1 worker of 2 threads": ["--workers", "1", "--threads", "2"],
        "batch, 2 workers of 1 thread": ["--workers", "2"],
    }
    taken = {name: [] for name in settings}
    for _ in range(options.runs):
        for name, more in settings.items():
            for left in ("loop", "out"):
                shutil.rmtree(folder / left, ignore_errors=True)
            if more is None:
                before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                subprocess.run(["sh", "-c", shell], cwd=folder, check=True, capture_output=True)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                seconds = time.perf_counter() - started
                cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            else:
                seconds, cpu, _, _ = run("batch-encode", "in", "-o", "out", *more, cwd=folder, check=True)
            taken[name].append((seconds, cpu / seconds))
    medians = {name: statistics.median(seconds for seconds, _ in runs) for name, runs in taken.items()}
    loop = [seconds for seconds, _ in taken["shell loop of `movq encode`"]]
    columns = {"setting": "", "s": ".1f", "frames/s": ".1f", "of the shell loop's speed": ".2f", "cores in use": ".2f"}
    table = Table(columns, options.json)
    for name, seconds in medians.items():
        frames = options.clips * options.frames / seconds
        cores = statistics.median(cores for _, cores in taken[name])
        table.add(name, seconds, frames, ratio(loop, [s for s, _ in taken[name]]), cores)


def tiny(folder, options):
    (folder / "in").mkdir()
    for i in range(options.clips):
        path = folder / "in" / f"{i:05d}.mp4"
        if i:
            shutil.copy(folder / "in" / "00000.mp4", path)
        else:
            clips.write(path, clips.pictures(10))
    shutil.copytree(folder / "in", folder / "few", ignore=lambda _, names: sorted(names)[1:])
    table = Table(
        {"checkout": "", "clips": "d", "s": ".1f", "ms of a clip": ".0f", "CPU ms of a clip": ".0f"}, options.json
    )
    for checkout in filter(None, (options.against, ROOT)):
        taken = []
        for source in ("few", "in"):  # the first one is the cost of starting
            before, started = cpu_of_all(), time.perf_counter()
            run(
                *("batch-encode", source, "-o", f"out {source}", "--workers", "1", "--force"),
                *("--threads", "1", "--precision", "fp32"),
                cwd=folder,
                check=True,
                env=os.environ | {"PYTHONPATH": str(checkout)},
            )
            taken.append((time.perf_counter() - started, cpu_of_all() - before))
        (start, start_cpu), (seconds, cpu) = taken
        each = options.clips - 1
        table.add(
            checkout.name, options.clips, seconds, 1000 * (seconds - start) / each, 1000 * (cpu - start_cpu) / each
        )


def cpu_of_all():
    """Return the seconds of CPU that the whole machine has spent: some processes are not waited for here."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def main():
    parser = common.options(__doc__)
    parser.add_argument("what", choices=["tree", "scan", "throughput", "tiny"])
    parser.add_argument("--good", type=int, default=270)
    parser.add_argument("--bad", type=int, default=30)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--clips", type=int)
    parser.add_argument("--lines", type=int, default=100000)
    parser.add_argument("--rows", type=int, default=1000000)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    options = parser.parse_args()
    options.clips = options.clips or {"scan": 10000, "throughput": 16, "tiny": 2000}.get(options.what)
    with tempfile.TemporaryDirectory() as folder:
        globals()[options.what](Path(folder), options)


if __name__ == "__main__":
    main()
