"""Why an item of a batch is made again, and that planning tells it without the encoder."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from movq_cli import Selection, encode_batch, plan_batch
from movq_cli.cli import run

from .helpers import clips


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A batch of three finished videos and one that is none."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "in").mkdir()
    for name in "abc":
        clips.write(folder / "in" / f"{name}.mp4", clips.pictures(5))
    (folder / "in" / "bad.mp4").write_bytes(b"no video")
    encode_batch([folder / "in"], folder / "out", workers=0)
    return folder


@pytest.fixture
def batch(made, tmp_path):
    """A copy of the batch, to be changed. Calling it plans the batch again and returns, by id, why items are made again."""
    shutil.copytree(made / "out", tmp_path / "out")

    def reasons(**options):
        plan = plan_batch([made / "in"], tmp_path / "out", **options)
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
        "it was made in format version 0, this movq writes 1",
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
    "place": (
        lambda b: (
            edit(b, "a.mp4", output="z.safetensors"),
            os.rename(b.out / "a.mp4.safetensors", b.out / "z.safetensors"),
        ),
        {},
        "its output was z.safetensors",
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


def test_a_dry_run_says_why_where_asked(batch, made, capsys):
    os.unlink(batch.out / "a.mp4.safetensors")
    command = ["batch-encode", str(made / "in"), "-o", str(batch.out), "--dry-run"]
    assert run(command) == 0
    assert "1 of these; --verbose says why" in " ".join(capsys.readouterr().out.split())
    assert run([*command, "--verbose"]) == 0
    assert "a.mp4.safetensors: 5 frames of 64x48; again: its output is gone\n" in capsys.readouterr().out
    assert run([*command[:-1], "--verbose"]) == 2
    assert capsys.readouterr().err == "movq: --verbose: goes with --dry-run\n"


def test_planning_does_not_import_the_encoder():
    code = "import sys; from movq_cli import plan_batch; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "movq_cli.batch.dry_run" in loaded
    assert not {"torch", "movq_cli.encode", "movq_cli.encoding", "movq_cli.batch.worker"} & set(loaded)
