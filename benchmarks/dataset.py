"""From clips to a training set: items cut from a list, engines and shards compared, tars killed and resumed, read back.

    python benchmarks/dataset.py items
    python benchmarks/dataset.py engines
    python benchmarks/dataset.py tars [--kills 8]
    python benchmarks/dataset.py read [--items 200] [--size 480x720] [--frames 49] [--runs 3]

Everything is made in a temporary folder by the real command; what is called equal was compared byte for byte. Prints
Markdown.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.batch import MOVQ, contents, run  # noqa: E402
from tests.helpers import clips  # noqa: E402

BUCKETS = ["--bucket", "17x48x80", "--bucket", "1x64x64"]


def make_list(folder):
    """Write a list of 60 items over 20 files, spans of 15 videos with captions, and 5 pictures; return its rows."""
    (folder / "in").mkdir()
    rows = []
    for i in range(15):
        width, height = [(160, 96), (96, 128), (80, 64)][i % 3]
        clips.write(folder / "in" / f"{i:02}.mp4", clips.pictures(60 + i, width, height))
        spans = 4 if i < 10 else 3
        for k in range(spans):
            length = 0.4 if k == 3 else 0.8  # 10 frames are too few for the larger bucket
            rows.append([f"in/{i:02}.mp4", 0.4 * k, length, f"clip {i}, part {k}"])
    for i in range(5):
        clips.still(folder / "in" / f"picture{i}.png", clips.picture(100 + 10 * i, 90), "png")
        rows.append([f"in/picture{i}.png", "", "", f"picture {i}"])
    write_list(folder, rows)
    return rows


def write_list(folder, rows):
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "start", "duration", "caption"], *rows])


def lines_of(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").open()]


def latents_of(folder):
    return {name: data for name, data in contents(folder).items() if name != "manifest"}


def items(folder, options):
    rows = make_list(folder)
    command = ["batch-encode", "--list", "list.csv", "-o", "out", *BUCKETS]
    _, _, _, result = run(*command, cwd=folder)
    print(result.stdout.strip() + "\n")
    groups = defaultdict(list)
    for line in lines_of(folder / "out"):
        source = "pictures" if line["path"].endswith("png") else "spans"
        groups[tuple(line.get("shape", ["none"])), source, line["seen"][0]].append(line)
    print("| latents | items | of frames | of sizes | with caption | for example |\n|---|---|---|---|---|---|")
    for (shape, source, frames), lines in sorted(groups.items(), key=str):
        sizes = ", ".join(sorted({f"{line['seen'][1]}x{line['seen'][2]}" for line in lines}))
        captions = sum("caption" in line for line in lines)
        example = f"`{lines[0]['id']}`: {lines[0].get('caption')}"
        print(
            f"| {' x '.join(map(str, shape))} | {len(lines)} {source} | {frames} | {sizes} | {captions} | {example} |"
        )
    total = sum(map(len, groups.values()))
    files = {line["path"] for line in lines_of(folder / "out")}
    print(
        f"\n{total} items over {len(files)} files; {dict(Counter(line['status'] for line in lines_of(folder / 'out')))}"
    )
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.safetensors")}
    rows[7][3] = "another caption"
    write_list(folder, rows)
    _, _, _, result = run(*command, cwd=folder)
    after = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.safetensors")}
    edited = [line["id"] for line in lines_of(folder / "out") if line.get("caption") == "another caption"]
    print(f"\na caption edited: {result.stdout.strip()}")
    print(f"its line has it: {edited}; latents files written: {sum(after[path] != before[path] for path in before)}")


def relay():
    """Wait for a Ray process whose worker is encoding, and return its pid."""
    from tests.helpers.processes import relays

    while not (found := relays()):
        time.sleep(0.05)
    return found[0][0]


def engines(folder, options):
    make_list(folder)
    command = ["batch-encode", "--list", "list.csv", *BUCKETS, "--workers", "2"]
    print("| run | s | exit | outputs as one local run's | manifest too, but for seconds |\n|---|---|---|---|---|")

    def row(name, seconds, code, out):
        if out != "local":
            wanted, made = contents(folder / "local"), contents(folder / out)
            again = [line for line in made["manifest"] if line["warnings"] and "attempt" in line["warnings"][-1]]
            note = "yes" if made["manifest"] == wanted["manifest"] else "no"
            if again:
                note = f"and for the warning of {len(again)} item: {again[0]['warnings'][-1]}"
                for line in again:
                    del line["warnings"][-1]
                assert made["manifest"] == wanted["manifest"]
            same = latents_of(folder / out) == latents_of(folder / "local")
            print(f"| {name} | {seconds:.1f} | {code} | {'yes' if same else 'NO'} | {note} |", flush=True)
        else:
            print(f"| {name} | {seconds:.1f} | {code} | | |", flush=True)

    seconds, _, _, result = run(*command, "-o", "local", cwd=folder)
    row("local, 2 workers", seconds, result.returncode, "local")
    seconds, _, _, result = run(*command, "-o", "ray", "--engine", "ray", cwd=folder)
    row("Ray, 2 actors", seconds, result.returncode, "ray")
    started = time.perf_counter()
    process = subprocess.Popen(
        [*MOVQ, *command, "-o", "killed", "--engine", "ray"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.kill(relay(), signal.SIGKILL)
    code = process.wait()
    row("Ray, an actor killed on the way", time.perf_counter() - started, code, "killed")
    started = time.perf_counter()
    shards = [
        subprocess.Popen(
            [*MOVQ, *command[:-1], "1", "-o", "shards", "--shard", f"{i}/2"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for i in range(2)
    ]
    codes = [shard.wait() for shard in shards]
    _, _, _, result = run("batch-encode", "--merge", "shards", cwd=folder)
    row("2 shards at a time, merged", time.perf_counter() - started, max(*codes, result.returncode), "shards")


def tars(folder, options):
    make_list(folder)
    command = [*MOVQ, "batch-encode", "--list", "list.csv", *BUCKETS, "--workers", "2"]
    tar = [*command, "-o", "tars", "--layout", "tar", "--tar-size", "200KB"]
    subprocess.run([*command, "-o", "files", "-q"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    moments, kills, whole = random.Random(2), 0, 0
    for _ in range(options.kills):
        process = subprocess.Popen(
            tar, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(1.2 + 1.5 * moments.random())
        kills += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in (folder / "tars").glob("*.tar"):
            subprocess.run(["tar", "tf", path], check=True, stdout=subprocess.DEVNULL)
            whole += 1
    result = subprocess.run(tar, cwd=folder, check=True, capture_output=True, text=True)
    print(f"{kills} kills, after each of which all tars that were there ({whole} looked at) were whole; then:\n")
    print(result.stdout)
    paths = sorted((folder / "tars").glob("*.tar"))
    largest = max(path.stat().st_size for path in paths)
    left = [path.name for path in (folder / "tars").rglob("*") if path.suffix not in (".tar", ".json", ".jsonl")]
    print(f"{len(paths)} tars of at most {largest:,} bytes; other files left: {len(left)}")
    import webdataset
    from safetensors.torch import load, load_file

    lines = {line["id"]: line for line in lines_of(folder / "files")}
    read = {}
    for sample in webdataset.WebDataset(list(map(str, paths)), shardshuffle=False).decode():
        line = lines[sample["json"]["id"]]
        wanted, found = load_file(folder / "files" / line["output"]), load(sample["safetensors"])
        assert sample["safetensors"] == (folder / "files" / line["output"]).read_bytes()
        assert all(found[name].equal(wanted[name]) for name in wanted)
        assert sample["json"]["caption"] == line["caption"]
        read[line["id"]] = True
    assert set(read) == set(lines)
    print(
        f"read back with webdataset {webdataset.__version__}: {len(read)} of {len(lines)} items equal the file layout"
    )


def read(folder, options):
    import torch
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader

    from movq_cli import BucketBatchSampler, LatentDataset, collate

    height, width = map(int, options.size.split("x"))
    (folder / "in").mkdir()
    clips.write(folder / "one.mp4", clips.pictures(options.frames, width, height))
    shutil.copy(folder / "one.mp4", folder / "in" / "0000.mp4")
    subprocess.run([*MOVQ, "batch-encode", "in", "-o", "files", "-q"], cwd=folder, check=True, capture_output=True)
    line = lines_of(folder / "files")[0]
    with open(
        folder / "files" / "manifest.jsonl", "w"
    ) as file:  # the same clip under other names, each with its own file
        for i in range(options.items):
            name = f"{i:04}.mp4"
            if i:
                shutil.copy(folder / "in" / "0000.mp4", folder / "in" / name)
                shutil.copy(folder / "files" / "0000.mp4.safetensors", folder / "files" / f"{name}.safetensors")
            path = str(folder / "in" / name)
            file.write(json.dumps(line | {"id": name, "path": path, "output": f"{name}.safetensors"}) + "\n")
    shutil.copytree(folder / "files", folder / "tar")
    command = [*MOVQ, "batch-encode", "in", "-o", "tar", "-q", "--layout", "tar", "--tar-size", "256MB"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    assert not list((folder / "tar").rglob("*.safetensors"))
    paths = sorted((folder / "files").glob("*.safetensors"))
    size = paths[0].stat().st_size

    def bare():
        for path in paths:
            mean, logvar = load_file(path)["latents"][0].float().chunk(2)
            _ = mean + (0.5 * logvar.clamp(-30, 20)).exp() * torch.randn_like(mean)

    def loaded(layout, workers):
        dataset = LatentDataset(folder / layout)
        sampler = BucketBatchSampler(dataset, 4)
        seen = 0
        for batch in DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate):
            seen += len(batch["row"])
        assert seen == options.items

    torch.set_num_threads(1)
    ways = {"a bare loop: load_file, draw": bare}
    for layout in ("files", "tar"):
        for workers in (0, 2):
            ways[f"LatentDataset, {layout}, {workers} workers"] = lambda a=layout, b=workers: loaded(a, b)
    seconds = defaultdict(list)
    for number in range(options.runs + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:  # the first run fills the page cache
                seconds[name].append(time.perf_counter() - started)
    shape = " x ".join(map(str, line["shape"]))
    print(f"{options.items} items of {shape} {line['dtype']}, {size / 1e6:.1f} MB each, in the page cache:\n")
    print("| way | items/s | MB/s | of the bare loop |\n|---|---|---|---|")
    base = statistics.median(seconds["a bare loop: load_file, draw"])
    for name in ways:
        median = statistics.median(seconds[name])
        rate = options.items / median
        print(f"| {name} | {rate:.0f} | {rate * size / 1e6:.0f} | {base / median:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    for function in (items, engines, tars, read):
        command = commands.add_parser(function.__name__)
        command.set_defaults(function=function)
        if function is tars:
            command.add_argument("--kills", type=int, default=8)
        if function is read:
            command.add_argument("--items", type=int, default=200)
            command.add_argument("--size", default="480x720")
            command.add_argument("--frames", type=int, default=49)
            command.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options.function(Path(folder), options)


if __name__ == "__main__":
    main()
