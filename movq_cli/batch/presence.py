"""`Presence`: whether the videos of lines are still somewhere, so that nothing is lost with a disk that is not mounted."""

from __future__ import annotations

import os
from collections.abc import Iterable

from .manifest import Line


class Presence:
    """Tells of videos whether they are gone. `folders` are those that this run has looked into, or found videos in.

    A video is gone if its place is in one of them, or below, if something else is still there, and if it is not. Otherwise
    it may come back: an empty folder may be where a disk was mounted, and a link may lead to one.
    """

    def __init__(self, folders: Iterable[str]) -> None:
        self._folders = set(folders)
        self._known: dict[str, bool] = {}
        """By folder, whether a video that is not in it is gone."""

    def is_gone(self, line: Line) -> bool:
        """Return True if the video of a line is gone for good."""
        path = line["path"]
        if os.path.lexists(path) or "\\x" in path:  # escaped bytes, not UTF-8, cannot be looked up
            return False
        above = os.path.dirname(path)
        if above not in self._known:
            self._known[above] = self._is_lost_in(above)
        return self._known[above]

    def _is_lost_in(self, folder: str) -> bool:
        while not os.path.isdir(folder):
            if os.path.lexists(folder):
                return False
            folder = os.path.dirname(folder)
        within = folder
        while within not in self._folders:
            above = os.path.dirname(within)
            if above == within:
                return False
            within = above
        try:
            with os.scandir(folder) as entries:
                return any(True for _ in entries)
        except OSError:
            return False
