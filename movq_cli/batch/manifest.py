"""The manifest of a batch: `manifest.jsonl`, one line of JSON per item, what became of it and by which settings.

Lines are appended as work ends, each synced to disk; the file is put in order, whole or not at all, when a batch begins
and ends. See docs/format.md.
"""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

from ..errors import MovqError, MovqWarning
from ..files import WholeFile, os_reason, require_file, sync, write_all, write_error

NAME = "manifest.jsonl"
STATUSES = ("done", "short", "failed")


class Line(TypedDict, total=False):
    """What the manifest says of an item. What does not apply is absent.

    `status` is done, short (fewer frames than asked for) or failed, then with `reason` and `cause` (errors.py). `source` is
    size, mtime_ns and inode of the video: unchanged, it need not be read to know that it is the same. `options` are those
    that change the latents and are not as by default, `start` and `duration` of the item among them. `orphan`: it was in
    no source named since, and its video is gone.
    """

    id: str
    path: str
    status: str
    reason: str
    cause: str
    output: str
    bytes: int
    sha256: str
    shape: list[int]
    dtype: str
    width: int
    height: int
    frames: int
    padded: int
    dropped: int
    duration: float
    caption: str
    extra: dict[str, Any]
    source: list[int]
    source_sha256: str
    weights_digest: str
    semantics: str
    precision: str
    options: dict[str, Any]
    format_version: str
    threads: int
    device: str
    chunk_frames: int
    seconds: float
    warnings: list[str]
    orphan: bool


_KEYS = tuple(Line.__annotations__)
_TYPES: dict[str, Any] = (
    dict.fromkeys(("bytes", "width", "height", "frames", "padded", "dropped", "threads", "chunk_frames"), int)
    | dict.fromkeys(("id", "path", "status", "reason", "cause", "output", "sha256", "dtype", "caption"), str)
    | dict.fromkeys(("source_sha256", "weights_digest", "semantics", "precision", "format_version", "device"), str)
    | dict.fromkeys(("shape", "source", "warnings"), list)
    | {"duration": int | float, "seconds": int | float, "extra": dict, "options": dict, "orphan": bool}
)
_NUMBERS = tuple(name for name, kind in _TYPES.items() if kind in (int, int | float))
_UNMADE = {"id", "path", "status", "reason"}
_MADE = {"output", "bytes", "sha256", "shape", "width", "height", "frames", "padded", "dropped", "duration", "seconds"}
_BY = {"source", "source_sha256", "weights_digest", "semantics", "precision", "warnings"}
_NEEDED = {"failed": _UNMADE, "short": _UNMADE, "done": {"id", "path", "status"} | _MADE | _BY}
_MOST = 2**62


def _check(values: Any, text: bytes) -> None:
    """Raises ValueError, KeyError or TypeError for a line that movq would not have written."""
    if not _NEEDED[values["status"]] <= set(values):
        raise KeyError
    if not all(isinstance(value, _TYPES.get(name, object)) for name, value in values.items()):
        raise TypeError
    if not all(0 <= values[name] < _MOST for name in _NUMBERS if name in values):
        raise ValueError
    source = values.get("source", [0, 0, 0])
    if [type(number) for number in source] != [int] * 3 or not all(
        isinstance(w, str) for w in values.get("warnings", [])
    ):
        raise TypeError
    if b"\\u" in text:  # half a character, perhaps: UnicodeEncodeError, which is a ValueError
        json.dumps(values, ensure_ascii=False).encode()


class Manifest:
    """The manifest in a folder, made when the first line is written. `lines` are those it has, by id."""

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, NAME)
        self.lines: dict[str, Line] = {}
        self._fd: int | None = None
        if os.path.lexists(self.path):
            self.lines = {line["id"]: line for line in read_lines(self.path)}  # of two lines the later holds

    def append(self, line: Line) -> None:
        """Adds the line of an item, or a newer one; it is on disk when this returns."""
        self.lines[line["id"]] = line
        try:
            if self._fd is None:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
                sync(os.path.dirname(self.path) or ".")  # its name
            write_all(self._fd, _text(line))
            os.fsync(self._fd)
        except OSError as error:
            raise write_error(error, self.path) from error

    def put_in_order(self) -> None:
        """Rewrites it, unless it is as it should be: each item once, sorted by id."""
        self.close()
        whole = b"".join(_text(self.lines[name]) for name in sorted(self.lines))
        if not whole and not os.path.exists(self.path):
            return
        if os.path.exists(self.path):
            with open(self.path, "rb") as file:
                if file.read() == whole:
                    return
        with WholeFile(self.path, force=True) as file:
            file.write(whole)
            file.commit()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _text(line: Line) -> bytes:
    known = {key: line[key] for key in _KEYS if key in line}  # type: ignore[literal-required]
    return json.dumps(known | line, ensure_ascii=False).encode() + b"\n"


def read_lines(path: str) -> Iterator[Line]:
    """The lines of a manifest. Warns of damaged ones; of the last, which a crash may have cut off, says nothing."""
    require_file(path)
    try:
        with open(path, "rb") as file:
            for number, text in enumerate(file, 1):
                try:
                    values = json.loads(text)
                    _check(values, text)
                except (ValueError, KeyError, TypeError, RecursionError):
                    if text.endswith(b"\n"):
                        warnings.warn(MovqWarning(f"{path}: line {number} is damaged and left out"), stacklevel=2)
                    continue
                yield values
    except OSError as error:
        raise MovqError(os_reason(error), path) from None


@contextmanager
def only_one(folder: str) -> Iterator[None]:
    """Inside, no other batch works on this folder. The kernel forgets this with the process. Raises MovqError."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MovqError(os_reason(error), folder) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MovqError("another movq batch-encode is at work in it", folder) from None
        except OSError as error:  # a file system that cannot lock folders
            warnings.warn(MovqWarning(f"{folder}: cannot be locked ({os_reason(error)})"), stacklevel=3)
        yield
    finally:
        os.close(fd)
