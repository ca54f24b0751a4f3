"""Slips and habits at the prompt: each gets what was meant, or one line that says how to get it."""

import io
import os
import pty
import re
import shlex
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from typer.main import get_command

from movq_cli import EncodeOptions, MovqError, MovqUsageError, Selection, encode_batch, encode_video, open_latents
from movq_cli.checkpoints import EMBEDDED, open_checkpoint
from movq_cli.cli import app, run
from movq_cli.cli.tables import print_rows
from movq_cli.fields import changed
from movq_cli.options import BatchOptions, DecodeOptions

from .helpers import clips, models


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
    "eval https://host/a.mp4": (1, "https://host/a.mp4: is an address"),
    "encode in/clip.mp4 --frames abc": (2, "--frames: must be a whole number like 49, got 'abc'"),
    "encode in/clip.mp4 --fps fast": (2, "--fps: must be a number like 25, 29.97 or 30000/1001, got 'fast'"),
    "encode in/clip.mp4 --size 480": (2, "No such option: --size. Did you mean --height, --width or --short-side?"),
    "encode in/clip.mp4 --resolution 480": (2, "Did you mean --height, --width or --short-side?"),
    "encode in/clip.mp4 --dtype bf16": (2, "Did you mean --precision (to compute in) or --store-dtype (to store)?"),
    "encode in/clip.mp4 --batch-size 4": (2, "Did you mean --chunk-frames (frames computed at once)"),
    "encode in/clip.mp4 -v": (2, "No such option: -v. Remarks and progress are shown unless you pass --quiet"),
    "encode in/clip.mp4 --chunk 4": (2, "No such option: --chunk (Possible options: --chunk-frames)"),
    "encode": (2, "Missing argument 'IN' (see movq encode --help)"),
    "encode in/clip.mp4 --end 1:00": (2, "No such option: --end. Did you mean --duration?"),
    "encode in/clip.mp4 -o new/": (1, "new/: does not exist; create the folder first, or name a file"),
    "info in/clip.mp4 --size 5": (2, "No such option: --size (see movq info --help)"),
    "decode a.safetensors --seed 1": (2, "--seed: goes with --draw"),
    "eval in/clip.mp4 --against bf16": (
        2,
        "--against: takes options in quotes, like '--precision bf16', or tiled; got 'bf16'",
    ),
    "enc in/clip.mp4": (2, "No such command 'enc'. Did you mean 'encode'?"),
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


def test_a_list_named_as_a_source_is_answered(folder, capsys):
    (folder / "videos.txt").write_text("in/clip.mp4")
    assert run(["batch-encode", "videos.txt", "in", "-o", "set", "--frames", "1", "--workers", "0"]) == 1
    assert "is a list by its name, not a video: --list reads it" in capsys.readouterr().err


def test_one_source_may_be_a_string(folder):
    assert [line["id"] for line in encode_batch("in", "set", workers=0).lines] == ["clip.mp4"]


# -- help


def commands():
    root = get_command(app)
    found = {name: command for name, command in root.commands.items() if name != "weights"}
    return found | {f"weights {name}": command for name, command in root.commands["weights"].commands.items()}


@pytest.mark.parametrize("name", commands())
def test_help_has_two_examples_and_names_only_options_of_its_command(name):
    command = commands()[name]
    examples = re.findall(r"\[bold\](.*?)\[/bold\]", command.epilog)
    assert len(examples) == 2
    for example in examples:
        words = shlex.split(example)
        assert words[: 1 + len(name.split())] == ["movq", *name.split()]
        command.make_context(name, words[1 + len(name.split()) :])
    options = {flag for parameter in command.params for flag in parameter.opts}
    named = {flag for parameter in command.params for flag in re.findall(r"--[a-z-]+", parameter.help or "")}
    if name == "eval":
        named -= {"--precision"}  # in the text of --against, and an option too
    assert named <= options
    if name == "batch-encode":
        assert "Required" in next(p.help for p in command.params if p.name == "output")


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", commands())
def test_help_cuts_no_option_in_two(capsys, monkeypatch, name, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", width)
    assert run([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    for parameter in commands()[name].params:
        for flag in parameter.opts:
            assert not flag.startswith("--") or re.search(rf"{flag}(?![\w-])", shown), flag
        if parameter.metavar:
            assert parameter.metavar in shown, parameter.metavar


def in_terminal(arguments, **environment):
    """Return what a command prints to a terminal."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "movq_cli", *arguments], stdout=theirs, stderr=theirs, env=os.environ | environment
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 1 << 16):
            shown += data
    except OSError:  # the terminal is closed
        pass
    os.close(ours)
    assert done.wait() == 0
    return shown.decode()


def test_no_color_means_none():
    colour = re.compile(r"\x1b\[[\d;]*\b(3\d|9\d)m")
    assert colour.search(in_terminal(["encode", "--help"], TERM="xterm-256color"))
    for arguments in (["encode", "--help"], ["info", str(clips.CITY)]):
        assert not colour.search(in_terminal(arguments, TERM="xterm-256color", NO_COLOR="1"))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("width", range(40, 130, 3))
def test_tables_break_no_number_in_two(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    terminal = Terminal()
    cells = ["12345.678", "0.98765", "1920x1080", "32 x 31 x 45 x 80", "14.3 MB"]
    print_rows(["video", *"abcde"], [["a/rather/long/name/of/a/clip/in/some/folder.mp4", *cells]] * 2, terminal)
    lines = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()).splitlines()
    assert max(map(len, map(str.rstrip, lines))) <= width
    for cell in cells:
        assert sum(cell in line for line in lines) == 2, cell


# -- eval, decode, info


def test_eval_takes_a_folder(folder, capsys):
    clips.write(folder / "in" / "b.mp4", clips.pictures(3))
    (folder / "in" / "notes.txt").write_text("no video")
    assert run(["eval", "in", "--frames", "1"]) == 0
    shown = capsys.readouterr().out
    assert "in/clip.mp4" in shown
    assert "in/b.mp4" in shown
    (folder / "empty").mkdir()
    assert run(["eval", "empty"]) == 1
    assert "empty: has no videos in it" in capsys.readouterr().err


def test_a_picture_is_decoded_to_one(folder, capsys):
    assert run(["encode", "in/clip.mp4", "--short-side", "32", "--frames", "5"]) == 0
    assert run(["decode", "clip.safetensors", "-o", "x.png"]) == 2
    assert "x.png: holds one picture, and there are 5 frames" in capsys.readouterr().err
    assert run(["encode", "in/clip.mp4", "--short-side", "32", "--frames", "1", "--force"]) == 0
    for name in ("x.png", "x.jpg", "x.webm", "x.gif"):
        assert run(["decode", "clip.safetensors", "-o", name]) == 0
        assert os.path.getsize(name) > 0


def test_a_crop_of_more_than_half_is_said(folder, capsys):
    assert run(["encode", "in/clip.mp4", "--frames", "1", "--height", "48", "--width", "16"]) == 0
    assert "in/clip.mp4: the crop keeps 25% of the picture" in capsys.readouterr().err
    assert run(["encode", "in/clip.mp4", "--frames", "1", "--height", "24", "--width", "16", "--force"]) == 0
    assert "crop" not in capsys.readouterr().err
    fit = ["--height", "48", "--width", "16", "--fit", "stretch"]
    assert run(["encode", "in/clip.mp4", "--frames", "1", *fit, "--force"]) == 0
    assert "crop" not in capsys.readouterr().err


def test_info_says_rotation_as_ffprobe_and_a_variable_rate(folder, capsys):
    for turn, said in ((90, "rotation 90"), (-90, "rotation -90"), (180, "rotation -180")):
        clips.write(folder / "turned.mp4", clips.pictures(3), rotation=turn)
        assert run(["info", "turned.mp4"]) == 0
        shown = capsys.readouterr().out
        assert re.search(rf"stored as 64x48, {said}\n", shown)
        assert "variable" not in shown
    clips.write(folder / "varies.mkv", clips.pictures(5), times=[0, 0.04, 0.08, 0.2, 0.24])
    assert run(["info", "varies.mkv"]) == 0
    assert re.search(r"5 frames? at .* fps, variable|5 at .* fps, variable", capsys.readouterr().out)
    ntsc = [i * 1001 / 30000 for i in range(40)]
    clips.write(folder / "rounded.mkv", clips.pictures(40), times=ntsc)
    assert run(["info", "rounded.mkv"]) == 0
    assert "variable" not in capsys.readouterr().out


@pytest.fixture
def published(folder, monkeypatch):
    """Latents made with weights in the Hugging Face cache; returns the folder of their snapshot."""
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "cache"))
    models.small_vae().save_pretrained(folder / "model" / "vae")
    snapshot = models.cached(folder / "cache", folder / "model")
    command = ["encode", "in/clip.mp4", "--short-side", "32", "--frames", "5", "--weights", models.MODEL]
    assert run(command) == 0
    return snapshot


def test_decode_finds_the_weights_that_the_header_names(folder, published, capsys):
    assert run(["decode", "clip.safetensors", "-o", "found.npy"]) == 0
    assert run(["decode", "clip.safetensors", "-o", "named.npy", "--weights", models.MODEL]) == 0
    assert (folder / "found.npy").read_bytes() == (folder / "named.npy").read_bytes()


def test_decode_takes_a_name_for_nothing_but_a_model_in_the_cache(folder, published, capsys):
    owner, name = models.MODEL.split("/")
    (folder / owner).mkdir()
    published.parents[3].rename(folder / owner / name)  # what a stranger's header could lead to
    capsys.readouterr()
    assert run(["decode", "clip.safetensors"]) == 1
    assert f'`hf download {models.MODEL} --include "vae/*"` fetches them' in capsys.readouterr().err
    (folder / owner / name).rename(published.parents[3])
    with (published / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x3f")
    assert run(["decode", "clip.safetensors"]) == 1
    assert "the Hugging Face cache has others by this name" in capsys.readouterr().err
    assert not (folder / "clip.decoded.mp4").exists()


# -- Python


def test_python_reads_texts_as_the_command_line_does(folder):
    options = EncodeOptions(memory_budget="4GB", chunk_frames="auto", precision="float32")
    assert (options.memory_budget, options.chunk_frames, options.precision) == (4 * 10**9, None, "fp32")
    selection = Selection(start="1:30.5", fps=29.97, frames=np.int64(5))
    assert (selection.start, selection.fps, selection.frames) == (Fraction(181, 2), Fraction(2997, 100), 5)
    assert type(selection.frames) is int
    assert BatchOptions(buckets="5x8x8").buckets == BatchOptions(buckets=["5x8x8"]).buckets
    result = encode_video("in/clip.mp4", "out.safetensors", frames=5, short_side=32, start="0:01")
    assert (result.metadata.frames, result.metadata.height) == (5, 32)


WRONG = {
    "frames: must be a whole number like 49 or None, got 5.5": lambda: Selection(frames=5.5),
    "frames: must be a whole number like 49 or None, got True": lambda: Selection(frames=True),
    "start: must be a number like 25, 29.97 or 30000/1001, got None": lambda: Selection(start=None),
    "fps: must be a number like 25, 29.97 or 30000/1001 or None, got inf": lambda: Selection(fps=float("inf")),
    "selection: must be Selection, got {'frames': 5}": lambda: EncodeOptions(selection={"frames": 5}),
    "force: must be bool, got 'yes'": lambda: EncodeOptions(force="yes"),
    "buckets: must be Bucket, got 5": lambda: BatchOptions(buckets=5),
    "options must be EncodeOptions, got DecodeOptions": lambda: encode_video("in/clip.mp4", "b", DecodeOptions()),
    "EncodeOptions has no option 'frame'": lambda: changed(EncodeOptions(), {"frame": 5}),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_type_names_the_one_wanted(folder, text):
    with pytest.raises(MovqUsageError, match=f"^{re.escape(text)}$"):
        WRONG[text]()
