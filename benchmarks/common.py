"""Code that benchmarks share: clips, weights, the peak memory of a command, options and tables."""

import argparse
import dataclasses
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from itertools import accumulate, pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SIZES = {
    "published": dict(ch=128, ch_mult=(1, 2, 2, 4), num_res_blocks=3),
    "tiny": dict(ch=32, ch_mult=(1, 2, 4, 4), num_res_blocks=1, norm_scope="frame"),
}
REST = dict(out_ch=3, attn_resolutions=(), in_channels=3, resolution=256, z_channels=16)
"""Arguments of networks of the two sizes, and the arguments that both sizes have."""

FASTER, MEMORY = "movq is faster by", "movq takes of its memory"
"""Columns that compare movq with another way; benchmarks/short.py sums them up."""


def options(text, runs=3):
    """Return a parser with the options that every benchmark has. `text` is shown by --help."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--json", type=Path, metavar="FILE", help="the rows as JSON too")
    return parser


class Table:
    """A table that is printed as Markdown row by row and, with a `file`, kept there as a JSON list of objects.

    `columns` maps names to format specifications; None is an empty cell. The file is written again with each row.
    """

    def __init__(self, columns, file=None):
        self.columns, self.file, self.rows = columns, file, []
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def add(self, *values):
        pairs = zip(values, self.columns.values(), strict=True)
        print("| " + " | ".join("" if v is None else format(v, spec) for v, spec in pairs) + " |", flush=True)
        self.rows.append(dict(zip(self.columns, values, strict=True)))
        if self.file is not None:
            self.file.write_text(json.dumps(self.rows, indent=1) + "\n")


def native_precision():
    """Return the precision that `--precision auto` takes on this machine's CPU."""
    import torch

    from movq_cli.device import choose_precision

    return choose_precision("auto", torch.device("cpu"))


def ratio(theirs, ours):
    """Return the median, run by run, of `theirs` divided by `ours`."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def in_child(*arguments):
    """Run a Python process with these arguments and return what it prints as JSON."""
    command = [sys.executable, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def default_windows(images, size, config):
    """Return frames (T, H, W, 3) in the windows that movq takes by default for weights of a size: one chunk each."""
    from movq_cli.model.cost import default_chunk_frames
    from movq_cli.schedule import ChunkSchedule

    chunk = default_chunk_frames(config, *images.shape[1:3], "cpu") if size == "tiny" else 0
    schedule = ChunkSchedule.of_frames("frame" if size == "tiny" else "diffusers", len(images), chunk, config)
    ends = accumulate(schedule.lengths(), initial=0)
    return [[images[start:end]] for start, end in pairwise(ends)]


def network(kind, size, dtype, device="cpu"):
    """Return an Encoder3D or Decoder3D of a size, with random weights, laid out in memory as movq does it."""
    import torch

    from movq_cli.model.convolution import lay_out

    with torch.device(device):
        model = kind(**SIZES[size], **REST).eval().requires_grad_(False).to(dtype)
    for parameter in model.parameters():
        parameter.data = lay_out(parameter.data)
    return model


def synthetic(path, frames, width, height):
    import av
    import numpy as np

    from tests.helpers.clips import picture

    wide = picture(width + 64, height)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            at = 3 * i % 64
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(wide[:, at : at + width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def peak(command):
    """Return a command's peak bytes (ru_maxrss). A process begins with the memory of its parent, which is little here."""
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, 1, 0)])
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    return usage.ru_maxrss * 1024


def timed(command):
    """Return (seconds, peak bytes) of a command; memory is its own and its children's together, every 20 ms."""
    started, most = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        most = max(most, _resident(process.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - started
    assert process.returncode == 0, process.stderr.read().decode()
    return seconds, most


def _resident(pid):
    try:
        with open(f"/proc/{pid}/statm") as file:
            own = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return own + sum(map(_resident, file.read().split()))
    except (OSError, IndexError):
        return 0  # it has ended


def watched(command):
    """Return a command's seconds, and the peak bytes of its process, of all its processes, and of its nameless files.

    Memory is proportional (PSS), so that what processes share counts once, every 50 ms.
    """
    started, most = time.perf_counter(), [0, 0, 0]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        own, *others = (_proportional(pid) for pid in [process.pid, *descendants(process.pid)])
        most = [max(pair) for pair in zip(most, (own, own + sum(others), _nameless(process.pid)), strict=True)]
        time.sleep(0.05)
    seconds = time.perf_counter() - started
    assert process.returncode == 0, process.stderr.read().decode()
    return seconds, *most


def descendants(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [one for child in file.read().split() for one in (int(child), *descendants(child))]
    except OSError:
        return []  # it has ended


def _proportional(pid):
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0  # it has ended


def _nameless(pid):
    """Return the bytes on disk of a process's largest file that has no name."""
    sizes = [0]
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            if os.readlink(f"/proc/{pid}/fd/{fd}").endswith("(deleted)"):
                sizes.append(os.stat(f"/proc/{pid}/fd/{fd}").st_blocks * 512)
    except OSError:
        pass  # it has ended, or closed a file
    return max(sizes)


def published_weights(path):
    """Write a movq weights file of the published encoder's size, with random weights."""
    return _in_a_process_of_its_own(_make_weights, path)


def diffusers_weights(path, channels=(128, 256, 256, 512)):
    """Write a folder of diffusers' with random weights, of the published size unless `channels` differ."""
    return _in_a_process_of_its_own(_make_diffusers, path, channels)


def _in_a_process_of_its_own(make, path, *more):
    """Call `make` in another process: a measured process starts from the memory of the one that starts it."""
    maker = multiprocessing.get_context("spawn").Process(target=make, args=(path, *more))
    maker.start()
    maker.join()
    return path


def _make_diffusers(path, channels):
    import torch
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    AutoencoderKLCogVideoX(block_out_channels=channels).save_pretrained(path)


def _make_weights(path):
    import torch
    from safetensors.torch import save_file

    from movq_cli.model import AutoencoderConfig, Encoder3D

    config = AutoencoderConfig(**SIZES["published"], **REST)
    torch.manual_seed(0)
    tensors = {f"encoder.{k}": v for k, v in Encoder3D(**dataclasses.asdict(config)).state_dict().items()}
    said = {"format": "movq-weights", "format_version": "1", "config": config.to_json(), "name": "random"}
    save_file(tensors, path, metadata=said)
