"""The benchmark for GPUs runs on a CPU with small sizes; and what movq counts on is what is measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_every_part_for_gpus_runs_on_a_cpu(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--cpu", "--json", tmp_path / "gpu.json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    parts = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: part["how"] for name, part in parts.items()} == dict.fromkeys(parts, "whole")
    rows = {name: [row for table in part["tables"] for row in table] for name, part in parts.items()}
    assert {row["way"] for row in rows["encoder"]} == {"movq", "diffusers", "diffusers, tiled"}
    assert all(row["frames/s"] > 0 for row in rows["encoder"] + rows["decoder"])
    assert {row["way"] for row in rows["candidates"]} >= {
        "plain",
        "a frame at a time",
        "all frames at once, sums of squares",
    }
    assert all(row["largest difference in fp32"] < 1e-3 for row in rows["candidates"])
    assert any("convolution" in row["kernel"] for row in rows["profile"])
    assert {row.get("workers") for row in rows["commands"]} >= {1, 2}


@pytest.mark.slow
def test_when_the_time_is_over_no_part_goes_on(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--cpu", "--only", "machine,profile", "--minutes", "0.1"]
    command += ["--json", tmp_path / "gpu.json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 1
    parts = json.loads((tmp_path / "gpu.json").read_text())
    assert list(parts) == ["machine", "profile"]
    assert parts["profile"]["how"].startswith(("ended after", "not begun"))


@pytest.mark.slow
def test_what_writers_count_on_is_what_they_take(tmp_path):
    command = [
        sys.executable,
        "benchmarks/memory.py",
        "--writers",
        "--size",
        "1280x720",
        "1279x719",
        "--frames",
        "1",
        "40",
    ]
    subprocess.run([*command, "--json", tmp_path / "rows.json"], cwd=ROOT, check=True, capture_output=True)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 24
    for row in rows:
        assert row["bytes per pixel"] < 1.15 * row["counted"] + 10, row
        assert row["counted"] < 2 * row["bytes per pixel"] + 40, row
