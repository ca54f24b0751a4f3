"""Latents that are taken over: of renamed videos, of equal ones, and of outputs under other names."""

import json
import os
import shutil

import pytest

from movq_cli import LatentDataset, MovqError, encode_batch, open_latents, plan_batch
from movq_cli.encode import VideoEncoder

from .helpers import clips
from .helpers.batches import manifest, tree


@pytest.fixture
def batch(finished, tmp_path):
    """Return a function that resumes a copy of a batch of a.mp4, b.mp4, c.mp4 and bad.mp4, and returns (made, moved, copied)."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)

    def run(*sources, **options):
        result = encode_batch(sources or [tmp_path / "in"], tmp_path / "out", **{"workers": 0} | options)
        run.result = result
        return tuple({line["id"] for line in lines} for lines in (result.made, result.moved, result.copied))

    run.folder = tmp_path
    run()
    return run


def rename(batch, before, after, folder="in"):
    (batch.folder / folder / after).parent.mkdir(exist_ok=True)
    os.rename(batch.folder / folder / before, batch.folder / folder / after)


def fresh(batch, *sources, **options):
    """Return what a new batch of the same videos would be."""
    encode_batch(sources or [batch.folder / "in"], batch.folder / "fresh", **{"workers": 0} | options)
    found = tree(batch.folder / "fresh")
    shutil.rmtree(batch.folder / "fresh")
    return found


def same(one, other):
    """Compare folders by their files, and manifests without what tells of copies: which computer, how many strips."""
    assert {name: data for name, data in one.items() if name not in ("manifest", "README.md")} == {
        name: data for name, data in other.items() if name not in ("manifest", "README.md")
    }
    for line, wanted in zip(one["manifest"], other["manifest"], strict=True):
        assert line == wanted


NOTHING = set(), set(), set()


@pytest.mark.parametrize("name", ["new.mp4", "sub/a.mp4"])
def test_the_latents_of_a_renamed_video_are_moved(batch, name):
    rename(batch, "a.mp4", name)
    assert batch() == (set(), {name}, set())
    assert batch.result.orphans == []
    assert open_latents(batch.folder / "out" / f"{name}.safetensors").metadata.source_name == os.path.basename(name)
    same(tree(batch.folder / "out"), fresh(batch))
    assert batch(verify=True)[1:] == (set(), set())


def test_videos_that_are_numbered_anew(batch):
    """Each new name was that of another video before."""
    for before, after in (("c.mp4", "d.mp4"), ("b.mp4", "c.mp4"), ("a.mp4", "b.mp4")):
        rename(batch, before, after)
    clips.write(batch.folder / "in" / "a.mp4", clips.pictures(9))
    made, moved, copied = batch()
    assert (made, moved | copied) == ({"a.mp4"}, {"b.mp4", "c.mp4", "d.mp4"})
    same(tree(batch.folder / "out"), fresh(batch))
    assert batch() == NOTHING


def test_videos_that_are_numbered_anew_in_tars(batch):
    batch(layout="tar")
    for before, after in (("c.mp4", "d.mp4"), ("b.mp4", "c.mp4"), ("a.mp4", "b.mp4")):
        rename(batch, before, after)
    assert batch() == (set(), set(), {"b.mp4", "c.mp4", "d.mp4"})
    assert batch(verify=True) == ({"bad.mp4"}, set(), set())
    same_latents(batch, fresh(batch))


def same_latents(batch, other):
    """Compare the latents of a batch, in either layout, with those of another by their frames and digests of videos."""
    ours = [
        line for line in manifest(batch.folder / "out").values() if line["status"] == "done" and "orphan" not in line
    ]
    wanted = [line for line in other["manifest"] if line["status"] == "done"]
    names = ("id", "source_sha256", "frames", "sha256")
    assert [[line[name] for name in names] for line in ours] == [[line[name] for name in names] for line in wanted]
    dataset = LatentDataset(batch.folder / "out", scale=1.0)
    assert [dataset.row(i)["id"] for i in range(len(dataset))] == [line["id"] for line in wanted]
    assert all(dataset[i]["latents"].isfinite().all() for i in range(len(dataset)))


def test_an_output_that_is_not_called_as_its_item(batch):
    path = batch.folder / "out" / "manifest.jsonl"
    path.write_text(path.read_text().replace('"a.mp4.safetensors"', '"z.safetensors"'))
    os.rename(batch.folder / "out" / "a.mp4.safetensors", batch.folder / "out" / "z.safetensors")
    rename(batch, "a.mp4", "n.mp4")
    rename(batch, "b.mp4", "a.mp4")
    assert batch()[0] == set()
    same_latents(batch, fresh(batch))


def test_names_of_earlier_movqs_in_tars_double_nothing(batch):
    shutil.rmtree(batch.folder / "out")
    (batch.folder / "list.txt").write_text("in/a.mp4\nin/b.mp4\nin/c.mp4\nin/bad.mp4\n")
    encode_batch([], batch.folder / "out", workers=0, layout="tar", lists=[str(batch.folder / "list.txt")])
    assert batch() == ({"bad.mp4"}, set(), {"a.mp4", "b.mp4", "c.mp4"})
    same_latents(batch, fresh(batch))
    assert len(batch.result.removable) == 3


def test_latents_beside_their_videos_go_along_with_a_folder(batch):
    for name in ("a.mp4", "b.mp4"):
        rename(batch, name, f"p/{name}")
    encode_batch([batch.folder / "in"], batch.folder / "in", workers=0)
    os.rename(batch.folder / "in" / "p", batch.folder / "in" / "q")
    result = encode_batch([batch.folder / "in"], batch.folder / "in", workers=0)
    assert ([line["id"] for line in result.moved], result.made) == (["q/a.mp4", "q/b.mp4"], [])
    assert encode_batch([batch.folder / "in"], batch.folder / "in", workers=0).orphans == []


def test_videos_that_exchange_their_names(batch):
    for before, after in (("a.mp4", "x"), ("b.mp4", "a.mp4"), ("x", "b.mp4")):
        rename(batch, before, after)
    made, moved, copied = batch()
    assert made | moved | copied == {"a.mp4", "b.mp4"}
    assert len(made) == 1
    same(tree(batch.folder / "out"), fresh(batch))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_equal_videos_are_encoded_once(batch, workers):
    for number in range(3):
        clips.write(batch.folder / "in" / f"twin{number}.mp4", clips.pictures(9))
    shutil.copy(batch.folder / "in" / "b.mp4", batch.folder / "in" / "b again.mp4")
    assert batch(workers=workers) == ({"twin0.mp4"}, set(), {"twin1.mp4", "twin2.mp4", "b again.mp4"})
    found = tree(batch.folder / "out")
    same(found, fresh(batch))
    names = {
        line["id"]: open_latents(batch.folder / "out" / line["output"]).metadata.source_name
        for line in found["manifest"]
        if "output" in line
    }
    assert all(id == name for id, name in names.items())
    assert batch() == NOTHING
    os.unlink(batch.folder / "out" / "twin0.mp4.safetensors")
    assert batch() == (set(), set(), {"twin0.mp4"})


def test_equal_videos_that_cannot_be_read_are_read_once(batch):
    shutil.copy(batch.folder / "in" / "bad.mp4", batch.folder / "in" / "worse.mp4")
    for name in ("x.mp4", "y.mp4"):
        (batch.folder / "in" / name).write_text("also no video")
    assert batch()[0] == {"worse.mp4", "x.mp4", "y.mp4"}
    lines = manifest(batch.folder / "out")
    assert lines["x.mp4"]["reason"] == lines["y.mp4"]["reason"]
    assert lines["y.mp4"]["source"] == [*lines["x.mp4"]["source"][:1], *lines["y.mp4"]["source"][1:]]
    assert batch() == NOTHING


def test_other_options_and_other_suffixes_share_nothing(batch):
    shutil.copy(batch.folder / "in" / "a.mp4", batch.folder / "in" / "a.mov")
    assert batch() == ({"a.mov"}, set(), set())
    (batch.folder / "list.csv").write_text("path,start,duration,id\nin/b.mp4,0,0.1,one\nin/b.mp4,0,0.12,two\n")
    assert batch(lists=[str(batch.folder / "list.csv")])[0] == {"one", "two"}


def test_latents_that_are_damaged_are_not_copied(batch):
    path = batch.folder / "out" / "a.mp4.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    shutil.copy(batch.folder / "in" / "a.mp4", batch.folder / "in" / "twin.mp4")
    assert batch() == ({"twin.mp4"}, set(), set())


def test_a_file_of_somebody_else_is_not_replaced(batch):
    rename(batch, "a.mp4", "new.mp4")
    (batch.folder / "out" / "new.mp4.safetensors").write_text("precious")
    assert batch()[0] == {"new.mp4"}
    assert manifest(batch.folder / "out")["new.mp4"]["cause"] == "output"
    assert (batch.folder / "out" / "new.mp4.safetensors").read_text() == "precious"


def test_latents_are_copied_if_the_video_may_come_back(batch):
    os.rename(batch.folder / "in", batch.folder / "other disk")
    (batch.folder / "new").mkdir()
    shutil.copy(batch.folder / "other disk" / "a.mp4", batch.folder / "new" / "z.mp4")
    assert batch(batch.folder / "new") == (set(), set(), {"z.mp4"})
    assert (batch.folder / "out" / "a.mp4.safetensors").exists()


def test_outputs_with_the_names_of_earlier_movqs_are_moved(batch):
    """Named below the folder that two sources share, as before: in/a.mp4 is a.mp4 now."""
    (batch.folder / "more").mkdir()
    clips.write(batch.folder / "more" / "z.mp4", clips.pictures(9))
    (batch.folder / "list.txt").write_text(
        "".join(f"{name}.mp4\n" for name in ("in/a", "in/b", "in/c", "in/bad", "more/z"))
    )
    shutil.rmtree(batch.folder / "out")
    encode_batch([], batch.folder / "out", workers=0, lists=[str(batch.folder / "list.txt")])
    assert batch(batch.folder / "in", batch.folder / "more")[1:] == ({"a.mp4", "b.mp4", "c.mp4", "z.mp4"}, set())
    same(tree(batch.folder / "out"), fresh(batch, batch.folder / "in", batch.folder / "more"))
    assert not (batch.folder / "out" / "in").exists()


def test_first_frames_go_with_the_latents(batch):
    batch(first_frame=("png", "latent"))
    rename(batch, "a.mp4", "new.mp4")
    shutil.copy(batch.folder / "in" / "b.mp4", batch.folder / "in" / "twin.mp4")
    assert batch() == (set(), {"new.mp4"}, {"twin.mp4"})
    same(tree(batch.folder / "out"), fresh(batch, first_frame=("png", "latent")))


def test_tars(batch):
    batch(layout="tar")
    rename(batch, "a.mp4", "new.mp4")
    shutil.copy(batch.folder / "in" / "b.mp4", batch.folder / "in" / "twin.mp4")
    clips.write(batch.folder / "in" / "x.mp4", clips.pictures(9))
    shutil.copy(batch.folder / "in" / "x.mp4", batch.folder / "in" / "y.mp4")
    assert batch() == ({"x.mp4"}, set(), {"new.mp4", "twin.mp4", "y.mp4"})
    assert batch() == NOTHING
    dataset = LatentDataset(batch.folder / "out", scale=1.0, draw=False)
    found = {dataset.row(i)["id"]: dataset[i]["latents"] for i in range(len(dataset))}
    assert list(found) == ["b.mp4", "c.mp4", "new.mp4", "twin.mp4", "x.mp4", "y.mp4"]
    assert found["twin.mp4"].equal(found["b.mp4"])
    assert found["y.mp4"].equal(found["x.mp4"])


def test_spans_of_equal_videos(batch):
    (batch.folder / "spans").mkdir()
    for name in ("p.mp4", "q.mp4"):
        clips.write(batch.folder / "spans" / name, clips.pictures(12))
    made, _, copied = batch(batch.folder / "spans", buckets=["5x32x48"], pick="slide:4", replace=True)
    assert made == {"p.mp4_0-5", "p.mp4_4-5"}
    assert copied == {"q.mp4_0-5", "q.mp4_4-5"}


def test_a_renamed_folder_below_the_source(batch):
    for name in "ab":
        rename(batch, f"{name}.mp4", f"p/{name}.mp4")
    assert batch() == (set(), {"p/a.mp4", "p/b.mp4"}, set())
    os.rename(batch.folder / "in" / "p", batch.folder / "in" / "q")
    assert batch() == (set(), {"q/a.mp4", "q/b.mp4"}, set())
    assert len(LatentDataset(batch.folder / "out", scale=1.0)) == 3
    assert not (batch.folder / "out" / "p").exists()


def test_another_video_with_size_time_and_inode_of_a_lost_one(batch):
    """Not evidence for a file of another name: it is read."""
    path = batch.folder / "in" / "a.mp4"
    data, found = bytearray(path.read_bytes()), path.stat()
    data[-9] ^= 1
    with open(path, "r+b") as file:
        file.write(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    rename(batch, "a.mp4", "new.mp4")
    assert batch() == ({"new.mp4"}, set(), set())


def test_a_manifest_from_others_moves_no_files_of_others(batch):
    """Its first frame is a video of somebody."""
    shutil.copy(batch.folder / "in" / "c.mp4", batch.folder / "out" / "video.mp4")
    path = batch.folder / "out" / "manifest.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    size = (batch.folder / "out" / "video.mp4").stat().st_size
    for kind in ("png", "other"):
        lines[0].setdefault("first_frame", {})[kind] = {"output": "video.mp4", "bytes": size, "sha256": "0" * 64}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rename(batch, "a.mp4", "new.mp4")
    assert batch() == (set(), {"new.mp4"}, set())
    assert (batch.folder / "out" / "video.mp4").exists()
    assert "first_frame" not in manifest(batch.folder / "out")["new.mp4"]


def test_first_frames_that_are_lost_are_made_again(batch):
    batch(first_frame="png")
    os.unlink(batch.folder / "out" / "a.mp4.first_frame.png")
    rename(batch, "a.mp4", "new.mp4")
    assert batch() == (set(), {"new.mp4"}, set())
    assert (batch.result.added, batch.result.stopped) == (1, "")
    same(tree(batch.folder / "out"), fresh(batch, first_frame="png"))


def test_first_frames_of_moved_latents_go_into_tars_with_them(batch):
    for name in "abc":
        rename(batch, f"{name}.mp4", f"new {name}.mp4")
    batch(layout="tar", first_frame="png")
    assert (len(batch.result.moved), batch.result.added, batch.result.orphans) == (3, 3, [])
    assert all(
        "member" in line["first_frame"]["png"]
        for line in manifest(batch.folder / "out").values()
        if line["status"] == "done"
    )
    assert batch(verify=True) == ({"bad.mp4"}, set(), set())


def test_latents_that_were_packed_meanwhile_are_copied(batch):
    for number in range(2):
        shutil.copy(batch.folder / "in" / "a.mp4", batch.folder / "in" / f"twin{number}.mp4")
    assert batch(layout="tar", tar_size=10_000) == (set(), set(), {"twin0.mp4", "twin1.mp4"})


@pytest.mark.parametrize("force", [False, True])
def test_what_is_in_the_way_of_one_is_not_in_the_way_of_its_twin(batch, force):
    for name in ("x.mp4", "y.mp4"):
        clips.write(batch.folder / "in" / name, clips.pictures(9))
    (batch.folder / "out" / "x.mp4.safetensors").write_text("precious")
    made, _, _ = batch(force=force)
    lines = manifest(batch.folder / "out")
    assert {"x.mp4", "y.mp4"} <= made
    assert [lines[name]["status"] for name in ("x.mp4", "y.mp4")] == ["done" if force else "failed", "done"]


def test_a_video_that_changes_before_its_turn_gives_nothing_to_its_twin(batch, monkeypatch):
    for name in ("x.mp4", "y.mp4"):
        clips.write(batch.folder / "in" / name, clips.pictures(9))

    clips.write(batch.folder / "changed", clips.pictures(11), format="mp4")

    def begin(encoder, source, *arguments, **options):
        if os.path.basename(source) == "x.mp4":
            shutil.copy(batch.folder / "changed", source)
        return original(encoder, source, *arguments, **options)

    original = VideoEncoder.begin
    monkeypatch.setattr(VideoEncoder, "begin", begin)
    assert batch()[0] == {"x.mp4", "y.mp4"}
    lines = manifest(batch.folder / "out")
    assert (lines["x.mp4"]["frames"], lines["y.mp4"]["frames"]) == (11, 9)


def test_sources_in_another_order_exchange_names(batch):
    """The latents go with their videos."""
    for folder, count in (("one", 9), ("two", 10)):
        (batch.folder / folder).mkdir()
        clips.write(batch.folder / folder / "x.mp4", clips.pictures(count))
    one, two = batch.folder / "one", batch.folder / "two"
    assert batch(one, two)[0] == {"x.mp4", "two/x.mp4"}
    batch(two, one)
    lines = manifest(batch.folder / "out")
    assert (lines["x.mp4"]["frames"], lines["one/x.mp4"]["frames"]) == (10, 9)
    assert batch(two, one) == NOTHING


def test_a_disk_that_is_away_loses_no_output_to_a_video_of_the_same_name(batch):
    for folder, count in (("m1/one", 9), ("m2/two", 10)):
        (batch.folder / folder).mkdir(parents=True)
        clips.write(batch.folder / folder / "x.mp4", clips.pictures(count))
    batch(batch.folder / "m1" / "one")
    os.rename(batch.folder / "m1" / "one", batch.folder / "away")
    with pytest.raises(MovqError, match=r"would replace x\.mp4\.safetensors, which is of .*m1/one/x\.mp4"):
        batch(batch.folder / "m2" / "two")


def test_an_output_in_another_place_is_moved(batch):
    path = batch.folder / "out" / "manifest.jsonl"
    path.write_text(path.read_text().replace('"a.mp4.safetensors"', '"z.safetensors"'))
    os.rename(batch.folder / "out" / "a.mp4.safetensors", batch.folder / "out" / "z.safetensors")
    assert batch() == (set(), {"a.mp4"}, set())
    same(tree(batch.folder / "out"), fresh(batch))


def test_a_dry_run_tells_what_would_be_taken_over(batch):
    rename(batch, "a.mp4", "new.mp4")
    shutil.copy(batch.folder / "in" / "b.mp4", batch.folder / "in" / "twin.mp4")
    before = tree(batch.folder / "out")
    plan = plan_batch([batch.folder / "in"], batch.folder / "out")
    assert [(reuse.item.id, reuse.line["id"], reuse.is_move) for reuse in plan.reuses] == [
        ("new.mp4", "a.mp4", True),
        ("twin.mp4", "b.mp4", False),
    ]
    assert plan.planned == []
    assert tree(batch.folder / "out") == before
