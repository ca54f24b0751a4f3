"""`movq batch-encode`: every item once, whatever its name and state, and resuming by content."""

import json
import os
import shutil

import pytest

from movq_cli import MovqError, MovqWarning, Selection, decode_video, encode_batch, encode_video, open_latents
from movq_cli.batch import read_batch, read_folder, read_lines

from .faults import nasty
from .helpers import clips
from .helpers.batches import manifest, tree


@pytest.fixture(scope="module")
def done(zygote, tmp_path_factory):
    """A nasty tree and the batch of it: (folder, result of the command, what bad items should say)."""
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
    for part in ("of RGB", "of the sources", "by 2 workers" if os.cpu_count() == 2 else "by ", "frames/s"):
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
    assert result.returncode == 1  # there are failures
    assert (
        f"nothing to do: all of {24 + len(reasons)} items up to date, 24 done, {len(reasons)} failed" in result.stdout
    )
    assert tree(folder / "out") == before
    assert stamps == {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")}


@pytest.mark.slow
def test_a_batch_without_workers_makes_the_same_bytes(done, tmp_path):
    folder, _, reasons = done
    result = encode_batch([folder / "in"], tmp_path / "out", workers=0)
    assert (result.workers, len(result.made)) == (0, 24 + len(reasons))
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
    assert values["counts"] == {"done": 24, "short": 0, "failed": len(reasons)}
    assert values["frames"] == sum(line["frames"] for line in lines)
    assert values["bytes"] == sum(path.stat().st_size for path in (folder / "out").rglob("*.safetensors"))
    assert sum(failure["count"] for failure in values["failures"]) == len(reasons)
    assert values["orphaned_outputs"] == values["missing_outputs"] == []


@pytest.mark.slow
def test_dry_run_counts_and_does_nothing(done, movq, tmp_path):
    folder, _, reasons = done
    result = movq("batch-encode", folder / "in", "-o", "new", "--dry-run")
    assert result.returncode == 0
    assert os.listdir(tmp_path) == []
    lines = [line for line in manifest(folder / "out").values() if line["status"] == "done"]
    assert f"24, of {sum(line['frames'] for line in lines):,} frames" in result.stdout
    assert f"would fail   {len(reasons)}" in result.stdout
    for line in lines:
        name = line["output"].replace("\n", "\\n")
        assert f"{name}: {line['frames']} frame" in result.stdout
    again = movq("batch-encode", folder / "in", "-o", folder / "out", "--dry-run")
    assert f"failed before  {len(reasons)}" in again.stdout


# Resuming by content, on a small batch of its own.


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    (folder / "in").mkdir()
    for name, count in (("a.mp4", 5), ("b.mp4", 6), ("c.mp4", 7)):
        clips.write(folder / "in" / name, clips.pictures(count))
    (folder / "in" / "bad.mp4").write_text("no video")
    result = encode_batch([folder / "in"], folder / "out", workers=1)  # what is made again without workers is the same
    assert {line["id"] for line in result.made} == {"a.mp4", "b.mp4", "c.mp4", "bad.mp4"}
    return folder


@pytest.fixture
def small(template, tmp_path):
    """Three clips and a bad one, encoded: (folder, run), where run() resumes and tells which items were made."""

    def run(*sources, **options):
        result = encode_batch(sources or [tmp_path / "in"], tmp_path / "out", **{"workers": 0} | options)
        return {line["id"] for line in result.made}

    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    assert run() == {"bad.mp4"}  # another inode; of videos the contents are known
    assert run() == set()
    return tmp_path, run


def test_touched_copied_and_moved_inputs_are_not_encoded_again(small):
    folder, run = small
    os.utime(folder / "in" / "a.mp4")
    shutil.copy(folder / "in" / "b.mp4", folder / "in" / "copy")
    os.replace(folder / "in" / "copy", folder / "in" / "b.mp4")  # another inode
    os.rename(folder / "in", folder / "elsewhere")
    assert run(folder / "elsewhere") == set()
    assert manifest(folder / "out")["a.mp4"]["path"] == str(folder / "elsewhere" / "a.mp4")
    assert run(folder / "elsewhere") == set()


def test_a_dry_run_would_do_what_a_run_does(small, movq):
    folder, _ = small
    clips.write(folder / "in" / "d.mp4", clips.pictures(9))
    for flags, said in (
        ([], ("up to date     3", "failed before  1", "to encode      1, of 9 frames")),
        (["--retry-failed"], ("up to date   3", "would fail   1", "to encode    1, of 9 frames")),
        (["--force"], ("would fail   1", "to encode    4, of 27 frames")),
    ):
        result = movq("batch-encode", folder / "in", "-o", folder / "out", "--dry-run", *flags)
        for part in said:
            assert part in result.stdout, result.stdout
    assert "d.mp4" not in manifest(folder / "out")


def test_changed_inputs_are_encoded_again_whatever_their_times_say(small):
    folder, run = small
    old = (folder / "in" / "a.mp4").stat()
    clips.write(folder / "in" / "a.mp4", clips.pictures(9))
    os.utime(folder / "in" / "a.mp4", ns=(old.st_atime_ns, old.st_mtime_ns))
    assert run() == {"a.mp4"}
    assert open_latents(folder / "out" / "a.mp4.safetensors").metadata.frames == 9
    swap_contents(folder / "in" / "b.mp4")
    os.utime(folder / "in" / "b.mp4")  # of the same size, with another time: only its contents tell
    assert run() == {"b.mp4"}
    os.replace(clips.write(folder / "good.mp4", clips.pictures(5)), folder / "in" / "bad.mp4")
    assert run() == {"bad.mp4"}
    assert manifest(folder / "out")["bad.mp4"]["status"] == "done"


def swap_contents(path):
    """Other contents of the same size, under the same inode and time: what only reading tells."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-9] ^= 1
    with open(path, "r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_verify_trusts_nothing_but_bytes(small):
    folder, run = small
    swap_contents(folder / "in" / "a.mp4")
    swap_contents(folder / "out" / "b.mp4.safetensors")
    assert run() == set()
    assert run(verify=True) == {"a.mp4", "b.mp4", "bad.mp4"}
    assert run(verify=True) == {"bad.mp4"}


@pytest.mark.parametrize("damage", ["cut", "header", "gone", "folder"])
def test_damaged_outputs_are_found_and_made_again(small, damage):
    folder, run = small
    output = folder / "out" / "a.mp4.safetensors"
    good = output.read_bytes()
    if damage == "cut":
        output.write_bytes(good[:-5])
    elif damage == "header":
        output.write_bytes(good.replace(b'"frames":"5"', b'"frames":"6"'))
    else:
        output.unlink()
    if damage == "folder":
        shutil.rmtree(folder / "out")
        assert run() == {"a.mp4", "b.mp4", "c.mp4", "bad.mp4"}
    else:
        assert run() == {"a.mp4"}
    assert output.read_bytes() == good


@pytest.mark.slow
def test_options_that_change_the_latents_make_all_again_and_knobs_do_not(small, make_weights):
    _, run = small
    assert run(chunk_frames=4, memory_budget=10**9, threads=1) == set()
    everything = {"a.mp4", "b.mp4", "c.mp4", "bad.mp4"}
    for options in (
        {"tail": "drop"},
        {"save": "mean"},
        {"precision": "fp32"},
        {"weights": str(make_weights())},
    ):
        assert run(**options, replace=True) == everything, options
        assert run(**options) == set()
    assert run(force=True) == everything


@pytest.mark.slow
def test_precision_and_threads_of_a_batch_stay_as_they_were(small):
    folder, run = small
    run(precision="fp32", threads=2, force=True, workers=1)  # not here: two threads would start OpenMP in pytest
    clips.write(folder / "in" / "d.mp4", clips.pictures(5))
    assert run(workers=1) == {"d.mp4"}
    line = manifest(folder / "out")["d.mp4"]
    assert (line["precision"], line["threads"]) == ("fp32", 2)


def test_refused_inputs_are_tried_again_only_when_told_or_changed(small):
    folder, run = small
    assert run(retry_failed=True) == {"bad.mp4"}
    (folder / "in" / "gone.mp4").symlink_to("nothing")
    assert run() == {"gone.mp4"}
    assert run() == set()
    clips.write(folder / "in" / "nothing", clips.pictures(5), format="mp4")
    assert run() == {"gone.mp4"}
    assert manifest(folder / "out")["gone.mp4"]["status"] == "done"


def test_a_renamed_input_is_a_new_item_and_its_old_output_an_orphan(small):
    folder, _ = small
    os.rename(folder / "in" / "a.mp4", folder / "in" / "new.mp4")
    result = encode_batch([folder / "in"], folder / "out", workers=0)
    assert {line["id"] for line in result.made} == {"new.mp4"}
    assert result.orphans == ["a.mp4.safetensors"]
    lines = manifest(folder / "out")
    assert [name for name, line in lines.items() if line.get("orphan")] == ["a.mp4"]
    os.rename(folder / "in" / "new.mp4", folder / "in" / "a.mp4")
    result = encode_batch([folder / "in"], folder / "out", workers=0)
    assert result.made == []
    assert result.orphans == ["new.mp4.safetensors"]


def test_a_second_source_adds_to_the_folder(small):
    folder, run = small
    (folder / "more").mkdir()
    clips.write(folder / "more" / "z.mp4", clips.pictures(5))
    assert run(folder / "more") == {"z.mp4"}
    lines = manifest(folder / "out")
    assert len(lines) == 5
    assert not any("orphan" in line for line in lines.values())


def test_a_source_with_names_that_are_taken_is_refused(small):
    folder, run = small
    (folder / "other").mkdir()
    clips.write(folder / "other" / "a.mp4", clips.pictures(12))
    before = tree(folder / "out")
    with pytest.raises(
        MovqError, match=r"would replace a\.mp4\.safetensors, which is of .*in/a\.mp4; name all sources"
    ):
        run(folder / "other")
    assert tree(folder / "out") == before
    assert run(folder / "other", force=True) == {"a.mp4"}
    shutil.copy(folder / "in" / "b.mp4", folder / "other" / "b.mp4")  # the same video, though
    assert run(folder / "other") == set()


def test_sources_named_otherwise_are_warned_of(small):
    folder, run = small
    (folder / "more").mkdir()
    with pytest.warns(MovqWarning, match="4 videos are in the manifest under other names"):
        run(folder / "in", folder / "more")


def test_what_was_wrong_with_the_output_is_tried_again(small):
    folder, run = small
    clips.write(folder / "in" / "new.mp4", clips.pictures(5))
    (folder / "out" / "new.mp4.safetensors").write_text("precious")
    assert run() == {"new.mp4"}
    assert manifest(folder / "out")["new.mp4"]["cause"] == "output"
    (folder / "out" / "new.mp4.safetensors").unlink()
    assert run() == {"new.mp4"}
    assert manifest(folder / "out")["new.mp4"]["status"] == "done"


def test_latents_of_what_a_video_was_before_are_said_to_be_outdated(small):
    folder, _ = small
    (folder / "in" / "a.mp4").write_text("no video any more")
    result = encode_batch([folder / "in"], folder / "out", workers=0)
    assert [line["status"] for line in result.made] == ["failed"]
    assert result.orphans == ["a.mp4.safetensors"]
    (folder / "out" / "other.safetensors").write_text("not latents")
    assert encode_batch([folder / "in"], folder / "out").orphans == ["a.mp4.safetensors"]


EDITS = [
    {"threads": "many"},
    {"caption": "\ud800"},
    {"caption": 7},
    {"source": []},
    {"source": ["a", 1, 2]},
    {"seconds": 10**400},
    {"frames": None},
    {"output": ["a"]},
    {"status": "fine"},
    {"status": ["done"]},
    {"warnings": [1]},
    {"id": "\ud800"},
    {"duration": float("nan")},
]


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_a_line_that_cannot_be_is_left_out_with_a_warning(template, tmp_path, edit):
    lines = [json.loads(text) for text in (template / "out" / "manifest.jsonl").open()]
    lines[1] |= edit
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    with pytest.warns(MovqWarning, match="line 2 is damaged and left out"):
        assert [line["id"] for line in read_lines(path)] == ["a.mp4", "bad.mp4", "c.mp4"]


def test_read_from_its_end_a_manifest_is_the_same(template, tmp_path):
    """Of two lines of an item the later holds, damaged lines and the torn last one do not count, shards belong to the batch."""
    text = (template / "out" / "manifest.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    again = [json.dumps(line | {"seconds": 2.5}) for line in lines[:2]]
    damaged = json.dumps(lines[2] | {"frames": "many"})
    (tmp_path / "manifest.jsonl").write_text(text + "\n".join([again[0], damaged, again[1], text[:50]]))
    shard = json.dumps(lines[3] | {"seconds": 3.5}) + "\n"
    (tmp_path / "manifest.0-of-1.jsonl").write_text(shard)
    with pytest.warns(MovqWarning, match=f"line {len(lines) + 2} is damaged"):
        expected = read_folder(tmp_path)
    with pytest.warns(MovqWarning, match=f"line {len(lines) + 2} is damaged"):
        read = list(read_batch(tmp_path))
    assert len(read) == len(lines)
    assert {line["id"]: line for line in read} == expected
    assert [expected[line["id"]].get("seconds") for line in lines] == [2.5, 2.5, lines[2].get("seconds"), 3.5]


def test_what_a_later_movq_adds_to_a_line_is_kept(small):
    folder, run = small
    path = folder / "out" / "manifest.jsonl"
    lines = [json.loads(line) | {"later": {"n": [1, None]}} for line in path.open()]
    path.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    assert run() == set()
    assert [json.loads(line) for line in path.open()] == lines


def test_the_item_of_a_damaged_line_is_made_again(small, movq):
    folder, run = small
    path = folder / "out" / "manifest.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"frames": 5', b'"frames": "five"'))
    result = movq("info", folder / "out")
    assert result.returncode == 0
    assert "line 1 is damaged and left out" in result.stderr
    with pytest.warns(MovqWarning, match="line 1 is damaged"):
        assert run() == {"a.mp4"}


def test_a_torn_line_and_a_lost_manifest_lose_nothing(small):
    folder, run = small
    path = folder / "out" / "manifest.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert run() == {"c.mp4"}
    clean = tree(folder / "out")
    path.unlink()
    assert run() == {"a.mp4", "b.mp4", "c.mp4", "bad.mp4"}
    assert tree(folder / "out") == clean


def test_what_is_no_latents_file_is_not_overwritten(tmp_path):
    clips.write(tmp_path / "a.mp4", clips.pictures(5))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.mp4.safetensors").write_text("precious")
    result = encode_batch([tmp_path / "a.mp4"], tmp_path / "out", workers=0)
    assert "exists; --force" in result.lines[0]["reason"]
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
