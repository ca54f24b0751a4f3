"""The files that a batch may read, write and delete: those below its folder that no link leads out of.

Anybody may have written the manifest that says where outputs are, so its paths are checked before they are used.
Snapshots in the Hugging Face cache consist of links to blobs in the same repository. Such links are read, but nothing
is written through any link.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from itertools import pairwise

from ..errors import MovqError, MovqOutputError
from ..first_frame import is_first_frame

_REPOSITORY = re.compile(r"(models|datasets|spaces)--.+")
"""The folder of a repository in the Hugging Face cache, which has `snapshots` and `blobs`."""


def is_plain(name: str) -> bool:
    """Return True if a path is relative and leads down: without empty parts, `.`, `..` and zero bytes."""
    return "\0" not in name and set(name.split("/")).isdisjoint({"", ".", ".."})


class Reach:
    """The files below a folder that may be read. The links in each folder on the way are looked up once."""

    def __init__(self, folder: str) -> None:
        self._folder, self._repository = folder, hub_repository(folder)
        self._links: dict[str, frozenset[str]] = {}
        self._known = {"": ""}
        """The problems of folders on the way, "" for none."""

    def problem(self, name: str) -> str:
        """Return why a file of this name may not be read, as the end of a sentence about the name; "" if it may."""
        above, _, last = name.rpartition("/")
        if not is_plain(name):
            return "is not a plain path below the folder; remove the line"
        if above not in self._known:
            self._known[above] = self.problem(above)
        if not self._known[above] and last in self._links_in(above):
            link = os.path.join(self._folder, name)
            if not leads_into(link, self._repository):
                return f"leads through the link {link}; put a copy of what it leads to in its place"
        return self._known[above]

    def path(self, name: str) -> str:
        """Return the path of a file. Raises MovqError if it may not be read."""
        path = os.path.join(self._folder, name)
        if problem := self.problem(name):
            raise MovqError(problem, path)
        return path

    def _links_in(self, place: str) -> frozenset[str]:
        if place not in self._links:
            try:
                with os.scandir(os.path.join(self._folder, place)) as entries:
                    self._links[place] = frozenset(entry.name for entry in entries if entry.is_symlink())
            except OSError:  # it does not exist or cannot be listed; opening the file reports that
                self._links[place] = frozenset()
        return self._links[place]


class Sources:
    """The paths of videos: absolute in memory, relative to the folder in its manifest.

    So a folder tells nothing of the machine that made it, and keeps its videos if both are moved together.
    """

    def __init__(self, folder: str) -> None:
        self._folder = os.path.realpath(folder)
        self._relative: dict[str, str] = {}
        self._absolute: dict[str, str] = {}

    def relative(self, path: str) -> str:
        """Return a path as a manifest has it."""
        above, name = os.path.split(path)
        if not os.path.isabs(path):
            return path
        if above not in self._relative:
            self._relative[above] = os.path.relpath(above, self._folder)
        return os.path.join(self._relative[above], name)

    def absolute(self, path: str) -> str:
        """Return the path that one in a manifest means. Those of earlier movqs are absolute."""
        above, name = os.path.split(path)
        if os.path.isabs(path):
            return path
        if above not in self._absolute:
            self._absolute[above] = os.path.normpath(os.path.join(self._folder, above))
        return os.path.join(self._absolute[above], name)


def refuse_links(folder: str, name: str) -> None:
    """Raise MovqOutputError if a part of a path below a folder is a link. Call it before writing or deleting there."""
    path = folder
    for part in name.split("/"):
        path = os.path.join(path, part)
        if os.path.islink(path):
            raise MovqOutputError("is a link, and movq writes through none; name another folder", path)


def refuse_foreign(folder: str, name: str, kind: str, own: Collection[str]) -> None:
    """Raise MovqOutputError if a file that movq did not write has the name of an output, unless it is one of the item's `own`.

    `kind` is that of the file, as in FIRST_FRAMES.
    """
    path = os.path.join(folder, name)
    if os.path.isfile(path) and name not in own and not is_first_frame(path, kind):
        raise MovqOutputError(f"{name} is there, and movq did not write it: move it away", path)


def remove_empty_folders(folder: str, name: str) -> None:
    """Delete a folder below the output folder, and those above it, as far as they are empty and no links."""
    while name:
        with suppress(OSError, MovqError):
            refuse_links(folder, name)
            os.rmdir(os.path.join(folder, name))
        name = os.path.dirname(name)


def leads_into(link: str, *folders: str | None) -> bool:
    """Return True if a path leads into one of these folders, with links followed. A folder of None is skipped."""
    target = os.path.realpath(link)
    return any(folder is not None and _is_below(target, os.path.realpath(folder)) for folder in folders)


def hub_repository(path: str) -> str | None:
    """Return the repository in the Hugging Face cache whose snapshots a path lies in; None if it lies in none."""
    parts = os.path.realpath(path).split(os.sep)
    for place, (part, below) in enumerate(pairwise(parts), 1):
        if below == "snapshots" and _REPOSITORY.fullmatch(part):
            return os.sep.join(parts[:place])
    return None


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder
