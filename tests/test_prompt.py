"""Slips and habits at the prompt: each gets what was meant, or one line that says how to get it."""

import os

import pytest

from movq_cli import MovqError, encode_batch, open_latents
from movq_cli.checkpoints import EMBEDDED, open_checkpoint
from movq_cli.cli import run

from .helpers import clips


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make a folder with a clip in `in`, and change to it."""
    (tmp_path / "in").mkdir()
    clips.write(tmp_path / "in" / "clip.mp4", clips.pictures(30), rate=10)
    monkeypatch.chdir(tmp_path)
    return tmp_path


REFUSED = {
    "encode in/clip.mp4 -o deep/er/x.safetensors": (1, "deep/er/x.safetensors: the folder deep/er does not exist"),
    "encode https://host/a.mp4": (1, "https://host/a.mp4: is an address; movq reads files, so download it first"),
    "encode -": (1, "-: is standard input; movq reads files, so save it to one first"),
    "encode in": (1, "in: is a folder; `movq batch-encode FOLDER -o DIR` encodes all videos in it"),
    "encode a.mp4 b.mp4": (2, "IN: takes one file, got 2 names; `movq batch-encode"),
    "decode a.safetensors b.safetensors": (2, "LATENTS: takes one file, got 2 names; run it once for each"),
    "decode in/clip.mp4": (1, "in/clip.mp4: is not a latents file; `movq encode` makes one of a video"),
    "encode in/clip.mp4 -o x.pt": (2, "--output: latents are written as .safetensors, not .pt"),
    "encode in/clip.mp4 -o -": (2, "--output: movq writes files, not standard output"),
    "encode in/clip.mp4 --memory-budget 4": (2, "--memory-budget: 4 is a number of bytes: did you mean 4GB?"),
    "encode in/clip.mp4 --start 1:x": (2, "--start: is not a time like 90.5, 1:30.5 or 00:01:30.5: '1:x'"),
    "encode in/clip.mp4 --weights movq-tiny-4x8x8": (1, f"the current ones are {EMBEDDED}"),
    "eval in/clip.mp4 --picture x.txt": (2, "--picture: draws a PNG file"),
}


@pytest.mark.parametrize("command", REFUSED)
def test_a_slip_is_answered_with_what_was_meant(folder, capsys, command):
    code, text = REFUSED[command]
    assert run(command.split()) == code
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1, "one line, and no remark before it"
    assert os.listdir(folder) == ["in"]


def test_names_of_outputs_may_be_left_out(folder, capsys):
    (folder / "out").mkdir()
    common = ["--short-side", "32", "--frames", "1"]
    assert run(["encode", "in/clip.mp4", *common]) == 0
    assert run(["encode", "in/clip.mp4", "-o", "out", *common]) == 0
    assert (folder / "clip.safetensors").read_bytes() == (folder / "out" / "clip.safetensors").read_bytes()
    assert run(["decode", "clip.safetensors"]) == 0
    assert sorted(os.listdir(folder)) == ["clip.decoded.mp4", "clip.safetensors", "in", "out"]
    assert run(["encode", "clip.safetensors"]) == 1
    assert "`movq decode` makes a video of latents" in capsys.readouterr().err


def test_times_and_types_are_read_as_elsewhere(folder):
    command = ["encode", "in/clip.mp4", "--short-side", "32", "--start", "00:00:01.5", "--duration", "0:0.3"]
    assert run([*command, "--precision", "float32", "--store-dtype", "bfloat16", "--weights", EMBEDDED]) == 0
    latents = open_latents("clip.safetensors")
    assert (latents.frame_indices[0], latents.metadata.frames) == (15, 3)
    assert (latents.metadata.precision, latents.dtype) == ("fp32", "BF16")


def test_the_remark_about_the_weights_comes_once_and_last(folder, capsys):
    assert run(["encode", "in/clip.mp4", "--short-side", "32", "--frames", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("no public diffusion model reads") == 1
    assert captured.out.startswith("clip.safetensors: ")
    assert run(["info", EMBEDDED]) == 0
    assert capsys.readouterr().out.startswith(EMBEDDED)


def test_a_file_comes_before_the_embedded_weights_of_its_name(folder):
    assert open_checkpoint(EMBEDDED).name == EMBEDDED
    (folder / EMBEDDED).write_text("a file of one's own")
    with pytest.raises(MovqError, match=r"not a (readable )?safetensors file"):
        open_checkpoint(EMBEDDED)


def test_help_and_version(capsys):
    assert run(["-V"]) == 0
    assert capsys.readouterr().out.startswith("movq ")
    assert run(["help", "decode"]) == 0
    assert "Usage: movq decode" in capsys.readouterr().out


def test_one_source_may_be_a_string(folder):
    assert [line["id"] for line in encode_batch("in", "set", workers=0).lines] == ["clip.mp4"]
