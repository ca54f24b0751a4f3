"""Late parts of a video: decoding from a key frame gives the same as decoding everything."""

import struct
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import count

import av
import numpy as np
import pytest

from movq_cli.errors import MovqError
from movq_cli.options import Selection
from movq_cli.video import read_frames
from movq_cli.video.container import open_video
from movq_cli.video.counting import read_times
from movq_cli.video.decoding import NoEntryError
from movq_cli.video.frames import Decoder
from movq_cli.video.keyframes import entry_of
from movq_cli.video.selection import Shown, select

from .faults import hostile
from .helpers import clips

FRAMES, GOP = 100, 12
X264 = {"g": str(GOP), "bf": "2", "sc_threshold": "0"}
X265 = f"keyint={GOP}:min-keyint={GOP}:bframes=3:scenecut=0:log-level=none:open-gop="
ENTERED = {
    "h264.mp4": dict(options=X264),
    "h264.mkv": dict(options=X264),
    "no-b-frames.mp4": dict(options=X264 | {"bf": "0"}),
    "irregular.mkv": dict(options=X264, times=[i / 25 + 0.01 * (i % 3) for i in range(FRAMES)]),
    "edited.mov": hostile.edit_list(str(GOP), 4, 90, FRAMES),
    "hevc.mp4": dict(codec="libx265", options={"x265-params": X265 + "0"}),
    "hevc-open.mp4": dict(codec="libx265", options={"x265-params": X265 + "1"}),
    "hevc-open.mkv": dict(codec="libx265", options={"x265-params": X265 + "1"}),
    "hevc-radl.mp4": dict(codec="libx265", options={"x265-params": X265 + "0:radl=2"}),
    "vp9.webm": dict(
        codec="libvpx-vp9", options={"g": str(GOP), "lag-in-frames": "8", "auto-alt-ref": "1", "speed": "8"}
    ),
    "av1.mp4": dict(codec="libsvtav1", options={"g": str(GOP), "preset": "12"}),
}
"""Videos that may be entered at a key frame after the first."""


def remuxed(path, source, edit):
    """Write a video's packets again, each as the (bytes, delay in frames) that `edit(number, bytes, is_key)` yields."""
    with av.open(str(source)) as video, av.open(str(path), "w") as other:
        stream = other.add_stream_from_template(video.streams.video[0])
        for number, packet in enumerate(p for p in video.demux(video=0) if p.size):
            for data, late in edit(number, bytes(packet), packet.is_keyframe):
                made = av.Packet(data)
                made.pts, made.dts = (t + round(late * packet.duration) for t in (packet.pts, packet.dts))
                made.time_base, made.duration, made.is_keyframe = packet.time_base, packet.duration, packet.is_keyframe
                made.stream = stream
                other.mux(made)


def broken_link(path):
    """Write HEVC whose third key frame is a BLA: what follows it in the file and is shown before it is left out."""
    source = clips.write(path.with_suffix(".0.mp4"), clips.pictures(FRAMES, 64, 64), **ENTERED["hevc-open.mp4"])
    keys = count()

    def edit(number, data, key):
        at, data = 0, bytearray(data)
        this = key and next(keys) == 2
        while at < len(data):
            if this and data[at + 4] >> 1 & 63 == 21:
                data[at + 4] = 16 << 1 | data[at + 4] & 1
            at += 4 + int.from_bytes(data[at : at + 4])
        yield bytes(data), 0

    remuxed(path, source, edit)


def ended(path):
    """Write HEVC with an end of sequence in front of its third key frame, at the end of a packet."""
    source = clips.write(path.with_suffix(".0.mp4"), clips.pictures(FRAMES, 64, 64), **ENTERED["hevc-open.mp4"])
    with av.open(str(source)) as video:
        keys = [i for i, p in enumerate(p for p in video.demux(video=0) if p.size) if p.is_keyframe]
    end = b"\0\0\0\2\x48\1"
    remuxed(path, source, lambda number, data, key: [(data + (end if number + 1 == keys[2] else b""), 0)])


def two_descriptions(path):
    """Write an MP4 whose frames from 24 on have their own parameter sets; libav passes them on with the first one."""
    parts = [path.with_suffix(f".{i}.mp4") for i in range(2)]
    for part, images, offset in zip(
        parts, (clips.pictures(24, 64, 64), clips.pictures(76, 64, 64)), (0, 10), strict=True
    ):
        options = X264 | {"bf": "0", "qp": "26", "x264-params": f"chroma-qp-offset={offset}"}
        clips.write(part, images, options=options)
    joined = path.with_suffix(".joined.mp4")
    with av.open(str(joined), "w") as other, av.open(str(parts[0])) as a, av.open(str(parts[1])) as b:
        stream = other.add_stream_from_template(a.streams.video[0])
        for number, packet in enumerate(p for video in (a, b) for p in video.demux(video=0) if p.size):
            packet.pts = packet.dts = round(Fraction(number, 25) / packet.time_base)
            packet.stream = stream
            other.mux(packet)
    with av.open(str(joined)) as video:
        places = [p.pos for p in video.demux(video=0) if p.size]
    stsd = [data[data.index(b"stsd") + 12 :][: _length(data, b"stsd") - 16] for data in (p.read_bytes() for p in parts)]
    stsc = struct.pack(">8I", 0, 2, 1, 24, 1, 2, 76, 2)
    edits = {
        b"stsd": lambda body: struct.pack(">II", 0, 2) + b"".join(stsd),
        b"stsc": lambda body: stsc,
        b"stco": lambda body: struct.pack(">4I", 0, 2, places[0], places[24]),
    }
    path.write_bytes(hostile.rebuilt(joined.read_bytes(), edits))


def _length(data, kind):
    return int.from_bytes(data[data.index(kind) - 4 :][:4])


WHOLE = {
    "bla.mp4": broken_link,
    "ended.mp4": ended,
    "two-descriptions.mp4": two_descriptions,
    "h264-open.mkv": dict(options=X264 | {"x264-params": "open-gop=1"}),
    "refresh.mkv": dict(options=X264 | {"bf": "0", "intra-refresh": "1"}),
    "interlaced.mp4": dict(options=X264 | {"x264-params": "tff=1"}),
    "h264.ts": dict(options=X264),
    "h264.avi": dict(options=X264 | {"bf": "0"}),
    "vp8.webm": dict(codec="libvpx", options={"g": str(GOP)}),
}
"""Videos that are decoded from the beginning: their key frames need other frames, or their packets do not tell."""

SELECTIONS = [
    Selection(start=Fraction("1.93"), duration=Fraction("0.3")),
    Selection(start=Fraction("3.3")),
    Selection(skip=35, frames=3),
    Selection(skip=36, frames=9),
    Selection(start=Fraction("0.5"), fps=Fraction(7), every=2, skip=3),
]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Return by its name: a video, its frames from decoding everything, and its warnings."""
    folder, made = tmp_path_factory.mktemp("videos"), {}

    def make(name):
        if name not in made:
            path = folder / name
            how = (ENTERED | WHOLE)[name]
            if callable(how):
                how(path)
            else:
                clips.write(path, clips.pictures(FRAMES, 64, 64), **how)
            made[name] = path, *read(path)
        return made[name]

    return make


def read(path, selection=None):
    with read_frames(path, selection) as reader:
        return [Shown(f.index, f.time, f.end, f.image) for f in reader], reader.warnings


class Counted:
    """A decoder that counts the packets it is given."""

    def __init__(self, codec):
        self.codec_context, self.packets = codec, 0

    def __getattr__(self, name):
        return getattr(self.codec_context, name)

    def decode(self, packet):
        self.packets += packet.size > 0
        return self.codec_context.decode(packet)


def decoded(path, selection, times):
    """Return how many packets are decoded up to the first frame of a selection, as the decoding process does it."""
    for known, jumps in ((times, True), (times, False), (None, False)):
        with open_video(str(path)) as source:
            counted = replace(source, codec=Counted(source.codec))
            with suppress(NoEntryError):
                next(Decoder(counted).frames(selection, known, jumps))
                return counted.codec.packets


QUICK = ("h264.mp4", "h264.mkv", "hevc.mp4", *WHOLE)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in (*ENTERED, *WHOLE)]
)
def test_frames_are_those_of_decoding_everything(video, name):
    path, everything, warnings = video(name)
    for selection in SELECTIONS if name in ENTERED else SELECTIONS[::3]:
        expected = list(select(everything, selection))
        found, said = read(path, selection)
        assert [(f.index, f.time, f.end) for f in found] == [(f.index, f.time, f.end) for f in expected], selection
        assert all(np.array_equal(a.payload, b.payload) for a, b in zip(found, expected, strict=True)), selection
        assert found
        assert said == warnings


@pytest.mark.parametrize("name", [*ENTERED, *WHOLE])
def test_the_entry_is_the_last_key_frame_in_front(video, name):
    path, everything, _ = video(name)
    with open_video(str(path)) as source:
        times = read_times(source)
    entry = entry_of(times, Selection(skip=50))
    assert entry_of(times, Selection()) is None
    assert entry_of(times, Selection(skip=3)) is None
    if name in WHOLE:
        assert decoded(path, Selection(skip=50), times) >= 50
        return
    assert decoded(path, Selection(skip=50), times) < 50 - GOP
    assert 50 - GOP < entry.frames <= 50
    assert everything[entry.frames].time == entry.time
    assert [(f.index, f.time, f.end) for f in map(times.frame, range(entry.frames))] == [
        (f.index, f.time, f.end) for f in everything[: entry.frames]
    ]
    with open_video(str(path)) as source:
        early = read_times(source, until=Selection(skip=50))
    assert entry_of(early, Selection(skip=50)).frames == entry.frames


def test_what_is_in_front_is_not_decoded(tmp_path, video):
    """Damage in front of the entry does no harm; damage that decoding meets is an error."""
    path, everything, _ = video("no-b-frames.mp4")
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    damaged = tmp_path / "damaged.mp4"
    data = bytearray(path.read_bytes())
    for at, size in packets[GOP + 2 : 2 * GOP]:
        data[at + size // 2 : at + size // 2 + 8] = b"\xa5" * 8
    damaged.write_bytes(data)
    found, _ = read(damaged, Selection(skip=4 * GOP))
    assert all(np.array_equal(a.payload, b.payload) for a, b in zip(found, everything[4 * GOP :], strict=True))
    for skip in (0, GOP + 1):
        with pytest.raises(MovqError, match=r"damaged|cannot be decoded"):
            read(damaged, Selection(skip=skip))


def test_packets_that_are_no_frames(tmp_path, video):
    """Two packets in front hold only a delimiter: decoding everything refuses the file, and decoding a part, too."""
    path, _, _ = video("no-b-frames.mp4")

    def edit(number, data, key):
        yield data, 0
        if number in (3, 20):
            yield b"\0\0\0\2\x09\xf0", 0.5

    remuxed(tmp_path / "a.mp4", path, edit)
    for selection in (Selection(), Selection(skip=50)):
        with pytest.raises(MovqError, match="cannot be decoded"):
            read(tmp_path / "a.mp4", selection)


def test_times_that_jump_back_behind_the_entry(tmp_path):
    """The second cluster of a Matroska file claims to begin at 0; none of its frames is lost."""
    clip = clips.write(tmp_path / "0.mkv", clips.pictures(150, 64, 64), options=X264 | {"bf": "0"})
    clips.copy_packets(clip, tmp_path / "a.mkv", {"cluster_time_limit": "2800"})
    data = bytearray((tmp_path / "a.mkv").read_bytes())
    at = data.index(b"\xe7\x82" + (2400).to_bytes(2), data.index(b"\x1f\x43\xb6\x75"))
    data[at + 2 : at + 4] = bytes(2)
    (tmp_path / "a.mkv").write_bytes(data)
    everything, warnings = read(tmp_path / "a.mkv")
    assert "has frame times that do not grow, first at frame 60" in warnings
    found, said = read(tmp_path / "a.mkv", Selection(skip=20))
    assert [(f.index, f.time) for f in found] == [(f.index, f.time) for f in everything[20:]]
    assert said == warnings
    with open_video(str(tmp_path / "a.mkv")) as source:
        assert entry_of(read_times(source), Selection(skip=20)) is None
