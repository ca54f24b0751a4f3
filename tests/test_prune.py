"""Leftover outputs and their removal, and what a dry run tells of a batch."""

import io
import json
import os
import shutil

import pytest

from movq_cli import LatentDataset, MovqError, encode_batch, merge_shards, plan_batch, prune_batch
from movq_cli.cli import run

from .helpers import clips
from .helpers.batches import manifest, tree


@pytest.fixture
def batch(finished, tmp_path, monkeypatch):
    """Copy a batch of a.mp4, b.mp4, c.mp4 and bad.mp4 to the current folder, without its bad video."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "in" / "bad.mp4").unlink()
    monkeypatch.chdir(tmp_path)
    encode_batch(["in"], "out", workers=0)
    return tmp_path


def again(*arguments):
    return run(["batch-encode", "in", "-o", "out", "--workers", "0", *arguments])


@pytest.mark.parametrize("layout", [pytest.param("files", marks=pytest.mark.slow), "tar"])
def test_what_is_left_over_is_removed_with_its_line(batch, capsys, layout):
    encode_batch(["in"], "out", workers=0, layout=layout, first_frame=("png", "latent"))
    (batch / "in" / "a.mp4").unlink()
    assert again() == 0
    assert manifest("out")["a.mp4"]["orphan"]
    capsys.readouterr()
    assert again("--prune", "--dry-run") == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if line.endswith(": would be removed")]
    assert [line.partition(": ")[0].rpartition(":")[2].replace("%2E", ".") for line in listed] == [
        "a.mp4.first_frame.png",
        "a.mp4.first_frame.safetensors",
        "a.mp4.safetensors",
    ]
    assert "a.mp4" in manifest("out")
    assert again("--prune", "--yes") == 0
    assert "3 leftover outputs removed" in capsys.readouterr().out
    assert list(manifest("out")) == ["b.mp4", "c.mp4"]
    shutil.rmtree("in/none", ignore_errors=True)
    encode_batch(["in"], "fresh", workers=0, layout=layout, first_frame=("png", "latent"))
    kept, fresh = tree("out"), tree("fresh")
    assert {name: data for name, data in kept.items() if name != "README.md"} == {
        name: data for name, data in fresh.items() if name != "README.md"
    }
    assert len(LatentDataset("out", scale=1.0)) == 2


def test_the_last_item_of_a_tar_takes_it_along(batch):
    encode_batch(["in"], "out", workers=0, layout="tar", tar_size=10_000)
    assert len([name for name in os.listdir("out") if name.endswith(".tar")]) == 3
    (batch / "in" / "a.mp4").unlink()
    result = encode_batch(["in"], "out", workers=0)
    assert prune_batch("out", result.orphans) == result.orphans
    assert sorted(name for name in os.listdir("out") if name.startswith("latents")) == [
        *("latents-00001.index.json", "latents-00001.tar", "latents-00002.index.json", "latents-00002.tar")
    ]


def test_only_what_was_listed_and_is_still_left_over_goes(batch):
    for name in "ab":
        (batch / "in" / f"{name}.mp4").unlink()
    encode_batch(["in"], "out", workers=0)
    assert prune_batch("out", ["a.mp4.safetensors", "c.mp4.safetensors", "../in/c.mp4", "manifest.jsonl"]) == [
        "a.mp4.safetensors"
    ]
    assert list(manifest("out")) == ["b.mp4", "c.mp4"]
    assert (batch / "in" / "c.mp4").exists()


def test_other_batches_and_other_files_below_it_are_left_alone(batch):
    encode_batch(["in"], "out/nested", workers=0)
    (batch / "out" / "notes.safetensors").write_text("not latents")
    shutil.copy(batch / "out" / "a.mp4.safetensors", batch / "outside.safetensors")
    (batch / "out" / "link.safetensors").symlink_to(batch / "outside.safetensors")
    (batch / "in" / "a.mp4").unlink()
    result = encode_batch(["in"], "out", workers=0)
    assert result.orphans == ["a.mp4.safetensors"]
    assert prune_batch("out", result.orphans) == ["a.mp4.safetensors"]
    assert len(manifest("out/nested")) == 3
    assert sorted(os.listdir("out/nested")) == sorted(
        ["README.md", "run.json", "manifest.jsonl", *(f"{name}.mp4.safetensors" for name in "abc")]
    )


def gone(folder, *sources, **options):
    result = encode_batch([*sources], folder, workers=0, **options)
    return sorted(prune_batch(folder, result.removable))


def test_a_disk_that_is_away_takes_nothing_along(batch):
    """An empty folder may be where it was mounted."""
    os.mkdir("other")
    clips.write("other/z.mp4", clips.pictures(9))
    os.rename("in", "away")
    os.mkdir("in")
    assert gone("out", "other", "in") == []
    os.rmdir("in")
    os.rename("away", "in")
    os.symlink("../nas/n.mp4", "other/n.mp4")
    os.mkdir("nas")
    clips.write("nas/n.mp4", clips.pictures(10))
    encode_batch(["other"], "out", workers=0)
    os.rename("nas", "away")
    assert gone("out", "in") == []
    assert sorted(manifest("out")) == ["a.mp4", "b.mp4", "c.mp4", "n.mp4", "z.mp4"]


def test_spans_of_a_video_that_cannot_be_read_stay(batch):
    options = {"lists": ["list.txt"], "buckets": ["5x32x48"], "pick": "slide:1"}
    (batch / "list.txt").write_text("in/c.mp4\n")
    encode_batch([], "spans", workers=0, **options)
    os.rename("in", "away")
    result = encode_batch([], "spans", workers=0, **options)
    assert (result.removable, result.orphans) == ([], [])


def test_spans_of_a_video_of_the_same_name_stay(batch):
    for folder, count in (("one", 9), ("two", 12)):
        os.mkdir(folder)
        clips.write(f"{folder}/x.mp4", clips.pictures(count))
    encode_batch(["one"], "spans", workers=0, buckets=["5x32x48"], pick="slide:4")
    assert gone("spans", "two", buckets=["9x32x48"], pick="slide:2") == []
    assert encode_batch(["two"], "spans", workers=0, buckets=["9x32x48"], pick="slide:2").unnamed == 2


def test_a_prune_that_is_killed_goes_on(batch, monkeypatch):
    encode_batch(["in"], "out", workers=0, layout="tar")
    clips.write("in/d.mp4", clips.pictures(9))
    encode_batch(["in"], "out", workers=0, layout="files")
    for name in ("a", "d"):
        os.unlink(f"in/{name}.mp4")
    result = encode_batch(["in"], "out", workers=0)
    for target in ("append", "put_in_order"):
        with monkeypatch.context() as patched:
            patched.setattr(
                f"movq_cli.batch.manifest.Manifest.{target}", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
            )
            with pytest.raises(KeyboardInterrupt):
                prune_batch("out", result.removable)
    result = encode_batch(["in"], "out", workers=0)
    prune_batch("out", result.removable)
    assert encode_batch(["in"], "out", workers=0).orphans == []
    assert list(manifest("out")) == ["b.mp4", "c.mp4"]


def test_a_video_that_came_back_is_no_leftover(batch):
    os.mkdir("in2")
    clips.write("in2/z.mp4", clips.pictures(9))
    os.rename("in/a.mp4", "a.mp4")
    encode_batch(["in"], "out", workers=0)
    os.rename("a.mp4", "in/a.mp4")
    assert gone("out", "in2") == []
    assert "orphan" not in manifest("out")["a.mp4"]


def test_latents_that_were_never_of_the_batch_are_listed_and_stay(batch):
    shutil.copy("out/a.mp4.safetensors", "out/mine.safetensors")
    result = encode_batch(["in"], "out", workers=0)
    assert (result.orphans, result.removable) == (["mine.safetensors"], [])
    assert prune_batch("out", result.orphans) == []
    os.unlink("out/mine.safetensors")
    os.mkdir("out/val")
    for shard in ("0/2", "1/2"):
        encode_batch(["in"], "out/val", workers=0, shard=shard)
    assert encode_batch(["in"], "out", workers=0).orphans == []


def test_a_damaged_video_keeps_its_last_latents(batch):
    with open("in/a.mp4", "r+b") as file:
        file.truncate(900)
    result = encode_batch(["in"], "out", workers=0)
    assert (result.failed, result.removable) == (1, [])
    assert "a.mp4.safetensors" in os.listdir("out")


def test_what_is_not_named_is_counted(batch):
    (batch / "list.txt").write_text("a.mp4\nb.mp4\n")
    os.rename("list.txt", "in/list.txt")
    assert encode_batch([], "out", lists=["in/list.txt"], workers=0).unnamed == 1


def test_nobody_is_asked_where_nobody_can_answer(batch, capsys, monkeypatch):
    (batch / "in" / "a.mp4").unlink()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert again("--prune") == 2
    assert "--prune: needs --yes where nobody can be asked" in capsys.readouterr().err
    assert "a.mp4.safetensors" in os.listdir("out")
    encode_batch(["in"], "shards", workers=0, shard="0/2")
    with pytest.raises(MovqError, match="in shards: put them together first"):
        prune_batch("shards", [])


# Dry runs.


def dry(capsys, *arguments):
    code = again("--dry-run", *arguments)
    return code, " ".join(capsys.readouterr().out.split())


def test_a_dry_run_tells_what_a_batch_takes(batch, capsys):
    clips.write(batch / "in" / "d.mp4", clips.pictures(9))
    clips.write(batch / "in" / "e.mp4", clips.pictures(20, 96, 64))
    capsys.readouterr()
    code, text = dry(capsys)
    assert code == 0
    assert "items 5 up to date 3 to encode 2, of 29 frames shapes 1 of 9x48x64, 1 of 21x64x96" in text
    assert "are free peak memory about " in text
    values = json.loads((batch / "out" / "run.json").read_text())
    values["speed"] = {"pixels_per_second": (9 * 48 * 64 + 21 * 64 * 96) / 90, "workers": 2, "device": "cpu"}
    (batch / "out" / "run.json").write_text(json.dumps(values))
    plan = plan_batch(["in"], "out", workers=0)
    assert plan.room.seconds == pytest.approx(90)
    assert "time about 90.0 s, as fast as before (2 workers on cpu)" in dry(capsys)[1]


def test_a_dry_run_tells_of_captions_and_leftovers(batch, capsys):
    (batch / "in" / "b.txt").write_text("a caption")
    (batch / "in" / "a.mp4").unlink()
    before = tree("out")
    code, text = dry(capsys)
    assert (code, tree("out")) == (0, before)
    assert "described anew 1 finished, with other captions or columns" in text
    assert plan_batch(["in"], "out").orphans == ["a.mp4.safetensors"]


def test_a_dry_run_exits_as_the_batch_would(batch, capsys):
    (batch / "in" / "bad.mp4").write_text("no video")
    code, text = dry(capsys)
    assert (code, "would fail 1" in text) == (1, True)
    assert dry(capsys, "--max-failures", "1")[0] == 0
    (batch / "in" / "bad.mp4").unlink()
    clips.write(batch / "in" / "huge.mp4", clips.pictures(5, 640, 480))
    code, _ = dry(capsys, "--memory-budget", "1MB")
    assert code == 1


def test_a_dry_run_of_merging_writes_nothing(batch, capsys):
    for shard in ("0/2", "1/2"):
        encode_batch(["in"], "shards", workers=0, shard=shard)
    before = tree("shards")
    assert run(["batch-encode", "--merge", "shards", "--dry-run"]) == 0
    assert "3 done of 3 items would be in one manifest" in capsys.readouterr().out
    assert tree("shards") == before
    os.unlink("shards/manifest.1-of-2.jsonl")
    assert run(["batch-encode", "--merge", "shards", "--dry-run"]) == 1
    with pytest.raises(MovqError, match="was not run yet"):
        merge_shards("shards", dry_run=True)
