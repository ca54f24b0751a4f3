"""Writing frames: the pictures and times that come back, and outputs that are whole or absent."""

import os
import re
import signal
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from movq_cli import MovqError, MovqUsageError, read_frames
from movq_cli.video import open_writer, write_png

from .helpers import clips

RATES = [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(25), Fraction(23)]
UNEVEN = [0, 0.1, 0.15, 0.5, 0.52, 1.7]
KINDS = ["a.mp4", "a.mov", "a.mkv", "a.npy", "folder", "folder/"]


def noise(count, width, height):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write(path, images, times=None, duration=None, **more):
    """Write all of `images`, two at a time, by default at 25 per second, and return the finished writer."""
    images = np.stack(list(images))
    times = [i / 25 for i in range(len(images))] if times is None else times
    duration = len(images) / 25 if duration is None else duration
    height, width = images.shape[1:3]
    with open_writer(path, width=width, height=height, times=times, duration=duration, **more) as writer:
        for start in range(0, len(images), 2):
            writer.write(images[start : start + 2])
        size = writer.finish()
    assert size == size_of(path)
    return writer


def size_of(path):
    if os.path.isdir(path):
        return sum(entry.stat().st_size for entry in os.scandir(path))
    return os.path.getsize(path)


def read(path):
    with read_frames(path) as reader:
        return list(reader), reader.info


def packets(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [p for p in container.demux(stream) if p.size], stream.time_base


# -- times


@pytest.mark.parametrize(("fps", "suffix"), [*((fps, "mp4") for fps in RATES), (RATES[0], "mov")], ids=str)
def test_even_times_are_exact_and_begin_at_zero(tmp_path, fps, suffix):
    path = tmp_path / f"a.{suffix}"
    writer = write(path, clips.pictures(31), [7 + float(i / fps) for i in range(31)], float(31 / fps), fps=fps)
    frames, info = read(path)
    assert [f.time for f in frames] == [i / fps for i in range(31)]
    assert [f.end for f in frames] == [(i + 1) / fps for i in range(31)]
    assert (info.fps, info.duration) == (fps, 31 / fps)
    assert writer.notes == ()
    shown = [p.pts for p in packets(path)[0]]
    assert shown != sorted(shown), "no B-frames"
    with av.open(str(path)) as container:
        assert container.start_time == 0


@pytest.mark.parametrize("fps", [None, Fraction(6) / Fraction("2.7")], ids=str)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_uneven_times_and_lengths_are_the_frames_own(tmp_path, suffix, fps):
    path = tmp_path / f"a.{suffix}"
    writer = write(path, clips.pictures(6), np.array(UNEVEN) + 3, 2.7, fps=fps)
    frames, _ = read(path)
    assert [float(f.time) for f in frames] == pytest.approx(UNEVEN, abs=1e-9)
    assert [float(f.end) for f in frames] == pytest.approx([*UNEVEN[1:], 2.7], abs=1e-9)
    assert writer.notes == ()


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(("fps", "length"), [(Fraction(25), 0.04), (None, 3.0)], ids=["25", "None"])
def test_one_frame(tmp_path, suffix, fps, length):
    path = tmp_path / f"a.{suffix}"
    write(path, clips.pictures(1), [9.5], length, fps=fps)
    (frame,), _ = read(path)
    assert (frame.time, float(frame.end)) == (0, pytest.approx(length, abs=1e-9))


def test_a_last_frame_that_is_shown_longer(tmp_path):
    path = tmp_path / "a.mp4"
    write(path, clips.pictures(30), duration=5.0, fps=Fraction(25))
    frames, _ = read(path)
    assert [f.time for f in frames] == [Fraction(i, 25) for i in range(30)]
    assert [f.end for f in frames] == [*(Fraction(i, 25) for i in range(1, 30)), 5]


def test_times_in_whole_milliseconds_go_back_to_their_grid(tmp_path):
    """Matroska gives times in whole milliseconds."""
    fps, path = RATES[0], tmp_path / "a.mp4"
    times = [round(float(1000 * i / fps)) / 1000 for i in range(20)]
    write(path, clips.pictures(20), times, 0.667, fps=fps)
    assert [f.time for f in read(path)[0]] == [i / fps for i in range(20)]


@pytest.mark.parametrize(("fps", "notes"), [(Fraction(25), 0), (RATES[0], 1)], ids=str)
def test_matroska_says_so_where_it_rounds_times(tmp_path, fps, notes):
    path = tmp_path / "a.mkv"
    writer = write(path, clips.pictures(20), [float(i / fps) for i in range(20)], float(20 / fps), fps=fps)
    assert len(writer.notes) == notes
    assert not notes or "whole milliseconds" in writer.notes[0]
    frames, info = read(path)
    assert max(abs(float(f.time - i / fps)) for i, f in enumerate(frames)) <= 0.0005 * notes + 1e-9
    assert info.fps == fps


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_times_that_do_not_grow_are_made_to(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    writer = write(path, clips.pictures(5), [0, 1, 1, 0.5, 2], 3, fps=Fraction(1))
    assert "2 frame times do not grow" in writer.notes[0]
    frames, _ = read(path)
    assert all(a.time < b.time for a, b in pairwise(frames))
    assert [round(float(f.time), 2) for f in frames] == [0, 1, 1, 1, 2]


@pytest.mark.parametrize("fps", [Fraction("24.999999999999"), Fraction(1, 10**6), Fraction(10**12)], ids=str)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_rates_libav_cannot_hold(tmp_path, suffix, fps):
    path = tmp_path / f"a.{suffix}"
    write(path, clips.pictures(3), [0, 0.04, 0.08], 0.12, fps=fps)
    written, base = packets(path)
    assert sorted(float(p.pts * base) for p in written) == pytest.approx([0, 0.04, 0.08], abs=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_times_no_file_can_hold_are_refused(tmp_path, bad):
    with pytest.raises(MovqError, match=r"a\.mp4: its frame times cannot be written"):
        open_writer(tmp_path / "a.mp4", width=8, height=8, times=[0, bad], duration=1)
    assert os.listdir(tmp_path) == []


# -- pictures


@pytest.mark.parametrize("shape", [(5, 64, 48), (5, 33, 27), (2, 1, 1), (1, 322, 241)], ids=str)
def test_ffv1_is_bit_exact(tmp_path, shape):
    images = noise(*shape)
    writer = write(tmp_path / "a.mkv", images)
    assert np.array_equal([f.image for f in read(tmp_path / "a.mkv")[0]], images)
    assert writer.description == "FFV1 lossless RGB"


def bt709(rgb):
    """Convert RGB in 0..255 to Y, U, V in BT.709 limited range, by its definition (ITU-R BT.709-6, 3)."""
    r, g, b = (value / 255 for value in rgb)
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    return 16 + 219 * y, 128 + 224 * (b - y) / 1.8556, 128 + 224 * (r - y) / 1.5748


@pytest.mark.parametrize("rgb", [(220, 20, 20), (10, 40, 230), (255, 255, 255)], ids=str)
def test_h264_colours_are_bt709_and_say_so(tmp_path, rgb):
    path = tmp_path / "a.mp4"
    write(path, [np.full((48, 64, 3), rgb, np.uint8)], crf=0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)
        frame = next(container.decode(stream))
        assert frame.format.name == "yuv420p"
        planes = [np.frombuffer(plane, np.uint8)[: plane.width].astype(float).mean() for plane in frame.planes]
    assert planes == pytest.approx(bt709(rgb), abs=0.6)
    assert read(path)[0][0].image.reshape(-1, 3).mean(0) == pytest.approx(rgb, abs=2)


def test_sharp_colours_keep_their_mean_where_chroma_is_halved(tmp_path):
    stripes = np.zeros((48, 96, 3), np.uint8)
    stripes[:, ::3], stripes[:, 1::3] = (255, 40, 0), (0, 200, 255)
    write(tmp_path / "a.mp4", [stripes], crf=0)
    assert read(tmp_path / "a.mp4")[0][0].image.mean((0, 1)) == pytest.approx(stripes.mean((0, 1)), abs=6)


def test_h264_frames_are_near_and_crf_says_how_near(tmp_path):
    images = clips.pictures(12)
    errors, sizes = [], []
    for crf in (10, 18, 40):
        writer = write(tmp_path / f"{crf}.mp4", images, crf=crf)
        made = np.stack([f.image for f in read(tmp_path / f"{crf}.mp4")[0]]).astype(float)
        errors.append(np.abs(made - images).mean())
        sizes.append(size_of(tmp_path / f"{crf}.mp4"))
    assert errors[0] < errors[1] < errors[2]
    assert errors[1] < 2
    assert sizes[0] > sizes[1] > sizes[2]
    assert (writer.description, writer.notes) == ("H.264 yuv420p", ())


@pytest.mark.parametrize("size", [(33, 48), (64, 27), (1, 1)], ids=str)
def test_odd_sizes_keep_every_pixel(tmp_path, size):
    images = clips.pictures(5, *size)
    writer = write(tmp_path / "a.mp4", images)
    assert writer.description == "H.264 yuv444p"
    assert "not every player" in writer.notes[0]
    made = np.stack([f.image for f in read(tmp_path / "a.mp4")[0]]).astype(float)
    assert np.abs(made - images).mean() < 3


def test_npy(tmp_path):
    images = noise(5, 33, 27)
    write(tmp_path / "a.npy", images)
    assert np.array_equal(np.load(tmp_path / "a.npy"), images)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert (mapped.shape, mapped.dtype) == ((5, 27, 33, 3), np.uint8)


@pytest.mark.parametrize("name", ["out", "out/", "out.d/"])
def test_folder(tmp_path, name):
    images = noise(3, 33, 27)
    write(f"{tmp_path}/{name}", images)
    assert sorted(os.listdir(tmp_path / name)) == ["000000.png", "000001.png", "000002.png"]
    assert np.array_equal(read(tmp_path / name / "000001.png")[0][0].image, images[1])
    assert os.listdir(tmp_path) == [name.strip("/")]


def test_png(tmp_path):
    image = clips.picture(31, 7)
    write_png(tmp_path / "a.png", image)
    assert np.array_equal(read(tmp_path / "a.png")[0][0].image, image)
    with pytest.raises(MovqError, match="exists"):
        write_png(tmp_path / "a.png", image)
    write_png(tmp_path / "a.png", image[:1, :1], force=True)
    assert np.array_equal(read(tmp_path / "a.png")[0][0].image, image[:1, :1])


def test_frames_in_any_memory_layout(tmp_path):
    images = noise(3, 32, 24)
    turned = np.ascontiguousarray(images.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)
    write(tmp_path / "a.npy", turned)
    write(tmp_path / "a.mkv", turned[:, ::-1])
    assert np.array_equal(np.load(tmp_path / "a.npy"), images)
    assert np.array_equal([f.image for f in read(tmp_path / "a.mkv")[0]], images[:, ::-1])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_same_frames_same_bytes(tmp_path, name):
    images = clips.pictures(9)
    (tmp_path / "again").mkdir()
    write(tmp_path / name, images)
    write(tmp_path / "again" / name, images)
    assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


# -- whole or absent


@pytest.mark.parametrize("name", KINDS)
def test_nothing_before_the_end_and_nothing_after_an_error(tmp_path, name):
    images = noise(60, 64, 48)

    def begin():
        return open_writer(f"{tmp_path}/{name}", width=64, height=48, times=range(60), duration=60)

    with begin() as writer:
        writer.write(images)
        assert not os.path.exists(tmp_path / name)
    assert os.listdir(tmp_path) == []
    with pytest.raises(KeyError), begin() as writer:  # noqa: PT012
        writer.write(images)
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_where_no_file_can_be_nameless(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE")
    write(tmp_path / "a.mkv", noise(3, 8, 8))
    assert len(packets(tmp_path / "a.mkv")[0]) == 3
    assert os.listdir(tmp_path) == ["a.mkv"]


@pytest.mark.parametrize("name", KINDS)
def test_every_announced_frame_and_no_other(tmp_path, name):
    images = noise(3, 8, 6)
    with open_writer(f"{tmp_path}/{name}", width=8, height=6, times=[0, 1], duration=2) as writer:
        with pytest.raises(ValueError, match="more frames"):
            writer.write(images)
        for wrong in (images[:1].astype(np.float32), images[:1, :-1], images[0]):
            with pytest.raises(ValueError, match="not uint8"):
                writer.write(wrong)
        writer.write(images[:1])
        with pytest.raises(ValueError, match="1 frames, not the 2"):
            writer.finish()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", KINDS)
def test_what_exists_stays_until_the_new_one_is_whole(tmp_path, name):
    path = f"{tmp_path}/{name}"
    old, new = noise(5, 16, 16), noise(3, 16, 16)[::-1]
    write(path, old)
    with pytest.raises(MovqError, match="exists; force=True"):
        write(path, new)
    before = size_of(path)
    with open_writer(path, width=16, height=16, times=range(3), duration=3, force=True) as writer:
        writer.write(new)
        assert size_of(path) == before
    assert size_of(path) == before
    write(path, new, force=True)
    assert os.listdir(tmp_path) == [name.strip("/")]
    if os.path.isdir(path):
        assert len(os.listdir(path)) == 3
        assert np.array_equal(read(f"{path}/000000.png")[0][0].image, new[0])
    elif not name.endswith("npy"):
        assert len(read(path)[0]) == 3


@pytest.mark.parametrize("other", ["notes.txt", "1.png", "000000.png/", "000000.png.bak"])
def test_a_folder_that_holds_anything_else_is_never_replaced(tmp_path, other):
    folder = tmp_path / "out"
    write(folder, noise(2, 8, 8))
    (folder / "000000.png").unlink()
    if other.endswith("/"):
        (folder / other).mkdir()
    else:
        (folder / other).write_text("mine")
    before = sorted(os.listdir(folder))
    with pytest.raises(MovqError, match="holds something else"):
        write(folder, noise(1, 8, 8), force=True)
    assert sorted(os.listdir(folder)) == before
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_came_meanwhile_is_not_replaced(tmp_path):
    with open_writer(tmp_path / "out", width=8, height=8, times=[0], duration=1) as writer:
        writer.write(noise(1, 8, 8))
        (tmp_path / "out").mkdir()
        with pytest.raises(MovqError, match="exists; force=True"):
            writer.finish()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == []


def test_an_old_folder_comes_back_where_the_new_one_cannot_be_named(tmp_path, monkeypatch):
    folder, rename = tmp_path / "out", os.rename
    write(folder, noise(2, 8, 8))

    def second_fails(source, target):
        if target == str(folder) and source.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    monkeypatch.setattr("movq_cli.files._exchange", lambda one, other: False)  # as if names could not be exchanged
    with pytest.raises(MovqError, match="no space left on device"):
        write(folder, noise(1, 8, 8), force=True)
    assert os.listdir(tmp_path) == ["out"]
    assert len(os.listdir(folder)) == 2


def test_a_folder_is_synced_then_named_then_the_folder_around_it_synced(tmp_path):
    """strace shows the order of system calls."""
    script = """if True:
        import sys
        import numpy as np
        from movq_cli.video import open_writer
        with open_writer(sys.argv[1], width=8, height=8, times=range(2), duration=2) as writer:
            writer.write(np.zeros((2, 8, 8, 3), np.uint8))
            writer.finish()"""
    log = tmp_path / "log"
    calls = "trace=fsync,rename,renameat,renameat2"
    command = ["strace", "-f", "-qq", "-y", "-e", calls, "-o", log, sys.executable, "-c", script, tmp_path / "out"]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        pytest.skip("needs strace")
    lines = [line.split(maxsplit=1)[1] for line in log.read_text().splitlines() if "(" in line]
    assert [line.split("(")[0] for line in lines] == ["fsync", "fsync", "fsync", "rename", "fsync"]
    assert sum(".png>" in line for line in lines[:2]) == 2
    assert lines[2].split(">")[0].endswith(".tmp")
    assert lines[4].split(">")[0].endswith(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no/a.mp4", "does not exist; create it first"),
        ("no/a.npy", "does not exist; create it first"),
        ("no/folder", "does not exist; create it first"),
        ("file/a.mkv", "not a folder"),
        ("file/folder", "not a folder"),
        ("file/", "exists and is not a folder"),
        ("link", "exists and is not a folder"),
        ("x" * 300, "name is too long"),
        ("x" * 300 + ".mp4", "name is too long"),
        ("..", "not a name for a new folder"),
        ("/", "not a name for a new folder"),
    ],
)
def test_refused_before_the_first_frame(tmp_path, name, reason):
    (tmp_path / "file").touch()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(MovqError, match=reason) as refused:
        open_writer(os.path.join(tmp_path, name), width=8, height=8, times=[0], duration=1, force=True)
    assert "\n" not in str(refused.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "real"]


@pytest.mark.parametrize("name", ["a.avi", "a.webp", "a.safetensors", "a.mp4.tmp"])
def test_other_suffixes_are_refused_by_naming_what_is_possible(tmp_path, name):
    with pytest.raises(MovqUsageError, match=r"\.mp4 or \.mov .*\.mkv .*\.npy .*folder"):
        open_writer(tmp_path / name, width=8, height=8, times=[0], duration=1)


def test_suffixes_in_capitals(tmp_path):
    assert write(tmp_path / "A.MKV", noise(1, 8, 8)).description == "FFV1 lossless RGB"


@pytest.mark.parametrize("crf", [-1, 52])
def test_crf_out_of_range(tmp_path, crf):
    with pytest.raises(MovqUsageError, match="crf: must be from 0 to 51"):
        open_writer(tmp_path / "a.mp4", width=8, height=8, times=[0], duration=1, crf=crf)


def test_a_size_no_encoder_takes_is_one_line(tmp_path):
    write(tmp_path / "good.mp4", noise(1, 8, 8))  # opens what stays open
    before = os.listdir("/dev/fd")
    with pytest.raises(MovqError, match=r"a\.mp4: cannot be written \(.+\)$"):
        open_writer(tmp_path / "a.mp4", width=40000, height=8, times=[0], duration=1)
    assert os.listdir(tmp_path) == ["good.mp4"]
    assert os.listdir("/dev/fd") == before


def run(script, *arguments):
    return subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)


def test_a_full_disk_is_one_line(tmp_path):
    """A limit on file size stands in for the full disk: writes fail from the header on, or later."""
    script = """if True:
        import resource, signal, sys
        import numpy as np
        from movq_cli import MovqError
        from movq_cli.video import open_writer
        import av, movq_cli.video.frames, av.codec.context, av.video.reformatter
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        frames = np.random.default_rng(0).integers(0, 256, (40, 128, 128, 3), dtype=np.uint8)
        for limit in 10, 60_000:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            for path in sys.argv[1:]:
                try:
                    with open_writer(path, width=128, height=128, times=range(40), duration=40) as writer:
                        writer.write(frames)
                        writer.finish()
                except MovqError as error:
                    print(error)"""
    video, lossless, array = paths = [tmp_path / name for name in ("a.mp4", "a.mkv", "a.npy")]
    result = run(script, *paths)
    assert result.stdout.splitlines() == 2 * [
        f"{video}: cannot be written (file too large)",
        f"{lossless}: cannot be written (file too large)",
        f"{array}: file too large",
    ]
    assert result.stderr == ""
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_no_interrupt_is_lost_while_libav_writes(tmp_path, name):
    """Python code called by libav would swallow the exception and go on. strace sends the signal during a write."""
    script = """if True:
        import signal, sys
        import numpy as np
        from movq_cli.video import open_writer
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is started with it ignored
        frames = np.random.default_rng(0).integers(0, 256, (60, 128, 128, 3), dtype=np.uint8)
        try:
            with open_writer(sys.argv[1], width=128, height=128, times=range(60), duration=60) as writer:
                writer.write(frames)
                writer.finish()
        except KeyboardInterrupt:
            print("stopped")"""
    inject = ["-e", "trace=write", "-e", "inject=write:signal=INT:when=2", "-o", os.devnull]
    command = ["strace", "-qq", *inject, sys.executable, "-B", "-c", script, tmp_path / name]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs strace")
    assert (result.stdout, result.stderr) == ("stopped\n", "")
    assert os.listdir(tmp_path) == []


def test_sigkill_leaves_no_file(tmp_path):
    script = """if True:
        import os, sys
        import numpy as np
        from movq_cli.video import open_writer
        writers = [open_writer(path, width=64, height=64, times=range(90), duration=90) for path in sys.argv[1:]]
        for writer in writers:
            writer.write(np.zeros((90, 64, 64, 3), np.uint8))
        os.kill(os.getpid(), 9)"""
    result = run(script, tmp_path / "a.mp4", tmp_path / "a.mkv", tmp_path / "a.npy", tmp_path / "folder")
    assert result.returncode == -signal.SIGKILL
    assert all(re.fullmatch(r"\.movq-\w+\.tmp", name) for name in os.listdir(tmp_path))
    assert len(os.listdir(tmp_path)) == 1, "a folder cannot be nameless"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_memory_does_not_grow_with_the_length(tmp_path, name):
    script = """if True:
        import sys
        import numpy as np
        from movq_cli.video import open_writer
        n = int(sys.argv[2])
        frames = np.full((4, 240, 320, 3), 90, np.uint8)
        with open_writer(sys.argv[1], width=320, height=240, times=range(n), duration=n, force=True) as writer:
            for _ in range(n // 4):
                writer.write(frames)
            writer.finish()
        print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))"""
    short, long = (int(run(script, tmp_path / name, n).stdout) for n in (80, 240))
    assert long - short < 12_000, "kB; the frames themselves are 37 MB more"


def test_importing_loads_no_pyav():
    assert run("import sys, movq_cli.video; print('av' in sys.modules)").stdout == "False\n"
