"""A set of 40 videos, changed in fourteen ways: what the next run makes, keeps, takes over and refuses.

python -m pytest -s -m slow tests/test_changes.py      prints the table of docs/batches.md
"""

import os
import shutil
from collections.abc import Callable
from typing import NamedTuple

import pytest
from safetensors.numpy import load_file

from movq_cli.cli import run

from .helpers import clips
from .helpers.batches import manifest

pytestmark = pytest.mark.slow

VIDEOS = 40
OPTIONS = ("--bucket", "5x32x48", "--bucket", "9x32x48", "--workers", "0")
COMMAND = ("batch-encode", "in", *OPTIONS, "-o", "out")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Make 40 videos with captions, half of them of 9 frames, in two folders, and their batch."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "in" / "sub").mkdir(parents=True)
    for number in range(VIDEOS):
        name = folder / "in" / ("sub" if number % 2 else "") / f"{number:02d}.mp4"
        clips.write(name, clips.pictures(50 + number)[number : number + 9 - 4 * (number % 2)])
        name.with_suffix(".txt").write_text(f"caption {number}")
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert run([*COMMAND, "--quiet"]) == 0
    finally:
        os.chdir(before)
    return folder


class Change(NamedTuple):
    """A change, the command after it, and what the run should do: its exit code, and items made, moved, copied, left over."""

    words: str
    act: Callable[[], object]
    command: tuple[str, ...]
    code: int
    made: int = 0
    moved: int = 0
    copied: int = 0
    leftover: int = 0
    said: str = ""


def _add_source():
    os.mkdir("more")
    for number in range(3):
        clips.write(f"more/{number:02d}.mp4", clips.pictures(100 + number)[90 + number :])


def _rename_files():
    for number in range(0, 10, 2):
        os.rename(f"in/{number:02d}.mp4", f"in/new {number:02d}.mp4")
        os.rename(f"in/{number:02d}.txt", f"in/new {number:02d}.txt")


def _new_captions():
    for number in range(0, 10, 2):
        with open(f"in/{number:02d}.txt", "w") as file:
            file.write("another")


def _replace_input():
    clips.write("in/00.mp4", clips.pictures(200)[150:159])


def command(*changed, options=OPTIONS, sources=("in",)):
    return ("batch-encode", *sources, *options, "-o", "out", *changed)


OTHER = "Use --replace to make them again"
FRAMES = ("--bucket", "5x32x48", "--workers", "0")
CHANGES = [
    Change("nothing", lambda: None, COMMAND, 0),
    Change("other weights", lambda: None, command("--weights", "w.safetensors"), 1, said=OTHER),
    Change("another bucket", lambda: None, command(options=("--bucket", "5x32x32", "--workers", "0")), 1, said=OTHER),
    Change("a bucket less: 9x32x48 forgotten", lambda: None, command(options=FRAMES), 1, said=OTHER),
    Change("a source more", _add_source, command(sources=("in", "more")), 0, made=3),
    Change("the folder renamed", lambda: os.rename("in", "clips"), command(sources=("clips",)), 0),
    Change("5 videos renamed", _rename_files, COMMAND, 0, moved=5),
    Change("5 captions", _new_captions, COMMAND, 0, said="5 items described differently"),
    Change("an output deleted", lambda: os.unlink("out/00.mp4.safetensors"), COMMAND, 0, made=1),
    Change("an output truncated", lambda: os.truncate("out/00.mp4.safetensors", 2000), COMMAND, 0, made=1),
    Change("a video touched", lambda: os.utime("in/00.mp4"), COMMAND, 0),
    Change("a video replaced", _replace_input, COMMAND, 0, made=1),
    Change("a video equal to another", lambda: shutil.copy("in/00.mp4", "in/zz.mp4"), COMMAND, 0, copied=1),
    Change("a video deleted", lambda: os.unlink("in/00.mp4"), COMMAND, 0, leftover=1),
    Change("a video deleted, `--prune --yes`", lambda: os.unlink("in/00.mp4"), command("--prune", "--yes"), 0),
    Change("`--force`", lambda: None, command("--force"), 0, made=VIDEOS),
    Change("a bucket less, `--replace`", lambda: None, command("--replace", options=FRAMES), 0, made=VIDEOS // 2),
    Change("a bucket more, which no video fits", lambda: None, command(options=(*OPTIONS, "--bucket", "49x32x48")), 0),
    Change(
        "an output deleted, `--again`",
        lambda: os.unlink("out/00.mp4.safetensors"),
        ("batch-encode", "--again", "out"),
        0,
        made=1,
    ),
]


def contents(folder):
    """Map the latents of each file to its name: what is finished, by content."""
    found = {}
    for below, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".safetensors"):
                path = os.path.join(below, name)
                try:
                    found[load_file(path)["latents"].tobytes()] = os.path.relpath(path, folder)
                except Exception:  # truncated for the test
                    continue
    return found


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.words)
def test_a_change_of_the_set(base, tmp_path, monkeypatch, capsys, make_weights, change):
    shutil.copytree(base, tmp_path, dirs_exist_ok=True, copy_function=shutil.copy2)
    monkeypatch.chdir(tmp_path)
    shutil.copy(make_weights(change=lambda tensors: tensors["encoder.conv_in.conv.bias"].add_(1)), "w.safetensors")
    before = contents("out")
    times = {path: os.stat(os.path.join("out", path)).st_mtime_ns for path in before.values()}
    change.act()
    finished = contents("out")  # after the change: a deleted output is not lost by the run
    assert run(list(change.command)) == change.code
    captured = capsys.readouterr()
    lines = manifest("out")
    after = contents("out")
    result = captured.out.strip().splitlines()[0] if captured.out else captured.err.strip().splitlines()[-1]
    with capsys.disabled():
        print(
            f"\n| {change.words} | {change.made or ''} | {change.moved or ''} | {change.copied or ''} | {result} |",
            end="",
        )
    assert change.said in captured.out + captured.err
    written = {
        path
        for path in after.values()
        if path not in times or os.stat(os.path.join("out", path)).st_mtime_ns != times[path]
    }
    assert len(written) == change.made + change.moved + change.copied
    assert sum(bool(line.get("orphan")) for line in lines.values()) == change.leftover
    if "--prune" not in change.command and change.words not in ("a video replaced", "a bucket less, `--replace`"):
        assert finished.keys() <= after.keys()  # nothing that was finished is lost
    assert not any(line["status"] == "failed" for line in lines.values())
    if change.code == 0:
        again = [part for part in change.command if part not in ("--force", "--replace", "--prune", "--yes")]
        assert run(again) == 0
        assert "nothing new" in capsys.readouterr().out  # nothing is made twice
