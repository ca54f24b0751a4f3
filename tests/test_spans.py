"""Captions, buckets and spans: which items are cut out of videos, and that they equal what `movq encode` makes."""

import json
import os
import re
from fractions import Fraction

import numpy as np
import pytest

from movq_cli import LatentDataset, MovqError, MovqUsageError, Selection, encode_batch, encode_video, open_latents
from movq_cli.batch.cut import check_cut, cut_item, in_order
from movq_cli.batch.discover import find_items
from movq_cli.batch.item import Item
from movq_cli.batch.prepare import cut_items
from movq_cli.codec import fit_tail
from movq_cli.model import AutoencoderConfig
from movq_cli.options import BatchOptions, EncodeOptions, Picture
from movq_cli.values import Bucket, Pick
from movq_cli.video import VideoFacts, read_frames
from movq_cli.video.selection import Shown, select

from .helpers import clips
from .helpers.batches import manifest, tree
from .helpers.models import SMALL

CONFIG = AutoencoderConfig(**SMALL)


def cut(seen, buckets=(), pick=None, short="skip", **options):
    """Return the items cut out of a video of (frames, width, height), as (id, shape), or the reason for none."""
    batch = BatchOptions(buckets=tuple(map(Bucket.parse, buckets)), pick=pick and Pick.parse(pick), short=short)
    frames = options.pop("frames", None)
    picture = Picture(**{name: options.pop(name) for name in ("upscale", "height", "width") if name in options})
    settings = EncodeOptions(selection=Selection(frames=frames), picture=picture, short="refuse", **options)
    check_cut(batch, settings, CONFIG)
    item = Item("v.mp4", "/v.mp4", "v.mp4.safetensors")
    items = cut_item(item.updated(facts=VideoFacts(*seen)), batch, settings, CONFIG)
    if items[0].refusal:
        return items[0].refusal.cause, str(items[0].refusal)
    return [(item.id, item.shape) for item in items]


def whole(frames, height, width):
    return [("v.mp4", (frames, height, width))]


@pytest.mark.parametrize(
    ("seen", "buckets", "chosen"),
    [
        ((50, 640, 360), ["17x48x80", "49x48x80", "81x48x80"], (49, 48, 80)),  # the longest that fits
        ((49, 640, 360), ["17x48x80", "49x48x80"], (49, 48, 80)),
        ((48, 640, 360), ["17x48x80", "49x48x80"], (17, 48, 80)),
        ((50, 640, 360), ["17x48x80", "49x80x48"], (49, 80, 48)),  # frames come before the aspect
        ((50, 640, 360), ["49x64x64", "49x48x80", "49x80x48"], (49, 48, 80)),  # then the nearest aspect
        ((50, 360, 640), ["49x64x64", "49x48x80", "49x80x48"], (49, 80, 48)),
        ((50, 500, 490), ["49x64x64", "49x48x80", "49x80x48"], (49, 64, 64)),
        ((50, 640, 360), ["49x48x80", "49x96x160", "49x480x800"], (49, 96, 160)),  # the largest that enlarges nothing
        ((50, 64, 48), ["49x96x128", "17x48x64"], (17, 48, 64)),  # not enlarging comes before frames
        ((1, 640, 360), ["49x48x80", "1x48x80"], (1, 48, 80)),  # a picture
    ],
)
def test_buckets(seen, buckets, chosen):
    assert cut(seen, buckets) == whole(*chosen)
    assert cut(seen, buckets[::-1]) == whole(*chosen)


def test_what_fits_no_bucket():
    assert cut((16, 640, 360), ["17x48x80", "49x48x80"]) == (
        "short",
        "has only 16 frames; the shortest bucket needs 17",
    )
    cause, reason = cut((60, 64, 48), ["49x96x128"])
    assert (cause, "64x48" in reason, "upscale=True" in reason) == ("small", True, True)
    assert cut((60, 64, 48), ["49x96x128", "49x96x96"], upscale=True) == whole(49, 96, 128)
    assert cut((16, 640, 360), ["17x48x80", "49x48x80"], short="pad") == whole(17, 48, 80)
    assert cut((0, 640, 360), ["17x48x80"])[1] == "has no frame in the range asked for"


def test_frames_alone():
    assert cut((30, 64, 48), frames=17) == whole(17, 48, 64)
    assert cut((16, 64, 48), frames=17) == ("short", "has 16 of the 17 frames asked for")
    assert cut((16, 64, 48), frames=17, short="pad") == whole(17, 48, 64)
    assert cut((16, 64, 48), frames=30, short="pad") == whole(33, 48, 64)
    assert cut((16, 60, 44)) == whole(17, 48, 64)  # tail and edges are padded as always
    assert cut((16, 60, 44), tail="drop") == whole(13, 48, 64)
    assert cut((16, 60, 44), tail="error")[0] == "refused"


@pytest.mark.parametrize(
    ("pick", "frames", "starts"),
    [
        ("head", 40, [0]),
        ("uniform:1", 40, [11]),
        ("uniform:2", 40, [0, 23]),
        ("uniform:3", 40, [0, 12, 23]),
        ("uniform:9", 19, [0, 1, 2]),  # no span twice
        ("slide:10", 40, [0, 10, 20]),
        ("slide:17", 51, [0, 17, 34]),
        ("slide:17", 50, [0, 17]),
        ("random:99", 19, [0, 1, 2]),
        ("slide:5", 17, [0]),
    ],
)
def test_picks(pick, frames, starts):
    assert cut((frames, 64, 48), pick=pick, frames=17) == [(f"v.mp4_{at}-17", (17, 48, 64)) for at in starts]
    assert cut((frames, 64, 48), ["17x48x64"], pick) == [(f"v.mp4_{at}-17", (17, 48, 64)) for at in starts]


def test_random_spans_depend_on_the_seed_and_the_video_alone():
    pick = Pick.parse("random:5")
    starts = pick.starts(200, 17, "0 a.mp4")
    assert len(set(starts)) == 5
    assert starts == sorted(starts)
    assert starts[0] >= 0
    assert starts[-1] <= 183
    assert pick.starts(200, 17, "0 a.mp4") == starts
    assert pick.starts(200, 17, "1 a.mp4") != starts
    assert pick.starts(200, 17, "0 b.mp4") != starts
    drawn = {at for i in range(300) for at in pick.starts(20, 17, str(i))}
    assert drawn == {0, 1, 2, 3}
    assert cut((200, 64, 48), pick="random:5", frames=17) != cut((200, 64, 48), pick="random:5", frames=17, seed=1)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((text, Bucket) for text in ("17x48", "0x48x64", "17x48x64x3", "axbxc", "-1x8x8")),
        *((text, Pick) for text in ("tail", "slide", "slide:0", "uniform:x", "head:2", "random:-1")),
    ],
)
def test_what_cannot_be_read_is_a_usage_error(text, kind):
    with pytest.raises(MovqUsageError, match="must be"):
        kind.parse(text)


def test_what_does_not_go_together():
    for arguments in (
        {"pick": "head"},
        {"short": "pad"},
        {"buckets": ["17x48x64"], "height": 48},
        {"short": "perhaps"},
    ):
        with pytest.raises(MovqUsageError):
            cut((30, 64, 48), **arguments)


def test_items_of_one_shape_run_together():
    shapes = [(17, 48, 64), (1, 48, 64), None, (17, 48, 64), (1, 48, 64), (17, 64, 48)]
    items = [Item(str(i), "", "", shape=shape) for i, shape in enumerate(shapes)]
    assert [item.id for item in in_order(items)] == ["2", "1", "4", "0", "3", "5"]


def test_tail_of_what_is_padded_to_a_length():
    for frames in range(1, 30):
        for least in range(30):
            padded, dropped = fit_tail(frames, "pad", 4, least)
            kept = frames + padded - dropped
            assert (dropped, kept % 4) == (0, 1)
            assert max(frames, least) <= kept < max(frames, least) + 4
            padded, dropped = fit_tail(frames, "drop", 4, least)
            kept = frames + padded - dropped
            assert kept % 4 == 1
            assert max(frames, least) - 4 < kept <= max(frames, least)
            assert min(padded, dropped) == 0


def test_every_and_skip():
    def taken(**selection):
        shown = [Shown(i, Fraction(i), Fraction(i + 1), None) for i in range(20)]
        return [(frame.index, frame.end) for frame in select(shown, Selection(**selection))]

    assert taken(every=3) == [(0, 3), (3, 6), (6, 9), (9, 12), (12, 15), (15, 18), (18, 20)]
    assert taken(every=3, skip=2, frames=3) == [(6, 9), (9, 12), (12, 15)]
    assert taken(fps=Fraction(1, 2), every=2, frames=2) == [(0, 4), (4, 8)]
    assert taken(skip=18) == [(18, 19), (19, 20)]
    assert taken(skip=30) == []
    with pytest.raises(MovqUsageError, match="every"):
        Selection(every=0)


def test_every_of_a_real_video(tmp_path, movq):
    pictures = clips.pictures(20)
    clips.lossless(tmp_path / "a.mkv", pictures)
    with read_frames(tmp_path / "a.mkv", Selection(every=4, skip=1, frames=3)) as frames:
        found = [(frame.index, frame.image) for frame in frames]
    assert [index for index, _ in found] == [4, 8, 12]
    assert all(np.array_equal(image, pictures[index]) for index, image in found)
    result = movq("encode", "a.mkv", "-o", "a.safetensors", "--every", 4)
    assert result.returncode == 0, result.stderr
    latents = open_latents(tmp_path / "a.safetensors")
    assert latents.frame_indices.tolist() == [0, 4, 8, 12, 16]
    assert (latents.metadata.fps, latents.metadata.duration) == (Fraction(25, 4), pytest.approx(0.8))


# Captions.


def captions(*sources, **options):
    found = find_items(list(map(str, sources)), [], "no/such/folder", **options)
    return {item.id: item.caption for item in found.items}, found.ignored


def test_captions_beside_videos(tmp_path):
    for name in ("a.mp4", "b.mkv", "b.mp4", "c.mp4", "d.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf a cat,\r\non two lines \r\n")
    (tmp_path / "b.txt").write_text("both")
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    (tmp_path / "other.txt").write_text("of nothing")
    found, skipped = captions(tmp_path)
    assert found == {"a.mp4": "a cat,\non two lines", "b.mkv": "both", "b.mp4": "both", "c.mp4": None, "d.mp4": None}
    assert [(path.rpartition("/")[2], why) for path, why in skipped] == [
        ("c.txt", "a caption that is not UTF-8, so that its video has none"),
        ("other.txt", "not a video or picture by its name"),
    ]


def test_captions_of_a_file_pair_by_line(tmp_path):
    for name in ("b.mp4", "a.mp4", "c.mp4"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    (tmp_path / "prompts.txt").write_bytes(b"one\r\ntwo\r\nthree\n\n \n")
    prompts = str(tmp_path / "prompts.txt")
    assert captions(tmp_path / "in", captions=prompts)[0] == {"a.mp4": "one", "b.mp4": "two", "c.mp4": "three"}
    (tmp_path / "list.txt").write_text("in/c.mp4\nin/a.mp4\nin/b.mp4\n")
    found = find_items([], [str(tmp_path / "list.txt")], "out", prompts)
    assert {item.id: item.caption for item in found.items} == {
        "in/c.mp4": "one",
        "in/a.mp4": "two",
        "in/b.mp4": "three",
    }
    for text in ("one\ntwo\n", "1\n2\n3\n4\n"):
        (tmp_path / "prompts.txt").write_text(text)
        with pytest.raises(MovqError, match=r"prompts\.txt: has \d captions for 3 items"):
            captions(tmp_path / "in", captions=prompts)
        with pytest.raises(MovqError, match=r"prompts\.txt: has \d captions for 3 items"):
            find_items([], [str(tmp_path / "list.txt")], "out", prompts)
    (tmp_path / "prompts.txt").write_text("1\n\n3\n")
    with pytest.raises(MovqError, match=r"prompts\.txt: line 2 is empty"):
        captions(tmp_path / "in", captions=prompts)
    (tmp_path / "prompts.txt").write_text("1\n2\n3\n")
    (tmp_path / "list.csv").write_text("path,caption\nin/a.mp4,mine\nin/b.mp4,\nin/c.mp4,\n")
    for sources, lists in (([], ["list.csv"]), (["in"], ["list.txt"]), ([], ["list.txt", "list.csv"])):
        with pytest.raises(MovqUsageError, match="captions"):
            find_items([str(tmp_path / s) for s in sources], [str(tmp_path / s) for s in lists], "out", prompts)


# Real batches.

BUCKETS = ("17x48x64", "17x64x48", "1x48x64")
HEAD = ("--frames", 17, "--pick", "head", "--workers", 0)


def again(folder, **options):
    settings = {"buckets": BUCKETS, "pick": "slide:8", "workers": 0} | options
    return encode_batch([settings.pop("source", folder / "in")], folder / "out", **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make wide and tall videos, a picture, a video too small, a text, and captions; encode them in buckets."""
    made = tmp_path_factory.mktemp("spans")
    (made / "in").mkdir()
    for name, count, width, height in (("wide", 34, 96, 64), ("tall", 20, 64, 96), ("small", 30, 40, 40)):
        clips.write(made / "in" / f"{name}.mp4", clips.pictures(count, width, height))
        (made / "in" / f"{name}.txt").write_text(f"a {name} one")
    clips.still(made / "in" / "still.png", clips.picture(80, 64), "png")
    (made / "in" / "bad.mp4").write_text("no video")
    again(made)
    return made


def test_what_a_batch_in_buckets_comes_to(folder):
    lines = manifest(folder / "out")
    assert {name: line.get("shape") or line["reason"] for name, line in lines.items()} == {
        "wide.mp4_0-17": [1, 32, 5, 6, 8],
        "wide.mp4_8-17": [1, 32, 5, 6, 8],
        "wide.mp4_16-17": [1, 32, 5, 6, 8],
        "tall.mp4_0-17": [1, 32, 5, 8, 6],
        "still.png_0-1": [1, 32, 1, 6, 8],
        "small.mp4": "shows 40x40, which would be enlarged for every bucket of up to 30 frames; --upscale allows it",
        "bad.mp4": "is not a video movq can read (invalid data found when processing input)",
    }
    assert {line["caption"] for name, line in lines.items() if name.startswith("wide")} == {"a wide one"}
    assert lines["wide.mp4_8-17"]["of"] == "wide.mp4"
    assert lines["wide.mp4_8-17"]["output"] == "wide.mp4_8-17.safetensors"
    assert open_latents(folder / "out" / "wide.mp4_8-17.safetensors").frame_indices.tolist() == list(range(8, 25))


@pytest.mark.slow
def test_spans_made_by_workers_are_the_same_bytes(folder, tmp_path):
    again(tmp_path, source=folder / "in", workers=2)
    assert tree(tmp_path / "out") == tree(folder / "out")


def test_info_has_shapes_and_captions(folder, movq):
    shown = movq("info", folder / "out").stdout
    for part in ("1 x 32 x 5 x 6 x 8: 3 items", "1 x 32 x 5 x 8 x 6: 1 item\n", "captions  4 of 5 items\n"):
        assert part in shown
    values = json.loads(movq("info", "--json", folder / "out").stdout)
    assert [[1, 32, 5, 6, 8], 3] in values["shapes"]


def test_a_span_is_what_encode_makes_of_it(folder, tmp_path):
    selection, picture = Selection(skip=8, frames=17), Picture(48, 64)
    encode_video(folder / "in" / "wide.mp4", tmp_path / "a", selection=selection, picture=picture, threads=1)
    assert (tmp_path / "a").read_bytes() == (folder / "out" / "wide.mp4_8-17.safetensors").read_bytes()


def made(result):
    return {line["id"] for line in result.made}


@pytest.mark.slow
def test_spans_are_resumed_by_content_and_captions_edited_without_encoding(folder, tmp_path):
    from shutil import copytree

    copytree(folder, tmp_path, dirs_exist_ok=True)
    again(tmp_path)  # the copies have new inodes
    before = tree(tmp_path / "out")
    assert made(again(tmp_path)) == set()
    (tmp_path / "in" / "wide.txt").write_text("edited")
    (tmp_path / "in" / "tall.txt").unlink()
    assert made(again(tmp_path)) == set()
    lines = manifest(tmp_path / "out")
    assert {line["caption"] for name, line in lines.items() if name.startswith("wide")} == {"edited"}
    assert "caption" not in lines["tall.mp4_0-17"]
    after = tree(tmp_path / "out")
    del before["manifest"], after["manifest"]
    assert after == before
    clips.write(tmp_path / "in" / "tall.mp4", clips.pictures(26, 64, 96))
    assert made(again(tmp_path)) == {"tall.mp4_0-17", "tall.mp4_8-17"}
    result = again(tmp_path, pick="slide:16", replace=True)
    assert made(result) == set()
    assert result.orphans == ["tall.mp4_8-17.safetensors", "wide.mp4_8-17.safetensors"]  # spans no longer wanted
    assert {name for name, line in manifest(tmp_path / "out").items() if line.get("orphan")} == {
        "tall.mp4_8-17",
        "wide.mp4_8-17",
    }
    assert made(again(tmp_path, picture=Picture(upscale=True), replace=True)) >= {"small.mp4_0-17"}


def test_short_videos_are_said_or_padded(tmp_path, movq):
    clips.lossless(tmp_path / "a.mkv", clips.pictures(20))
    clips.lossless(tmp_path / "b.mkv", clips.pictures(7))
    result = movq("batch-encode", "a.mkv", "b.mkv", "-o", "out", *HEAD, "--short", "pad")
    assert result.returncode == 0, result.stderr
    line = manifest(tmp_path / "out")["b.mkv_0-17"]
    assert (line["frames"], line["padded"], line["shape"][2]) == (7, 10, 5)
    assert line["warnings"] == ["has 7 of the 17 frames asked for: its last one is repeated"]
    clips.lossless(tmp_path / "c.mkv", [*clips.pictures(7), *([clips.pictures(7)[-1]] * 10)])
    encode_video(tmp_path / "c.mkv", tmp_path / "c.safetensors", threads=1)
    padded = open_latents(tmp_path / "out" / "b.mkv_0-17.safetensors")
    assert padded.latents.equal(open_latents(tmp_path / "c.safetensors").latents)
    assert movq("decode", padded.path, "-o", "back.npy").returncode == 0
    assert np.load(tmp_path / "back.npy").shape[0] == 7
    result = movq("batch-encode", "a.mkv", "b.mkv", "-o", "out", *HEAD, "--short", "pad")
    assert "nothing new" in result.stdout
    result = movq("batch-encode", "a.mkv", "b.mkv", "-o", "out", *HEAD)
    assert "1 done, 1 skipped (short) of 2 items" in result.stdout


def test_a_dry_run_says_what_would_be_cut(folder, movq):
    options = [part for bucket in BUCKETS for part in ("--bucket", bucket)]
    result = movq("batch-encode", folder / "in", "-o", "new", *options, "--pick", "slide:8", "--dry-run")
    assert result.returncode == 1  # bad.mp4 would fail
    assert result.stdout.splitlines()[:5] == [
        "still.png_0-1.safetensors: 1 frame, 64x48",
        "wide.mp4_0-17.safetensors: 17 frames, 64x48; a wide one",
        "wide.mp4_8-17.safetensors: 17 frames, 64x48; a wide one",
        "wide.mp4_16-17.safetensors: 17 frames, 64x48; a wide one",
        "tall.mp4_0-17.safetensors: 17 frames, 48x64; a tall one",
    ]
    assert re.search(r"skipped +1 \(small\)\nwould fail +1\n", result.stdout)
    assert re.search("to encode +5, of 69 frames\nshapes +3 of 17x48x64, 1 of 1x48x64, 1 of 17x64x48\n", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bucket", "17x48"], "--bucket: must be FRAMESxHEIGHTxWIDTH"),
        (["--pick", "slide:8"], "--pick: needs --frames or --bucket"),
        (["--bucket", "17x48x64", "--short-side", "48"], "--bucket: goes without --height"),
        (["--short", "pad"], "--short: pad needs --frames or --bucket"),
        (["--aspects"], "--aspects: needs --bucket, whose siblings it adds"),
        (
            ["--aspects", "--bucket", "17x48x72", "--multiple", "16"],
            "--bucket: 17x48x72 is not a multiple of 16 in height and width; the nearest is 17x48x64",
        ),
        (["--shard", "3/2"], "--shard: must be I/N"),
        (["--layout", "zip"], "--layout: must be one of files, tar"),
        (["--layout", "tar", "--tar-size", "big"], "--tar-size: is not a size like 64MB or 2GiB: 'big'"),
        (["--tar-size", "1GB"], "--tar-size: goes with --layout tar"),
        (["--frames", "9", "--bucket", "17x48x64"], "--frames: 9 is less than the shortest bucket needs, 17"),
        (["--ray-address", "auto"], "--ray-address: goes with --engine ray"),
        (["--every", "0"], "--every: must be above 0"),
        (["--merge", "out"], "--merge: takes the folder alone"),
    ],
)
def test_usage_errors_come_before_the_work(folder, movq, tmp_path, arguments, said):
    result = movq("batch-encode", folder / "in", "-o", "out", *arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_orphans_stay_orphans_when_other_sources_are_added(tmp_path):
    (tmp_path / "in").mkdir()
    clips.write(tmp_path / "in" / "a.mp4", clips.pictures(13))
    clips.write(tmp_path / "b.mp4", clips.pictures(9))
    options = {"selection": Selection(frames=5), "workers": 0}
    encode_batch([tmp_path / "in"], tmp_path / "out", pick="slide:4", **options)
    encode_batch([tmp_path / "in"], tmp_path / "out", pick="slide:3", replace=True, **options)
    encode_batch([tmp_path / "b.mp4"], tmp_path / "out", pick="slide:3", **options)
    orphans = {name for name, line in manifest(tmp_path / "out").items() if line.get("orphan")}
    assert orphans == {"a.mp4_4-5", "a.mp4_8-5"}
    dataset = LatentDataset(tmp_path / "out")
    assert [dataset.row(i)["id"] for i in range(len(dataset))] == [
        *("a.mp4_0-5", "a.mp4_3-5", "a.mp4_6-5"),
        *("b.mp4_0-5", "b.mp4_3-5"),
    ]


@pytest.mark.slow
def test_a_video_that_changes_after_it_was_looked_at_is_looked_at_again(tmp_path):
    clips.write(tmp_path / "a.mp4", clips.pictures(9))
    clips.write(tmp_path / "longer.mp4", clips.pictures(30))

    def swap(state):
        if state.phase == "checking" and (tmp_path / "longer.mp4").exists():
            os.replace(tmp_path / "longer.mp4", tmp_path / "a.mp4")

    options = {"selection": Selection(frames=5), "workers": 0, "pick": "slide:4"}
    result = encode_batch([tmp_path / "a.mp4"], tmp_path / "out", watch=swap, **options)
    assert [(line["id"], "looked at" in line["warnings"][-1]) for line in result.lines] == [
        ("a.mp4_0-5", True),
        ("a.mp4_4-5", True),
    ]
    result = encode_batch([tmp_path / "a.mp4"], tmp_path / "out", **options)
    assert {line["id"] for line in result.made} == {f"a.mp4_{at}-5" for at in (8, 12, 16, 20, 24)}
    assert encode_batch([tmp_path / "a.mp4"], tmp_path / "out", **options).made == []


def test_a_refusal_holds_for_what_was_refused_alone(tmp_path):
    clips.write(tmp_path / "a.mp4", clips.pictures(10))
    options = {"tail": "error", "workers": 0}
    assert encode_batch([tmp_path / "a.mp4"], tmp_path / "out", **options).lines[0]["status"] == "failed"
    assert (
        encode_batch([tmp_path / "a.mp4"], tmp_path / "out", buckets=["9x48x64"], **options).lines[0]["status"]
        == "done"
    )


def test_a_video_that_is_not_cut_and_a_span_with_its_id_are_two_items(tmp_path):
    clips.write(tmp_path / "a.mp4", clips.pictures(16))
    (tmp_path / "list.csv").write_text("path,id,start,duration\na.mp4,a,,\na.mp4,a_6-5,0,0.1\n")
    options = {"lists": [tmp_path / "list.csv"], "selection": Selection(frames=5), "pick": "slide:3", "workers": 0}
    result = encode_batch([], tmp_path / "out", **options)
    status = {line["id"]: line["status"] for line in result.lines}
    assert [(name[:5], status[name]) for name in sorted(status)] == [
        *(("a_0-5", "done"), ("a_3-5", "done"), ("a_6-5", "done"), ("a_6-5", "skipped"), ("a_9-5", "done"))
    ]
    assert encode_batch([], tmp_path / "out", **options).made == []


def test_a_bucket_that_fits_is_not_padded():
    assert cut((7, 64, 48), ["9x48x64", "5x48x64"], frames=13, short="pad") == whole(5, 48, 64)
    assert cut((4, 64, 48), ["9x48x64", "5x48x64"], frames=13, short="pad") == whole(5, 48, 64)


def test_what_a_bucket_does_to_pictures_is_said(tmp_path, movq):
    clips.write(tmp_path / "tall.mp4", clips.pictures(5, 48, 160))
    clips.write(tmp_path / "wide.mp4", clips.pictures(5, 96, 64))
    for more in (["--dry-run"], []):
        result = movq("batch-encode", "tall.mp4", "wide.mp4", "-o", "out", "--bucket", "5x30x45", "--workers", 0, *more)
        assert result.returncode == 0
        assert (
            f"1 item loses more than half of the picture to cropping ({tmp_path / 'tall.mp4'} keeps 20%)"
            in result.stderr
        )
        assert "--bucket 5x30x45: its edge is repeated up to 32x48" in result.stderr
    result = movq("batch-encode", "tall.mp4", "-o", "other", "--bucket", "5x96x32", "--workers", 0)
    assert "keep less" not in result.stderr
    assert "edge" not in result.stderr


@pytest.mark.slow
def test_what_a_run_that_encodes_nothing_did(tmp_path, movq):
    (tmp_path / "in").mkdir()
    clips.write(tmp_path / "in" / "a.mp4", clips.pictures(5))
    command = ("batch-encode", "in", "-o", "out", "--workers", 0, "--layout", "tar")
    assert movq(*command).returncode == 0
    (tmp_path / "in" / "a.txt").write_text("a caption")
    result = movq(*command[:-2])  # a folder of tars stays one
    assert "1 item, nothing new: 1 done; 1 item described differently; 1 tar written" in result.stdout
    assert "out: 1 item, nothing new: 1 done; checked" in movq(*command).stdout
    result = movq("batch-encode", "in", "-o", "short", "--frames", 9)
    assert result.stdout.startswith("short: 1 skipped (short) of 1 item; nothing was made in ")
    (tmp_path / "list.csv").write_text("path,begin\nin/a.mp4,0.1\n")
    result = movq("batch-encode", "--list", "list.csv", "-o", "listed", "--dry-run")
    assert "columns that are kept as they are, in the manifest's extra: begin" in result.stderr


def test_options_of_other_kinds_are_refused_in_python(tmp_path):
    clips.write(tmp_path / "a.mp4", clips.pictures(5))
    for options in ({"shard": (0, 2)}, {"pick": 3}, {"tar_size": "many"}, {"layout": "zip"}, {"ray_gpus": 1.5}):
        with pytest.raises(MovqUsageError):
            encode_batch([tmp_path / "a.mp4"], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_is_refused_for_one_reason_shares_its_error(tmp_path):
    """An error for each item would keep a traceback and all that led to it: 2 KB for each row of a million."""
    names = [str(tmp_path / f"{n}.mp4") for n in range(200)]
    items = [Item(name, name, name) for name in names]
    made = list(cut_items(items, BatchOptions(), EncodeOptions(), CONFIG))
    assert [item.id for item in made] == names
    (refusal,) = {id(item.refusal): item.refusal for item in made}.values()
    assert (refusal.reason, refusal.__traceback__, refusal.__context__) == ("no such file or folder", None, None)
