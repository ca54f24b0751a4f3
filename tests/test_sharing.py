"""Many spans of one video: it is read once for each purpose, and each span is the same as from a file of its own."""

import json
import os
import signal
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from movq_cli import MovqError, Picture, Selection, encode_batch, read_frames
from movq_cli.batch.item import Item
from movq_cli.batch.probe import probe_items
from movq_cli.batch.queue import Queue, Task
from movq_cli.encode import VideoEncoder
from movq_cli.files import FileIdentity
from movq_cli.options import EncodeOptions
from movq_cli.shared import KnownSource
from movq_cli.video import count_frames, survey

from .helpers import clips
from .helpers.batches import manifest
from .helpers.processes import decoders, forkers

FRAMES = 120
SMALL = {"every": 5, "height": 24, "threads": 1, "precision": "fp32"}
GRAIN = {"crf": "1", "preset": "ultrafast", "g": "25"}


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Write 120 frames of noise, which take megabytes, so that it counts how often they are read."""
    grain = np.random.default_rng(0)
    images = [grain.integers(0, 256, (120, 160, 3), np.uint8) for _ in range(FRAMES)]
    path = clips.write(tmp_path_factory.mktemp("film") / "film.mp4", images, options=GRAIN)
    assert path.stat().st_size > 3e6
    return path


def bytes_read():
    """Return the bytes that this process, its decoding processes and those that have ended have read."""
    return sum(int(Path(f"/proc/{pid}/io").read_text().split()[1]) for pid in (os.getpid(), *forkers(), *decoders()))


def rows(path, count=12):
    """Return rows of a list, each of the same length, that cover a video one after the other."""
    length = Fraction(FRAMES, 25 * count)
    return [{"path": str(path), "start": str(i * length), "duration": str(length)} for i in range(count)]


def batch(folder, listed, out="out", **options):
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, listed)))
    return encode_batch([], folder / out, lists=[folder / "list.jsonl"], **options)


def in_turn(path, selections, times=b""):
    """Return (indices, times, ends, pixels) and warnings of each selection, or its error, from readers that share a process."""
    readers, found = [], []
    for number, selection in enumerate(selections):
        after, more = (readers[-1] if readers else None), number + 1 < len(selections)
        readers.append(read_frames(path, selection, more=more, after=after, times=times))
        if number:  # two are open at a time, as in a worker
            found.append(taken(readers[-2]))
    return [*found, taken(readers[-1])]


def taken(reader):
    try:
        return [(f.index, f.time, f.end, f.image.tobytes()) for f in reader], reader.warnings
    except MovqError as error:
        return str(error)


SELECTIONS = {
    "rows": [Selection(start=Fraction(i, 5), duration=Fraction(1, 5)) for i in range(16)],
    "rows with gaps": [Selection(start=Fraction(i, 2), duration=Fraction(1, 5), every=2) for i in range(7)],
    "overlapping rows": [Selection(start=Fraction(i, 4), duration=1, fps=10) for i in range(11)],
    "picked": [Selection(skip=5 * i, frames=5) for i in range(16)],
    "picked, slower": [Selection(skip=3 * i, frames=3, fps=8) for i in range(8)],
    "not in order": [Selection(start=at, frames=4) for at in (3, 1, 2, 0, 3, 9, 1)],
}
KINDS = {
    "h264.mp4": dict(options={"g": "12", "bf": "2", "sc_threshold": "0"}),
    "hevc-open.mkv": dict(codec="libx265", options={"x265-params": "keyint=12:bframes=3:open-gop=1:log-level=none"}),
    "irregular.mkv": dict(options={"g": "12"}, times=[i / 25 + 0.01 * (i % 3) for i in range(90)]),
    "mpeg4.avi": dict(codec="mpeg4"),
    "h264.ts": dict(options={"g": "12"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_spans_that_share_a_process_equal_those_of_separate_ones(tmp_path, kind):
    path = clips.write(tmp_path / kind, clips.pictures(90, 64, 64), **KINDS[kind])
    (found,) = survey([(str(path), Selection())])
    for name, selections in SELECTIONS.items():
        apart = [taken(read_frames(path, selection)) for selection in selections]
        assert any(isinstance(one, tuple) and one[0] for one in apart)
        for times in (b"", found.times):
            assert in_turn(path, selections, times) == apart, name


def test_a_warning_is_about_its_spans_alone(tmp_path):
    """Frames 30 to 39 have transparent pixels."""
    alphas = (np.full((64, 64, 1), 100 if 30 <= i < 40 else 255, np.uint8) for i in range(90))
    images = [np.dstack(pair) for pair in zip(clips.pictures(90, 64, 64), alphas, strict=True)]
    frames = [av.VideoFrame.from_ndarray(image, format="rgba").reformat(format="argb") for image in images]
    path = clips.write(tmp_path / "a.mov", [], frames=frames, codec="qtrle", pix_fmt="argb")
    selections = SELECTIONS["rows"]
    apart = [taken(read_frames(path, selection)) for selection in selections]
    assert [bool(warnings) for _, warnings in apart] == [6 <= i < 8 for i in range(16)]
    assert in_turn(path, selections) == apart


def test_a_warning_stays_with_all_spans_behind_it(tmp_path):
    """The second cluster of a Matroska file claims to begin at 0, so that decoding begins with the file for each span."""
    options = {"g": "12", "bf": "0", "sc_threshold": "0"}
    clip = clips.write(tmp_path / "0.mkv", clips.pictures(150, 64, 64), options=options)
    path = tmp_path / "a.mkv"
    clips.copy_packets(clip, path, {"cluster_time_limit": "2800"})
    data = bytearray(path.read_bytes())
    at = data.index(b"\xe7\x82" + (2400).to_bytes(2), data.index(b"\x1f\x43\xb6\x75"))
    data[at + 2 : at + 4] = bytes(2)
    path.write_bytes(data)
    selections = [Selection(skip=15 * i, frames=15) for i in range(10)]
    apart = [taken(read_frames(path, selection)) for selection in selections]
    assert [bool(warnings) for _, warnings in apart] == [i >= 4 for i in range(10)]
    assert in_turn(path, selections) == apart


def test_damage_is_an_error_of_its_spans_alone(tmp_path):
    path = clips.write(tmp_path / "a.mp4", clips.pictures(90, 64, 64), **KINDS["h264.mp4"])
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for at, size in packets[37:40]:
        data[at + size // 2 : at + size // 2 + 8] = b"\xa5" * 8
    path.write_bytes(data)
    selections = SELECTIONS["rows"]
    apart = [taken(read_frames(path, selection)) for selection in selections]
    assert 0 < sum(isinstance(one, str) for one in apart) < 5
    assert in_turn(path, selections) == apart


def test_a_crash_costs_the_span_that_is_decoded_and_no_other(film):
    first = read_frames(film, Selection(frames=30), ahead=2, more=True)
    second = read_frames(film, Selection(start=2, frames=5), more=True, after=first)
    next(first)
    (decoder,) = decoders()
    os.kill(decoder, signal.SIGSEGV)
    with pytest.raises(MovqError, match="the decoder crashed on it"):
        list(first)
    third = read_frames(film, Selection(start=3, frames=5), after=second)
    for reader, start in ((second, 50), (third, 75)):
        assert [frame.index for frame in reader] == list(range(start, start + 5))
    assert decoders() == []


@pytest.mark.slow
def test_a_film_is_read_once_for_each_purpose(tmp_path, film):
    """Once for its digest, once for the times of its frames, and once to decode it."""
    small = clips.write(tmp_path / "small.mp4", clips.pictures(FRAMES))
    read = []
    for name, path in (("import modules", small), ("read weights", small), ("measure", film)):
        before = bytes_read()
        result = batch(tmp_path, rows(path), name, workers=0, **SMALL)
        read.append(bytes_read() - before)
    read = (read[2] - read[1]) / film.stat().st_size
    assert [line["frames"] for line in result.made] == [2] * 12
    assert 2.9 < read < 3.4
    assert decoders() == []


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_is_in_front_of_a_late_span_is_not_read(tmp_path, film, suffix):
    path = tmp_path / f"film{suffix}"
    clips.copy_packets(film, path)
    (found,) = survey([(str(path), Selection())])
    before = bytes_read()
    with read_frames(path, Selection(start=4, frames=5), times=found.times) as reader:
        assert [frame.index for frame in reader] == list(range(100, 105))
    assert (bytes_read() - before) / path.stat().st_size < 0.3


def test_a_plan_looks_at_a_video_once(film):
    items = [Item(f"{i}", str(film), f"{i}", Fraction(i, 50), Fraction(1 + i % 3, 2)) for i in range(40)]
    list(read_frames(film, Selection(frames=1)))
    for options in ({}, {"fps": 7}, {"every": 3}):
        selection = Selection(**options)
        before = bytes_read()
        probed = list(probe_items(items, EncodeOptions(selection=selection)))
        assert (bytes_read() - before) / film.stat().st_size < 1.7  # 1, and the start of the file
        assert [item.id for item in probed] == [item.id for item in items]
        assert len({item.times for item in probed}) == 1
        for item in probed[::7]:
            own = Selection(start=item.start, duration=item.duration, **options)
            assert item.facts == (count_frames(film, own), 160, 120)
            assert item.facts.frames == len(list(read_frames(film, own)))


@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_spans_of_a_batch_equal_those_encoded_separately(tmp_path, film, workers):
    """Also those that overlap, and those of another video between them; the order of the list does not matter."""
    other = clips.write(tmp_path / "other.mp4", clips.pictures(30))
    listed = [*rows(film, 4), *rows(film, 3), {"path": str(other), "start": 0.4}, {"path": str(other)}]
    batch(tmp_path, listed[::-1], workers=workers, **SMALL)
    lines = manifest(tmp_path / "out")
    assert len(lines) == len(listed)
    equal_separate_ones(tmp_path, lines.values())


@pytest.mark.slow
def test_a_worker_that_dies_between_spans_costs_an_attempt_and_no_byte(tmp_path, film):
    killed = []

    def kill(state):
        if len(state.made) == 2 and not killed:
            killed.append(state.workers[0].child.pid)
            os.kill(killed[0], signal.SIGSEGV)

    result = batch(tmp_path, rows(film, 8), workers=1, watch=kill, **SMALL)
    assert killed
    assert [line["status"] for line in result.lines] == ["done"] * 8
    assert sum(bool(line["warnings"]) for line in result.lines) <= 3
    equal_separate_ones(tmp_path, [line for line in result.lines if not line["warnings"]])


def test_a_video_that_is_replaced_between_two_spans_is_read_again(tmp_path, film):
    path = tmp_path / "a.mp4"
    path.write_bytes(film.read_bytes())
    changed = clips.write(tmp_path / "b.mp4", clips.pictures(FRAMES, 160, 120))

    def replace(state):
        if len(state.made) == 1 and changed.exists():
            os.replace(changed, path)

    result = batch(tmp_path, rows(path, 3), workers=0, watch=replace, **SMALL)
    digests = [line["source_sha256"] for line in result.made]
    assert digests[0] != digests[1] == digests[2]
    equal_separate_ones(tmp_path, result.made[1:])


def equal_separate_ones(folder, lines):
    """Check that the outputs of lines of a manifest have the bytes that each gets when it is encoded separately."""
    encoder = VideoEncoder(EncodeOptions(picture=Picture(height=SMALL["height"]), threads=1, precision="fp32"))
    for line in lines:
        span = {name: line["options"][name] for name in ("start", "duration") if name in line["options"]}
        source = os.path.join(folder, "out", line["path"])
        encoder.encode(source, folder / "separate", force=True, every=SMALL["every"], **span)
        encoder.close()
        assert (folder / "out" / line["output"]).read_bytes() == (folder / "separate").read_bytes()


def task(path, number=0):
    return Task(Item(f"{path}{number}", path, f"{path}{number}"))


def test_spans_of_a_video_go_to_one_worker_in_order():
    queue = Queue()
    queue.extend(task(path, i) for path in "ab" for i in range(3))
    given = [queue.take(worker) for worker in (0, 1, 0, 1, 0, 1)]
    assert [one.item.id for one, _, _ in given] == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert [more for _, _, more in given] == [True, True, True, True, False, False]
    assert len(queue) == 0
    assert queue.next_for(0, idle=True) is None


def test_a_worker_without_work_helps_once_the_digest_is_known():
    queue, known = Queue(), KnownSource(FileIdentity(1, 2, 3), "abc", b"times")
    queue.extend(task("a", i) for i in range(7))
    assert queue.take(0)[0].item.id == "a0"
    assert queue.next_for(1, idle=True) is None
    queue.note("a", known)
    assert queue.next_for(1, idle=False) is None
    assert queue.next_for(1, idle=True).item.id == "a4"
    found, told, more = queue.take(1)
    assert (found.item.id, told, more) == ("a4", known, True)
    assert [queue.take(worker)[0].item.id for worker in (0, 1, 0, 1)] == ["a1", "a5", "a2", "a6"]
    queue.release(0)
    assert queue.take(1)[0].item.id == "a3"
    queue.put_back([task("a", 8), task("b", 0)])
    assert [queue.take(1)[0].item.id for _ in range(2)] == ["a8", "b0"]
