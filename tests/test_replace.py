"""Other options for the same command leave a finished batch as it is, unless they may replace it."""

import csv
import json
import os
import re
import shutil
from fractions import Fraction

import pytest

from movq_cli import EncodeOptions, LatentDataset, MovqError, MovqWarning, Picture, Selection, encode_batch, plan_batch
from movq_cli.batch.item import Item
from movq_cli.batch.manifest import Line
from movq_cli.batch.probe import Known
from movq_cli.checkpoints.checkpoint import EMBEDDED
from movq_cli.cli import run
from movq_cli.errors import MovqHangError
from movq_cli.files import FileIdentity
from movq_cli.video import VideoFacts

from .helpers import clips
from .helpers.batches import manifest


@pytest.fixture
def batch(tmp_path):
    """Encode `in/a.mp4`, `in/b.mp4` and `in/c.mp4` to `out`, and return the ids of what was made."""
    (tmp_path / "in").mkdir()
    for skipped, name in enumerate("abc"):  # of equal videos only one would be encoded
        clips.write(tmp_path / "in" / f"{name}.mp4", clips.pictures(9 + skipped)[skipped:])

    def make(**options):
        return {line["id"] for line in encode_batch([tmp_path / "in"], tmp_path / "out", workers=0, **options).made}

    make.folder = tmp_path
    return make


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


EVERYTHING = {"a.mp4", "b.mp4", "c.mp4"}
OTHERS = [
    ({"selection": Selection(frames=5)}, {}, "frames=5", "all frames"),
    pytest.param({}, {"selection": Selection(frames=5)}, "all frames", "frames=5", marks=pytest.mark.slow),
    pytest.param({"buckets": ["5x32x48"]}, {}, "buckets=5x32x48", "no buckets", marks=pytest.mark.slow),
    ({"save": "mean"}, {"tail": "drop"}, "save=mean, tail=pad", "save=moments, tail=drop"),
    pytest.param(
        {"precision": "fp32"}, {"precision": "bf16"}, "precision=fp32", "precision=bf16", marks=pytest.mark.slow
    ),
    pytest.param(
        {"buckets": ["5x32x48"]},
        {"buckets": ["49x32x48"]},
        "buckets=5x32x48",
        "buckets=49x32x48",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(
    ("before", "after", "made", "wanted"), OTHERS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_forgotten_option_replaces_nothing(batch, before, after, made, wanted):
    assert batch(**before) == EVERYTHING
    there = files(batch.folder)
    says = f"3 finished outputs here were made with {made}; this command says {wanted}. Use replace=True to make them again"
    with pytest.raises(MovqError, match=re.escape(says)):
        batch(**after)
    with pytest.raises(MovqError, match=re.escape(says)):
        plan_batch([batch.folder / "in"], batch.folder / "out", **after)
    assert files(batch.folder) == there
    assert batch(**before) == set()
    assert batch(**after, replace=True) == EVERYTHING
    assert batch(**after) == set()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["files", "tar"])
def test_other_weights_are_named(batch, make_weights, layout, capsys):
    weights = str(make_weights())
    assert batch(weights=weights, selection=Selection(frames=5), layout=layout) == EVERYTHING
    command = ["batch-encode", str(batch.folder / "in"), "-o", str(batch.folder / "out"), "--workers", "0"]
    there = files(batch.folder)
    for more in ([], ["--dry-run"]):
        assert run([*command, *more]) == 1
        assert (
            f"movq: {batch.folder / 'out'}: 3 finished outputs here were made with small, --frames 5; this command says "
            f"{EMBEDDED}, all frames. Use --replace to make them again, another folder, or --again to go on as before\n"
        ) in capsys.readouterr().err
    assert files(batch.folder) == there
    assert run([*command, "--replace", "--dry-run"]) == 0
    assert "to encode    3, of 27 frames" in capsys.readouterr().out
    assert run([*command, "--replace"]) == 0
    assert run(command) == 0
    assert "nothing new" in capsys.readouterr().out


@pytest.mark.slow
def test_only_what_the_command_names_is_compared(batch):
    batch(save="mean")
    result = encode_batch(
        [batch.folder / "in" / "a.mp4"],
        batch.folder / "out",
        workers=0,
        save="mean",
        selection=Selection(frames=5),
        replace=True,
    )
    assert {line["id"] for line in result.made} == {"a.mp4"}
    clips.write(batch.folder / "d.mp4", clips.pictures(5))
    made = encode_batch([batch.folder / "d.mp4"], batch.folder / "out", workers=0).made
    assert [line["status"] for line in made] == ["done"]
    with pytest.raises(MovqError, match="1 finished output here was made with frames=5; this command says all frames"):
        batch(save="mean")
    with pytest.raises(MovqError, match="2 finished outputs here were made with save=mean, and 1 with others; this"):
        batch()


def test_what_is_out_of_date_is_made_again_unasked(batch):
    """A video has other contents, an output is damaged, another has an old format: options do not matter."""
    batch(save="mean")
    clips.write(batch.folder / "in" / "a.mp4", clips.pictures(12))
    with open(batch.folder / "out" / "b.mp4.safetensors", "r+b") as file:
        file.truncate(100)
    path = batch.folder / "out" / "manifest.jsonl"
    lines = [json.loads(text) for text in path.open()]
    lines[2]["format_version"] = "0"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert batch() == EVERYTHING


def test_a_row_that_was_changed_is_made_again_unasked(tmp_path):
    clips.write(tmp_path / "a.mp4", clips.pictures(12))

    def make(start, **options):
        with open(tmp_path / "list.csv", "w", newline="") as file:
            csv.writer(file).writerows([["path", "id", "start"], ["a.mp4", "one", start]])
        return len(encode_batch([], tmp_path / "out", lists=[tmp_path / "list.csv"], workers=0, **options).made)

    assert make("") == 1
    assert make("0.2") == 1
    assert make("0.1") == 1
    assert make("0.1") == 0
    with pytest.raises(
        MovqError, match="1 finished output here was made with save=moments; this command says save=mean"
    ):
        make("0.2", save="mean")


def test_a_whole_video_replaces_what_was_there_of_a_part(tmp_path):
    data = clips.write(tmp_path / "cut.mkv", clips.pictures(40), options={"g": "8"}).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])

    def make(allow, **options):
        selection = Selection(allow_partial=allow)
        result = encode_batch([tmp_path / "cut.mkv"], tmp_path / "out", selection=selection, workers=0, **options)
        return [line["status"] for line in result.made]

    assert make(True) == ["done"]
    assert make(True) == []
    assert make(False) == ["failed"]


@pytest.mark.slow
def test_an_option_that_only_allows_something_leaves_what_was_made_without_it(batch):
    assert batch(buckets=["5x32x48"]) == EVERYTHING
    clips.write(batch.folder / "in" / "small.mp4", clips.pictures(5, 40, 24))
    assert batch(buckets=["5x32x48"]) == {"small.mp4"}
    assert batch(buckets=["5x32x48"], picture=Picture(upscale=True)) == {"small.mp4"}
    assert batch(buckets=["5x32x48"], picture=Picture(upscale=True)) == set()
    with pytest.raises(
        MovqError, match="1 finished output here was made with upscale=True; this command says no upscale"
    ):
        batch(buckets=["5x32x48"])


VERDICTS = [
    ("skipped", {"buckets": ["49x32x48"]}, {}, "done"),
    pytest.param("skipped", {"buckets": ["49x32x48"]}, {"buckets": ["5x32x48"]}, "done", marks=pytest.mark.slow),
    ("skipped", {"buckets": ["5x320x480"]}, {}, "done"),
    ("failed", {"selection": Selection(fps=50), "buckets": ["5x32x48"]}, {"buckets": ["5x32x48"]}, "done"),
    pytest.param("failed", {"selection": Selection(fps=50)}, {}, "done", marks=pytest.mark.slow),
    pytest.param(
        "skipped",
        {"selection": Selection(frames=49), "pick": "head"},
        {"selection": Selection(frames=5), "pick": "head"},
        "done",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("status", "before", "after", "then"), VERDICTS)
def test_a_verdict_goes_with_what_caused_it(batch, status, before, after, then):
    def make(options):
        lines = encode_batch([batch.folder / "in"], batch.folder / "out", workers=0, **options).lines
        return {line["status"] for line in lines}

    assert make(before) == {status}
    assert make(before) == {status}
    assert make(after) == {then}


@pytest.mark.slow
def test_a_verdict_of_weights_goes_with_them(batch, make_weights):
    def broken(tensors):
        tensors["encoder.conv_in.conv.weight"].fill_(1e38)

    result = encode_batch(
        [batch.folder / "in"], batch.folder / "out", workers=0, weights=str(make_weights(change=broken))
    )
    assert {line["status"] for line in result.lines} == {"failed"}
    shutil.copy(make_weights("good.safetensors"), batch.folder / "good")
    assert batch(weights=str(batch.folder / "good")) == EVERYTHING


@pytest.mark.slow
def test_a_verdict_of_a_precision_goes_with_it(batch, make_weights):
    """A failure in one precision tells nothing about the precision to take if none is named."""

    def large(tensors):
        tensors["encoder.conv_in.conv.weight"].fill_(1e38)

    weights = str(make_weights(change=large))
    lines = encode_batch(
        [batch.folder / "in"], batch.folder / "out", workers=0, weights=weights, precision="bf16"
    ).lines
    assert {(line["status"], line["precision"]) for line in lines} == {("failed", "bf16")}
    assert batch(weights=weights) == EVERYTHING  # tried again, in the precision that suits


def test_a_refusal_is_remembered_only_for_what_it_depended_on(tmp_path):
    """Refusals are kept by what was asked of the video, before it is cut into items."""
    clip = clips.write(tmp_path / "a.mp4", clips.pictures(5))
    item = Item("a.mp4", str(clip), "")
    source = FileIdentity.of(os.stat(clip))
    line = Line(id="a.mp4", path=str(clip), status="failed", reason="is damaged", cause="refused", source=source)
    asked = EncodeOptions(selection=Selection(fps=Fraction(50)))
    known = Known([line | Line(seen=VideoFacts(), options=asked.choices)])
    assert known.of(item, source, asked).reason == "is damaged"
    for other in (Selection(), Selection(fps=Fraction(50), allow_partial=True), Selection(start=Fraction(1))):
        assert known.of(item, source, EncodeOptions(selection=other)) is None
    assert known.of(item, source._replace(size=0), asked) is None


@pytest.mark.slow
@pytest.mark.parametrize("bucket", ["5x320x480", "49x32x48"])
@pytest.mark.parametrize("layout", ["files", "tar"])
def test_what_is_finished_does_not_fail_by_another_option(batch, bucket, layout):
    """With a bucket that no video fills, all of them would be failed or short."""
    batch(layout=layout)
    there = files(batch.folder)
    with pytest.raises(MovqError, match=f"made with no buckets; this command says buckets={bucket}"):
        batch(buckets=[bucket])
    assert files(batch.folder) == there
    assert batch(buckets=[bucket], replace=True) == EVERYTHING


def test_what_is_finished_is_kept_while_its_video_is_away(tmp_path):
    """A list still names a video whose disk is not mounted."""
    (tmp_path / "in").mkdir()
    clips.write(tmp_path / "in" / "a.mp4", clips.pictures(5))
    (tmp_path / "list.txt").write_text("in/a.mp4\n")

    def make(**options):
        return len(encode_batch([], tmp_path / "out", lists=[tmp_path / "list.txt"], workers=0, **options).made)

    assert make() == 1
    (tmp_path / "in").rename(tmp_path / "away")
    with pytest.warns(MovqWarning, match=r"in/a\.mp4: cannot be read now; its finished output is kept"):
        assert make() == 0
    with pytest.raises(MovqError, match="says save=mean"):
        make(save="mean")
    (tmp_path / "away").rename(tmp_path / "in")
    assert make() == 0


def test_what_is_finished_is_kept_when_looking_at_its_video_fails(batch, monkeypatch):
    options = {"buckets": ["5x32x48"]}
    assert batch(**options) == EVERYTHING
    lines = (batch.folder / "out" / "manifest.jsonl").read_bytes()
    for path in (batch.folder / "in").iterdir():
        os.utime(path, (1, 1))  # so that it is looked at again
    monkeypatch.setattr(
        "movq_cli.batch.probe.survey", lambda requests: (MovqHangError("no sign of life") for _ in requests)
    )
    with pytest.warns(MovqWarning, match="its finished output is kept, and 2 like it"):
        assert batch(**options) == set()
    monkeypatch.undo()
    assert batch(**options) == set()
    strip = [{k: v for k, v in json.loads(line).items() if k != "source"} for line in lines.splitlines()]
    after = (batch.folder / "out" / "manifest.jsonl").read_bytes().splitlines()
    assert [{k: v for k, v in json.loads(line).items() if k != "source"} for line in after] == strip


@pytest.mark.slow
def test_the_type_that_auto_stores_may_be_named(batch):
    assert batch(precision="fp32") == EVERYTHING
    assert batch(precision="fp32", store_dtype="fp32") == set()
    with pytest.raises(MovqError, match="store_dtype=auto; this command says store_dtype=bf16"):
        batch(precision="fp32", store_dtype="bf16")


def test_a_shard_that_is_refused_leaves_nothing(batch):
    batch()
    before = files(batch.folder)
    for i in range(2):
        with pytest.raises(MovqError, match="Use replace=True"):
            batch(shard=f"{i}/2", save="mean")
    assert files(batch.folder) == before
    LatentDataset(batch.folder / "out", scale=1.0)


@pytest.mark.slow
def test_a_second_source_is_computed_as_the_first_was(batch):
    batch(precision="fp32")
    clips.write(batch.folder / "d.mp4", clips.pictures(5))
    (line,) = encode_batch([batch.folder / "d.mp4"], batch.folder / "out", workers=0).lines
    assert line["precision"] == "fp32"


@pytest.mark.slow
def test_a_slower_video_is_made_again_where_frames_may_repeat(batch):
    """The last frame is then shown until it ends, which gives one frame more here."""
    rate = Selection(fps=Fraction(50, 3))
    assert batch(selection=rate) == EVERYTHING
    with pytest.raises(MovqError, match="no fps_repeat; this command says fps_repeat=True"):
        batch(selection=Selection(fps=Fraction(50, 3), fps_repeat=True))


@pytest.mark.parametrize("options", [{"buckets": ["5x32x48"]}, {"buckets": ["5x32x48"], "pick": "head"}])
def test_spans_that_were_cut_otherwise_are_not_left_over_unasked(batch, options):
    spans = batch(buckets=["5x32x48"], pick="slide:4")
    assert len(spans) == 6
    with pytest.raises(MovqError, match="finished spans here were cut with pick=slide:4; this command says"):
        batch(**options)
    assert not any(line.get("orphan") for line in manifest(batch.folder / "out").values())
    batch(replace=True, **options)
    assert any(line.get("orphan") for line in manifest(batch.folder / "out").values())


def test_a_folder_was_moved_and_all_videos_of_a_part_of_it_changed(batch):
    source = batch.folder / "in"
    (source / "sub").mkdir()
    os.rename(source / "c.mp4", source / "sub" / "c.mp4")
    batch()
    os.rename(source, batch.folder / "elsewhere")
    clips.write(batch.folder / "elsewhere" / "sub" / "c.mp4", clips.pictures(12))
    result = encode_batch([batch.folder / "elsewhere"], batch.folder / "out", workers=0)
    assert [line["id"] for line in result.made] == ["sub/c.mp4"]
