"""Find videos and pictures in folders by their names: each file once, and each link to a file that is not itself found."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator

from ..files import os_reason
from ..first_frame import PNG, SUFFIXES, is_first_frame
from ..video import SUFFIXES as OF_VIDEOS
from .captions import METADATA

_TEMPORARY = ("~", ".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".aria2", ".ytdl", ".swp")
_NO_VIDEO = "not a video or picture by its name"

_Identity = tuple[int, int]


class Walk:
    """Collects files. `ignored` maps the paths that were passed over to the reasons; `metadata` are lists that describe files."""

    def __init__(self, output: str) -> None:
        self.ignored: dict[str, str] = {}
        self.metadata: list[str] = []
        self._output = _identity(output)
        self._folders = set[_Identity | None]()
        self._files = set[_Identity | None]()
        self._linked = set[_Identity | None]()
        self._links = deque[str]()

    def files(self, named: Iterable[str], matched: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield (path, problem) of the files named, of those that globs matched, and of those in folders among both.

        Links come last, so that each file and folder is taken at its own path instead of a link's. A problem is the
        reason why a folder could not be read; it is "" for files.
        """
        folders = deque[str]()
        for path in named:
            if os.path.isdir(path):
                folders.append(path)
                if _identity(path) == self._output:  # latents go next to their videos: search it too
                    self._output = None
            elif os.path.islink(path):
                self._links.append(path)
            else:
                self._files.add(_identity(path))
                yield path, ""
        for path in matched:
            if os.path.isdir(path):
                folders.append(path)
            else:
                yield from self._taken(path, os.path.islink(path), os.path.isfile(path), _identity(path))
        yield from self._below(folders)
        while self._links:
            path = self._links.popleft()
            if os.path.isdir(path):
                yield from self._below(deque([path]))
            elif (identity := _identity(path)) is not None and identity in self._files:
                self.ignored[path] = "a link to a file that is taken already"
            elif identity is not None and not os.path.isfile(path):
                self.ignored[path] = "not a regular file"
            else:  # a broken link is refused when its item's turn comes
                self._linked.add(identity)
                yield path, ""

    def _below(self, folders: deque[str]) -> Iterator[tuple[str, str]]:
        while folders:
            folder = folders.popleft()
            identity = _identity(folder)
            if identity is not None and identity == self._output:
                continue
            if identity is not None and identity in self._folders:
                self.ignored[folder] = "a folder that is taken already"
                continue
            self._folders.add(identity)
            try:
                with os.scandir(folder) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                yield folder, os_reason(error)
                continue
            for entry in listed:
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                    folders.append(entry.path)
                else:
                    inode = (identity[0] if identity else 0, entry.inode())
                    regular = entry.is_file(follow_symlinks=False)
                    yield from self._taken(entry.path, entry.is_symlink(), regular, inode)

    def _taken(self, path: str, link: bool, regular: bool, identity: _Identity | None) -> Iterator[tuple[str, str]]:
        """Yield the file, unless it is ignored or is a link, which comes later."""
        name = os.path.basename(path)
        if name.startswith("."):
            self.ignored[path] = "hidden"
        elif name.lower().endswith(_TEMPORARY):
            self.ignored[path] = "temporary"
        elif name.endswith(SUFFIXES[PNG]) and is_first_frame(path, PNG):
            self.ignored[path] = "first frames that movq wrote"
        elif link and os.path.isdir(path):
            self._links.append(path)
        elif name in METADATA:
            self.metadata.append(path)
        elif os.path.splitext(name)[1].lower() not in OF_VIDEOS:
            self.ignored[path] = _NO_VIDEO
        elif link:
            self._links.append(path)
        elif not regular:
            self.ignored[path] = "not a regular file"
        elif identity in self._linked:
            self.ignored[path] = "taken already by a link to it"
        else:
            self._files.add(identity)
            yield path, ""


def _identity(path: str) -> _Identity | None:
    """Return the same value for all names of one file or folder; None if it does not exist."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
