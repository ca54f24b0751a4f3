"""The record of a batch, `run.json`, and going on by it with `--again`."""

import io
import json
import os
import shutil

import pytest

from movq_cli import MovqError, MovqUsageError, Selection, encode_batch, merge_shards
from movq_cli.batch import read_record
from movq_cli.cli import run
from movq_cli.options import BatchOptions, EncodeOptions

from .helpers import clips
from .helpers.batches import manifest, tree


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make `clips/a.mp4`, `clips/b.mp4` and `list.csv` in the current folder."""
    (tmp_path / "clips").mkdir()
    for skipped, name in enumerate("ab"):
        clips.write(tmp_path / "clips" / f"{name}.mp4", clips.pictures(12 + skipped)[skipped:])
    (tmp_path / "list.csv").write_text("file,words\nclips/a.mp4,a caption\nclips/b.mp4,another\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def again(*arguments):
    return run(["batch-encode", "--again", "out", *map(str, arguments)])


def test_it_goes_on_with_sources_and_options(folder, capsys):
    command = ["batch-encode", "clips", "-o", "out", "--frames", "5", "--save", "mean", "--workers", "0", "--force"]
    assert run(command) == 0
    before = tree("out")
    os.unlink("out/a.mp4.safetensors")
    capsys.readouterr()
    assert again("--dry-run") == 0
    assert "to encode    1, of 5 frames" in capsys.readouterr().out
    assert again("--workers", 0) == 0
    said = capsys.readouterr().err.splitlines()[0]
    assert said == "movq: out: goes on with: movq batch-encode clips --frames 5 --save mean -o out"
    assert tree("out") == before


def test_the_record_says_what_ran(folder):
    encode_batch(
        ["clips"], "out", lists=["list.csv"], columns=["path=file", "caption=words"], buckets=["5x32x48"], workers=0
    )
    values = json.loads((folder / "out" / "run.json").read_text())
    assert values["sources"] == ["../clips"]
    assert values["options"] == {}
    assert values["batch"] == {
        "lists": ["../list.csv"],
        "columns": ["path=file", "caption=words"],
        "buckets": ["5x32x48"],
    }
    assert set(values["made_by"]) == {"movq", "torch", "PyAV", "FFmpeg"}
    assert all(values["made_by"].values())
    assert values["speed"]["device"] == "cpu"
    assert len(values["weights"]["digest"]) == 64


def test_paths_are_those_of_the_record_wherever_it_is_read(folder, monkeypatch, make_weights):
    weights = make_weights()
    shutil.copy(weights, folder / "w.safetensors")
    encode_batch([], "out", lists=["list.csv"], columns=["path=file"], weights="w.safetensors", workers=0)
    shutil.move(folder / "out", folder / "moved")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    record = read_record("../moved")
    assert record.batch.lists == (str(folder / "list.csv"),)
    assert record.options.weights == str(folder / "w.safetensors")
    assert record.command == [
        *("movq", "batch-encode", "--weights", "../w.safetensors", "--list", "../list.csv", "--column", "path=file")
    ]
    options, batch = record.again(EncodeOptions(), BatchOptions())
    result = encode_batch(record.sources, "../moved", options, batch)
    assert (result.made, len(result.lines)) == ([], 2)


def test_globs_and_names_that_look_like_globs(folder):
    for name in ("set [1]", "in[1]", "in1"):
        shutil.copytree("clips", name)
    encode_batch(["set [[]1]/*.mp4", "in[1]"], "out", workers=0)
    ids = list(manifest("out"))
    record = read_record("out")
    assert encode_batch(record.sources, "out", *record.again(EncodeOptions(), BatchOptions())).made == []
    assert list(manifest("out")) == ids
    shutil.rmtree("in[1]")
    with pytest.raises(MovqError, match="matches no file"):  # and not what in1 has
        encode_batch(read_record("out").sources, "out", workers=0)


def test_what_may_differ_and_what_may_not(folder):
    encode_batch(["clips"], "out", selection=Selection(frames=5), workers=0)
    record = read_record("out")
    options, batch = record.again(EncodeOptions(threads=2), BatchOptions(workers=2, layout="tar", retry_failed=True))
    assert (options.selection.frames, options.threads, batch.workers, batch.layout) == (5, 2, 2, "tar")
    assert record.again(EncodeOptions(selection=Selection(frames=5)), BatchOptions())[0].selection.frames == 5
    for given, why in (
        (
            (EncodeOptions(selection=Selection(frames=9)), BatchOptions()),
            "frames: is 5 in the record: to change it, run the whole command",
        ),
        ((EncodeOptions(save="mean"), BatchOptions()), "save: is not in the record"),
        ((EncodeOptions(precision="bf16"), BatchOptions()), "precision: is not in the record"),
        ((EncodeOptions(), BatchOptions(lists=("list.csv",))), "lists: is not in the record"),
    ):
        with pytest.raises(MovqUsageError, match=why):
            record.again(*given)
    assert again("--frames", 9) == 2
    assert run(["batch-encode", "clips", "--again", "out"]) == 2


def test_other_weights_are_refused(folder, make_weights):
    shutil.copy(make_weights(), folder / "w.safetensors")
    encode_batch(["clips"], "out", weights="w.safetensors", workers=0)
    shutil.copy(
        make_weights("other.safetensors", change=lambda tensors: tensors["encoder.conv_in.conv.bias"].add_(1)),
        folder / "w.safetensors",
    )
    with pytest.raises(MovqError, match=r"w\.safetensors: are not those of the record"):
        read_record("out").again(EncodeOptions(), BatchOptions())


def test_records_that_are_not_read(folder, monkeypatch, capsys):
    with pytest.raises(MovqError, match="no such file or folder"):
        read_record("out")
    with pytest.raises(MovqError, match=r"clips: has no run\.json"):
        read_record("clips")
    encode_batch(["clips"], "out", workers=0)
    path = folder / "out" / "run.json"
    whole = path.read_text()
    for damaged in (
        "",
        "{}",
        whole.replace('"1"', '"2"'),
        whole.replace('"batch": {}', '"batch": {"pick": "x"}'),
        whole[:50],
    ):
        path.write_text(damaged)
        with pytest.raises(MovqError, match="is not the record of a batch that this movq can read"):
            read_record("out")
    os.rename(path, folder / "run.json")
    path.symlink_to(folder / "run.json")
    with pytest.raises(MovqError):
        read_record("out")
    path.unlink()
    path.write_text(whole)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert again() == 1
    assert "out: belongs to another user" in capsys.readouterr().err


def test_a_list_on_standard_input_is_not_kept(folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"clips/a.mp4\n")))
    encode_batch(["-"], "out", workers=0)
    with pytest.raises(MovqError, match="read a list from standard input, which is not kept"):
        read_record("out")


def test_shards_have_one_record_when_they_are_merged(folder):
    for shard in ("1/2", "2/2"):
        encode_batch(["clips"], "out", selection=Selection(frames=5), shard=shard, workers=0)
    assert sorted(name for name in os.listdir("out") if name.startswith("run")) == [
        "run.0-of-2.json",
        "run.1-of-2.json",
    ]
    assert read_record("out").options.selection.frames == 5
    merge_shards("out")
    assert [name for name in os.listdir("out") if name.startswith("run")] == ["run.json"]
    assert read_record("out").batch.shard is None
    assert again("--workers", 0) == 0
    assert len(manifest("out")) == 2
