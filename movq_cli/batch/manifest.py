"""The manifest of a batch: `manifest.jsonl`, one line of JSON per item, with its outcome and its settings.

Lines are appended as items end, and each is synced to disk. When a batch begins and when it ends, the file is rewritten
in order, whole or not at all. Each shard of a batch has its own manifest until they are merged. See docs/format.md.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Annotated, Any, BinaryIO, Literal, NotRequired, TypedDict, get_args

from msgspec import Meta

from ..errors import CHOSEN, MovqError, MovqTooShortError, MovqWarning, option, printable
from ..files import BLOCK, FileIdentity, WholeFile, os_reason, require_file, sync, write_all, write_error
from ..options import FIRST_FRAMES
from ..records import MOST, Amount, Count, from_values, parse_json
from ..values import Shard
from ..video import VideoFacts
from .paths import Reach, Sources, refuse_links

NAME = "manifest.jsonl"
_SHARD_NAME = re.compile(r"manifest\.(\d+)-of-(\d+)\.jsonl")
_UNFINISHED_NAME = re.compile(r"\.movq-shard-(\d+)-of-(\d+)\.unfinished")
Status = Literal["done", "skipped", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class FirstFrameLine(TypedDict):
    """The manifest's entry for a file with a first frame: `output` is the file, or a tar that holds it as `member`."""

    output: str
    member: NotRequired[str]
    bytes: Count
    sha256: str


class Line(TypedDict, total=False):
    """One item's line in the manifest. Fields that do not apply are absent.

    `path` is that of the video; in the file it is relative to the folder. `status` is done, skipped (the options leave the
    video out) or failed; these two come with `reason` and `cause`, see errors.py. `output` is a latents file, or a tar
    that holds the latents as `member`. `first_frame` are the files of the first frame, by kind. `source` is the identity
    of the video: while it is unchanged, the video counts as the same without being read, and `seen` as its facts. `of` is
    the id of the whole video's item if this item is a span. `cut` is how items were to be cut out of all videos.
    `options` are those that change the latents and differ from the default, the item's own included. `partial` means that
    the video is cut off or damaged, and that the frames before that place were taken. `orphan` means that no batch since
    has named the item, and that its video is gone or is cut into other items now.
    """

    id: str
    path: str
    status: Status
    reason: str
    cause: str
    output: str
    member: str
    bytes: Count
    sha256: str
    shape: Annotated[list[Annotated[int, Meta(ge=1, lt=MOST)]], Meta(min_length=5, max_length=5)]
    dtype: str
    width: Count
    height: Count
    frames: Count
    padded: Count
    dropped: Count
    duration: Amount
    first_frame: dict[str, FirstFrameLine]
    caption: str
    extra: dict[str, Any]
    of: str
    cut: dict[str, Any]
    seen: VideoFacts
    source: FileIdentity
    source_sha256: str
    weights_digest: str
    semantics: str
    precision: str
    options: dict[str, Any]
    format_version: str
    threads: Count
    device: str
    chunk_frames: Count
    strips: Count
    spilled_bytes: Count
    partial: bool
    seconds: Amount
    warnings: list[str]
    orphan: bool


DESCRIBED = ("caption", "extra")
"""Fields that describe an item and change nothing of its latents: columns of lists, by the names that rows and items have too."""

_KEYS = tuple(Line.__annotations__)
_FORMER_SHORT = "short"
"""The status of a video with too few frames in manifests of earlier movqs."""
_UNMADE = {"id", "path", "status", "reason"}
_MADE = {"output", "bytes", "sha256", "shape", "width", "height", "frames", "padded", "dropped", "duration", "seconds"}
_BY = {"source", "source_sha256", "weights_digest", "semantics", "precision", "warnings"}
_NEEDED = {"failed": _UNMADE, "skipped": _UNMADE, "done": {"id", "path", "status"} | _MADE | _BY}


def parse_line(text: bytes) -> Line:
    """Return a line of a manifest, with any fields that a later movq has added.

    Raises ValueError if movq would not write such a line.
    """
    values = parse_json(text)
    if isinstance(values, dict) and values.get("status") == _FORMER_SHORT:
        values |= Line(status="skipped", cause=MovqTooShortError.cause)
    line = from_values(Line, values)
    if len(line) < len(values):
        line = values | line
    if not _NEEDED[line.get("status", "done")] <= line.keys():
        raise ValueError("a field is missing")
    if "source" in line and not 0 <= line["source"].size < MOST:
        raise ValueError("a source of impossible size")
    return line


def unmade(error: MovqError) -> Line:
    """Return the part of a line that says why an item has no output."""
    status: Status = "skipped" if isinstance(error, CHOSEN) else "failed"
    return Line(status=status, reason=printable(error.reason_with_flags), cause=error.cause)


def first_frames_of(line: Line) -> dict[str, FirstFrameLine]:
    """Return the files of the first frame by kind, in the order of FIRST_FRAMES, without kinds that a later movq may add."""
    known = line.get("first_frame", {})
    return {kind: known[kind] for kind in FIRST_FRAMES if kind in known}


def files_of(line: Line) -> Iterator[Line | FirstFrameLine]:
    """Yield what says where each file of an item is: the line itself for its latents, then its first frames."""
    yield line
    yield from line.get("first_frame", {}).values()


def manifest_name(shard: Shard | None) -> str:
    """Return the name of the manifest of a batch, or of a shard."""
    return NAME if shard is None else f"manifest.{shard}.jsonl"


def video_of(line: Line) -> str:
    """Return the id that the item of the whole video has."""
    return line.get("of") or line["id"]


def shard_manifests(folder: str) -> dict[tuple[int, int], str]:
    """Return the paths of the manifests of shards that are not merged yet, by (index, count)."""
    return _of_shards(folder, _SHARD_NAME)


def unfinished_shards(folder: str) -> dict[tuple[int, int], str]:
    """Return the paths of the marks of unfinished shards, running or stopped early, by (index, count)."""
    return _of_shards(folder, _UNFINISHED_NAME)


def is_of_a_batch(name: str) -> bool:
    """Return True for the name of a manifest, or of the mark of an unfinished shard: its folder is that of a batch."""
    return name == NAME or any(names.fullmatch(name) for names in (_SHARD_NAME, _UNFINISHED_NAME))


def unfinished_name(folder: str, shard: Shard) -> str:
    """Return the path of the mark that a shard has until it is finished."""
    return os.path.join(folder, f".movq-shard-{shard}.unfinished")


def _of_shards(folder: str, names: re.Pattern[str]) -> dict[tuple[int, int], str]:
    found = {}
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if match := names.fullmatch(name):
            found[int(match[1]), int(match[2])] = os.path.join(folder, name)
    return dict(sorted(found.items()))


def refuse_other_shards(folder: str, shard: Shard) -> None:
    """Raise MovqError if the folder has shards of a batch with another number of shards."""
    if other := sorted({count for _, count in shard_manifests(folder)} - {shard.count}):
        what = " and ".join(map(str, other))
        raise MovqError(
            f"is of a batch in {what} shards: {option('merge')}, or the same command without {option('shard')}, puts them "
            "together",
            folder,
        )


def count_described(manifest: Manifest, lines: Iterable[Line]) -> int:
    """Return how many of these lines of items have another caption or other columns than the manifest."""
    pairs = ((manifest.lines[line["id"]], line) for line in lines)
    return sum(any(before.get(name) != line.get(name) for name in DESCRIBED) for before, line in pairs)


def read_folder(folder: str) -> dict[str, Line]:
    """Return the lines of a batch by id, including those of its shards, merged or not."""
    lines: dict[str, Line] = {}
    for path in (os.path.join(folder, NAME), *shard_manifests(folder).values()):
        lines |= lines_by_id(path)
    return lines


def read_batch(folder: str) -> Iterator[Line]:
    """Yield the last line of each item of a batch, in no order. Only the ids are held in memory, not the lines."""
    seen = set[str]()
    for path in (*reversed(shard_manifests(folder).values()), os.path.join(folder, NAME)):
        for _, line in scan_lines(path, backwards=True) if os.path.lexists(path) else ():
            if line["id"] not in seen:
                seen.add(line["id"])
                yield line


def lines_by_id(path: str) -> dict[str, Line]:
    """Return the lines of a manifest by id, the last of each item; none if the manifest does not exist."""
    return {line["id"]: line for line in read_lines(path)} if os.path.lexists(path) else {}


class Manifest:
    """The manifest of a batch or of a shard, created when the first line is written. `lines` are its lines by id.

    The manifest of a shard also knows the lines of its videos from an earlier batch. The manifest of a whole batch
    takes over the lines of all shards.
    """

    def __init__(self, folder: str, shard: Shard | None = None) -> None:
        self.path = os.path.join(folder, manifest_name(shard))
        self.lines: dict[str, Line] = {}
        self._shard, self._sources = shard, Sources(folder)
        self._fd: int | None = None
        self._taken_over: list[str] = []
        refuse_links(folder, os.path.basename(self.path))
        if shard is None:
            self.lines = read_folder(folder)
            self._refuse_foreign()
            self._taken_over += [*shard_manifests(folder).values(), *unfinished_shards(folder).values()]
            return
        for path in (os.path.join(folder, NAME), self.path):
            self.lines |= {name: line for name, line in lines_by_id(path).items() if video_of(line) in shard}

    def _refuse_foreign(self) -> None:
        """Raise MovqError if the file has no line that movq wrote: it would be overwritten."""
        if os.path.exists(self.path) and not self.lines:
            with open(self.path, "rb") as file:
                if b"\n" in file.read(BLOCK):
                    raise MovqError("has no line that movq wrote; move it away, or name another folder", self.path)

    def append(self, *lines: Line) -> None:
        """Append lines of items, new or replacing older ones. They are on disk when this returns."""
        self.lines |= {line["id"]: line for line in lines}
        try:
            if self._fd is None:
                self._fd = os.open(self.path, _APPEND, 0o666)
                sync(os.path.dirname(self.path) or ".")  # so that the name of a new file is on disk too
            write_all(self._fd, b"".join(_text(line, self._sources) for line in lines))
            os.fsync(self._fd)
        except OSError as error:
            raise write_error(error, self.path) from error

    def put_in_order(self) -> None:
        """Rewrite the file with each item once, sorted by id, unless it is so already.

        The manifests and marks of shards that were taken over are deleted.
        """
        self.close()
        if self.lines or self._shard is not None or os.path.exists(self.path):
            write_lines(self.path, self.lines.values())
        for path in self._taken_over:
            with suppress(FileNotFoundError):
                os.unlink(path)
        self._taken_over = []

    def close(self) -> None:
        """Close the file. The next line opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def write_lines(path: str, lines: Iterable[Line]) -> None:
    """Write a manifest of these lines, sorted by id, whole or not at all, unless the file is exactly so already."""
    sources = Sources(os.path.dirname(path) or ".")
    whole = b"".join(_text(line, sources) for line in sorted(lines, key=lambda line: line["id"]))
    # A file with several hard links is always rewritten, or else a copy of the folder by such links would grow with it.
    if os.path.exists(path) and os.stat(path).st_nlink == 1:
        with open(path, "rb") as file:
            if file.read() == whole:
                return
    with WholeFile(path, force=True) as file:
        file.write(whole)
        file.commit()


def _text(line: Line, sources: Sources) -> bytes:
    known = {key: line[key] for key in _KEYS if key in line}  # type: ignore[literal-required]
    known |= line
    known["path"] = sources.relative(line["path"])
    return json.dumps(known, ensure_ascii=False).encode() + b"\n"


def read_lines(path: str) -> Iterator[Line]:
    """Yield the lines of a manifest. Warns of damaged lines, except a last one that a crash has cut off.

    Raises MovqError, with the line's number, if an output does not lie below the manifest's folder.
    """
    return (line for _, line in scan_lines(path))


def scan_lines(path: str, backwards: bool = False) -> Iterator[tuple[int, Line]]:
    """Yield the lines as `read_lines` does, each with its byte offset; `backwards`, from the last to the first."""
    require_file(path)
    folder, own_name = os.path.split(path)
    reach, sources = Reach(folder or "."), Sources(folder or ".")
    if problem := reach.problem(own_name):
        raise MovqError(problem, path)
    try:
        with open(path, "rb") as file:
            for at, text in _from_the_end(file) if backwards else _from_the_start(file):
                try:
                    line = parse_line(text)
                except (ValueError, RecursionError):
                    if text.endswith(b"\n"):
                        damaged = f"{path}: line {_number(file, at)} is damaged and left out"
                        warnings.warn(MovqWarning(damaged), stacklevel=2)
                    continue
                for name, place in ((name, said.get(name)) for said in files_of(line) for name in ("output", "member")):
                    if isinstance(place, str) and (problem := reach.problem(place)):
                        raise MovqError(f"line {_number(file, at)}: {name} {place!r} {problem}", path)
                line["path"] = sources.absolute(line["path"])
                yield at, line
    except OSError as error:
        raise MovqError(os_reason(error), path) from None


def _from_the_start(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    at = 0
    for text in file:
        yield at, text
        at += len(text)


def _from_the_end(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    end = os.fstat(file.fileno()).st_size
    if not end:  # an empty file cannot be mapped
        return
    with mmap.mmap(file.fileno(), end, access=mmap.ACCESS_READ) as data:
        while end:
            at = data.rfind(b"\n", 0, end - 1) + 1
            yield at, data[at:end]
            end = at


def _number(file: BinaryIO, at: int) -> int:
    """Return the number of the line that begins at a byte offset, from 1."""
    return os.pread(file.fileno(), at, 0).count(b"\n") + 1
