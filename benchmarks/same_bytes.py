"""Compare the results of two checkouts of movq on the same files, byte for byte: latents, headers, manifests and tars.

    git worktree add /tmp/before COMMIT
    python benchmarks/same_bytes.py /tmp/before

Encodes 30 clips one by one, each with other options, then a tree of 40 files as a batch, bad ones among them, and a
list of 40 spans and pictures with captions and buckets, as files and as tars. Only `seconds` in manifests may differ.
Both use the same weights, by default those of this checkout. Exits with 1 if anything differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.batch import contents  # noqa: E402
from benchmarks.dataset import BUCKETS, make_list, write_list  # noqa: E402
from movq_cli.checkpoints.checkpoint import embedded_weights  # noqa: E402
from tests.faults import nasty  # noqa: E402
from tests.helpers import clips  # noqa: E402

OPTIONS = [
    {},
    {"precision": "fp32"},
    {"save": "mean"},
    {"save": "sample", "seed": 7},
    {"tail": "drop"},
    {"chunk_frames": 4},
    {"store_dtype": "fp32"},
]
ENCODE = """
import json, sys
from movq_cli import encode_video
for source, output, options in json.load(sys.stdin):
    encode_video(source, output, threads=1, **options)
"""


def make_sources(folder):
    """Write the clips, the tree and the list that both checkouts encode."""
    (folder / "clips").mkdir()
    for i in range(29):
        made = nasty.GOOD[i % len(nasty.GOOD)](folder / "clips" / f"{i:02}", i)
        assert made.exists()
    clips.write(folder / "clips" / "29.mp4", clips.pictures(49, 160, 96), rotation=90, aspect=2)
    nasty.build(folder / "tree", good=40 - len(nasty.BAD), bad=len(nasty.BAD))
    write_list(folder, make_list(folder)[-40:])


def encode(checkout, folder, output, weights):
    """Encode everything with the movq of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    output.mkdir()
    jobs = [
        [str(clip), str(output / f"{clip.name}.safetensors"), {**OPTIONS[i % len(OPTIONS)], "weights": str(weights)}]
        for i, clip in enumerate(sorted((folder / "clips").iterdir()))
    ]
    subprocess.run([sys.executable, "-c", ENCODE], input=json.dumps(jobs), text=True, env=environment, check=True)
    for name, arguments in {
        "tree": ["tree"],
        "files": ["--list", "list.csv", *BUCKETS],
        "tars": ["--list", "list.csv", *BUCKETS, "--layout", "tar", "--shard-size", "200KB"],
    }.items():
        command = [sys.executable, "-m", "movq_cli", "batch-encode", *arguments, "-o", output / name]
        command += ["--weights", weights, "--workers", "2", "--quiet"]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if result.returncode not in (0, 1):  # 1: the tree has bad files
            raise SystemExit(f"{checkout}: {' '.join(map(str, command))}\n{result.stderr}")
    return jobs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="the other checkout")
    parser.add_argument("--weights", type=Path, default=embedded_weights())
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_sources(folder)
        for name, checkout in {"here": ROOT, "there": arguments.checkout.resolve()}.items():
            jobs = encode(checkout, folder, folder / name, arguments.weights.resolve())
        here, there = ({name: made for name, made in contents_of(folder / of).items()} for of in ("here", "there"))
        lines = sum(len(value) for name, value in here.items() if name.endswith("manifest"))
        print(f"{len(jobs)} clips, {lines} lines of manifests, {len(here)} files: ", end="")
        differ = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        print("all equal" if not differ else f"{len(differ)} differ: {', '.join(differ)}")
        return bool(differ)


def contents_of(folder):
    """Map each file made to its bytes, and each manifest to its lines without `seconds`."""
    batches = {
        f"{path.name}/{name}": made
        for path in folder.iterdir()
        if path.is_dir()
        for name, made in contents(path).items()
    }
    return batches | {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


if __name__ == "__main__":
    sys.exit(main())
