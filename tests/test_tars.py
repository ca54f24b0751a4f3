"""The tar layout: WebDataset reads it, and tars stay whole and true after a kill, an edit or damage at any moment."""

import json
import random
import shutil
import signal
import tarfile
import time

import pytest
from safetensors.torch import load, load_file

from movq_cli import MovqWarning, encode_batch
from movq_cli.batch.tars import member_name

from .helpers import clips
from .helpers.batches import manifest, tree
from .helpers.processes import encoding, group, wait_for

SIZE = 60_000  # of a tar; an item takes about 15,000 in bf16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make nine clips, one bad, in folders and with captions; encode them as files and as tars."""
    made = tmp_path_factory.mktemp("tars")
    (made / "in" / "a.b").mkdir(parents=True)
    for i in range(8):
        name = f"a.b/{i}" if i % 3 else str(i)
        clips.write(made / "in" / f"{name}.mp4", clips.pictures(9 + i, 64 if i % 2 else 48, 48))
        (made / "in" / f"{name}.txt").write_text(f"number {i}, größer")
    (made / "in" / "bad.mp4").write_text("no video")
    encode_batch([made / "in"], made / "files", workers=0, store_dtype="bf16")
    packed(made, "tars")
    return made


def packed(folder, out="tars", **options):
    settings = {"layout": "tar", "tar_size": SIZE, "workers": 0, "store_dtype": "bf16"} | options
    return encode_batch([settings.pop("source", folder / "in")], folder / out, **settings)


@pytest.fixture
def copy(folder, tmp_path):
    """Copy the folder and its batches, which a test may spoil."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert {line["id"] for line in packed(tmp_path).made} == {"bad.mp4"}  # it has a new inode
    return tmp_path


def members(path):
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def tars(folder, out="tars"):
    return sorted((folder / out).glob("*.tar"))


def test_names_of_members_are_webdataset_keys():
    assert member_name("a.b/x.mp4_0-17") == "a%2Eb/x%2Emp4_0-17.safetensors"
    names = ["a.b", "a%2Eb", "a/b", "a_b", "__x__", "%5F_x__", "__x__/y", "x__"]
    assert len(set(map(member_name, names))) == len(names)
    assert not any(
        part.startswith("__") and "__" in part[2:] for name in names for part in member_name(name).split("/")
    )


def test_tars_hold_what_files_hold_and_what_is_said_of_it(folder):
    files, lines = manifest(folder / "files"), manifest(folder / "tars")
    assert {path.name for path in (folder / "tars").iterdir()} == {
        "run.json",
        "README.md",
        "manifest.jsonl",
        *(f"latents-0000{i}.{suffix}" for i in range(3) for suffix in ("tar", "index.json")),
    }
    found = {}
    for path in tars(folder):
        assert path.stat().st_size <= SIZE
        held = members(path)
        index = json.loads((folder / "tars" / path.name.replace(".tar", ".index.json")).read_text())
        assert index["bytes"] == path.stat().st_size
        assert [member["name"] for member in index["members"]] == list(held)[::2]
        for member in index["members"]:
            data = path.read_bytes()[member["offset"] :][: member["bytes"]]
            assert data == held[member["name"]]
            assert member["offset"] % 512 == 0
        for name in list(held)[::2]:
            said = json.loads(held[name.replace(".safetensors", ".json")])
            found[said["id"]] = held[name], said, path.name
    good = {name: line for name, line in files.items() if line["status"] == "done"}
    assert list(found) == list(good)  # in the same order
    for name, line in good.items():
        data, said, tar = found[name]
        assert data == (folder / "files" / line["output"]).read_bytes()
        assert (said["caption"], said["shape"]) == (line["caption"], line["shape"])
        assert not {"path", "seconds", "source", "output"} & set(said)  # nothing about this machine
        assert lines[name] == line | {"output": tar, "member": member_name(name), "seconds": lines[name]["seconds"]}
    assert lines["bad.mp4"]["status"] == "failed"


@pytest.mark.slow
def test_tars_made_by_workers_are_the_same_bytes(folder, tmp_path):
    packed(tmp_path, source=folder / "in", workers=2)
    assert tree(tmp_path / "tars") == tree(folder / "tars")


def test_webdataset_reads_them(folder):
    import webdataset

    paths = list(map(str, tars(folder)))
    samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode())
    lines = [line for line in manifest(folder / "files").values() if line["status"] == "done"]
    assert [sample["json"]["id"] for sample in samples] == [line["id"] for line in lines]
    for sample, line in zip(samples, lines, strict=True):
        assert sample["__key__"] + ".safetensors" == member_name(line["id"])
        wanted = load_file(folder / "files" / line["output"])
        assert all(tensor.equal(wanted[name]) for name, tensor in load(sample["safetensors"]).items())


def test_a_second_run_does_nothing(copy):
    def contents():
        paths = [path for path in (copy / "tars").iterdir() if path.name != "run.json"]
        return {path: (path.stat().st_ino, path.read_bytes()) for path in paths}

    before = contents()
    assert packed(copy).made == []
    assert packed(copy, layout="files").made == []  # packed latents stay packed
    assert contents() == before


@pytest.mark.slow
def test_killed_at_random_and_resumed(zygote, folder, tmp_path):
    command = ["batch-encode", folder / "in", "-o", "tars", "--layout", "tar", "--tar-size", SIZE, "--workers", 2]
    command += ["--store-dtype", "bf16"]
    dice = random.Random(5)
    for _ in range(4):
        process = zygote.start(*command, cwd=tmp_path, start_new_session=True)
        wait_for(lambda process=process: encoding(process.pid) or process.poll() is not None)
        time.sleep(dice.random())
        process.send_group_signal(signal.SIGKILL)  # if it has not ended meanwhile
        process.wait()
        wait_for(lambda process=process: not group(process.pid), 5)
        for path in tars(tmp_path):
            members(path)  # raises if it is not whole
    packed(tmp_path, source=folder / "in")
    assert tree(tmp_path / "tars") == tree(folder / "tars")


def unpack(folder, names=None):
    """Return a batch to the moment before tars were packed: the files exist and the manifest names them."""
    lines, files = manifest(folder / "tars"), manifest(folder / "files")
    with open(folder / "tars" / "manifest.jsonl", "w") as out:
        for name, line in lines.items():
            if names is None or name in names:
                line = files[name]
                if line["status"] == "done":
                    (folder / "tars" / line["output"]).parent.mkdir(exist_ok=True)
                    shutil.copy(folder / "files" / line["output"], folder / "tars" / line["output"])
            out.write(json.dumps(line) + "\n")


@pytest.mark.parametrize("moment", ["tar written", "index written", "lines half written", "files not yet gone"])
def test_killed_between_the_steps_of_packing(copy, folder, moment):
    names = list(manifest(copy / "files"))
    clean = tree(copy / "tars")
    if moment == "files not yet gone":
        lines = (copy / "tars" / "manifest.jsonl").read_bytes()
        unpack(copy)
        (copy / "tars" / "manifest.jsonl").write_bytes(lines)
    else:
        unpack(copy, names[:2] if moment == "lines half written" else None)
        for path in tars(copy)[1:]:
            path.unlink()
            path.with_name(path.name.replace(".tar", ".index.json")).unlink()
        if moment == "tar written":
            (copy / "tars" / "latents-00000.index.json").unlink()
        if moment == "lines half written":
            for path in tars(folder)[1:]:
                shutil.copy(path, copy / "tars")
    assert {line["id"] for line in packed(copy).made} <= {"bad.mp4"}
    after = tree(copy / "tars")
    after["manifest"] = [{k: v for k, v in line.items() if k != "source"} for line in after["manifest"]]
    clean["manifest"] = [{k: v for k, v in line.items() if k != "source"} for line in clean["manifest"]]
    assert after == clean


def test_an_edited_caption_rewrites_its_tar_and_encodes_nothing(copy):
    before = {path: path.read_bytes() for path in tars(copy)}
    held = {path: members(path) for path in before}
    (copy / "in" / "3.txt").write_text("edited")
    assert packed(copy).made == []
    changed = [path for path in before if path.read_bytes() != before[path]]
    assert len(changed) == 1
    after = members(changed[0])
    assert list(after) == list(held[changed[0]])
    differ = [name for name in after if after[name] != held[changed[0]][name]]
    assert differ == ["3%2Emp4.json"]
    assert json.loads(after[differ[0]])["caption"] == "edited"
    assert packed(copy).made == []


def test_what_is_made_again_takes_its_old_place(copy):
    before = members(tars(copy)[1])
    name = json.loads(before[list(before)[1]])["id"]
    clips.write(copy / "in" / name, clips.pictures(5))
    assert {line["id"] for line in packed(copy).made} == {name}
    after = members(tars(copy)[1])
    assert list(after) == list(before)
    assert [key for key in after if after[key] != before[key]] == list(before)[:2]
    assert len(tars(copy)) == 3
    assert manifest(copy / "tars")[name]["output"] == "latents-00001.tar"
    assert not list((copy / "tars").rglob("*.safetensors"))
    assert packed(copy).made == []
    (copy / "in" / name).write_text("no video any more")
    assert {line["status"] for line in packed(copy).made} == {"failed"}
    assert members(tars(copy)[1]) == after  # the last latents that it had
    clips.write(copy / "in" / "new.mp4", clips.pictures(5))
    packed(copy)
    assert list(members(tars(copy)[3])) == ["new%2Emp4.safetensors", "new%2Emp4.json"]


def test_a_folder_of_files_is_packed_without_encoding(copy):
    lines = [line for line in manifest(copy / "files").values() if line["status"] == "done"]
    outputs = [copy / "files" / line["output"] for line in lines]
    data = bytearray(outputs[4].read_bytes())
    data[-1] ^= 1
    outputs[4].write_bytes(data)  # damaged after it was written
    with pytest.warns(MovqWarning, match="damaged before packing; the same command makes them again"):
        assert {line["id"] for line in packed(copy, "files").made} == {"bad.mp4"}
    line = manifest(copy / "files")[lines[4]["id"]]
    assert (line["status"], line["reason"]) == ("failed", "its latents were damaged before packing")
    assert sum(len(members(path)) for path in tars(copy, "files")) == 14
    assert {line["id"] for line in packed(copy, "files").made} == {lines[4]["id"]}
    assert sum(len(members(path)) for path in tars(copy, "files")) == 16


def test_damage_in_a_tar_is_found(copy, movq):
    path = tars(copy)[0]
    name = next(line["id"] for line in manifest(copy / "tars").values() if line.get("output") == path.name)
    good = path.read_bytes()
    index = json.loads((copy / "tars" / "latents-00000.index.json").read_text())
    data = bytearray(good)
    data[index["members"][0]["offset"] + index["members"][0]["bytes"] - 1] ^= 1
    path.write_bytes(data)
    assert packed(copy).made == []
    assert {line["id"] for line in packed(copy, verify=True).made} == {name, "bad.mp4"}
    assert path.read_bytes() == good
    path.write_bytes(good[:-3000])
    (copy / "tars" / "latents-00000.index.json").unlink()
    with pytest.warns(MovqWarning, match=r"latents-00000\.tar: is not a tar of latents .*: nothing in it is used"):
        result = packed(copy)
    assert {line["id"] for line in result.made} == {member["id"] for member in index["members"]}
    assert result.orphans == ["latents-00000.tar"]
    result = movq("info", copy / "tars")
    assert result.returncode == 0
    assert "batch of 9 items: 8 done, 1 failed" in result.stdout
    assert "latents-00000.tar" in result.stdout
    path.unlink()
    assert packed(copy).made == []


def test_what_is_in_a_tar_of_no_video_there_is_is_said(copy):
    (copy / "in" / "3.mp4").unlink()
    (copy / "in" / "0.mp4").write_text("no video any more")
    assert packed(copy).orphans == ["latents-00000.tar:0%2Emp4.safetensors", "latents-00000.tar:3%2Emp4.safetensors"]
    assert manifest(copy / "tars")["3.mp4"]["orphan"]


@pytest.mark.slow
def test_forced_again_all_take_their_places_and_are_no_orphans(copy):
    before = {path: path.read_bytes() for path in (copy / "tars").glob("latents-*")}
    result = packed(copy, force=True)
    assert len(result.made) == 9
    assert result.orphans == []
    assert {path: path.read_bytes() for path in (copy / "tars").glob("latents-*")} == before
    packed(copy, save="mean", replace=True)
    assert len(tars(copy)) == 3
    assert not list((copy / "tars").rglob("*.safetensors"))


def test_files_that_are_no_longer_in_a_tar_are_not_taken_away(copy):
    """A tar was unpacked by hand and deleted."""
    tar = tars(copy)[0]
    names = [name for name in members(tar) if name.endswith(".safetensors")]
    lines = [line for line in manifest(copy / "tars").values() if line.get("output") == tar.name]
    for name, line in zip(names, lines, strict=True):
        path = copy / "tars" / f"{line['id']}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(members(tar)[name])
    tar.unlink()
    shutil.move(copy / "in", copy / "away")
    (copy / "in").mkdir()
    for path in (copy / "away").iterdir():
        (copy / "in" / path.name).write_text("no video") if path.is_file() else (copy / "in" / path.name).mkdir()
    packed(copy)
    assert (copy / "tars" / f"{lines[0]['id']}.safetensors").exists()


def test_an_item_cannot_be_called_as_what_a_batch_has_itself(tmp_path):
    clips.write(tmp_path / "a.mp4", clips.pictures(5))
    rows = [
        f"a.mp4,{name}/x,{i}"
        for i, name in enumerate(("latents-00000.tar", "manifest.0-of-2.jsonl", "LATENTS-00001.tar"))
    ]
    (tmp_path / "list.csv").write_text("\n".join(["path,id,caption", *rows]) + "\n")
    encode_batch([], tmp_path / "out", lists=[tmp_path / "list.csv"], layout="tar", workers=0)
    result = encode_batch([], tmp_path / "out", lists=[tmp_path / "list.csv"], layout="tar", workers=0)
    assert (result.made, len(result.lines)) == ([], 3)
    assert len(members(tmp_path / "out" / "latents-00000.tar")) == 6


@pytest.mark.slow
def test_an_item_larger_than_a_tar_has_one_of_its_own(folder, tmp_path):
    packed(tmp_path, source=folder / "in", tar_size=1000)
    assert [len(members(path)) for path in tars(tmp_path)] == [2] * 8


@pytest.mark.slow
def test_shards_have_tars_of_their_own(folder, tmp_path, movq):
    for i in range(2):
        packed(tmp_path, source=folder / "in", shard=f"{i}/2")
    assert {path.name.rpartition("-")[0] for path in tars(tmp_path)} == {"latents-0-of-2", "latents-1-of-2"}
    assert movq("batch-encode", "--merge", "tars").returncode == 0
    assert packed(tmp_path, source=folder / "in").made == []
    held = {}
    for path in tars(tmp_path):
        held |= members(path)
    whole = {}
    for path in tars(folder):
        whole |= members(path)
    assert held == whole


def test_a_tar_that_was_taken_away_leaves_no_gap(copy):
    before = {path.name: path.read_bytes() for path in (copy / "tars").glob("latents-*")}
    tars(copy)[1].unlink()
    assert len(packed(copy).made) > 0
    assert {path.name: path.read_bytes() for path in (copy / "tars").glob("latents-*")} == before
