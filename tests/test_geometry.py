"""`--edge crop`: sides become multiples by cropping, and nothing that is encoded is made up."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from movq_cli import (
    EncodeOptions,
    MovqError,
    MovqUsageError,
    Picture,
    decode_video,
    encode_batch,
    encode_video,
    evaluate_video,
    open_latents,
    plan_encode,
    read_frames,
)
from movq_cli.cli import run
from movq_cli.cli.show import odd_rows, say_target
from movq_cli.targets import prepared
from movq_cli.video.geometry import Orientation, plan_geometry, smaller_pictures

from .helpers import clips
from .helpers.batches import manifest

CROP = Picture(multiple=16, edge="crop")


def cropped(**picture):
    return dataclasses.replace(CROP, **picture)


@pytest.mark.parametrize(
    ("picture", "scaled", "crop", "padded"),
    [
        (cropped(), (90, 50), (5, 1, 80, 48), (80, 48)),
        (cropped(short_side=40), (72, 40), (4, 4, 64, 32), (64, 32)),
        (cropped(width=45), (45, 25), (6, 4, 32, 16), (32, 16)),
        (cropped(height=40, width=40), (72, 40), (20, 4, 32, 32), (32, 32)),  # covered, then cropped
        (cropped(height=48, width=80), (86, 48), (3, 0, 80, 48), (80, 48)),
        (cropped(height=40, width=40, fit="stretch"), (40, 40), (4, 4, 32, 32), (32, 32)),
        (cropped(height=40, width=40, fit="contain"), (32, 18), (0, 0, 32, 18), (32, 32)),  # whole, in a smaller box
    ],
    ids=str,
)
def test_what_is_kept_is_the_centre(tmp_path, picture, scaled, crop, padded):
    path = clips.lossless(tmp_path / "a.mkv", clips.pictures(1, 90, 50))
    with read_frames(path, None, picture, multiple=16) as reader:
        geometry, (frame,) = reader.geometry, list(reader)
    assert (geometry.scaled, geometry.crop, frame.image.shape[1::-1]) == (scaled, crop, padded)
    with read_frames(path, None, Picture(*scaled[::-1], fit="stretch")) as reader:
        (whole,) = (frame.image for frame in reader)
    left, top, width, height = crop
    assert np.array_equal(frame.image[:height, :width], whole[top : top + height, left : left + width])


def test_no_side_loses_a_multiple_and_none_is_padded():
    for width in range(16, 100):
        for turned in (False, True):
            made = plan_geometry(width, 50, Fraction(1), Orientation(transpose=turned), CROP, 16)
            sides = (width, 50)[:: -1 if turned else 1]
            assert (made.width % 16, made.height % 16, made.pad_right, made.pad_bottom) == (0, 0, 0, 0)
            for side, kept, before in zip(sides, made.crop[2:], made.crop[:2], strict=True):
                assert side - kept == side % 16
                assert before == side % 16 // 2


def test_a_picture_smaller_than_the_multiple_is_refused():
    for picture, width, height, too_small in (
        (CROP, 90, 15, "90x15"),
        (cropped(height=15), 90, 50, "27x15"),
        (cropped(height=50, width=12), 90, 50, "12x50"),
        (cropped(height=50, width=12, fit="contain"), 90, 50, "12x50"),
    ):
        with pytest.raises(MovqError, match=f"shows {width}x{height}: {too_small} is too small.*of 16; edge=pad"):
            plan_geometry(width, height, Fraction(1), Orientation(), picture, 16)
    with pytest.raises(MovqUsageError, match="edge: must be one of pad, crop"):
        Picture(edge="mirror")


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """Encode a video of 72x40 with --edge crop, and the same video cropped to 64x32 beforehand."""
    folder = tmp_path_factory.mktemp("edges")
    images = clips.pictures(3, 72, 40)
    clips.lossless(folder / "whole.mkv", images)
    clips.lossless(folder / "before.mkv", [np.ascontiguousarray(image[4:36, 4:68]) for image in images])
    encode_video(folder / "whole.mkv", folder / "whole", picture=CROP, first_frame="png", threads=1)
    encode_video(folder / "before.mkv", folder / "before", first_frame="png", threads=1)
    return folder


def test_latents_are_those_of_the_video_cropped_beforehand(encoded):
    whole, before = (open_latents(encoded / name) for name in ("whole", "before"))
    assert whole.latents.equal(before.latents)
    m = whole.metadata
    assert (m.width, m.height, m.pad_right, m.pad_bottom, m.crop) == (64, 32, 0, 0, [4, 4, 64, 32])
    assert (before.metadata.width, before.metadata.height, before.metadata.crop) == (64, 32, None)
    pictures = [(encoded / f"{name}.first_frame.png").read_bytes() for name in ("whole", "before")]
    assert pictures[0] == pictures[1]


@pytest.mark.slow
def test_decoding_gives_the_cropped_picture_and_scores_are_against_it(encoded):
    for name in ("whole", "before"):
        decode_video(encoded / name, encoded / f"{name}.npy", threads=1)
    made = np.load(encoded / "whole.npy")
    assert made.shape == (3, 32, 64, 3)
    assert np.array_equal(made, np.load(encoded / "before.npy"))
    scores = [evaluate_video(encoded / "whole.mkv", picture=CROP, threads=1).scores]
    scores.append(evaluate_video(encoded / "before.mkv", threads=1).scores)
    assert scores[0] == scores[1]


def test_no_odd_row_is_left_to_remark_on(tmp_path):
    """640x360 has 45 rows of latents; cropped to 352 it has 44, all of them of the video."""
    path = clips.write(tmp_path / "a.mp4", clips.pictures(1, 640, 360), options={"preset": "ultrafast"})
    for picture, latents, remark in ((Picture(), (45, 80), True), (CROP, (44, 80), False)):
        plan = plan_encode(path, picture=picture)
        assert plan.latent_shape[3:] == latents
        assert ("transformer" in odd_rows([latents], "diffusers")) == remark
    assert (plan.geometry.width, plan.geometry.height) == (640, 352)


def test_smaller_pictures_are_what_a_short_side_gives():
    """So the largest that fits, which an error names, is what --short-side makes of the video."""
    for edge, sizes in (("pad", [(626, 352), (597, 336)]), ("crop", [(624, 352), (592, 336)])):
        assert list(smaller_pictures((640, 360), 16, edge))[:2] == sizes
    for width, height in smaller_pictures((640, 360), 16, "crop"):
        asked = plan_geometry(640, 360, Fraction(1), Orientation(), cropped(short_side=height), 16)
        assert (asked.width, asked.height) == (width, height)


def test_the_plan_is_of_the_cropped_picture(tmp_path):
    path = clips.lossless(tmp_path / "a.mkv", clips.pictures(1, 90, 50))
    before = clips.lossless(tmp_path / "b.mkv", clips.pictures(1, 80, 48))
    made, wanted = plan_encode(path, picture=CROP), plan_encode(before)
    assert made.latent_shape == wanted.latent_shape
    assert made.budget.memory_bytes == wanted.budget.memory_bytes
    padded = plan_encode(path, picture=Picture(multiple=16))
    assert padded.latent_shape[3:] == (64 // 8, 96 // 8)
    assert padded.budget.memory_bytes > made.budget.memory_bytes


def test_a_batch_remembers_it_and_goes_on_without_what_is_too_small(tmp_path):
    (tmp_path / "in").mkdir()
    clips.write(tmp_path / "in" / "a.mp4", clips.pictures(1, 72, 40))
    clips.write(tmp_path / "in" / "low.mp4", clips.pictures(1, 72, 14))
    batch = {"sources": tmp_path / "in", "output": tmp_path / "out", "workers": 0}
    encode_batch(**batch, multiple=16)
    assert "edge" not in manifest(tmp_path / "out")["a.mp4"]["options"]
    with pytest.raises(MovqError, match=r"made with edge=pad; this command says edge=crop\. Use replace=True"):
        encode_batch(**batch, multiple=16, edge="crop")
    encode_batch(**batch, multiple=16, edge="crop", replace=True)
    lines = manifest(tmp_path / "out")
    assert lines["a.mp4"]["options"] == {"multiple": 16, "edge": "crop"}
    assert (lines["a.mp4"]["width"], lines["a.mp4"]["shape"][3:]) == (64, [4, 8])
    assert (lines["low.mp4"]["status"], lines["low.mp4"]["cause"]) == ("skipped", "small")
    assert "72x14 is too small to be cropped to multiples of 16" in lines["low.mp4"]["reason"]
    assert encode_batch(**batch, multiple=16, edge="crop").made == []


def test_a_bucket_is_covered_and_cropped(tmp_path, capsys):
    """72x40 covers 20x40 as 40x22, from which 16x32 are kept: (32 * 16) / (40 * 22.2) of the picture."""
    clips.write(tmp_path / "a.mp4", clips.pictures(1, 72, 40))
    command = ["batch-encode", str(tmp_path / "a.mp4"), "-o", str(tmp_path / "out"), "--bucket", "1x20x40"]
    command += ["--multiple", "16", "--edge", "crop", "--workers", "0"]
    for dry_run in (["--dry-run"], []):
        assert run([*command, *dry_run]) == 0
        assert "--bucket 1x20x40: it is cropped to 16x32, which latents fill" in capsys.readouterr().err
    line = manifest(tmp_path / "out")["a.mp4"]
    assert (line["width"], line["height"], line["shape"][3:]) == (32, 16, [2, 4])
    assert line["cut"] == {"buckets": ["1x20x40"], "short": "skip"}
    assert open_latents(tmp_path / "out" / "a.mp4.safetensors").metadata.crop == [4, 3, 32, 16]
    assert run([*command[:4], "--bucket", "1x12x40", *command[6:]]) == 2
    assert "--bucket: 1x12x40 is too small to be cropped to multiples of 16" in capsys.readouterr().err


def test_what_a_crop_of_both_kinds_keeps_is_said(tmp_path, capsys):
    """62x62 covers 30x48 as 48x48, of which 16x48 are kept: a third."""
    clips.write(tmp_path / "a.mp4", clips.pictures(1, 62, 62))
    command = [str(tmp_path / "a.mp4"), "--multiple", "16", "--edge", "crop"]
    assert run(["encode", *command, "-o", str(tmp_path / "b"), "--height", "30", "--width", "48"]) == 0
    assert "the crop keeps 33% of the picture" in capsys.readouterr().err
    for dry_run in (["--dry-run"], []):
        batch = ["batch-encode", *command, "-o", str(tmp_path / "out"), "--bucket", "1x30x48", "--workers", "0"]
        assert run([*batch, *dry_run]) == 0
        assert "keeps 33%)" in capsys.readouterr().err


def test_options_say_what_they_are(capsys):
    say_target(prepared(EncodeOptions(target="cogvideox-2b", picture=Picture(edge="crop"))))
    assert "480x720 or 720x480, multiples of 16 by cropping, stored" in capsys.readouterr().err
    assert EncodeOptions(picture=CROP).choices == {"multiple": 16, "edge": "crop"}
    assert EncodeOptions(picture=Picture(edge="pad")).choices == {}
