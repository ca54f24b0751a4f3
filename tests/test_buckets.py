"""`--aspects`: the siblings of a bucket, and where clips of every shape land."""

from fractions import Fraction
from itertools import pairwise

import pytest

from movq_cli import MovqUsageError, Picture, encode_batch, plan_batch
from movq_cli.batch.cut import check_cut, cut_item, spread_buckets
from movq_cli.batch.item import Item
from movq_cli.cli import run
from movq_cli.model import AutoencoderConfig
from movq_cli.options import BatchOptions, EncodeOptions
from movq_cli.targets import prepared_batch
from movq_cli.values import Bucket
from movq_cli.video import VideoFacts

from .helpers import clips
from .helpers.batches import manifest
from .helpers.models import SMALL

CONFIG = AutoencoderConfig(**SMALL)


def test_siblings_of_480x720():
    """345,600 / 384 is 900, above the multiple of 16 that 896 is; a side of 368 would go with 928, 2.52 times as long."""
    wide = [(384, 896), (400, 864), (416, 816), (432, 800), (448, 768), (464, 736), (480, 720), (496, 688), (512, 672)]
    wide += [(528, 640), (544, 624), (560, 608)]
    sizes = [*wide, (576, 576), *((width, height) for height, width in reversed(wide))]
    assert Bucket(49, 480, 720).siblings(16) == tuple(Bucket(49, *size) for size in sizes)
    assert Bucket(49, 720, 480).siblings(16) == Bucket(49, 480, 720).siblings(16)


@pytest.mark.parametrize("multiple", [8, 16, 32])
@pytest.mark.parametrize("size", [(48, 64), (256, 256), (480, 720), (512, 544), (768, 1360), (360, 640), (256, 1024)])
def test_siblings_are_alike_in_area_and_apart_in_aspect(size, multiple):
    named, area = Bucket(9, *size), size[0] * size[1]
    found = named.siblings(multiple)
    assert {named, Bucket(9, *size[::-1])} <= {*found}
    assert found == tuple(Bucket(9, bucket.width, bucket.height) for bucket in reversed(found))
    for bucket in {*found} - {named, Bucket(9, *size[::-1])}:
        short, long = sorted((bucket.height, bucket.width))
        assert (bucket.frames, short % multiple, long % multiple) == (9, 0, 0)
        assert short * long <= area < (short + multiple) * (long + multiple)
        assert Fraction(long, short) <= Fraction(5, 2)
    aspects = [Fraction(bucket.width, bucket.height) for bucket in found]
    own = {Fraction(*size), Fraction(*size[::-1])}
    for wider, narrower in pairwise(aspects):
        assert wider / narrower >= Fraction(21, 20) or {wider, narrower} == own


def test_any_aspect_in_between_keeps_nearly_all_of_the_picture():
    """400x864 and 416x816 are the farthest apart; a clip in the middle between two loses half of what is between them."""
    ratios = [bucket.width / bucket.height for bucket in Bucket(49, 480, 720).siblings(16)]
    for percent in range(43, 234):
        kept = max(min(ratio / (percent / 100), percent / 100 / ratio) for ratio in ratios)
        assert kept >= ((416 * 864) / (400 * 816)) ** -0.5 > 0.95


def lands(width, height, frames=50, **options):
    """Return the size in which a video lands with --bucket 49x480x720 --aspects, and the part of the picture that is kept."""
    settings = EncodeOptions(picture=Picture(multiple=16), short="refuse", **options)
    batch = spread_buckets(BatchOptions(buckets=["49x480x720"], aspects=True), settings, CONFIG)
    check_cut(batch, settings, CONFIG)
    item = Item("v.mp4", "/v.mp4", "v.safetensors").updated(facts=VideoFacts(frames, width, height))
    (item,) = cut_item(item, batch, settings, CONFIG)
    assert item.refusal is None, item.refusal
    return item.shape[1:], item.kept


@pytest.mark.parametrize(
    ("seen", "size", "kept"),
    [
        ((1920, 1080), (448, 768), (768 * 9) / (448 * 16)),
        ((1080, 1920), (768, 448), (768 * 9) / (448 * 16)),
        ((1000, 1000), (576, 576), 1),
        ((1440, 1080), (512, 672), (672 * 3) / (512 * 4)),
        ((1080, 1440), (672, 512), (672 * 3) / (512 * 4)),
        ((1080, 720), (480, 720), 1),
        ((1920, 800), (384, 896), (896 * 800) / (384 * 1920)),  # a film
        ((4000, 1000), (384, 896), (896 * 1000) / (384 * 4000)),  # wider than all
    ],
)
def test_clips_land_in_the_sibling_of_their_shape(seen, size, kept):
    assert lands(*seen) == (size, pytest.approx(kept))


def test_each_bucket_gets_its_siblings_once():
    def spread(*buckets, **options):
        settings, batch = prepared_batch(EncodeOptions(**options), BatchOptions(buckets=buckets, aspects=True))
        batch = spread_buckets(batch, settings, CONFIG)
        assert spread_buckets(batch, settings, CONFIG) is batch
        return [str(bucket) for bucket in batch.buckets]

    five = ["17x40x72", "17x48x64", "17x48x48", "17x64x48", "17x72x40"]  # in steps of the weights' factor, 8
    assert spread("17x48x64") == spread("17x48x64", "17x64x48") == five
    assert spread("17x48x64", "1x48x64") == five + [text.replace("17x", "1x", 1) for text in five]
    sixteen = EncodeOptions(picture=Picture(multiple=16)).picture
    assert spread("17x48x64", picture=sixteen) == ["17x48x64", "17x48x48", "17x64x48"]
    assert spread(target="cogvideox-2b") == [str(bucket) for bucket in Bucket(49, 480, 720).siblings(16)]
    with pytest.raises(MovqUsageError, match="aspects: needs buckets, whose siblings it adds"):
        spread()


@pytest.fixture
def source(tmp_path):
    """Write a portrait, a square and a wide picture."""
    (tmp_path / "in").mkdir()
    for name, width, height in (("tall", 54, 96), ("square", 60, 60), ("wide", 96, 54)):
        clips.still(tmp_path / "in" / f"{name}.png", clips.picture(width, height), "png")
    return tmp_path


def test_a_batch_with_siblings_is_that_with_buckets_typed_one_by_one(source, monkeypatch, capsys):
    monkeypatch.chdir(source)

    def shown(*more):
        assert run(["batch-encode", "in", "-o", "out", "--multiple", "16", "--workers", "0", *more]) == 0
        return capsys.readouterr()

    short = ("--bucket", "1x48x64", "--aspects")
    result = shown(*short, "--dry-run")
    assert "movq: buckets: 1x48x64, 1x48x48, 1x64x48\n" in result.err
    assert result.out.splitlines()[:3] == [
        "square.png.safetensors: 1 frame, 48x48",
        "wide.png.safetensors: 1 frame, 64x48",
        "tall.png.safetensors: 1 frame, 48x64",
    ]
    assert "movq: buckets: 1x48x64, 1x48x48, 1x64x48\n" in shown(*short).err
    lines = manifest(source / "out")
    assert {name: line["shape"][3:] for name, line in lines.items()} == {
        "square.png": [6, 6],
        "wide.png": [6, 8],
        "tall.png": [8, 6],
    }
    cut = {"buckets": ["1x48x48", "1x48x64", "1x64x48"], "short": "skip"}
    assert [line["cut"] for line in lines.values()] == [cut, cut, cut]
    result = shown(*(part for bucket in cut["buckets"] for part in ("--bucket", bucket)))
    assert "nothing new: 3 done" in result.out
    assert "buckets:" not in result.err
    result = shown(*short, "--quiet")
    assert "nothing new: 3 done" in result.out
    assert result.err == ""


def test_siblings_in_python(source):
    options = {"picture": Picture(multiple=16), "buckets": "1x48x64", "aspects": True}
    plan = plan_batch(source / "in", source / "out", **options)
    assert {item.id: item.shape for item in plan.planned} == {
        "square.png": (1, 48, 48),
        "wide.png": (1, 48, 64),
        "tall.png": (1, 64, 48),
    }
    with pytest.raises(MovqUsageError, match="aspects: needs buckets"):
        encode_batch(source / "in", source / "out", aspects=True)
