"""The manifest of an export, `export.jsonl`: a line for each item, and one for what all share."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypedDict

from ..errors import MovqError, option
from ..files import WholeFile, os_reason

NAME = "export.jsonl"
SHARED = ""
"""The id of the line for what all items share: lists, and which batch is exported in which layout."""


class Exported(TypedDict, total=False):
    """The outcome of an item.

    `status` is done, with its `files` and their sizes and `links` and their targets; refused, with a `reason`; or
    left out. A line that was only `begun` names files that may be half written.
    """

    id: str
    status: str
    reason: str
    files: dict[str, int]
    links: dict[str, str]
    made_from: dict[str, Any]


class Manifest:
    """The lines of earlier exports to a folder, and those of this one, each on disk as soon as it is known.

    Files that a line names belong to movq; of several lines, the last owns a file. Use it in a `with`.
    """

    def __init__(self, folder: str, dry_run: bool) -> None:
        self.folder, self._dry_run = folder, dry_run
        self._path = os.path.join(folder, NAME)
        self.before: dict[str, Exported] = {}
        self.owners: dict[str, str] = {}
        with suppress(FileNotFoundError, NotADirectoryError), open(self._path, encoding="utf-8") as file:
            for text in file:
                with suppress(ValueError, KeyError, TypeError, AttributeError):  # a line that a kill has cut
                    line: Exported = json.loads(text)
                    self.owners.update(dict.fromkeys((*line.get("files", ()), *line.get("links", ())), line["id"]))
                    self.before[line["id"]] = line
        self._fd = -1

    def refuse_foreign(self, paths: list[str]) -> None:
        """Raise MovqError if something is at one of these paths that no export wrote."""
        for path in paths:
            place = self.place(path)
            if path not in self.owners and os.path.lexists(place):
                raise MovqError(f"exists; {option('force', True)} overwrites it", place)

    def place(self, path: str) -> str:
        """Return the whole path of a file of the folder."""
        return os.path.join(self.folder, path)

    def is_there(self, line: Exported, is_shared: Callable[[str], bool]) -> bool:
        """Return True if the files and links of a line are there, and no later line of another item has written them.

        Files that are shared are the same whichever item writes them.
        """
        files, links = line.get("files", {}), line.get("links", {})
        if any(self.owners.get(path) != line["id"] and not is_shared(path) for path in (*files, *links)):
            return False
        return all(self.size(path) == size for path, size in files.items()) and all(
            _target(self.place(path)) == target for path, target in links.items()
        )

    def size(self, path: str) -> int:
        """Return the bytes of a file of the folder; -1 if it is not there."""
        place = self.place(path)
        return os.path.getsize(place) if os.path.isfile(place) else -1

    def append(self, line: Exported) -> None:
        """Write a line, and sync it."""
        self.owners.update(dict.fromkeys((*line.get("files", ()), *line.get("links", ())), line["id"]))
        if not self._dry_run:
            os.write(self._fd, _text(line))
            os.fsync(self._fd)

    def write(self, path: str, data: bytes) -> None:
        """Write a file of the folder, whole or not at all."""
        place = self.place(path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with WholeFile(place, force=True) as file:
            file.write(data)
            file.commit()

    def link(self, path: str, target: str) -> None:
        """Make a link of the folder, or replace it. Raises MovqError if something else is there."""
        place = self.place(path)
        try:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            if os.path.islink(place):
                os.unlink(place)
            os.symlink(target, place)
        except OSError as error:
            raise MovqError(os_reason(error), place) from None

    def remove_all_but(self, lines: list[Exported]) -> list[str]:
        """Remove files and links of exports that these lines do not name: a trainer would read them. Return their paths."""
        there = {path for line in lines for path in (*line.get("files", ()), *line.get("links", ()))}
        gone = sorted(path for path in self.owners.keys() - there if os.path.lexists(self.place(path)))
        for path in gone:
            if not self._dry_run:
                with suppress(OSError):
                    os.unlink(self.place(path))
        return gone

    def finish(self, lines: list[Exported]) -> None:
        """Write the manifest anew, with one line for each item."""
        if not self._dry_run:
            self.write(NAME, b"".join(map(_text, sorted(lines, key=lambda line: line["id"]))))

    def __enter__(self) -> Manifest:
        if not self._dry_run:
            try:
                os.makedirs(self.folder, exist_ok=True)
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
                try:
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise MovqError("another export is writing to it", self.folder) from None
                if os.fstat(self._fd).st_size:
                    os.write(self._fd, b"\n")  # a kill may have cut the last line
            except OSError as error:
                raise MovqError(os_reason(error), self._path) from None
        return self

    def __exit__(self, *error: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _text(line: Exported) -> bytes:
    return (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")


def _target(place: str) -> str:
    try:
        return os.readlink(place) if os.path.exists(place) else ""
    except OSError:
        return ""
