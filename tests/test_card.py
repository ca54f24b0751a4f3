"""The data set card: `datasets.load_dataset(FOLDER)` reads a batch of either layout, and a README.md of others stays."""

import json

import pytest
from safetensors.torch import load

from movq_cli import MovqWarning, encode_batch, merge_shards

from .helpers import clips
from .helpers.batches import manifest


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Make three clips and a bad file; only one row of the list has another column."""
    folder = tmp_path_factory.mktemp("card")
    for i in range(3):
        clips.write(folder / f"{i}.mp4", clips.pictures(5 + 4 * i))
    (folder / "bad.mp4").write_text("no video")
    rows = [{"path": f"{name}.mp4", "caption": f"number {name}"} for name in (0, 1, 2, "bad")]
    rows[2]["fps_note"] = {"of": ["3"]}
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_files_and_tars(videos, tmp_path, offline, streaming):
    import datasets

    for layout in ("files", "tar"):
        encode_batch([], tmp_path / layout, lists=videos / "list.jsonl", workers=0, layout=layout, first_frame="png")
    load_dataset = datasets.load_dataset
    rows = list(
        load_dataset(str(tmp_path / "files"), split="train", streaming=streaming, cache_dir=tmp_path / "cached")
    )
    lines = manifest(tmp_path / "files")
    assert [row["id"] for row in rows] == list(lines)
    for row in rows:
        assert {name: value for name, value in row.items() if value is not None} == lines[row["id"]]
    good = [line for line in lines.values() if line["status"] == "done"]
    rows = list(load_dataset(str(tmp_path / "tar"), split="train", streaming=streaming, cache_dir=tmp_path / "cached"))
    assert [row["json"]["id"] for row in rows] == [line["id"] for line in good]
    for row, line in zip(rows, good, strict=True):
        assert list(load(row["safetensors"])["latents"].shape) == line["shape"]
        assert row["json"].get("extra") == line.get("extra")
        assert row["first_frame.png"].size == (line["width"], line["height"])


def test_it_says_what_is_in_the_folder_and_is_written_anew(videos, tmp_path):
    out = tmp_path / "out"
    encode_batch([videos / "0.mp4"], out, workers=0)
    card = (out / "README.md").read_text()
    assert "path: manifest.jsonl\n" in card
    assert "1 item of 5 frames" in card
    assert "| 1 x 32 x 2 x 6 x 8 | 1 |" in card
    stamp = (out / "README.md").stat().st_mtime_ns
    encode_batch([videos / "0.mp4"], out, workers=0)
    assert (out / "README.md").stat().st_mtime_ns == stamp
    encode_batch([videos / "0.mp4", videos / "1.mp4"], out, workers=0, layout="tar", first_frame="latent")
    card = (out / "README.md").read_text()
    assert "path: latents-*.tar\n" in card
    assert "{name: first_frame.safetensors, dtype: binary}" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("kind", ["text", "bytes", "link", "folder"])
def test_a_readme_of_others_is_left_alone(videos, tmp_path, kind):
    out = tmp_path / "out"
    out.mkdir()
    readme = out / "README.md"
    if kind == "folder":
        readme.mkdir()
    elif kind == "link":
        (tmp_path / "mine").write_text("<!-- Written by movq, and written anew")
        readme.symlink_to(tmp_path / "mine")
    else:
        readme.write_bytes(b"mine" if kind == "text" else b"\xff\xfe")
    before = readme.lstat()
    encode_batch([videos / "0.mp4"], out, workers=0)
    after = readme.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)


def test_an_edited_card_is_left_alone_with_a_warning_when_it_names_something_else(videos, tmp_path):
    out = tmp_path / "out"
    encode_batch([videos / "0.mp4"], out, workers=0)
    edited = (out / "README.md").read_text().replace("configs:", "license: mit\nconfigs:")
    (out / "README.md").write_text(edited)
    encode_batch([videos / "0.mp4", videos / "1.mp4"], out, workers=0)
    with pytest.warns(MovqWarning, match=r"is left alone; it does not name latents-\*\.tar"):
        encode_batch([videos / "0.mp4", videos / "1.mp4"], out, workers=0, layout="tar")
    assert (out / "README.md").read_text() == edited


def test_shards_get_it_when_they_are_merged_and_a_batch_without_items_has_none(videos, tmp_path):
    for index in range(2):
        encode_batch([videos], tmp_path / "out", workers=0, shard=f"{index}/2")
        assert not (tmp_path / "out" / "README.md").exists()
    merge_shards(tmp_path / "out")
    assert "3 items of 27 frames" in (tmp_path / "out" / "README.md").read_text()
    encode_batch([videos / "bad.mp4"], tmp_path / "none", workers=0)
    assert not (tmp_path / "none" / "README.md").exists()
