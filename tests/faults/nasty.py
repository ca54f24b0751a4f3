"""A tree of clips such as people have: real and synthetic, pictures, names of every kind, links, and bad files."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np

from movq_cli import Picture, Selection, read_frames

from ..helpers import clips
from ..helpers.clips import CITY

NAMES = ["Straße 東京.mp4", "two\nlines.mp4", "-dash.mp4", "http:x.mp4", "a b.mp4", "[1].mp4", "é" * 125 + ".mp4"]
PLACES = ["", "sub", "sub/deep", "Sub2"]


def _real(path, start):
    """Write a second of a real clip, made small."""
    chosen = Selection(start=Fraction(start, 10), duration=Fraction(1), fps=Fraction(10))
    with read_frames(CITY, chosen, Picture(width=96, height=64)) as frames:
        return clips.write(path, [frame.image for frame in frames], rate=10)


GOOD = [
    lambda path, i: clips.write(path.with_suffix(".mp4"), clips.pictures(5 + i % 13)),
    lambda path, i: clips.write(path.with_suffix(".mkv"), clips.pictures(17, 80, 64)),
    lambda path, i: clips.still(path.with_suffix(".png"), clips.picture(72, 56), "png"),
    lambda path, i: clips.write(path.with_suffix(".mov"), clips.pictures(9, 64, 48), rotation=90),
    lambda path, i: _real(path.with_suffix(".mp4"), i % 30),
    lambda path, i: clips.still(path.with_suffix(".JPG"), clips.picture(64, 64), "mjpeg", "yuvj420p"),
    lambda path, i: clips.write(path.with_suffix(".mp4"), clips.pictures(13), times=[0.1 * n**1.1 for n in range(13)]),
    lambda path, i: clips.write(path.with_suffix(".mkv"), clips.pictures(6, 67, 45), pix_fmt="yuv444p"),
]


def _cut(path):
    """Write the first half of a Matroska file."""
    clip = clips.write(path, clips.pictures(40))
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])


def _no_index(path):
    clip = clips.write(path, clips.pictures(20))
    clip.write_bytes(clip.read_bytes()[:-800])


def _damaged(path):
    data = bytearray(clips.write(path, clips.pictures(30)).read_bytes())
    data[300:2000] = bytes(1700)
    path.write_bytes(data)


BAD = {  # name: (how it is made, what the reason says)
    "empty.mp4": (lambda path: path.write_bytes(b""), "is empty"),
    "text.mp4": (lambda path: path.write_text("no video\n" * 50), "not a video"),
    "noise.mkv": (lambda path: path.write_bytes(os.urandom(3000)), "not a video"),
    "page.mp4": (lambda path: path.write_text("<html>404</html>"), "not a video"),
    "sound.mp4": (clips.sound_only, "no video stream"),
    "bomb.gif": (clips.gif_bomb, "8192x4320"),
    "playlist.mp4": (lambda path: path.write_text("ffconcat version 1.0\nfile clip.mp4\n"), "not a video"),
    "noindex.mp4": (_no_index, ""),
    "cut.mkv": (_cut, ""),
    "damaged.mp4": (_damaged, ""),
    "cut.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40)), ""),
    "archive.mov": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(500)), "not a video"),
    "broken.jpg": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(30)), ""),
    "gone.mp4": (lambda path: path.symlink_to(path.parent / "nothing there"), "no such file"),
    "weights.mp4": (lambda path: path.write_bytes(b"\x40\0\0\0\0\0\0\0{" + b" " * 63), "not a video"),
}


def build(folder, good, bad):
    """Build the tree with these numbers of good and bad items. Return what each bad one's reason says, by id."""
    folder, outside = Path(folder), Path(f"{folder} elsewhere")
    for place in (*(folder / place for place in PLACES), outside):
        place.mkdir(parents=True, exist_ok=True)
    made = 0

    def place(name):
        return folder / PLACES[made % len(PLACES)] / name

    for name in NAMES[:good]:
        made += bool(clips.write(folder / name, clips.pictures(5)))
    undecodable = os.fsdecode(os.fsencode(folder) + b"/\xff.mp4")
    (folder / "clip.mp4").symlink_to(clips.write(outside / "the one.mp4", clips.pictures(5)))  # the only way to it
    clips.write(folder / "clip.mkv", clips.pictures(5))
    clips.write(folder / "Clip.mp4", clips.pictures(6))
    os.rename(clips.write(folder / "x.mp4", clips.pictures(5)), undecodable)
    made += 4
    while made < good:
        GOOD[made % len(GOOD)](place(f"clip {made}"), made)
        made += 1
    reasons = {}
    for i in range(bad):
        name, (make, reason) = list(BAD.items())[i % len(BAD)]
        path = folder / PLACES[i % len(PLACES)] / f"{i} {name}"
        make(path)
        reasons[os.path.relpath(path, folder)] = reason
    (folder / "again.mp4").symlink_to(folder / "clip.mkv")
    (folder / "sub" / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.mp4")
    (folder / ".hidden.mp4").write_bytes(b"x")
    (folder / "part.mp4.part").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    return reasons


def bad_files(folder):
    """Write bad files and return what the reason for each says, by name."""
    clip = clips.write(folder / "clip.mp4", clips.pictures(30))
    (folder / "folder").mkdir()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video\n" * 100)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    clips.sound_only(folder / "sound.mp4")
    clips.gif_bomb(folder / "bomb.gif")
    (folder / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n")
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile clip.mp4\n")
    (folder / "noindex.mp4").write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    os.mkfifo(folder / "pipe.mp4")
    (folder / "link.mp4").symlink_to(folder / "nothing.mp4")
    return {
        "missing.mp4": "no such file",
        "folder": "is a folder",
        "empty.mp4": "is empty",
        "text.mp4": "not a video",
        "noise.mp4": "not a video",
        "sound.mp4": "no video stream",
        "bomb.gif": "8192x4320",
        "list.m3u8": "not a video",
        "list.mp4": "not a video",
        "noindex.mp4": "not a video",
        "pipe.mp4": "not a regular file",
        "link.mp4": "no such file",
    }
