"""Which files of a folder a batch reads, writes and deletes: those below it that no link leads away from.

A manifest says where outputs are, and anybody may have written it: a path in it is looked at before it is used. Snapshots in
the Hugging Face cache are made of links to blobs beside them; these are read, and nothing is written through any link.
"""

from __future__ import annotations

import os
import re
from itertools import pairwise

from ..errors import MovqError, MovqOutputError

_REPOSITORY = re.compile(r"(models|datasets|spaces)--.+")
"""The folder of a repository in the Hugging Face cache, which has `snapshots` and `blobs`."""


def is_plain(name: str) -> bool:
    """Tell whether a path is relative and leads down: without empty parts, `.` and `..`."""
    return "\0" not in name and set(name.split("/")).isdisjoint({"", ".", ".."})


class Reach:
    """The files below a folder that may be read. Links are looked up once for each folder on the way."""

    def __init__(self, folder: str) -> None:
        self._folder, self._repository = folder, hub_repository(folder)
        self._links: dict[str, frozenset[str]] = {}
        self._known = {"": ""}
        """Problems of folders on the way."""

    def problem(self, name: str) -> str:
        """Return why a file of this name is not read, as the end of a sentence about the name; "" if it is."""
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
        """Return the path of a file. Raises MovqError where it is not to be read."""
        path = os.path.join(self._folder, name)
        if problem := self.problem(name):
            raise MovqError(problem, path)
        return path

    def _links_in(self, place: str) -> frozenset[str]:
        if place not in self._links:
            try:
                with os.scandir(os.path.join(self._folder, place)) as entries:
                    self._links[place] = frozenset(entry.name for entry in entries if entry.is_symlink())
            except OSError:  # it is not there, or not to be listed: opening the file says so
                self._links[place] = frozenset()
        return self._links[place]


def refuse_links(folder: str, name: str) -> None:
    """Raises MovqOutputError where a part of a path below a folder is a link: before something is written or deleted there."""
    path = folder
    for part in name.split("/"):
        path = os.path.join(path, part)
        if os.path.islink(path):
            raise MovqOutputError("is a link, and movq writes through none; name another folder", path)


def leads_into(link: str, *folders: str | None) -> bool:
    """Tell whether what a path leads to, links followed, lies in one of these folders. None stands for no folder."""
    target = os.path.realpath(link)
    return any(folder is not None and _is_below(target, os.path.realpath(folder)) for folder in folders)


def hub_repository(path: str) -> str | None:
    """Return the repository in the Hugging Face cache that a path is a snapshot of, or in one."""
    parts = os.path.realpath(path).split(os.sep)
    for place, (part, below) in enumerate(pairwise(parts), 1):
        if below == "snapshots" and _REPOSITORY.fullmatch(part):
            return os.sep.join(parts[:place])
    return None


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder
