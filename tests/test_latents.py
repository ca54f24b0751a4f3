"""The latents file: written in chunks, whole or absent, read lazily, refused when it lies."""

import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from movq_cli import MovqError, open_latents

from .helpers.latents import LATENTS, metadata, write_latents


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chunks", [(4,), (1, 2, 1), (1, 1, 1, 1)], ids=str)
def test_safetensors_reads_what_was_appended(tmp_path, dtype, chunks):
    latents = LATENTS.to(dtype)
    path = write_latents(tmp_path / "a.safetensors", latents, chunks)
    tensors = load_file(path)
    assert torch.equal(tensors["latents"], latents)
    assert tensors["frame_indices"].tolist() == list(range(11))
    assert tensors["frame_times"].dtype == torch.float64
    opened = open_latents(path)
    assert opened.metadata == metadata()
    assert torch.equal(opened.latents, latents)
    assert torch.equal(opened.mean, latents[:, :4])


def test_same_bytes_whatever_the_chunks(tmp_path):
    files = [write_latents(tmp_path / f"{c}", LATENTS, c).read_bytes() for c in ((4,), (1, 2, 1), (3, 1))]
    assert files[0] == files[1] == files[2]


def test_stats(tmp_path):
    path = write_latents(tmp_path / "a.safetensors", LATENTS)
    for channel, (mean, std, low, high) in enumerate(open_latents(path).channel_stats()):
        x = LATENTS[:, channel].double()
        assert (mean, low, high) == pytest.approx((x.mean().item(), x.min().item(), x.max().item()))
        assert std == pytest.approx(x.std(correction=0).item())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_not_written(tmp_path, value):
    bad = LATENTS.clone()
    bad[0, 3, 2, 1, 1] = value
    with pytest.raises(MovqError, match=r"latents 1 to 2 are not finite in F32: nothing was written"):
        write_latents(tmp_path / "a.safetensors", bad)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_memory_does_not_hold_what_was_appended(tmp_path):
    """256 MB are appended in chunks of 1 MB, in a process whose peak memory is then read."""
    import subprocess
    import sys

    script = f"""
import torch
from array import array
from movq_cli.latents import LatentsWriter
from tests.helpers.latents import metadata
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
chunk = torch.zeros(1, 8, 1, 128, 256)
with LatentsWriter({str(tmp_path / "a.safetensors")!r}) as writer:
    for i in range(8): writer.append(chunk)
    before = peak()
    for i in range(248): writer.append(chunk)
    writer.finish(metadata(), array("d"), array("q"))
    writer.commit()
print(peak() - before)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 20_000  # kB
    assert os.path.getsize(tmp_path / "a.safetensors") > 256 << 20


def rewritten(tmp_path, change):
    """Write a whole file with one thing changed in its strings or tensors."""
    path = write_latents(tmp_path / "good.safetensors", LATENTS)
    with safe_open(path, "pt") as file:
        strings, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    change(strings, tensors)
    save_file(tensors, tmp_path / "bad.safetensors", metadata=strings)
    return tmp_path / "bad.safetensors"


LIES = {
    "newer": (lambda s, t: s.update(format_version="3"), "format_version '3'; this movq reads 1 and 2: update movq"),
    "other": (lambda s, t: s.update(format="pt"), "not a movq latents file"),
    "no width": (lambda s, t: s.pop("width"), "lacks 'width'"),
    "no latents": (lambda s, t: t.pop("latents"), "lacks 'latents'"),
    "words": (lambda s, t: s.update(frames="many"), "says what cannot be"),
    "deep": (lambda s, t: s.update(preprocessing="[" * 100_000), "says what cannot be"),
    "zero factor": (lambda s, t: s.update(temporal_factor="0"), "too small"),
    "fps": (lambda s, t: s.update(fps="1/0"), "says what cannot be"),
    "kind": (lambda s, t: s.update(representation="noise"), "representation"),
    "frames": (lambda s, t: s.update(frames="12"), "for 12 frames"),
    "time": (lambda s, t: t.update(latents=t["latents"][:, :, :3].contiguous()), "where the metadata say"),
    "space": (lambda s, t: s.update(width="53"), "where the metadata say"),
    "times": (lambda s, t: t.update(frame_times=t["frame_times"].float()), "frame_times of F32"),
}


@pytest.mark.parametrize(("change", "reason"), LIES.values(), ids=LIES)
def test_files_that_lie_are_refused(tmp_path, change, reason):
    with pytest.raises(MovqError, match=reason):
        open_latents(rewritten(tmp_path, change))
