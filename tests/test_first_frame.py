"""First frames beside latents: the same instant and crop, whenever they are made, and never apart from their item."""

import hashlib
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from movq_cli import (
    LatentDataset,
    MovqError,
    MovqWarning,
    collate,
    decode_video,
    encode_batch,
    encode_video,
    open_latents,
)
from movq_cli.cli import app

from .helpers import clips
from .helpers.batches import manifest, tree

BLOCK, BITS = 12, 4
BUCKETS = ("5x64x80", "5x80x64")
KINDS = ("png", "latent")


def numbered(number, width, height):
    """Return a picture with a number in its middle: two rows of four blocks, white for 1 and black for 0."""
    image = clips.picture(width, height) // 4 + 96
    left, top = (width - BITS * BLOCK) // 2, (height - 2 * BLOCK) // 2
    for bit in range(2 * BITS):
        x, y = left + bit % BITS * BLOCK, top + bit // BITS * BLOCK
        image[y : y + BLOCK, x : x + BLOCK] = 255 * (number >> bit & 1)
    return image


def read_number(image):
    """Return the number in a picture whose middle is that of a `numbered` one, of the same scale."""
    height, width = image.shape[:2]
    left, top = (width - BITS * BLOCK) // 2, (height - 2 * BLOCK) // 2
    number = 0
    for bit in range(2 * BITS):
        x, y = left + bit % BITS * BLOCK, top + bit // BITS * BLOCK
        number |= int(image[y + 3 : y + BLOCK - 3, x + 3 : x + BLOCK - 3].mean() > 127) << bit
    return number


FRAMES = 25
PORTRAIT, LANDSCAPE = (64, 112), (112, 64)


def make(folder, videos):
    """Make videos of 25 numbered frames, half of them portraits, all cut by their buckets, and encode spans of them."""
    (folder / "in" / "a.b").mkdir(parents=True)
    for i in range(videos):
        images = [numbered(FRAMES * i + frame, *(LANDSCAPE if i % 2 else PORTRAIT)) for frame in range(FRAMES)]
        clips.lossless(folder / "in" / ("a.b" if i % 3 else ".") / f"{i}.mkv", images)
        (folder / "in" / ("a.b" if i % 3 else ".") / f"{i}.txt").write_text(f"number {i}")


def encoded(folder, out, **options):
    settings = {"buckets": BUCKETS, "pick": "uniform:2", "workers": 0} | options
    return encode_batch([folder / "in"], folder / out, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make six items out of three videos, in both layouts."""
    made = tmp_path_factory.mktemp("first")
    make(made, 3)
    for layout in ("files", "tar"):
        encoded(made, layout, layout=layout, first_frame=KINDS)
    return made


@pytest.fixture
def copy(folder, tmp_path):
    """Copy the folder with its batches, which a test may spoil."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, copy_function=shutil.copy2)
    return tmp_path


def said(folder):
    """Return what is in a batch, without what another place or a copy of its videos changes."""
    lines = manifest(folder).values()
    kept = [{name: value for name, value in line.items() if name not in ("source", "seconds")} for line in lines]
    return tree(folder) | {"manifest": kept}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["files", "tar"])
def test_forty_items(tmp_path, layout):
    make(tmp_path, 8)
    options = {"pick": "uniform:5", "workers": 2, "layout": layout}
    encoded(tmp_path, "once", first_frame=KINDS, **options)
    check(tmp_path / "once", tmp_path, 40, step=1)
    encoded(tmp_path, "later", **options)
    assert encoded(tmp_path, "later", first_frame=KINDS, **options).added == 40
    assert said(tmp_path / "later") == said(tmp_path / "once")


@pytest.mark.parametrize("layout", ["files", "tar"])
def test_it_is_the_same_instant_and_the_same_crop(folder, tmp_path, layout):
    check(folder / layout, tmp_path, 6, step=3)


def check(folder, tmp_path, count, step):
    """Read the numbers off pictures and decoded latents: they are those of the spans. All are cut out of the middle."""
    data = LatentDataset(folder, draw=False)
    assert (len(data), data.first_frame) == (count, KINDS)
    for sample in data:
        row = sample["row"]
        image = sample["first_frame"].permute(1, 2, 0).numpy()
        video = int(Path(row["path"]).stem)
        number = FRAMES * video + row["options"].get("skip", 0)
        assert read_number(image) == number
        whole = numbered(number, *(LANDSCAPE if video % 2 else PORTRAIT))
        height, width = image.shape[:2]
        top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
        assert np.array_equal(image, whole[top : top + height, left : left + width])
        assert sample["first_frame_latents"].shape == (16, 1, height // 8, width // 8)
        # With norms per frame, the frame alone has the latents that it has as the first of a clip.
        assert torch.equal(sample["first_frame_latents"][:, 0], sample["latents"][:, 0])
    lines = [line for line in manifest(folder).values() if "member" not in line]
    for line in lines[::step]:
        number = FRAMES * int(Path(line["path"]).stem) + line["options"].get("skip", 0)
        for path, frames in ((line["output"], 5), (line["first_frame"]["latent"]["output"], 1)):
            decode_video(folder / path, tmp_path / "decoded.npy", force=True)
            decoded = np.load(tmp_path / "decoded.npy")
            assert (len(decoded), read_number(decoded[0])) == (frames, number)


@pytest.mark.parametrize(
    ("layout", "steps"), [("files", [KINDS]), ("files", [("latent",), ("png",)]), ("tar", [("latent",), ("png",)])]
)
def test_added_later_they_are_the_same_bytes_as_made_at_once(folder, tmp_path, layout, steps):
    shutil.copytree(folder / "in", tmp_path / "in", copy_function=shutil.copy2)
    encoded(tmp_path, layout, layout=layout)
    latents = {name: data for name, data in tree(tmp_path / layout).items() if name.endswith(".safetensors")}
    for kinds in steps:
        result = encoded(tmp_path, layout, first_frame=kinds, verify=True)
        assert (result.made, result.added, result.orphans) == ([], 6, [])
    assert said(tmp_path / layout) == said(folder / layout)
    assert latents.items() <= tree(tmp_path / layout).items()
    again = encoded(tmp_path, layout)
    assert (again.made, again.added, again.tars) == ([], 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["files", "tar"])
def test_workers_make_them_too(folder, tmp_path, layout):
    shutil.copytree(folder / "in", tmp_path / "in", copy_function=shutil.copy2)
    encoded(tmp_path, layout, layout=layout, workers=2)
    assert encoded(tmp_path, layout, first_frame=KINDS, workers=2).added == 6
    assert said(tmp_path / layout) == said(folder / layout)


def test_members_of_a_tar_are_one_sample_of_webdataset(folder):
    import webdataset

    paths = sorted(map(str, (folder / "tar").glob("*.tar")))
    samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    assert len(samples) == 6
    for sample in samples:
        assert {"safetensors", "first_frame.png", "first_frame.safetensors", "json"} <= sample.keys()
        line = json.loads(sample["json"])
        assert line["first_frame"]["png"]["bytes"] == len(sample["first_frame.png"])


def first(folder, kind="png"):
    """Return the line of the first item, and the path of its first frame."""
    line = next(iter(manifest(folder).values()))
    return line, folder / line["first_frame"][kind]["output"]


def test_what_is_gone_or_damaged_is_made_again_and_nothing_else(copy):
    before = tree(copy / "files")
    _, path = first(copy / "files", "latent")
    path.unlink()
    _, picture = first(copy / "files")
    picture.write_bytes(picture.read_bytes()[:-1] + b"x")
    result = encoded(copy, "files")
    assert (result.made, result.added) == ([], 1)  # the picture has its size
    result = encoded(copy, "files", verify=True)
    assert (result.made, result.added) == ([], 1)
    assert {k: v for k, v in tree(copy / "files").items() if k != "manifest"} == {
        k: v for k, v in before.items() if k != "manifest"
    }
    tar = copy / "tar" / "latents-00000.tar"
    good = tar.read_bytes()
    at = json.loads((copy / "tar" / "latents-00000.index.json").read_text())["members"][0]["first_frame"]["png"][
        "offset"
    ]
    tar.write_bytes(good[: at + 99] + b"damage" + good[at + 105 :])
    assert encoded(copy, "tar").added == 0
    assert encoded(copy, "tar", verify=True).added == 1
    assert tar.read_bytes() == good


def test_a_missing_index_is_made_from_the_tar(copy):
    path = copy / "tar" / "latents-00000.index.json"
    index = path.read_bytes()
    path.unlink()
    encoded(copy, "tar")
    assert path.read_bytes() == index


def test_it_follows_its_item(copy):
    """A video changes, and one is taken away: the first frames go where the latents go."""
    clips.lossless(copy / "in" / "0.mkv", [numbered(200 + i, 112, 64) for i in range(25)])
    for layout in ("files", "tar"):
        assert {line["id"] for line in encoded(copy, layout).made} == {"0.mkv_0-5", "0.mkv_20-5"}
        data = LatentDataset(copy / layout, where=lambda line: line["id"].startswith("0.mkv"))
        assert [read_number(sample["first_frame"].permute(1, 2, 0).numpy()) for sample in data] == [200, 220]
    (copy / "in" / "a.b" / "1.mkv").unlink()
    orphans = encoded(copy, "files").orphans
    assert len(orphans) == 6
    assert "a.b/1.mkv_0-5.first_frame.png" in orphans
    assert len(encoded(copy, "tar").orphans) == 6


def test_made_again_without_it_has_no_old_one(copy):
    encoded(copy, "files", save="mean", replace=True, first_frame="none")
    assert not list((copy / "files").rglob("*first_frame*"))
    assert not any("first_frame" in line for line in manifest(copy / "files").values())
    encoded(copy, "tar", save="mean", replace=True)  # as the folder has it
    data = LatentDataset(copy / "tar")
    assert data.first_frame == KINDS
    assert data[0]["first_frame_latents"].shape[0] == 16


def test_its_name_counts_as_taken(tmp_path):
    """An item cannot be called as the first frame of another, and pictures that movq wrote are not encoded."""
    (tmp_path / "in").mkdir()
    clips.write(tmp_path / "in" / "a.mp4", clips.pictures(5))
    clips.write(tmp_path / "in" / "b.mp4", clips.pictures(5))
    rows = ["a.mp4,a", "b.mp4,a.first_frame", "b.mp4,a.first_frame.png/b"]
    (tmp_path / "in" / "list.csv").write_text("\n".join(["path,id", *rows]) + "\n")
    encode_batch([], tmp_path / "out", lists=tmp_path / "in" / "list.csv", workers=0, first_frame=KINDS)
    outputs = [line["output"] for line in manifest(tmp_path / "out").values()]
    assert outputs[0] == "a.safetensors"
    assert outputs[1].startswith("a.first_frame~")
    assert outputs[2].startswith("a.first_frame.png~")
    assert len(LatentDataset(tmp_path / "out")) == 3
    for _ in range(2):
        result = encode_batch([tmp_path / "in"], tmp_path / "in", workers=0, first_frame="png")
    assert [line["id"] for line in result.lines] == ["a.mp4", "b.mp4"]
    assert "first frames that movq wrote" in dict(result.ignored)[str(tmp_path / "in" / "a.mp4.first_frame.png")]


def test_left_behind_by_a_killed_batch_it_is_written_over(tmp_path):
    """Killed after any of the three files got its name, before the line was written."""
    clips.write(tmp_path / "a.mp4", clips.pictures(5))
    encode_batch([tmp_path / "a.mp4"], tmp_path / "whole", workers=0, first_frame=KINDS)
    whole = tree(tmp_path / "whole")
    names = ["a.mp4.first_frame.safetensors", "a.mp4.safetensors", "a.mp4.first_frame.png"]
    assert {*names, "manifest", "README.md"} == set(whole)
    for count in range(4):
        (tmp_path / f"{count}").mkdir()
        for name in names[:count]:
            (tmp_path / f"{count}" / name).write_bytes(whole[name])
        encode_batch([tmp_path / "a.mp4"], tmp_path / f"{count}", workers=0, first_frame=KINDS)
        assert tree(tmp_path / f"{count}") == whole


def test_one_that_cannot_be_made_fails_alone(copy, capsys):
    encoded(copy, "other")
    (copy / "other" / "0.mkv_0-5.first_frame.png").mkdir()
    result = encoded(copy, "other", first_frame="png")
    assert result.added == 5
    (failed,) = [line for line in result.lines if line["status"] == "failed"]
    assert failed["reason"].startswith("cannot get its first frame, though its latents are done: is a folder")
    line = manifest(copy / "other")["0.mkv_0-5"]
    assert line["status"] == "done"
    assert "first_frame" not in line
    argv = ["--bucket", BUCKETS[0], "--bucket", BUCKETS[1], "--pick", "uniform:2", "--workers", "0"]
    with pytest.raises(SystemExit) as stopped:
        app(["batch-encode", str(copy / "in"), "-o", str(copy / "other"), *argv])
    assert stopped.value.code == 1
    with pytest.warns(MovqWarning, match=r"1 of 6 items have no first frame \(png\)"):
        data = LatentDataset(copy / "other")
    assert data.first_frame == ()
    (copy / "other" / "0.mkv_0-5.first_frame.png").rmdir()
    assert encoded(copy, "other").added == 1


def test_a_data_set_has_pictures_and_latents_of_them(folder):
    data = LatentDataset(folder / "tar", dtype="fp16", scale=2.0, draw=False)
    batch = collate([data[i] for i in data.buckets()[0]])
    assert batch["first_frame"].dtype == torch.uint8
    assert batch["first_frame"].shape[:2] == (2, 3)
    assert batch["first_frame_latents"].dtype == torch.float16
    assert torch.equal(batch["first_frame_latents"][:, :, 0], batch["latents"][:, :, 0])
    assert "first_frame" not in data.slice(0, 1)
    assert "first_frame" not in LatentDataset(folder / "tar", first_frames=False)[0]


def test_files_that_are_not_those_of_the_manifest_are_refused(copy):
    line, path = first(copy / "files")
    other = next(copy.glob("files/1*.png"), None) or next(copy.glob("files/*/1*.png"))
    lines = manifest(copy / "files")
    lines[line["id"]]["first_frame"]["png"] |= {"bytes": other.stat().st_size}
    path.write_bytes(other.read_bytes())  # another size
    (copy / "files" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    with pytest.raises(MovqError, match="is not a PNG picture of 64x80"):
        LatentDataset(copy / "files")[0]
    path.write_bytes(b"\x89PNG" + bytes(other.stat().st_size - 4))
    with pytest.raises(MovqError, match="is not a PNG picture of 64x80"):
        LatentDataset(copy / "files")[0]
    lines[line["id"]]["first_frame"]["png"]["output"] = "../in/0.mkv"
    (copy / "files" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    with pytest.raises(MovqError, match=r"output '\.\./in/0\.mkv' is not a plain path"):
        LatentDataset(copy / "files")


@pytest.mark.parametrize("save", ["moments", "mean", "sample"])
def test_encode_writes_what_the_frame_alone_would_be_encoded_to(tmp_path, capsys, save):
    clips.write(tmp_path / "a.mp4", clips.pictures(14, 72, 56))
    out = tmp_path / "out.safetensors"
    options = {"start": "0.125", "short_side": 48, "save": save, "store_dtype": "fp16"}
    result = encode_video(tmp_path / "a.mp4", out, first_frame=("latent", "png"), **options)
    assert list(result.first_frame) == list(KINDS)
    encode_video(tmp_path / "a.mp4", tmp_path / "alone.safetensors", frames=1, **options)
    alone = (tmp_path / "alone.safetensors").read_bytes()
    assert (tmp_path / "out.first_frame.safetensors").read_bytes() == alone
    m = open_latents(out).metadata
    with av.open(tmp_path / "out.first_frame.png") as file:
        (frame,) = file.decode(video=0)
    size = m.width + m.pad_right, m.height + m.pad_bottom
    assert (frame.width, frame.height, frame.format.name) == (*size, "rgb24")
    assert size != (m.width, m.height)


def test_files_of_others_are_neither_written_over_nor_deleted_nor_packed(tmp_path):
    """The source itself, a picture of the user, and what a manifest of strangers names."""
    clips.still(tmp_path / "a.first_frame.png", clips.picture(48, 32), "png")
    mine = (tmp_path / "a.first_frame.png").read_bytes()
    with pytest.raises(MovqError, match="is the same file as the input"):
        encode_video(tmp_path / "a.first_frame.png", tmp_path / "a.safetensors", first_frame="png", force=True)
    (tmp_path / "in").mkdir()
    clips.write(tmp_path / "in" / "a.mp4", clips.pictures(5))
    encode_video(tmp_path / "in" / "a.mp4", tmp_path / "b.safetensors", first_frame="png")
    encode_video(tmp_path / "b.first_frame.png", tmp_path / "b.safetensors", force=True)
    assert (tmp_path / "b.first_frame.png").exists()  # it is the source, though movq wrote it
    out = tmp_path / "out"
    encode_batch(tmp_path / "in", out, workers=0)
    picture = out / "a.mp4.first_frame.png"
    picture.write_bytes(mine)
    result = encode_batch(tmp_path / "in", out, workers=0, first_frame="png")
    assert "a.mp4.first_frame.png is there, and movq did not write it: move it away" in result.lines[0]["reason"]
    encode_batch(tmp_path / "in", out, workers=0, save="mean", replace=True, first_frame="none")
    assert picture.read_bytes() == mine
    encode_batch(tmp_path / "in", out, workers=0, first_frame="png", save="mean", force=True)
    assert picture.read_bytes() != mine
    (out / "precious.png").write_bytes(mine)
    lines = manifest(out)
    said = {"output": "precious.png", "bytes": len(mine), "sha256": hashlib.sha256(mine).hexdigest()}
    lines["a.mp4"]["first_frame"] = {"png": said, "depth": said}
    (out / "manifest.jsonl").write_text(json.dumps(lines["a.mp4"]) + "\n")
    with pytest.warns(
        MovqWarning, match=r"its first frame \(png\) was damaged before packing; batch-encode --first-frame png"
    ):
        encode_batch(tmp_path / "in", out, workers=0, save="mean", layout="tar")
    assert (out / "precious.png").read_bytes() == mine
    assert manifest(out)["a.mp4"]["first_frame"] == {"depth": said}  # of a later movq


def test_pictures_of_others_are_items_though_they_are_called_like_it(tmp_path):
    clips.still(tmp_path / "shot.first_frame.png", clips.picture(48, 32), "png")
    assert len(encode_batch(tmp_path / "shot.first_frame.png", tmp_path / "one", workers=0).made) == 1
    result = encode_batch(tmp_path, tmp_path / "out", workers=0)
    assert "shot.first_frame.png" in [line["id"] for line in result.lines]


def test_clips_of_one_latent_shape_have_pictures_of_one_size(tmp_path):
    clips.write(tmp_path / "in.mp4", clips.pictures(5, 64, 48))
    clips.write(tmp_path / "odd.mp4", clips.pictures(5, 62, 46))
    encode_batch([tmp_path / "in.mp4", tmp_path / "odd.mp4"], tmp_path / "out", workers=0, first_frame="png")
    data = LatentDataset(tmp_path / "out")
    [bucket] = data.buckets()
    assert collate([data[i] for i in bucket])["first_frame"].shape == (2, 3, 48, 64)


def test_of_a_video_that_failed_in_between_no_old_one_stays(copy):
    (copy / "in" / "0.mkv").write_text("no video")
    for layout in ("files", "tar"):
        assert sum(line["status"] == "failed" for line in encoded(copy, layout).lines) == 1
    clips.lossless(copy / "in" / "0.mkv", [numbered(200 + i, *PORTRAIT) for i in range(FRAMES)])
    for layout in ("files", "tar"):
        assert encoded(copy, layout).orphans == []
        data = LatentDataset(copy / layout, where=lambda line: line["id"].startswith("0.mkv"))
        assert [read_number(sample["first_frame"].permute(1, 2, 0).numpy()) for sample in data] == [200, 220]


def test_a_damaged_one_does_not_take_the_latents_out_of_a_tar(copy):
    """The video of its item has failed, so that the tar alone has them."""
    (copy / "in" / "0.mkv").write_text("no video")
    encoded(copy, "tar")
    index = json.loads((copy / "tar" / "latents-00000.index.json").read_text())
    (member,) = [member for member in index["members"] if member["id"] == "0.mkv_0-5"]
    tar = copy / "tar" / "latents-00000.tar"
    data = bytearray(tar.read_bytes())
    data[member["first_frame"]["png"]["offset"] + 50] ^= 1
    tar.write_bytes(data)
    (copy / "in" / "a.b" / "1.txt").write_text("another caption")
    with pytest.warns(MovqWarning, match=r"0\.mkv: its first frame \(png\) was damaged before packing"):
        encoded(copy, "tar")
    index = json.loads((copy / "tar" / "latents-00000.index.json").read_text())
    (after,) = [member for member in index["members"] if member["id"] == "0.mkv_0-5"]
    assert (after["sha256"], list(after["first_frame"])) == (member["sha256"], ["latent"])
    (copy / "tar" / "latents-00000.index.json").unlink()
    encoded(copy, "tar")
    assert json.loads((copy / "tar" / "latents-00000.index.json").read_text()) == index


def test_a_long_name(tmp_path):
    name = "n" * 235 + ".mp4"
    clips.write(tmp_path / name, clips.pictures(5))
    encode_batch(tmp_path / name, tmp_path / "out", workers=0, first_frame=KINDS)
    (line,) = manifest(tmp_path / "out").values()
    assert line["output"] == f"{name}.safetensors"
    assert all((tmp_path / "out" / said["output"]).exists() for said in line["first_frame"].values())
    encode_batch(tmp_path / name, tmp_path / "out", workers=0, layout="tar")
    assert LatentDataset(tmp_path / "out").first_frame == KINDS


def test_a_video_that_is_gone_is_said_to_get_none(tmp_path):
    clips.write(tmp_path / "a.mp4", clips.pictures(5))
    (tmp_path / "list.txt").write_text("a.mp4\n")
    encode_batch([], tmp_path / "out", lists=tmp_path / "list.txt", workers=0)
    (tmp_path / "a.mp4").unlink()
    with pytest.warns(MovqWarning, match="its finished output is kept, without the first frame that is asked for"):
        encode_batch([], tmp_path / "out", lists=tmp_path / "list.txt", workers=0, first_frame="png")


def test_the_command(tmp_path, capsys):
    clips.write(tmp_path / "a.mp4", clips.pictures(5))
    source, out = str(tmp_path / "a.mp4"), str(tmp_path / "b.safetensors")
    with pytest.raises(SystemExit, match="0"):
        app(["encode", source, "-o", out, "--first-frame", "png", "--first-frame", "latent", "-q"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"{tmp_path}/b.first_frame.png: first frame (png), ")
    assert lines[2].startswith(f"{tmp_path}/b.first_frame.safetensors: first frame (latent), ")
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(SystemExit, match="0"):  # without latents they are left over
        app(["encode", source, "-o", out, "--first-frame", "png", "-q"])
    with pytest.raises(SystemExit, match="0"):  # the older clip's goes with it
        app(["encode", source, "-o", out, "--force", "-q"])
    assert not (tmp_path / "b.first_frame.png").exists()
    (tmp_path / "b.safetensors").unlink()
    clips.still(tmp_path / "b.first_frame.png", clips.picture(48, 32), "png")
    for more in ([], ["--dry-run"]):
        with pytest.raises(MovqError, match=r"b\.first_frame\.png: exists"):
            app(["encode", source, "-o", out, "--first-frame", "png", *more])
    assert not (tmp_path / "b.safetensors").exists()
    with pytest.raises(MovqError, match="first_frame: none goes alone"):
        encode_video(source, out, first_frame=("png", "none"))
    with pytest.raises(MovqError, match="must be one of png, latent, none, got 'jpeg'"):
        encode_video(source, out, first_frame="jpeg")
