"""Videos and movq's own formats, edited at random, never end in anything but a MovqError. A short run with fixed seeds.

python -m tests.faults.test_fuzz SECONDS SEED [KIND]     (a long one: every surprise is printed, with what was edited)
"""

import contextlib
import copy
import io
import json
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import pytest

from movq_cli import (
    LatentDataset,
    MovqError,
    decode_video,
    encode_batch,
    open_latents,
    probe,
    read_frames,
)
from movq_cli.batch import compare_outputs, note_places, read_batch, read_folder, read_record, summarise
from movq_cli.batch.captions import read_captions, read_metadata
from movq_cli.batch.lists import RowList
from movq_cli.batch.probe import Known
from movq_cli.checkpoints.checkpoint import embedded_weights, open_checkpoint
from movq_cli.cli.info import _describe
from movq_cli.options import BatchOptions, EncodeOptions
from movq_cli.video import count_frames

from ..helpers import clips

VALUES = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        2**64,
        -(2**63),
        10**400,
        1.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *("", "x", "1", "-1", "1/0", "\ud800", "\0", "a" * 70_000, "nan", "1e999", "[[[[", "{}", "[]", "null"),
    *([], [[]], {}, {"a": 1}, [0] * 5, [1, 32, 5, 6, 8], [-1] * 5, ["a"], [None], [2**62] * 5),
]
LISTS = [
    b'path,id,start,duration,caption,x\na.mp4,a,0.5,1/3,"hi, there",3\nb.mp4,,,,,\n',
    b'{"path":"a.mp4","start":0.5,"caption":"x","extra":{"a":[1]}}\n{"path":"b.mp4","id":"q"}\n',
]


def anything(dice):
    return copy.deepcopy(dice.choice(VALUES))  # the copy may be edited in turn


def edited(value, dice, depth=0):
    """Return JSON with one thing changed somewhere, also inside texts that are JSON."""
    if isinstance(value, dict | list) and value and depth < 6 and dice.random() < 0.85:
        key = dice.choice(list(value)) if isinstance(value, dict) else dice.randrange(len(value))
        how = dice.random()
        if how < 0.12:
            del value[key]
        elif how < 0.24 and isinstance(value, dict):
            value[str(anything(dice))[:50]] = copy.deepcopy(value[key])
        elif how < 0.24:
            value.insert(key, anything(dice))
        else:
            value[key] = edited(value[key], dice, depth + 1)
        return value
    if isinstance(value, str) and value[:1] in ("[", "{") and value[:4] != "[[[[" and dice.random() < 0.7:
        with contextlib.suppress(ValueError):
            return json.dumps(edited(json.loads(value), dice, depth + 1))
    if isinstance(value, str) and value and dice.random() < 0.4:
        at = dice.randrange(len(value))
        return value[:at] + dice.choice(["", "-", "9", "x", "\0", "e9", "/0"]) + value[at + dice.randrange(2) :]
    if isinstance(value, int) and dice.random() < 0.5:
        return value + dice.choice([-1, 1, -value, value, 2**40])
    return anything(dice)


def damaged(data, dice):
    data = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 5])):
        how, at = dice.random(), dice.randrange(max(1, len(data)))
        if how < 0.4 and data:
            data[at] = dice.randrange(256)
        elif how < 0.6:
            del data[at:]
        elif how < 0.8:
            data[at:at] = dice.choice([b"\xff", b"{", b"[", b"\0" * 8, b'"', b"9" * 20])
        else:
            del data[at : at + dice.randrange(64)]
    return bytes(data)


def edited_text(data, dice):
    """Return lines of JSON, or a JSON text, with one of them edited; or damaged bytes."""
    if dice.random() < 0.3:
        return damaged(data, dice)
    lines = data.split(b"\n")
    at = dice.randrange(max(1, len(lines) - 1))
    with contextlib.suppress(ValueError):
        lines[at] = json.dumps(edited(json.loads(lines[at]), dice)).encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def edited_safetensors(data, dice):
    if dice.random() < 0.3:
        return damaged(data, dice)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    for _ in range(dice.choice([1, 1, 2, 3])):
        header = edited(header, dice)
    text = json.dumps(header).encode()
    size = len(text) if dice.random() < 0.9 else dice.choice([0, 2**63, len(text) - 1, len(text) + 1])
    return size.to_bytes(8, "little") + text + data[end:]


def look_at_latents(path):
    latents = open_latents(path)
    _ = latents.latents, latents.frame_times, latents.seconds(), latents.channel_stats(), latents.read(0, 1)
    describe(path)


def decode(path):
    output = f"{path}.npy"
    try:
        decode_video(path, output)
        os.unlink(output)
    finally:
        assert not os.path.exists(output)


def watch(path):
    """Ask everything that movq can tell about a video, each time in a process of its own."""
    for look in (probe, count_frames, lambda path: list(read_frames(path))):
        with contextlib.suppress(MovqError):
            look(path)


def look_at_weights(path):
    describe(path)
    _ = open_checkpoint(path).digest


def describe(path):
    values, show = _describe(str(path), True, None, None)
    json.dumps(values, default=str)
    show()


def look_at_batch(path):
    folder = os.path.dirname(path)
    lines = read_folder(folder)
    places: dict[str, bool] = {}
    summarise(note_places(read_batch(folder), places)), compare_outputs(places, folder), Known(lines.values())
    describe(folder)
    dataset = LatentDataset(folder)
    repr(dataset)
    for i in range(len(dataset)):
        with contextlib.suppress(MovqError):
            dataset[i], dataset.slice(i, 1, 2)


def look_at_list(path):
    with contextlib.suppress(MovqError):
        read_captions(path)
    with contextlib.suppress(MovqError):
        read_metadata(path, {os.path.join(os.path.dirname(path), "a.mp4")}, [os.path.dirname(path)])
    rows = RowList(path)
    rows.remark, rows.unused_captions  # noqa: B018  # properties that read it
    list(rows)


def look_at_record(path):
    record = read_record(os.path.dirname(path))
    shlex.join(record.command)
    record.again(EncodeOptions(), BatchOptions(workers=2))


class Fuzz:
    """Good files, and for each kind of them how it is edited and read."""

    def __init__(self, folder):
        (folder / "in").mkdir()
        for i in range(2):
            clips.write(folder / "in" / f"{i}.mp4", clips.pictures(5, 48, 32))
            (folder / "in" / f"{i}.txt").write_text("a caption")
        for layout in ("files", "tar"):
            encode_batch([folder / "in"], folder / layout, layout=layout, buckets=["5x32x48"], workers=0)
        shutil.copy(embedded_weights(), folder / "weights.safetensors")
        for name in ("latents", "decoded"):
            shutil.copy(folder / "files" / "0.mp4.safetensors", folder / f"{name}.safetensors")
        tar, index = "tar/latents-00000.tar", "tar/latents-00000.index.json"
        self.folder = folder
        self.kinds = {
            "latents.safetensors": (edited_safetensors, look_at_latents),
            "decoded.safetensors": (edited_safetensors, decode),
            "weights.safetensors": (edited_safetensors, look_at_weights),
            "files/manifest.jsonl": (edited_text, look_at_batch),
            "files/run.json": (edited_text, look_at_record),
            "tar/manifest.jsonl": (edited_text, look_at_batch),
            index: (edited_text, look_at_batch),
            tar: (damaged, look_at_batch),
        }
        for suffix in (".mp4", ".mkv", ".avi", ".ts"):
            self.kinds[clips.write(folder / f"video{suffix}", clips.pictures(9)).name] = damaged, watch
        self.kinds[clips.still(folder / "video.png", clips.picture(64, 48), "png").name] = damaged, watch
        self.good = {name: (folder / name).read_bytes() for name in self.kinds}
        for suffix in (".csv", ".jsonl", ".json", ".tsv", ".txt", ""):
            self.kinds[f"list{suffix}"] = edited_text, look_at_list
        self.index = folder / index

    def once(self, dice, only=""):
        """Try one edited file and return (kind, bytes, traceback of an error other than MovqError, or None).

        `only` is what the kind's name must begin with.
        """
        name = dice.choice([name for name in self.kinds if name.startswith(only)])
        edit, look = self.kinds[name]
        data = edit(self.good.get(name) or dice.choice(LISTS), dice)
        (self.folder / name).write_bytes(data)
        if name.endswith(".tar") and dice.random() < 0.7:
            self.index.unlink()
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                look(str(self.folder / name))
        except MovqError:
            pass
        except Exception:
            return name, data, traceback.format_exc()
        finally:
            for of in (name, str(self.index.relative_to(self.folder))):
                if of in self.good:
                    (self.folder / of).write_bytes(self.good[of])
        return name, data, None


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    return Fuzz(tmp_path_factory.mktemp("fuzz"))


SHORT = {"latents": 80, "decoded": 40, "weights": 80, "files": 80, "tar": 160, "list": 160, "video": 12}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHORT)
def test_nothing_but_a_movq_error(fuzz, kind):
    dice = random.Random(kind)
    for _ in range(SHORT[kind]):
        name, data, surprise = fuzz.once(dice, kind)
        assert surprise is None, (name, data[:5000], surprise)


def main(seconds, seed, only=""):
    dice, counts, end = random.Random(seed), Counter(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder))
        while time.monotonic() < end:
            name, data, surprise = fuzz.once(dice, only)
            counts[name] += 1
            if surprise is not None:
                counts["surprises"] += 1
                print(name, data[:2000], surprise, sep="\n", flush=True)
    print(f"{sum(counts.values()) - counts['surprises']} executions: {dict(counts)}")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
