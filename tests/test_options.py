"""Options: each is declared once, with words on the command line, and errors name them as their reader does."""

from fractions import Fraction

import pytest
from typer.main import get_command

from movq_cli import MovqError, MovqUsageError, Picture, Selection
from movq_cli.cli import app
from movq_cli.cli.options import WITHOUT_FLAG, WORDS, flat_fields
from movq_cli.errors import flag, option
from movq_cli.options import BatchOptions, DecodeOptions, EncodeOptions, ExportOptions, ForeignOptions

COMMANDS = {
    "encode": [EncodeOptions],
    "batch-encode": [EncodeOptions, BatchOptions],
    "decode": [DecodeOptions, ForeignOptions],
    "export": [ExportOptions],
}
OWN = {
    "--output",
    "--dry-run",
    "--json",
    "--verbose",
    "--quiet",
    "--max-failures",
    "--merge",
    "--again",
    "--prune",
    "--yes",
    "--help",
}
"""Flags of commands that are not options of the library."""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_is_a_flag_and_every_flag_a_field(name):
    command = get_command(app).commands[name]
    flags = {parameter.opts[0] for parameter in command.params if parameter.opts[0].startswith("--")}
    fields = {flag(field) for kind in COMMANDS[name] for _, field, _ in flat_fields(kind)}
    assert flags - OWN - {"-h"} == fields


def test_there_are_words_for_fields_and_for_nothing_else():
    names = {
        name for kind in {kind for kinds in COMMANDS.values() for kind in kinds} for _, name, _ in flat_fields(kind)
    }
    assert names <= {words for words in WORDS if "." not in words}
    assert {words.split(".")[-1] for words in WORDS} == names
    assert {words.split(".")[0] for words in WORDS if "." in words} <= {"batch_encode", "decode", "export"}
    assert not WITHOUT_FLAG & set(WORDS)


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        ([], EncodeOptions()),
        (["--chunk-frames", "8", "--memory-budget", "2GB"], EncodeOptions(chunk_frames=8, memory_budget=2 * 10**9)),
        (
            ["--frames", "9", "--fps-repeat", "--fps", "30000/1001"],
            EncodeOptions(selection=Selection(frames=9, fps_repeat=True, fps=Fraction(30000, 1001))),
        ),
        (["--short-side", "48", "--force"], EncodeOptions(picture=Picture(short_side=48), force=True)),
    ],
)
def test_flags_make_the_options_of_the_library(monkeypatch, argv, options):
    taken = []

    def take(source, output, options, **others):
        taken.append(options)
        raise MovqError("enough")

    monkeypatch.setattr("movq_cli.encode.encode_video", take)
    with pytest.raises(MovqError, match="enough"):
        app(["encode", "a.mp4", "-o", "b.safetensors", *argv])
    assert taken == [options]


def test_an_error_names_options_as_its_reader_does():
    error = MovqError(f"{option('tail', 'pad')} or {option('force', True)}, not {option('buckets')}", "a.mp4")
    assert str(error) == "a.mp4: tail=pad or force=True, not buckets"
    assert error.with_flags == "a.mp4: --tail pad or --force, not --bucket"
    assert MovqError.from_dict(error.to_dict()).with_flags == error.with_flags
    with pytest.raises(MovqUsageError, match=r"^tail: must be one of pad, drop, error, got 'loop'$") as caught:
        EncodeOptions(tail="loop")
    assert caught.value.with_flags.startswith("--tail: must be")
