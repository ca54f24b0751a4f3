"""Shards: which videos each one takes, and that their merged manifests are the manifest of one batch."""

import functools
import json
import operator
import os
import subprocess
import sys

import pytest

from movq_cli import MovqError, MovqUsageError, Picture, Selection, encode_batch, merge_shards
from movq_cli.batch import read_folder
from movq_cli.values import Shard

from .helpers import clips
from .helpers.batches import manifest, tree
from .helpers.processes import wait_for

ITEMS = 10
TINY = Picture(short_side=16)
SLURM_ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4"}


@pytest.mark.parametrize(
    ("text", "environment", "index", "count"),
    [
        ("0/4", {}, 0, 4),
        ("3/4", {}, 3, 4),
        ("4/4", {}, 0, 4),  # counted from 1
        ("1/1", {}, 0, 1),
        ("auto", SLURM_ARRAY | {"SLURM_ARRAY_TASK_MIN": "5"}, 2, 4),
        ("auto", SLURM_ARRAY | {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2"}, 3, 4),
        ("auto", SLURM_ARRAY | {"SLURM_ARRAY_TASK_ID": "4", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, 0, 4),
        ("auto", {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "RANK": "0", "WORLD_SIZE": "3"}, 1, 2),
        ("auto", {"RANK": "2", "WORLD_SIZE": "3"}, 2, 3),
    ],
)
def test_numbers(text, environment, index, count):
    assert Shard.parse(text, environment) == Shard(index, count)


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        ("5/4", {}),
        ("0/0", {}),
        ("-1/4", {}),
        ("1", {}),
        ("a/b", {}),
        ("auto", {}),
        ("auto", {"RANK": "2"}),
        ("auto", {"RANK": "x", "WORLD_SIZE": "3"}),
        ("auto", SLURM_ARRAY),  # 7 of 4
    ],
)
def test_numbers_that_cannot_be(text, environment):
    with pytest.raises(MovqUsageError, match=r"must be I/N|auto finds"):
        Shard.parse(text, environment)


def test_every_video_is_of_one_shard_and_they_are_about_alike():
    names = [f"{i}.mp4" for i in range(3000)]
    shares = [[name for name in names if name in Shard(i, 3)] for i in range(3)]
    assert sorted(functools.reduce(operator.iadd, shares, [])) == sorted(names)
    assert all(900 < len(share) < 1100 for share in shares)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make six videos, one of them bad, and encode them as one batch."""
    made = tmp_path_factory.mktemp("shards")
    (made / "in").mkdir()
    for i, name in enumerate("abcej"):  # these names give videos to both of two shards and to each of three
        clips.write(made / "in" / f"{name}.mp4", clips.pictures(9 + 2 * i))
    (made / "in" / "bad.mp4").write_text("no video")
    batch(made, "whole")
    return made


def batch(folder, out, **options):
    settings = {"selection": Selection(frames=9), "pick": "slide:4", "workers": 0} | options
    return encode_batch(settings.pop("sources", [folder / "in"]), folder / out, **settings)


@pytest.mark.slow
def test_merged_shards_are_one_batch(zygote, folder):
    """Two commands with a worker each are compared with one batch without workers."""
    command = ("batch-encode", "in", "-o", "two", "--frames", 9, "--pick", "slide:4", "--workers", 1, "--shard")
    shards = [zygote.start(*command, f"{i}/2", cwd=folder) for i in (1, 2)]
    talk = [shard.communicate(timeout=120)[1] for shard in shards]
    assert sorted(shard.returncode for shard in shards) == [0, 1], talk  # one has the bad video
    assert {path.name for path in (folder / "two").iterdir() if path.suffix != ".safetensors"} == {
        *("manifest.0-of-2.jsonl", "manifest.1-of-2.jsonl", "run.0-of-2.json", "run.1-of-2.json")
    }
    with pytest.raises(MovqError, match="merge"):
        batch(folder, "two", shard="0/3")
    assert batch(folder, "two", shard="0/2").made == []  # resumed
    result = zygote.run("batch-encode", "--merge", "two", cwd=folder)
    assert (result.returncode, result.stdout) == (
        0,
        f"two: {ITEMS - 1} done, 1 failed of {ITEMS} items in one manifest\n",
    )
    assert tree(folder / "two") == tree(folder / "whole")
    assert zygote.run("batch-encode", "--merge", "two", cwd=folder).returncode == 0  # merged again
    assert batch(folder, "two").made == []
    (folder / "in" / "a.txt").write_text("a caption")
    for i in range(3):  # in other shards than before
        assert batch(folder, "two", shard=f"{i}/3").made == []
    merge_shards(folder / "two")
    batch(folder, "whole")
    assert tree(folder / "two") == tree(folder / "whole")


@pytest.mark.slow
def test_what_is_not_there_or_not_alike_is_not_merged(folder, tmp_path, make_weights):
    (tmp_path / "in").symlink_to(folder / "in")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(MovqError, match="no manifests of shards"):
        merge_shards(tmp_path / "nothing")
    for name, alike, options in (
        ("precision", {"precision": "fp32", "picture": TINY}, {"precision": "bf16", "picture": TINY}),
        ("weights", {}, {"weights": str(make_weights())}),
        ("options", {}, {"save": "mean"}),
        ("buckets and spans", {}, {"pick": "slide:3"}),
    ):
        batch(tmp_path, name, shard="0/2", **alike)
        with pytest.raises(MovqError, match="shard 1/2 was not run yet"):
            merge_shards(tmp_path / name)
        batch(tmp_path, name, shard="1/2", **options)
        before = tree(tmp_path / name)
        with pytest.raises(MovqError, match=f"was made with {name}"):
            merge_shards(tmp_path / name)
        assert tree(tmp_path / name) == before
        batch(tmp_path, name, shard="1/2", replace=True, **alike)
        assert sum("orphan" not in line for line in merge_shards(tmp_path / name)) == ITEMS


@pytest.mark.slow
def test_a_merge_that_was_interrupted_is_finished(folder, tmp_path):
    (tmp_path / "in").symlink_to(folder / "in")
    for i in range(2):
        batch(tmp_path, "out", shard=f"{i}/2")
    kept = {path: path.read_bytes() for path in (tmp_path / "out").glob("manifest.*-of-2.jsonl")}
    merge_shards(tmp_path / "out")
    done = tree(tmp_path / "out")
    for path in sorted(kept):  # as if interrupted after the other one was removed
        path.write_bytes(kept[path])
        merge_shards(tmp_path / "out")
        assert tree(tmp_path / "out") == done
    for path in kept:
        path.write_bytes(kept[path])
    merge_shards(tmp_path / "out")
    assert tree(tmp_path / "out") == done


def test_one_process_at_a_time_works_on_a_shard_and_none_beside_them(folder, tmp_path):
    """Processes are real: one holds the lock while others try."""
    (tmp_path / "out").mkdir()
    hold = (
        "import sys; from movq_cli.batch.locks import only_one; from movq_cli.values import Shard\n"
        "with only_one(sys.argv[1], Shard(0, 2)): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    (tmp_path / "in").symlink_to(folder / "in")
    with pytest.raises(MovqError, match="at work on shard 0/2"):
        batch(tmp_path, "out", shard="0/2")
    with pytest.raises(MovqError, match="another movq batch-encode is at work in it"):
        batch(tmp_path, "out")
    with pytest.raises(MovqError, match="another movq batch-encode is at work in it"):
        merge_shards(tmp_path / "out")
    batch(tmp_path, "out", shard="1/2")
    holder.communicate()
    batch(tmp_path, "out", shard="0/2")
    assert not list((tmp_path / "out").glob(".movq-*"))
    assert json.loads((tmp_path / "out" / "manifest.0-of-2.jsonl").open().readline())["status"] == "done"
    assert len({**manifest_of(tmp_path, 0), **manifest_of(tmp_path, 1)}) == ITEMS


def manifest_of(folder, index):
    lines = (folder / "out" / f"manifest.{index}-of-2.jsonl").open()
    return {line["id"]: line for line in map(json.loads, lines)}


def test_an_empty_shard_has_a_manifest_too(tmp_path):
    (tmp_path / "in").mkdir()
    clips.write(tmp_path / "in" / "a.mp4", clips.pictures(9))
    for i in range(4):
        batch(tmp_path, "out", shard=f"{i}/4")
    assert [line["id"] for line in merge_shards(tmp_path / "out")] == ["a.mp4_0-9"]
    assert set(manifest(tmp_path / "out")) == {"a.mp4_0-9"}


@pytest.mark.slow
def test_a_shard_that_was_stopped_is_not_merged_and_a_batch_without_shards_takes_it_over(
    zygote, movq, folder, tmp_path
):
    command = (
        "batch-encode",
        folder / "in",
        "-o",
        "out",
        "--frames",
        9,
        "--pick",
        "slide:4",
        "--workers",
        1,
        "--shard",
    )
    movq(*command, "0/2")
    process = zygote.start(*command, "1/2", cwd=tmp_path)
    path = tmp_path / "out" / "manifest.1-of-2.jsonl"
    wait_for(lambda: path.exists() and path.stat().st_size)
    process.kill()
    process.wait()
    with pytest.raises(MovqError, match="shard 1/2 is not finished"):
        merge_shards(tmp_path / "out")
    os.rename(path, tmp_path / "away")
    with pytest.raises(MovqError, match="shard 1/2 was not run yet: run batch-encode with shard=1/2 first"):
        merge_shards(tmp_path / "out")
    os.rename(tmp_path / "away", path)
    assert json.loads(movq("info", "--json", "out").stdout)["items"] == len(read_folder(tmp_path / "out"))
    assert "shards    1 of 2 finished; not merged" in movq("info", "out").stdout
    result = batch(tmp_path, "out", sources=[folder / "in"])
    assert 0 < len(result.made) < ITEMS
    assert tree(tmp_path / "out") == tree(folder / "whole")


@pytest.mark.slow
def test_shards_do_not_take_the_outputs_of_others_for_orphans(folder, tmp_path):
    for layout in ("files", "tar"):
        for i in range(2):
            result = batch(tmp_path, layout, sources=[folder / "in"], shard=f"{i}/2", layout=layout)
            assert result.orphans == []
        merge_shards(tmp_path / layout)
        assert batch(tmp_path, layout, sources=[folder / "in"], layout=layout).orphans == []
