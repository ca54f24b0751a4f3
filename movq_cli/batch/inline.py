"""A batch without workers (`workers=0`): every item is encoded in this process, one after the other.

Debuggers, notebooks and Ctrl-C work as usual, and a bug raises its own exception. Items have no time limit and no
second attempt. The outputs are the same bytes as those of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from ..device import memory_errors
from ..encode import VideoEncoder
from ..options import EncodeOptions
from .engines import Ready
from .manifest import Line
from .pool import WorkerState
from .queue import Task
from .worker import Work, describe


class Inline:
    """Runs tasks as a Pool does, in this process."""

    count = 0

    def __init__(self, options: EncodeOptions, folder: str) -> None:
        self._options, self._folder = options, folder
        self._tasks: deque[Task] = deque()
        self.workers = [WorkerState(0)]

    @cached_property
    def _encoder(self) -> VideoEncoder:
        return VideoEncoder(self._options)

    def settled(self) -> Ready:
        """Load the weights. Raises MovqError if no item could be encoded with them."""
        with memory_errors():
            ready = describe(self._encoder)
        self.workers[0].ready = True
        return ready

    def results(self, tasks: Sequence[Task], tick: Callable[[], None] = lambda: None) -> Iterator[tuple[Task, Line]]:
        """Yield each task with its outcome. `tick` is called as an item makes progress."""
        [state] = self.workers
        self._tasks.extend(tasks)
        while self._tasks:
            task = self._tasks.popleft()
            state.task, state.done, state.total = task, 0, None

            def progress(done: int, total: int | None) -> None:
                state.done, state.total = done, total
                tick()

            overrides = {"force": task.force, **task.overrides}
            how: dict[str, Any] = {"latents": task.latents, "own": task.own, "known": task.known}
            more = bool(self._tasks) and self._tasks[0].path == task.path
            work = Work(self._encoder, task.item, self._folder, tick, more=more, **how, **overrides)
            work.compute(progress)
            outcome = work.finish()
            state.task = None
            yield task, outcome
            tick()

    def stop(self) -> None:
        """Start no further task."""
        self._tasks.clear()

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *error: object) -> None:
        if "_encoder" in vars(self):
            self._encoder.close()
