"""`BatchState`: the progress of a batch, for those who watch it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .discover import Found
from .item import Item
from .manifest import Line
from .pool import WorkerState


@dataclass
class BatchState:
    """The progress of a batch. `watch` is called with it, often, as the batch advances.

    The `phase` is "looking" while videos are probed (`looked` so far), "checking" while `items` are compared with the
    manifest (`checked` so far), then "encoding" and "over". `todo` is the number of items that are not up to date, from
    `started` on. `made` are the lines of those that have ended, `ended` counts them by status, and `frames` and
    `video_seconds` add up those that are done; `added` is how many that were done before got their first frames, and
    `reused` how many got latents of others. `source_bytes` are the sizes of the videos of all these items,
    `source_bytes_done` of those that have ended. `workers` are the workers at present.
    """

    found: Found
    watch: Watch
    phase: Literal["looking", "checking", "encoding", "over"] = "checking"
    looked: int = 0
    items: int = 0
    checked: int = 0
    todo: int = 0
    source_bytes: int = 0
    started: float = field(default_factory=time.monotonic)
    made: list[Line] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    source_bytes_done: int = 0
    frames: int = 0
    video_seconds: float = 0.0
    added: int = 0
    reused: int = 0
    workers: Sequence[WorkerState] = ()
    _sizes: dict[str, int] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """The number of items that are still to be encoded."""
        return self.todo - len(self.made) - self.added - self.reused

    def video_looked_at(self) -> None:
        """Count a video that has been probed."""
        self.phase, self.looked = "looking", self.looked + 1
        self.tell()

    def begin_checking(self, items: int) -> None:
        """Begin to compare this many items with the manifest."""
        self.phase, self.items = "checking", items

    def item_checked(self, count: int = 1) -> None:
        """Count items that have been compared with the manifest."""
        self.checked += count
        self.tell()

    def begin_encoding(self, items: Sequence[Item]) -> None:
        """Begin to encode these items."""
        self.phase, self.started = "encoding", time.monotonic()
        self.todo = len(items)
        self.source_bytes = sum(self.size_of(item.source_path) for item in items)

    def size_of(self, path: str) -> int:
        """Return the size of a video in bytes when it was first asked for; 0 if it cannot be read."""
        if path not in self._sizes:
            self._sizes[path] = _size_of(path)
        return self._sizes[path]

    def item_ended(self, line: Line) -> None:
        """Count an item by the line of its outcome."""
        self.made.append(line)
        self.ended[line["status"]] += 1
        self.source_bytes_done += line["source"].size if "source" in line else 0
        if line["status"] == "done":
            self.frames += line["frames"]
            self.video_seconds += line["duration"]
        self.tell()

    def first_frame_added(self, line: Line) -> None:
        """Count an item that was done before and has its first frames now."""
        self.added += 1
        self.source_bytes_done += line["source"].size
        self.tell()

    def item_reused(self, line: Line) -> None:
        """Count an item that got latents that were there, by its line."""
        self.reused += 1
        self.source_bytes_done += line["source"].size
        self.tell()

    def end(self) -> None:
        """Note that the batch is over."""
        self.phase = "over"
        self.tell()

    def tell(self) -> None:
        """Call `watch` with the present state."""
        self.watch(self)


Watch = Callable[[BatchState], None]


def ignore(state: BatchState) -> None:
    """Do nothing: a Watch for batches that nobody watches."""


def _size_of(path: str) -> int:
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):
        return 0
