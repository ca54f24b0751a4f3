"""Resuming by content: what is made again and why, and that planning tells it without the encoder."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from movq_cli import (
    LatentDataset,
    MovqError,
    Selection,
    encode_batch,
    open_latents,
    plan_batch,
)
from movq_cli.batch import read_lines
from movq_cli.cli import run

from .helpers import clips
from .helpers.batches import manifest, tree


@pytest.fixture
def batch(finished, tmp_path):
    """Copy the batch, to be changed. Calling it plans the batch again and returns, by id, why items are made again."""
    shutil.copytree(finished / "out", tmp_path / "out")

    def reasons(**options):
        plan = plan_batch([finished / "in"], tmp_path / "out", **options)
        return {item.id: plan.reason(item) for item in plan.planned}

    reasons.out = tmp_path / "out"
    return reasons


def edit(batch, name, **fields):
    """Change fields of an item's line in the manifest."""
    path = batch.out / "manifest.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | (fields if line["id"] == name else {})) + "\n" for line in lines))


def test_what_is_up_to_date_needs_no_reason(batch):
    assert batch() == {}


CHANGES = {
    "gone": (lambda b: os.unlink(b.out / "a.mp4.safetensors"), {}, "its output is gone"),
    "cut": (lambda b: os.truncate(b.out / "a.mp4.safetensors", 900), {}, "its output is not what the manifest says"),
    "format": (
        lambda b: edit(b, "a.mp4", format_version="0"),
        {},
        "it was made in format version 0, this movq writes 1 and 2",
    ),
    "other video": (lambda b: edit(b, "a.mp4", source=[1, 2, 3]), {}, "its video has changed"),
    "options": (
        lambda b: None,
        {"selection": Selection(frames=1), "tail": "drop", "replace": True},
        "it was made with tail=pad, all frames; this command says tail=drop, frames=1",
    ),
    "partial": (
        lambda b: edit(b, "a.mp4", partial=True),
        {},
        "it is part of a damaged video, and allow_partial=True is not given",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_finished_item_that_is_made_again_says_why(batch, change):
    act, options, reason = CHANGES[change]
    act(batch)
    assert batch(**options)["a.mp4"] == reason


UNMADE_CHANGES = {
    "asked": (lambda b: None, {"retry_failed": True}, "retry_failed=True tries again what was refused"),
    "passing": (lambda b: edit(b, "bad.mp4", cause="crash"), {}, "what failed may go better now"),
    "options": (lambda b: None, {"tail": "drop", "replace": True}, "it was tried with other weights or options"),
    "video": (
        lambda b: edit(b, "bad.mp4", source=[1, 2, 3]),
        {},
        "its video has changed since it was refused",
    ),
}


@pytest.mark.parametrize("change", UNMADE_CHANGES)
def test_an_item_that_is_tried_again_says_why(batch, change):
    act, options, reason = UNMADE_CHANGES[change]
    act(batch)
    assert batch(**options)["bad.mp4"] == reason


def test_a_dry_run_says_why_where_asked(batch, finished, capsys):
    os.unlink(batch.out / "a.mp4.safetensors")
    command = ["batch-encode", str(finished / "in"), "-o", str(batch.out), "--dry-run"]
    assert run(command) == 1  # bad.mp4 failed before
    assert "again 1: its output is gone" in " ".join(capsys.readouterr().out.split())
    command[-1:] = ["--max-failures", "1", "--dry-run"]
    assert run([*command, "--verbose"]) == 0
    assert "a.mp4.safetensors: 5 frames, 64x48; again: its output is gone\n" in capsys.readouterr().out
    assert run([*command[:-1], "--verbose"]) == 2
    assert capsys.readouterr().err == "movq: --verbose: goes with --dry-run\n"


def test_planning_does_not_import_the_encoder():
    code = "import sys; from movq_cli import plan_batch; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "movq_cli.batch.dry_run" in loaded
    assert not {"torch", "movq_cli.encode", "movq_cli.encoding", "movq_cli.batch.worker"} & set(loaded)


def swap_contents(path):
    """Change a file's contents but not its size, inode and time, so that only reading tells the difference."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-9] ^= 1
    with open(path, "r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_touched_copied_and_moved_inputs_are_not_encoded_again(small):
    folder, run = small
    os.utime(folder / "in" / "a.mp4")
    shutil.copy(folder / "in" / "b.mp4", folder / "in" / "copy")
    os.replace(folder / "in" / "copy", folder / "in" / "b.mp4")  # another inode
    os.rename(folder / "in", folder / "elsewhere")
    assert run(folder / "elsewhere") == set()
    assert manifest(folder / "out")["a.mp4"]["path"] == "../elsewhere/a.mp4"
    assert run(folder / "elsewhere") == set()


def test_paths_are_relative_and_those_of_earlier_movqs_are_known(small):
    """A folder that is moved with its videos keeps them; an absolute path means the same video as the relative one."""
    folder, run = small
    lines = manifest(folder / "out")
    assert {line["path"] for line in lines.values()} == {f"../in/{name}" for name in lines}
    assert str(folder) not in (folder / "out" / "manifest.jsonl").read_text()
    assert {line["path"] for line in read_lines(folder / "out" / "manifest.jsonl")} == {
        str(folder / "in" / name) for name in lines
    }
    assert LatentDataset(folder / "out", scale=1.0).row(0)["path"] == str(folder / "in" / "a.mp4")
    relative = (folder / "out" / "manifest.jsonl").read_bytes()
    older = [json.dumps(line | {"path": str(folder / "in" / name)}) for name, line in lines.items()]
    (folder / "out" / "manifest.jsonl").write_text("\n".join(older) + "\n")
    assert run() == set()
    assert (folder / "out" / "manifest.jsonl").read_bytes() == relative
    (folder / "moved").mkdir()
    for name in ("in", "out"):
        os.rename(folder / name, folder / "moved" / name)
    assert {line["path"] for line in read_lines(folder / "moved" / "out" / "manifest.jsonl")} == {
        str(folder / "moved" / "in" / name) for name in lines
    }


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
    os.utime(folder / "in" / "b.mp4")  # same size, another time: only its contents tell
    assert run() == {"b.mp4"}
    os.replace(clips.write(folder / "good.mp4", clips.pictures(5)), folder / "in" / "bad.mp4")
    assert run() == {"bad.mp4"}
    assert manifest(folder / "out")["bad.mp4"]["status"] == "done"


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
    run(precision="fp32", threads=2, force=True, workers=1)  # not in pytest: two threads would start OpenMP
    clips.write(folder / "in" / "d.mp4", clips.pictures(8))
    assert run(workers=1) == {"d.mp4"}
    line = manifest(folder / "out")["d.mp4"]
    assert (line["precision"], line["threads"]) == ("fp32", 2)


def test_refused_inputs_are_tried_again_only_when_told_or_changed(small):
    folder, run = small
    assert run(retry_failed=True) == {"bad.mp4"}
    (folder / "in" / "gone.mp4").symlink_to("nothing")
    assert run() == {"gone.mp4"}
    assert run() == set()
    clips.write(folder / "in" / "nothing", clips.pictures(8), format="mp4")
    assert run() == {"gone.mp4"}
    assert manifest(folder / "out")["gone.mp4"]["status"] == "done"


def test_a_second_source_adds_to_the_folder(small):
    folder, run = small
    (folder / "more").mkdir()
    clips.write(folder / "more" / "z.mp4", clips.pictures(8))
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
    shutil.copy(folder / "in" / "b.mp4", folder / "other" / "b.mp4")  # the same video, so not refused
    assert run(folder / "other") == set()


def test_naming_more_sources_makes_nothing_again(small):
    folder, run = small
    (folder / "more").mkdir()
    assert run(folder / "in", folder / "more") == set()


def test_what_was_wrong_with_the_output_is_tried_again(small):
    folder, run = small
    clips.write(folder / "in" / "new.mp4", clips.pictures(8))
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
