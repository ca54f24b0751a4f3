"""A late part of a video: what decoding from a key frame on gives is what decoding everything gives."""

from fractions import Fraction

import av
import numpy as np
import pytest

from movq_cli.errors import MovqError
from movq_cli.video import Selection, read_frames
from movq_cli.video.seek import find_entry
from movq_cli.video.selection import Shown, select

from . import clips, hostile

FRAMES, GOP = 100, 12
X264 = {"g": str(GOP), "bf": "2", "sc_threshold": "0"}
X265 = f"keyint={GOP}:min-keyint={GOP}:bframes=3:scenecut=0:log-level=none:open-gop="
ENTERED = {
    "h264.mp4": dict(options=X264),
    "h264.mkv": dict(options=X264),
    "no-b-frames.mp4": dict(options=X264 | {"bf": "0"}),
    "irregular.mkv": dict(options=X264, times=[i / 25 + 0.01 * (i % 3) for i in range(FRAMES)]),
    "edited.mov": None,
    "hevc.mp4": dict(codec="libx265", options={"x265-params": X265 + "0"}),
    "hevc-open.mp4": dict(codec="libx265", options={"x265-params": X265 + "1"}),
    "hevc-open.mkv": dict(codec="libx265", options={"x265-params": X265 + "1"}),
    "vp9.webm": dict(
        codec="libvpx-vp9", options={"g": str(GOP), "lag-in-frames": "8", "auto-alt-ref": "1", "speed": "8"}
    ),
    "av1.mp4": dict(codec="libsvtav1", options={"g": str(GOP), "preset": "12"}),
}
"""Videos that may be entered at a key frame behind the first."""

WHOLE = {
    "h264-open.mkv": dict(options=X264 | {"x264-params": "open-gop=1"}),
    "refresh.mkv": dict(options=X264 | {"bf": "0", "intra-refresh": "1"}),
    "interlaced.mp4": dict(options=X264 | {"x264-params": "tff=1"}),
    "h264.ts": dict(options=X264),
    "h264.avi": dict(options=X264 | {"bf": "0"}),
    "vp8.webm": dict(codec="libvpx", options={"g": str(GOP)}),
}
"""Videos that are decoded from the beginning: key frames that need others, packets that do not tell."""

SELECTIONS = [
    Selection(start=Fraction("1.93"), duration=Fraction("0.3")),
    Selection(start=Fraction("3.3")),
    Selection(skip=35, frames=3),
    Selection(skip=36, frames=9),
    Selection(start=Fraction("0.5"), fps=Fraction(7), every=2, skip=3),
]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """By its name: a video, its frames by decoding everything, and what is said of it."""
    folder, made = tmp_path_factory.mktemp("videos"), {}

    def make(name):
        if name not in made:
            path = folder / name
            if name == "edited.mov":
                hostile.edit_list(str(GOP), 4, 90, FRAMES)(path)
            else:
                clips.write(path, clips.pictures(FRAMES, 64, 64), **(ENTERED | WHOLE)[name])
            made[name] = path, *read(path)
        return made[name]

    return make


def read(path, selection=None):
    with read_frames(path, selection) as reader:
        return [Shown(f.index, f.time, f.end, f.image) for f in reader], reader.warnings


@pytest.mark.parametrize("name", [*ENTERED, *WHOLE])
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
    entry = find_entry(str(path), Selection(skip=50))
    assert find_entry(str(path), Selection()) is None
    assert find_entry(str(path), Selection(skip=3)) is None
    if name in WHOLE:
        assert entry is None
        return
    assert 50 - GOP < len(entry.before) <= 50
    assert everything[len(entry.before)].time == entry.time
    assert [(f.index, f.time, f.end) for f in entry.before] == [
        (f.index, f.time, f.end) for f in everything[: len(entry.before)]
    ]


def test_what_is_in_front_is_not_decoded(tmp_path, video):
    """Damage there is no hindrance; where decoding comes to it, it is one."""
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
