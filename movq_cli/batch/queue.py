"""`Queue`: the tasks that wait for a worker. Spans of one video go to one worker, in order, so that it reads the file once.

A worker that would have nothing to do gets the second half of what another one has left of a video. That waits until the
first of its spans has ended: then the digest of the video is known, and need not be computed again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from ..shared import KnownSource
from .item import Item


@dataclass
class Task:
    """An item to encode, with its attempts. `source_bytes` is the size of its video, `known` are facts of that.

    `force` allows replacing what is in the place of its files, `own` are those that it may replace anyway, as the manifest
    names them, relative to the folder. `overrides` are options for it alone. Without `latents`, only the files of its
    first frame are made. `attempts` counts those made, of at most `allowed` if workers die of the item; `first` is why
    the first failed.
    """

    item: Item
    source_bytes: int = 0
    known: KnownSource | None = None
    force: bool = False
    own: tuple[str, ...] = ()
    overrides: dict[str, Any] = field(default_factory=dict)
    latents: bool = True
    attempts: int = 0
    allowed: int = 2
    first: str = ""

    @property
    def path(self) -> str:
        """The path of its video."""
        return self.item.source_path


class Queue:
    """Tasks in runs, which are spans of one video in order. A worker, named by its index, takes one run after the other."""

    def __init__(self) -> None:
        self._runs = deque[deque[Task]]()
        self._taken: dict[int, deque[Task]] = {}
        self._waiting = Counter[str]()
        """The number of tasks of each video that has any."""
        self._total = 0
        self._known: dict[str, KnownSource | None] = {}
        """Facts of videos of which a span has ended, and others wait; None if none are known."""

    def __len__(self) -> int:
        return self._total

    def extend(self, tasks: Iterable[Task]) -> None:
        """Add tasks at the end. Neighbours of one video become a run."""
        self._runs.extend(self._in_runs(tasks))

    def put_back(self, tasks: Iterable[Task]) -> None:
        """Add tasks in front of all others."""
        for run in reversed(list(self._in_runs(tasks))):
            self._put_in_front(run)

    def _in_runs(self, tasks: Iterable[Task]) -> Iterator[deque[Task]]:
        for path, run in groupby(tasks, key=lambda task: task.path):
            made = deque(run)
            self._waiting[path] += len(made)
            self._total += len(made)
            yield made

    def _put_in_front(self, run: deque[Task]) -> None:
        if self._runs and self._runs[0][0].path == run[0].path:
            run.extend(self._runs.popleft())
        self._runs.appendleft(run)

    def clear(self) -> None:
        """Remove all tasks."""
        for tasks in (self._runs, self._taken, self._waiting, self._known):
            tasks.clear()
        self._total = 0

    def next_for(self, worker: int, idle: bool) -> Task | None:
        """Return the next task for a worker, without taking it; None if it should wait. `idle`: it has nothing to do."""
        if run := self._taken.get(worker):
            return run[0]
        if self._runs:
            return self._runs[0][0]
        half = self._half() if idle else None
        return None if half is None else half[0][half[1]]

    def take(self, worker: int) -> tuple[Task, KnownSource | None, bool]:
        """Take the next task for a worker. Return it, facts of its video that are new to the worker, and if a span follows."""
        run, known = self._taken.get(worker), None
        if not run:
            run = self._taken[worker] = self._runs.popleft() if self._runs else self._second_half()
            known, since = run[0].known, self._known.get(run[0].path)
            known = since if known is None else known.joined(since)
        task = run.popleft()
        self._total -= 1
        self._waiting[task.path] -= 1
        if not self._waiting[task.path]:
            del self._waiting[task.path]
        return task, known, bool(run)

    def release(self, worker: int) -> None:
        """Put the rest of a worker's run in front of all others: the worker is gone."""
        if run := self._taken.pop(worker, None):
            self._put_in_front(run)

    def note(self, path: str, known: KnownSource | None) -> None:
        """Note that a span of a video has ended, and the facts of the video that it gave."""
        if path in self._waiting:
            before = self._known.get(path)
            self._known[path] = before if known is None else known.joined(before)
        else:
            self._known.pop(path, None)

    def _half(self) -> tuple[deque[Task], int] | None:
        """Return the longest run that can be split, and the place to split it; None if none can be."""
        runs = [run for run in self._taken.values() if run and run[0].path in self._known]
        longest = max(runs, key=len, default=None)
        return None if longest is None else (longest, len(longest) // 2)

    def _second_half(self) -> deque[Task]:
        half = self._half()
        assert half is not None
        run, place = half
        return deque(reversed([run.pop() for _ in range(len(run) - place)]))
