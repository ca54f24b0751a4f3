"""Reading videos: the right pixels, the right frames, the right times; and refusals, in one line each."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from movq_cli import MovqError, Picture, Selection, probe, read_frames
from movq_cli.video import count_frames

from .faults import hostile
from .faults.nasty import bad_files
from .helpers import clips
from .helpers.clips import CITY
from .helpers.processes import decoders


def read(path, selection=None, picture=None, **more):
    with read_frames(path, selection, picture, **more) as reader:
        frames = list(reader)
        return frames, reader


def images(path, **more):
    return [f.image for f in read(path, **more)[0]]


# -- every frame once, in order, with its time


def test_lossless_frames_come_back_bit_for_bit(tmp_path):
    shown = clips.pictures(7)
    path = clips.lossless(tmp_path / "a.mkv", shown)
    assert all(np.array_equal(a, b) for a, b in zip(images(path), shown, strict=True))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "avi", "ts", "webm"])
def test_containers_and_b_frames(tmp_path, suffix):
    codec = "libvpx-vp9" if suffix == "webm" else "libx264"
    options = {} if suffix in ("webm", "avi") else {"bf": "3"}
    path = clips.write(tmp_path / f"a.{suffix}", clips.pictures(20), codec=codec, options=options)
    frames, _ = read(path)
    assert [f.index for f in frames] == list(range(20))
    gaps = {round(float(b.time - a.time), 3) for a, b in pairwise(frames)}
    assert gaps == {0.04}
    assert count_frames(path) == 20


def test_variable_frame_times(tmp_path):
    times = [0, 0.1, 0.15, 0.5, 0.52, 1.7]
    path = clips.lossless(tmp_path / "a.mkv", clips.pictures(6), times=times)
    frames, _ = read(path)
    assert [float(f.time) for f in frames] == pytest.approx(times, abs=1e-3)


def test_frames_without_times_are_said(tmp_path):
    path = clips.write(tmp_path / "a.h264", clips.pictures(5), format="h264")
    frames, reader = read(path)
    assert len(frames) == 5
    assert any("without times" in w for w in reader.warnings)


def test_many_frames_stay_apart(tmp_path):
    """There are more frames than the shared memory has slots, and they are taken slowly and quickly."""
    shown = clips.pictures(40)
    path = clips.lossless(tmp_path / "a.mkv", shown)
    with read_frames(path, ahead=2) as reader:
        for i, frame in enumerate(reader):
            if i == 3:
                time.sleep(0.3)
            assert np.array_equal(frame.image, shown[i])


# -- which frames


def indices(path, **selection):
    frames, _ = read(path, Selection(**selection))
    assert count_frames(path, Selection(**selection)) == len(frames)
    return [f.index for f in frames]


@pytest.fixture(scope="module")
def half_minute(tmp_path_factory):
    """Write 300 frames, 10 per second."""
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    return clips.write(path, clips.pictures(300, 32, 32), rate=10)


def test_selection_in_its_order(half_minute):
    assert indices(half_minute, start=Fraction(2), duration=Fraction(1)) == list(range(20, 30))
    assert indices(half_minute, start=Fraction("29.7")) == [297, 298, 299]
    assert indices(half_minute, frames=3) == [0, 1, 2]
    assert indices(half_minute, fps=Fraction(5), frames=4) == [0, 2, 4, 6]
    assert indices(half_minute, start=Fraction(1), duration=Fraction(1), fps=Fraction(5), frames=9) == [
        10,
        12,
        14,
        16,
        18,
    ]


def test_fps_takes_the_nearest_frame(half_minute):
    """With 4 frames per second of 10, times 0, .25, .5, .75 are nearest to frames 0, 2 (the earlier of two), 5, 7."""
    assert indices(half_minute, fps=Fraction(4), duration=Fraction(1)) == [0, 2, 5, 7]
    assert indices(half_minute, fps=Fraction(10)) == list(range(300))


def test_a_slower_video_is_refused_unless_repeating(half_minute):
    with pytest.raises(MovqError, match=r"slower than 25 frames per second.*fps_repeat=True"):
        indices(half_minute, fps=Fraction(25))
    repeated = indices(half_minute, fps=Fraction(20), fps_repeat=True, duration=Fraction(1))
    assert len(repeated) == 20
    assert repeated[:4] == [0, 0, 1, 1]


def test_a_range_is_checked_alone(tmp_path):
    """A cut file is refused, unless only its whole part is asked for."""
    whole = clips.write(tmp_path / "a.mp4", clips.pictures(60), options={"bf": "0", "g": "10"})
    cut = tmp_path / "cut.mp4"
    clips.faststart(whole, cut)
    cut.write_bytes(cut.read_bytes()[: int(cut.stat().st_size * 0.7)])
    assert indices(cut, frames=20) == list(range(20))
    with pytest.raises(MovqError, match=r"cut off|damaged"):
        read(cut)


# -- the pixels a viewer shows


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_all_eight_orientations(tmp_path, turn, mirror):
    """set_display_rotation turns counter-clockwise; av_display_matrix_flip then flips the picture that is shown."""
    stored = clips.picture(64, 48)
    path = clips.lossless(tmp_path / "a.mov", [stored], rotation=turn, mirror=mirror)
    shown = np.rot90(stored, turn // 90)[:, :: -1 if mirror else 1]
    image = images(path)[0]
    assert np.array_equal(image, shown)
    info = probe(path)
    assert (info.shown_width, info.shown_height) == (image.shape[1], image.shape[0])
    assert info.mirrored == mirror


def test_turning_and_scaling_are_one_step(tmp_path):
    """A turned, scaled and cropped picture is the stored one scaled, then turned and cropped without resampling."""
    path = clips.lossless(tmp_path / "a.mov", [clips.picture(96, 64)], rotation=90)
    plain = clips.lossless(tmp_path / "b.mov", [clips.picture(96, 64)])
    scaled = images(plain, picture=Picture(width=48, height=32, fit="stretch"))[0]
    turned = images(path, picture=Picture(width=32, height=40))[0]
    assert np.array_equal(turned, np.rot90(scaled)[4:44])


def test_pixels_that_are_not_square(tmp_path):
    path = clips.write(tmp_path / "a.mkv", clips.pictures(2, 64, 48), aspect=Fraction(4, 3))
    assert images(path)[0].shape == (48, 85, 3)
    assert probe(path).pixel_aspect == Fraction(4, 3)


# Y'CbCr of RGB (200, 60, 30), by each matrix's definition: Kr, Kb; limited range has 219 steps for Y', 224 for chroma.
MATRICES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


def ycbcr(rgb, matrix, full, bits=8):
    kr, kb = MATRICES[matrix]
    r, g, b = (v / 255 for v in rgb)
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    scale, peak = 2 ** (bits - 8), 2**bits - 1
    if full:
        return round(y * peak), round(cb * peak + 128 * scale), round(cr * peak + 128 * scale)
    return round((16 + 219 * y) * scale), round((128 + 224 * cb) * scale), round((128 + 224 * cr) * scale)


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv420p", "yuv422p10le"])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(
    ("matrix", "tag", "height"),
    [("bt601", 6, 64), ("bt709", 1, 64), ("bt2020", 9, 64), ("bt601", None, 64), ("bt709", None, 720)],
    ids=str,
)
def test_colour_as_tagged(tmp_path, matrix, tag, height, full, pix_fmt):
    """Frames are made without swscale. Without a tag, BT.709 holds from 720 lines up, BT.601 below."""
    rgb = (200, 60, 30)
    numbers = ycbcr(rgb, matrix, full, 10 if "10" in pix_fmt else 8)
    frame = clips.yuv(64, height, *numbers, pix_fmt=pix_fmt, colorspace=tag, color_range=2 if full else 1)
    tags = {"color_range": 2 if full else 1} | ({"colorspace": tag} if tag else {})
    path = clips.write(tmp_path / "a.mkv", None, frames=[frame], codec="ffv1", pix_fmt=pix_fmt, tags=tags)
    middle = images(path)[0][height // 2, 32].astype(int)
    assert abs(middle - rgb).max() <= 2


@pytest.mark.parametrize("picture", [None, Picture(width=50, height=37)], ids=["as it is", "smaller"])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le"])
def test_threads_change_no_pixel(tmp_path, pix_fmt, picture):
    clip = clips.write(tmp_path / "clip.mkv", clips.pictures(3, 98, 74), pix_fmt=pix_fmt)
    one, four = (images(clip, picture=picture, threads=threads) for threads in (1, 4))
    assert len(one) == 3
    np.testing.assert_array_equal(one, four)


def test_transparency_is_laid_over_black_and_said(tmp_path):
    image = np.zeros((32, 32, 4), np.uint8)
    image[..., 0], image[:, :16, 3] = 200, 255
    path = clips.still(tmp_path / "a.png", image, "png", "rgba")
    (frame,), reader = read(path)
    assert frame.image[0, 0].tolist() == [200, 0, 0]
    assert frame.image[0, 31].tolist() == [0, 0, 0]
    assert any("transparent" in w for w in reader.warnings)


def test_hdr_and_matrices_that_cannot_be_undone(tmp_path):
    frame = clips.yuv(64, 64, 500, 512, 512, pix_fmt="yuv420p10le")
    path = clips.write(
        tmp_path / "a.mkv",
        None,
        frames=[frame],
        codec="ffv1",
        pix_fmt="yuv420p10le",
        tags={"colorspace": 9, "color_trc": 16, "color_range": 1},
    )
    _, reader = read(path)
    assert any("HDR" in w for w in reader.warnings)
    assert any("HDR" in w for w in probe(path).warnings)
    frame = clips.yuv(64, 64, 100, 128, 128)
    path = clips.write(
        tmp_path / "b.mkv", None, frames=[frame], codec="ffv1", pix_fmt="yuv444p", tags={"colorspace": 10}
    )
    with pytest.raises(MovqError, match="colour matrix bt2020c"):
        read(path)


@pytest.mark.parametrize(("codec", "name"), [("png", "a.png"), ("mjpeg", "a.jpg"), ("libwebp", "a.webp")])
def test_still_pictures_are_videos_of_one_frame(tmp_path, codec, name):
    pix_fmt = {"png": "rgb24", "mjpeg": "yuvj444p", "libwebp": "bgra"}[codec]
    path = clips.still(
        tmp_path / name, clips.picture(64, 48), codec, pix_fmt, "webp" if codec == "libwebp" else "image2"
    )
    (frame,), _ = read(path)
    assert abs(frame.image.astype(int) - clips.picture(64, 48)).mean() < 4
    assert frame.time == 0
    assert probe(path).is_picture
    assert count_frames(path) == 1


def test_a_pattern_in_a_name_opens_no_neighbours(tmp_path):
    for name, shade in (("a%d.png", 10), ("a1.png", 99), ("a2.png", 99)):
        clips.still(tmp_path / name, np.full((16, 16, 3), shade, np.uint8), "png", format="image2pipe")
    (frame,), _ = read(tmp_path / "a%d.png")
    assert frame.image.max() == 10


# -- the picture asked for


@pytest.mark.parametrize(
    ("picture", "size", "padded"),
    [
        (Picture(), (90, 50), (96, 56)),
        (Picture(height=25), (45, 25), (48, 32)),
        (Picture(width=45), (45, 25), (48, 32)),
        (Picture(short_side=40), (72, 40), (72, 40)),
        (Picture(width=32, height=32), (32, 32), (32, 32)),
        (Picture(width=32, height=32, fit="stretch"), (32, 32), (32, 32)),
        (Picture(width=32, height=32, fit="contain"), (32, 18), (32, 32)),
        (Picture(width=180, height=100, upscale=True), (180, 100), (184, 104)),
    ],
    ids=str,
)
def test_picture_options(tmp_path, picture, size, padded):
    path = clips.lossless(tmp_path / "a.mkv", clips.pictures(1, 90, 50))
    (frame,), _ = read(path, picture=picture, multiple=8)
    with read_frames(path, None, picture, multiple=8) as reader:
        geometry = reader.geometry
    assert (geometry.width, geometry.height) == size
    assert (geometry.padded_width, geometry.padded_height) == padded == frame.image.shape[1::-1]
    inside = frame.image[: size[1], : size[0]]
    assert np.array_equal(frame.image[: size[1], size[0] :], np.repeat(inside[:, -1:], padded[0] - size[0], 1))
    assert (frame.image[size[1] :] == frame.image[size[1] - 1]).all()


def test_enlarging_is_refused(tmp_path):
    path = clips.lossless(tmp_path / "a.mkv", clips.pictures(1))
    with pytest.raises(MovqError, match=r"64x48.*enlarged to 128x96; upscale=True"):
        read(path, picture=Picture(height=96))


# -- what is refused


@pytest.mark.slow
def test_bad_files_are_refused_with_the_reason(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        for ask in (read, probe) if name == "bomb.gif" else (read, probe, count_frames):
            with pytest.raises(MovqError, match=reason) as caught:
                ask(tmp_path / name)
            assert caught.value.about == str(tmp_path / name)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_cut_video_is_refused_wherever_it_is_cut(tmp_path, suffix):
    data = hostile.made(suffix, 40, options={"g": "8"})
    cut = tmp_path / f"cut.{suffix}"
    for part in (0.35, 0.5, 0.65, 0.8, 0.9, 0.97):
        cut.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(MovqError, match=r"cut off|damaged"):
            read(cut)


@pytest.mark.parametrize(
    "suffix",
    [
        pytest.param(suffix, marks=[] if suffix in ("mp4", "mkv", "webm") else pytest.mark.slow)
        for suffix in (*hostile.FORMATS, "y4m")
    ],
)
def test_every_format_tells_where_it_is_cut(tmp_path, suffix):
    data = hostile.y4m(40) if suffix == "y4m" else hostile.made(suffix, 40, 96, 64, **hostile.FORMATS[suffix])
    whole = tmp_path / f"whole.{suffix}"
    whole.write_bytes(data)
    assert len(read(whole)[0]) == 40
    cut = tmp_path / f"cut.{suffix}"
    for part in (0.47, 0.6, 0.88):
        cut.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(MovqError, match=r"cut off|damaged|cannot be|not a video"):
            read(cut)


def test_whole_files_of_other_writers(tmp_path):
    """A GIF may have bytes behind it, MXF gives times of B-frames in coding order, FLV may show its last frame long."""
    gif = tmp_path / "a.gif"
    for behind in (b"\n", bytes(512), b"GIF89a and more"):
        gif.write_bytes(hostile.made("gif", 9, **hostile.RGB8) + behind)
        assert len(read(gif)[0]) == 9
    gif.write_bytes(gif.read_bytes().removesuffix(b";" + behind))
    with pytest.raises(MovqError, match="cut off"):
        read(gif)
    for count in (19, 20, 21):
        mxf = clips.write(tmp_path / f"{count}.mxf", clips.pictures(count, 96, 64), options={"bf": "3"})
        frames, reader = read(mxf)
        assert (len(frames), reader.warnings) == (count, ())
        assert [frame.time for frame in frames] == [Fraction(i, 25) for i in range(count)]
    flv = clips.write(tmp_path / "a.flv", clips.pictures(10), codec="flv", times=[*(i / 25 for i in range(9)), 5])
    assert len(read(flv)[0]) == 10
    flv.write_bytes(flv.read_bytes()[:-30])
    with pytest.raises(MovqError, match=r"cut off|damaged|cannot be"):
        read(flv)


@pytest.mark.parametrize(("gop", "start", "stop"), [("12", 4, 10), ("1", 4, 10), ("1", 4, 12), ("1", 0, 7)])
def test_an_edit_list_hides_frames_and_misses_none(tmp_path, gop, start, stop):
    """If all are key frames, libav leaves out hidden frames before it counts. Both are one encode: two of libx264 may differ."""
    hostile.edit_list(gop, start, stop)(tmp_path / "a.mov")
    (tmp_path / "b.mov").write_bytes(hostile.made("mov", 12, options={"bf": "0", "g": gop}))
    whole = images(tmp_path / "b.mov")
    shown = images(tmp_path / "a.mov")
    assert all(np.array_equal(a, b) for a, b in zip(shown, whole[start:stop], strict=True))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_of_a_cut_video_what_comes_before_is_taken_where_that_is_allowed(tmp_path, suffix):
    data = hostile.made(suffix, 80, options={"g": "8"})
    whole = tmp_path / f"whole.{suffix}"
    whole.write_bytes(data)
    with read_frames(whole, Selection(allow_partial=True)) as reader:
        frames = [(frame.time, frame.image) for frame in reader]
    assert (len(frames), reader.partial, reader.warnings) == (80, False, ())
    cut = tmp_path / f"cut.{suffix}"
    counts = []
    for part in (0.6, 0.7, 0.85):
        cut.write_bytes(data[: int(len(data) * part)])
        with read_frames(cut, Selection(allow_partial=True)) as reader:
            some = [(frame.time, frame.image) for frame in reader]
        assert 0 < len(some) < 80
        assert all(a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in zip(some, frames, strict=False))
        assert reader.partial
        assert re.search(r"(cut off|damaged|cannot be decoded).*--allow-partial", reader.warnings[-1])
        counts.append(len(some))
    assert counts == sorted(counts)
    cut.write_bytes(data[:100])
    with pytest.raises(MovqError), read_frames(cut, Selection(allow_partial=True)) as reader:
        list(reader)


def test_damage_is_not_concealed(tmp_path):
    """Bytes in the middle of each frame's coded data are overwritten; libav would still show something."""
    clip = clips.write(tmp_path / "a.mp4", clips.pictures(20, 128, 96), options={"g": "5"})
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for at, size in packets[5:8]:
        damaged = data.copy()
        damaged[at + size // 2 : at + size // 2 + 8] = b"\xa5" * 8
        clip.write_bytes(damaged)
        with pytest.raises(MovqError, match=r"damaged|cannot be decoded"):
            read(clip)


def test_size_change_in_mid_stream(tmp_path):
    """The file is two elementary streams joined, as a broken recorder leaves it."""
    a = clips.write(tmp_path / "a.h264", clips.pictures(5), format="h264")
    b = clips.write(tmp_path / "b.h264", clips.pictures(5, 96, 64), format="h264")
    joined = tmp_path / "c.h264"
    joined.write_bytes(a.read_bytes() + b.read_bytes())
    with pytest.raises(MovqError, match="changes its picture size from 64x48 to 96x64"):
        read(joined)
    with read_frames(joined, Selection(allow_partial=True)) as reader:
        assert len(list(reader)) == 5


def test_streams(tmp_path):
    path = clips.write(tmp_path / "a.mp4", clips.pictures(5), audio=True)
    assert len(read(path, Selection(stream=0))[0]) == 5
    with pytest.raises(MovqError, match="no video in stream 1; its video streams: 0"):
        read(path, Selection(stream=1))


# -- the process behind it


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_of_the_decoder_is_an_error_of_its_file(number):
    before = set(decoders())
    with read_frames(CITY, ahead=2) as reader:
        next(reader)
        (child,) = set(decoders()) - before
        os.kill(child, number)
        with pytest.raises(MovqError, match=f"decoder crashed.*{number.name}"):
            list(reader)


def test_a_decoder_that_hangs_is_an_error_of_its_file(monkeypatch):
    monkeypatch.setattr("movq_cli.video.decoders.HANG_SECONDS", 3.0)  # longer than it takes to start on a busy machine
    before = set(decoders())
    with read_frames(CITY, ahead=2) as reader:
        next(reader)
        (child,) = set(decoders()) - before
        os.kill(child, signal.SIGSTOP)
        with pytest.raises(MovqError, match="decoder hung"):
            list(reader)


def test_a_decoder_that_takes_too_much_memory_is_an_error_of_its_file(tmp_path, monkeypatch):
    """Memory may run out anywhere, and libav reports it in several ways."""
    wide = np.tile(clips.picture(64, 48), (40, 40, 1))
    clip = clips.write(tmp_path / "a.mp4", [wide] * 3, options={"preset": "ultrafast"})
    for megabytes in (4, 10, 18, 25, 40):
        monkeypatch.setattr("movq_cli.video.decoders.DECODER_BYTES", megabytes << 20)
        with pytest.raises(MovqError, match=r"a.mp4: .*(needs more memory|not a video|cannot be|is damaged|crashed)"):
            read(clip)
    monkeypatch.undo()
    assert len(read(clip)[0]) == 3


def test_no_process_outlives_its_reader():
    before = set(decoders())
    reader = read_frames(CITY)
    next(reader)
    reader.close()
    assert set(decoders()) == before


def test_only_the_named_file_is_opened(tmp_path):
    """strace shows what the decoding process opens below the video's folder."""
    path = clips.write(tmp_path / "a.mp4", clips.pictures(3))
    log = tmp_path / "strace"
    script = f"from movq_cli import read_frames; list(read_frames({str(path)!r}))"
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=openat,socket,connect", "-o", log, sys.executable, "-c", script],
        check=True,
    )
    lines = log.read_text().splitlines()
    opened = {line.split('"')[1] for line in lines if str(tmp_path) in line and "openat" in line}
    assert opened == {str(path)}
    assert not [line for line in lines if "AF_INET" in line]


def test_a_reader_that_is_read_to_its_end_keeps_nothing_open(tmp_path):
    path = clips.write(tmp_path / "a.mp4", clips.pictures(5))
    (tmp_path / "b.mp4").write_bytes(path.read_bytes()[:900])
    list(read_frames(path))  # starts the process that decoders are forked from
    before = len(os.listdir("/proc/self/fd"))
    readers = [read_frames(path), read_frames(tmp_path / "b.mp4")]
    assert len(list(readers[0])) == 5
    with pytest.raises(MovqError):
        list(readers[1])
    assert len(os.listdir("/proc/self/fd")) == before
    assert readers[0].info.codec == "h264"
