"""A batch touches nothing outside its folders, whatever edited manifests name and wherever links lead."""

import hashlib
import json
import os
import shutil
import tarfile

import pytest

from movq_cli import LatentDataset, MovqError, MovqWarning, encode_batch, encode_video
from movq_cli.batch import read_folder
from movq_cli.cli import run

from .helpers import clips


@pytest.fixture
def batch(tmp_path):
    """Make `out` from `in/a.mp4` and `in/b.mp4`, as files or as tars: `batch(layout="tar")`."""
    (tmp_path / "in").mkdir()
    for name, count in (("a", 5), ("b", 6)):
        clips.write(tmp_path / "in" / f"{name}.mp4", clips.pictures(count))

    def make(**options):
        return encode_batch([tmp_path / "in"], tmp_path / "out", workers=0, **options)

    make.folder = tmp_path
    return make


def edit(folder, change):
    """Change the first line of a manifest."""
    path = folder / "out" / "manifest.jsonl"
    lines = [json.loads(text) for text in path.open()]
    change(lines[0])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def readings(folder):
    """Return all ways to use the content of a manifest."""
    return {
        "batch-encode": lambda: encode_batch([folder / "in"], folder / "out", workers=0),
        "dataset": lambda: LatentDataset(folder / "out", scale=1.0)[0],
        "info": lambda: read_folder(str(folder / "out")),
    }


@pytest.mark.parametrize("layout", ["files", "tar"])
def test_a_file_outside_that_a_manifest_names_is_not_deleted(batch, layout):
    batch(layout=layout)
    outside = batch.folder / "precious.safetensors"
    encode_video(batch.folder / "in" / "a.mp4", outside)
    data = outside.read_bytes()

    def change(line):
        line.pop("member", None)
        line |= {"output": "../precious.safetensors", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    edit(batch.folder, change)
    with pytest.raises(MovqError, match=r"manifest\.jsonl: line 1: output '\.\./precious\.safetensors' is not a plain"):
        batch()
    assert outside.read_bytes() == data


@pytest.mark.parametrize("key", ["output", "member"])
def test_what_is_no_plain_path_is_refused_with_its_line(batch, key):
    batch()
    for value in ("/etc/hostname", "../out/x", "a/../b", "a//b", "./a", "", "a\0b"):
        edit(batch.folder, lambda line, value=value: line.update({key: value}))
        for name, read in readings(batch.folder).items():
            with pytest.raises(MovqError, match=rf"manifest\.jsonl: line 1: {key} .* is not a plain path"):
                pytest.fail(f"{name} took {value!r} as {read()}")


@pytest.mark.parametrize("what", ["file", "folder", "manifest"])
def test_links_are_not_followed_out_of_the_folder(batch, what, capsys):
    (batch.folder / "in" / "deep").mkdir()
    shutil.move(batch.folder / "in" / "a.mp4", batch.folder / "in" / "deep" / "a.mp4")
    batch()
    path = {"file": "deep/a.mp4.safetensors", "folder": "deep", "manifest": "manifest.jsonl"}[what]
    shutil.move(batch.folder / "out" / path, batch.folder / "elsewhere")
    (batch.folder / "out" / path).symlink_to(batch.folder / "elsewhere")
    before = {p: p.read_bytes() for p in batch.folder.rglob("*") if p.is_file()}
    for name, read in readings(batch.folder).items():
        with pytest.raises(MovqError, match="link"):
            pytest.fail(f"{name} took {read()}")
    assert run(["info", str(batch.folder / "out")]) == 1
    assert "link" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in batch.folder.rglob("*") if p.is_file()} == before


def test_nothing_is_written_through_a_link(batch):
    (batch.folder / "in" / "deep").mkdir()
    shutil.move(batch.folder / "in" / "a.mp4", batch.folder / "in" / "deep" / "a.mp4")
    (batch.folder / "elsewhere").mkdir()
    (batch.folder / "out").mkdir()
    (batch.folder / "out" / "deep").symlink_to(batch.folder / "elsewhere")
    lines = {line["id"]: line for line in batch().lines}
    assert lines["b.mp4"]["status"] == "done"
    assert lines["deep/a.mp4"]["reason"] == "is a link, and movq writes through none; name another folder"
    assert lines["deep/a.mp4"]["cause"] == "output"
    assert os.listdir(batch.folder / "elsewhere") == []
    (batch.folder / "out" / "deep").unlink()
    assert [line["status"] for line in batch().made] == ["done"]


@pytest.mark.parametrize("swap", ["bytes", "link", "latents"])
def test_only_what_movq_made_is_deleted_when_it_is_packed(batch, swap):
    """After a kill, a file in the old place of a packed item is deleted only if it is that item."""
    batch()
    path = batch.folder / "out" / "a.mp4.safetensors"
    data = path.read_bytes()
    batch(layout="tar")
    assert not path.exists()
    if swap == "link":
        (batch.folder / "elsewhere").write_bytes(data)
        path.symlink_to(batch.folder / "elsewhere")
    else:
        changed = bytearray(data)
        changed[-9] ^= swap == "bytes"
        path.write_bytes(bytes(changed))
    batch()
    assert path.exists() == (swap != "latents")
    if swap == "link":
        assert (batch.folder / "elsewhere").read_bytes() == data


def test_a_snapshot_of_the_hugging_face_cache_is_read_and_not_written(batch):
    """Each file of a snapshot is a link to a blob of the same repository."""
    batch()
    snapshot = batch.folder / "hub" / "datasets--me--set" / "snapshots" / "abc"
    blobs = batch.folder / "hub" / "datasets--me--set" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in (batch.folder / "out").iterdir():
        shutil.copy(path, blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    dataset = LatentDataset(snapshot, scale=1.0)
    assert [dataset[i]["row"]["id"] for i in range(len(dataset))] == ["a.mp4", "b.mp4"]
    assert run(["info", str(snapshot)]) == 0
    before = {path.name: path.read_bytes() for path in blobs.iterdir()}
    with pytest.raises(MovqError, match="is a link, and movq writes through none"):
        encode_batch([batch.folder / "in"], snapshot, workers=0)
    assert {path.name: path.read_bytes() for path in blobs.iterdir()} == before
    (snapshot / "a.mp4.safetensors").unlink()
    (snapshot / "a.mp4.safetensors").symlink_to(batch.folder / "out" / "a.mp4.safetensors")
    with pytest.raises(MovqError, match="leads through the link"):
        LatentDataset(snapshot)


def captions(result):
    return {line["id"]: line.get("caption") for line in result.lines}


def test_a_caption_is_no_link_to_somewhere_else(batch):
    secret = batch.folder / "id_rsa"
    secret.write_text("secret")
    (batch.folder / "in" / "a.txt").symlink_to(secret)
    (batch.folder / "in" / "b.txt").symlink_to("shared.txt")
    (batch.folder / "in" / "shared.txt").write_text("of both")
    result = batch()
    assert captions(result) == {"a.mp4": None, "b.mp4": "of both"}
    assert "secret" not in (batch.folder / "out" / "manifest.jsonl").read_text()
    assert dict(result.ignored)[str(batch.folder / "in" / "a.txt")] == (
        "a caption that is a link to a file outside the source folders, so that its video has none"
    )
    # A file that is named is taken, link or not; a video that is a link, too.
    (batch.folder / "prompts.txt").symlink_to(secret)
    (batch.folder / "in" / "c.mp4").symlink_to(clips.write(batch.folder / "c.mp4", clips.pictures(5)))
    secret.write_text("one\ntwo\nthree\n")
    assert captions(batch(captions=batch.folder / "prompts.txt")) == {"a.mp4": "one", "b.mp4": "two", "c.mp4": "three"}


def test_captions_in_a_snapshot_of_the_hugging_face_cache_are_taken(tmp_path):
    snapshot = tmp_path / "datasets--me--set" / "snapshots" / "abc"
    blobs = tmp_path / "datasets--me--set" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    clips.write(blobs / "1", clips.pictures(5), format="mp4")
    (blobs / "2").write_text("a pattern")
    (snapshot / "a.mp4").symlink_to("../../blobs/1")
    (snapshot / "a.txt").symlink_to("../../blobs/2")
    assert captions(encode_batch([snapshot], tmp_path / "out", workers=0)) == {"a.mp4": "a pattern"}


def test_a_caption_beside_the_video_that_a_link_leads_to_is_taken(batch):
    """Links choose some videos, with their captions."""
    chosen = batch.folder / "chosen"
    chosen.mkdir()
    (batch.folder / "in" / "a.txt").write_text("a pattern")
    for name in ("a.mp4", "a.txt"):
        (chosen / name).symlink_to(batch.folder / "in" / name)
    assert captions(encode_batch([chosen], batch.folder / "out", workers=0)) == {"a.mp4": "a pattern"}


def test_a_manifest_of_something_else_is_not_overwritten(batch):
    (batch.folder / "out").mkdir()
    path = batch.folder / "out" / "manifest.jsonl"
    path.write_text('{"audio_filepath": "x.wav", "text": "hello"}\n' * 3)
    with (
        pytest.warns(MovqWarning, match="line 1 is damaged"),
        pytest.raises(MovqError, match=r"manifest\.jsonl: has no line that movq wrote; move it away"),
    ):
        batch()
    assert path.read_text().count("audio_filepath") == 3


def test_a_copy_by_hard_links_does_not_grow_with_the_folder(batch):
    batch()
    shutil.copytree(batch.folder / "out", batch.folder / "copy", copy_function=os.link)
    before = {path.name: path.read_bytes() for path in (batch.folder / "copy").iterdir()}
    clips.write(batch.folder / "in" / "c.mp4", clips.pictures(5))
    batch()
    assert {path.name: path.read_bytes() for path in (batch.folder / "copy").iterdir()} == before


def test_a_file_that_another_item_claims_is_not_overwritten(batch):
    (batch.folder / "out").mkdir()
    (batch.folder / "out" / "a.mp4.safetensors").write_bytes(b"precious")
    line = {"id": "zzz", "path": "/zzz", "status": "failed", "reason": "", "output": "a.mp4.safetensors"}
    (batch.folder / "out" / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    assert {line["id"]: line["status"] for line in batch().lines} == {"a.mp4": "failed", "b.mp4": "done"}
    assert (batch.folder / "out" / "a.mp4.safetensors").read_bytes() == b"precious"


def test_names_that_lead_out_of_a_tar_are_not_passed_on(batch):
    """The index is edited, so the tar itself is read instead."""
    batch(layout="tar")
    path = batch.folder / "out" / "latents-00000.index.json"
    index = json.loads(path.read_text())
    index["members"][1]["name"] = "../../evil.safetensors"
    path.write_text(json.dumps(index))
    edit(batch.folder, lambda line: None)
    lines = [json.loads(text) for text in (batch.folder / "out" / "manifest.jsonl").open()]
    (batch.folder / "out" / "manifest.jsonl").write_text(json.dumps(lines[0]) + "\n")
    clips.write(batch.folder / "in" / "a.mp4", clips.pictures(9))
    batch()
    for tar in (batch.folder / "out").glob("*.tar"):
        with tarfile.open(tar) as opened:
            assert not any(".." in name for name in opened.getnames())


def test_pipes_and_links_in_the_place_of_an_index_hold_nothing_up(batch):
    batch(layout="tar")
    index, outside = batch.folder / "out" / "latents-00000.index.json", batch.folder / "index.json"
    shutil.move(index, outside)
    os.mkfifo(index)
    assert len(LatentDataset(batch.folder / "out", scale=1.0)) == 2
    os.mkfifo(batch.folder / "out" / f".movq-{'0' * 16}.tmp")
    index.unlink()
    index.symlink_to(outside)
    data = outside.read_bytes()
    with pytest.warns(MovqWarning, match="index.json"):
        assert batch().made == []
    clips.write(batch.folder / "in" / "a.mp4", clips.pictures(9))
    with pytest.warns(MovqWarning, match="index.json"):
        assert len(batch().made) == 1
    assert outside.read_bytes() == data
    assert not index.is_symlink()
    assert len(list((batch.folder / "out").glob("*.tar"))) == 1
