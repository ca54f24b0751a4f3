"""`BatchState`: how far a batch is, for those who watch it."""

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
    """How far a batch is. `watch` is called with it, often, as it gets on.

    `phase`: "looking" at videos, of which `looked` are done; "checking" `items`, of which `checked` are; "encoding"; "over".
    Of this run: lines `made`, their `ended` by status, `frames` and `video_seconds` of those done; `source_bytes` of the
    videos to be encoded, `source_bytes_done` of those that are; `workers` as they are now.
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
    workers: Sequence[WorkerState] = ()

    @property
    def left(self) -> int:
        """Items still to be encoded."""
        return self.todo - len(self.made)

    def video_looked_at(self) -> None:
        """Count a video whose facts are known now."""
        self.phase, self.looked = "looking", self.looked + 1
        self.tell()

    def begin_checking(self, items: int) -> None:
        """Begin to compare items with the manifest."""
        self.phase, self.items = "checking", items

    def item_checked(self, count: int = 1) -> None:
        """Count items that have been compared with the manifest."""
        self.checked += count
        self.tell()

    def begin_encoding(self, items: Sequence[Item]) -> None:
        """Begin to encode these items."""
        self.phase, self.started = "encoding", time.monotonic()
        self.todo = len(items)
        self.source_bytes = sum(size_of(item.source_path) for item in items)

    def item_ended(self, line: Line) -> None:
        """Count an item by the line that says what became of it."""
        self.made.append(line)
        self.ended[line["status"]] += 1
        self.source_bytes_done += line["source"].size if "source" in line else 0
        if line["status"] == "done":
            self.frames += line["frames"]
            self.video_seconds += line["duration"]
        self.tell()

    def end(self) -> None:
        """Say that all is over."""
        self.phase = "over"
        self.tell()

    def tell(self) -> None:
        """Call `watch`."""
        self.watch(self)


Watch = Callable[[BatchState], None]


def ignore(state: BatchState) -> None:
    """A Watch that does nothing."""


def size_of(path: str) -> int:
    """Return the bytes of a file; 0 if it cannot be looked at."""
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):
        return 0
