"""`movq batch-encode`: every item is encoded once, whatever its name and state, and resumed by content."""

import json
import os

import pytest

from movq_cli import Selection, decode_video, encode_batch, encode_video, open_latents

from .faults import nasty
from .helpers import clips
from .helpers.batches import manifest, tree


@pytest.fixture(scope="module")
def done(zygote, tmp_path_factory):
    """Build a nasty tree and encode it as a batch: (folder, result of the command, what bad items should say)."""
    folder = tmp_path_factory.mktemp("batch")
    reasons = nasty.build(folder / "in", good=24, bad=len(nasty.BAD))
    return folder, zygote.run("batch-encode", "in", "-o", "out", cwd=folder), reasons


@pytest.mark.slow
def test_every_item_is_in_the_manifest_once_with_what_became_of_it(done):
    folder, _, reasons = done
    text = (folder / "out" / "manifest.jsonl").read_text()
    lines = manifest(folder / "out")
    assert len(text.splitlines()) == len(lines) == 24 + len(reasons)
    assert list(lines) == sorted(lines)
    failed = {name: line["reason"] for name, line in lines.items() if line["status"] == "failed"}
    assert set(failed) == set(reasons)
    for name, reason in reasons.items():
        assert reason in failed[name]
        assert "\n" not in failed[name]
        assert "bug" not in failed[name]
        assert lines[name]["cause"] == "refused"
        assert "output" not in lines[name]
    for line in lines.values():
        if line["status"] == "done":
            latents = open_latents(folder / "out" / line["output"])
            assert latents.metadata.source_sha256 == line["source_sha256"]
            assert list(latents.shape) == line["shape"]
            assert (latents.metadata.frames, latents.metadata.frames_padded) == (line["frames"], line["padded"])
            assert os.path.getsize(latents.path) == line["bytes"]
    outputs = [line["output"] for line in lines.values() if line["status"] == "done"]
    assert len(set(outputs)) == len(outputs) == 24
    assert {"clip.mkv.safetensors", "Clip.mp4.safetensors"} < set(outputs)


@pytest.mark.slow
def test_what_the_command_says(done):
    folder, result, reasons = done
    assert result.returncode == 1
    assert result.stdout.count("\n") == 1
    assert result.stdout.startswith(f"out: 24 done, {len(reasons)} failed of {24 + len(reasons)} items; ")
    for part in ("raw RGB", "the sources)", "by 2 workers" if os.cpu_count() == 2 else "by ", "frames/s"):
        assert part in result.stdout
    for part in (
        "skipped 1, hidden: .hidden.mp4",
        "skipped 1, temporary: part.mp4.part",
        "skipped 1, not a video or picture by its name: notes.txt",
        "skipped 1, a link to a file that is taken already: again.mp4",
        "skipped 1, not a regular file: pipe.mp4",
        "skipped 1, a folder that is taken already: loop",
        "--tail drop leaves such frames out instead",
        "why items failed",
        "movq: " + str(folder / "in" / "0 empty.mp4") + ": is empty\n",
    ):
        assert part in result.stderr, part
    assert "Traceback" not in result.stderr
    assert "\x1b" not in result.stderr


@pytest.mark.slow
def test_a_second_run_does_nothing_and_says_so(done, movq):
    folder, _, reasons = done
    before = tree(folder / "out")
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")}
    result = movq("batch-encode", folder / "in", "-o", folder / "out")
    assert result.returncode == 1  # some items failed
    assert f"{24 + len(reasons)} items, nothing new: 24 done, {len(reasons)} failed" in result.stdout
    assert tree(folder / "out") == before
    assert stamps == {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")}


@pytest.mark.slow
def test_a_batch_without_workers_makes_the_same_bytes(done, tmp_path):
    folder, _, reasons = done
    result = encode_batch([folder / "in"], tmp_path / "out", workers=0)
    assert (result.workers, len(result.made) + len(result.copied)) == (0, 24 + len(reasons))
    assert tree(tmp_path / "out") == tree(folder / "out")


@pytest.mark.slow
def test_the_outputs_are_those_of_encode_and_decode(done, tmp_path):
    folder, _, _ = done
    lines = manifest(folder / "out")
    encode_video(folder / "in" / "clip.mkv", tmp_path / "one.safetensors", threads=1)
    assert (tmp_path / "one.safetensors").read_bytes() == (folder / "out" / "clip.mkv.safetensors").read_bytes()
    for name in ("-dash.mp4", "[1].mp4"):
        result = decode_video(folder / "out" / lines[name]["output"], tmp_path / f"{name}.npy")
        assert result.frames == lines[name]["frames"]


@pytest.mark.slow
def test_info_sums_it_up(done, movq):
    folder, _, reasons = done
    result = movq("info", folder / "out")
    assert result.returncode == 0
    assert f"batch of {24 + len(reasons)} items: 24 done, {len(reasons)} failed" in result.stdout
    assert "is empty" in result.stdout
    values = json.loads(movq("info", "--json", folder / "out").stdout)
    lines = [line for line in manifest(folder / "out").values() if line["status"] == "done"]
    assert values["counts"] == {"done": 24, "skipped": 0, "failed": len(reasons)}
    assert values["frames"] == sum(line["frames"] for line in lines)
    assert values["bytes"] == sum(path.stat().st_size for path in (folder / "out").rglob("*.safetensors"))
    assert sum(failure["count"] for failure in values["failures"]) == len(reasons)
    assert values["orphaned_outputs"] == values["missing_outputs"] == []


@pytest.mark.slow
def test_dry_run_counts_and_does_nothing(done, movq, tmp_path):
    folder, _, reasons = done
    result = movq("batch-encode", folder / "in", "-o", "new", "--dry-run")
    assert result.returncode == 1
    assert os.listdir(tmp_path) == []
    lines = [line for line in manifest(folder / "out").values() if line["status"] == "done"]
    encoded = {(line["source_sha256"], os.path.splitext(line["path"])[1].lower()): line for line in lines}.values()
    assert f"{len(encoded)}, of {sum(line['frames'] for line in encoded):,} frames" in result.stdout
    assert f"{24 - len(encoded)} copied from equal videos" in result.stdout
    assert f"would fail   {len(reasons)}" in result.stdout
    for line in lines:
        name = line["output"].replace("\n", "\\n")
        assert f"{name}: {line['frames']} frame" in result.stdout or f"{name}: copied from " in result.stdout
    again = movq("batch-encode", folder / "in", "-o", folder / "out", "--dry-run")
    assert f"failed before  {len(reasons)}" in again.stdout


def test_what_is_no_latents_file_is_not_overwritten(tmp_path):
    clips.write(tmp_path / "a.mp4", clips.pictures(5))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.mp4.safetensors").write_text("precious")
    result = encode_batch([tmp_path / "a.mp4"], tmp_path / "out", workers=0)
    assert "move it away" in result.lines[0]["reason"]
    assert (tmp_path / "out" / "a.mp4.safetensors").read_text() == "precious"
    encode_batch([tmp_path / "a.mp4"], tmp_path / "out", workers=0, force=True)
    open_latents(tmp_path / "out" / "a.mp4.safetensors")


@pytest.mark.slow
def test_what_is_cut_off_is_made_where_that_is_allowed_and_only_then(tmp_path, movq):
    (tmp_path / "in").mkdir()
    clips.write(tmp_path / "in" / "whole.mkv", clips.pictures(9))
    data = clips.write(tmp_path / "cut.mkv", clips.pictures(40), options={"g": "8"}).read_bytes()
    (tmp_path / "in" / "cut.mkv").write_bytes(data[: len(data) // 2])
    (tmp_path / "in" / "bad.mkv").write_text("no video")

    def run(*options):
        result = encode_batch([tmp_path / "in"], tmp_path / "out", selection=Selection(**dict(options)), workers=0)
        return {line["id"]: line["status"] for line in result.made}

    allowed = ("allow_partial", True)
    assert run() == {"whole.mkv": "done", "cut.mkv": "failed", "bad.mkv": "failed"}
    assert run(allowed) == {"cut.mkv": "done", "bad.mkv": "failed"}
    line = manifest(tmp_path / "out")["cut.mkv"]
    assert line["partial"]
    assert "--allow-partial" in line["warnings"][-1]
    latents = open_latents(tmp_path / "out" / "cut.mkv.safetensors")
    assert latents.metadata.preprocessing["partial"]
    assert latents.metadata.preprocessing["warnings"] == line["warnings"]
    assert 0 < latents.metadata.frames == line["frames"] < 40
    assert run(allowed) == {}
    assert run() == {"cut.mkv": "failed", "bad.mkv": "failed"}
    assert run() == {}
    assert movq("encode", "in/cut.mkv", "-o", "a.safetensors").returncode == 1
    result = movq("encode", "in/cut.mkv", "-o", "a.safetensors", "--allow-partial")
    assert result.returncode == 0
    assert "warning" in result.stderr or "--allow-partial" in result.stderr
    assert (tmp_path / "a.safetensors").read_bytes() != b""
