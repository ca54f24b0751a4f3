"""Workers: processes that each load the weights once and encode one item after the other; where they run, an engine says.

A worker has the next item already while it encodes one, and may still be writing the one before. If it dies, or shows no
progress for too long, it is replaced; what it had begun is tried once more, each item alone, so that none pays for another.
One that holds on to too much memory is replaced when it has done what it has. What lacked memory is tried again when all else
is done, by half as many workers with twice the memory each, and so on; in the end, or if the process died of it, in the smallest
chunks.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import MovqCrashError, MovqError, MovqHangError, MovqMemoryError, MovqWarning
from ..options import BatchOptions, EncodeOptions
from ..records import from_values, to_values
from .engines import Engine, Handle, LocalEngine, Ready
from .item import Item
from .manifest import Line, unmade

_TICK_SECONDS = 0.5
_START_SECONDS = 180.0
_AWAY_SECONDS = 20.0
_MOST_ATTEMPTS = 5  # where machines are lost, which is not the item's fault


@dataclass
class Task:
    """An item to be worked on, of a video of so many `source_bytes`; `force`: its output may be replaced.

    `allowed` attempts, if workers die of it; `first`: why the first failed.
    """

    item: Item
    source_bytes: int = 0
    force: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0
    allowed: int = 2
    first: str = ""


@dataclass
class WorkerState:
    """The state of a worker, for those who watch. `done` and `total` are of its item, in frames."""

    index: int
    task: Task | None = None
    ready: bool = False
    done: int = 0
    total: int | None = None


@dataclass(kw_only=True)
class Worker(WorkerState):
    """A process and its `tasks`, in the order they were given: the first `begun` have begun, and `task` is being computed.

    `leaving`: it gets no more tasks.
    """

    child: Handle
    heard: float = field(default_factory=time.monotonic)
    first_resident: int = 0
    tasks: deque[Task] = field(default_factory=deque)
    begun: int = 0
    leaving: bool = False

    def takes(self, task: Task, ahead: int) -> bool:
        """Return True if it may have `task` while `ahead` others are computed or wait. What failed before is done alone."""
        alone = any(other.first for other in (*self.tasks, task))
        before = len(self.tasks) - self.begun + (self.task is not None)
        return self.ready and not self.leaving and before == ahead and not (alone and self.tasks)


class Pool:
    """Runs tasks; `results` gives each one's outcome once it is final. Close it, or use it in a `with`.

    Of `batch` it takes how many workers, None for as many as suit the machines: one for each CUDA device, or for each core
    of a CPU; the timeout; and the engine. The other workers start when the first is ready, in `settled`, which then says how
    many. `smallest_chunk` in frames, for the second attempt of what ran out of memory.
    """

    def __init__(self, options: EncodeOptions, folder: str, batch: BatchOptions, smallest_chunk: int) -> None:
        self._options, self._folder = _absolute(options), os.path.abspath(folder)
        self._wanted, self._timeout = batch.workers, batch.timeout
        self._engine = _engine(batch, self._options)
        self._smallest_chunk = smallest_chunk
        self._tasks: deque[Task] = deque()
        self._later: list[Task] = []
        self._deaths = 0
        self._looked = time.monotonic()
        self._stopped = False
        self.ready: Ready | None = None
        self.count = 1
        self.workers = [self._start(0)]

    def settled(self) -> Ready:
        """Waits for the first worker. Raises MovqError where no item could be encoded at all."""
        while self.ready is None:
            for _ in self._listen():
                pass
        return self.ready

    def results(self, tasks: Sequence[Task], tick: Callable[[], None] = lambda: None) -> Iterator[tuple[Task, Line]]:
        """Each task with what became of it, in the order of their ends. `tick` is called about twice a second, and more."""
        self._tasks.extend(tasks)
        self.settled()
        self.count = max(1, min(self.count, len(self._tasks)))
        while len(self.workers) < self.count:
            self.workers.append(self._start(len(self.workers)))
        while self._tasks or self._later or any(worker.tasks for worker in self.workers):
            if not self._tasks and not any(worker.tasks for worker in self.workers):
                self._try_again_with_fewer()
            self._give_out()
            yield from self._listen()
            tick()

    def stop(self) -> None:
        """Gives out no further tasks."""
        self._stopped = True
        self._tasks.clear()
        self._later.clear()

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.child.kill()
        for worker in self.workers:
            worker.child.close()
        self._engine.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self, index: int) -> Worker:
        worker = Worker(index, child=self._engine.start())
        options = self._options
        if self.ready is not None:  # all compute as the first does
            options = replace(options, precision=self.ready.precision)
            if self.ready.devices and options.device in ("auto", "cuda"):
                options = replace(options, device=f"cuda:{index % self.ready.devices}")
        worker.child.send({"options": to_values(options)})
        return worker

    def _give_out(self) -> None:
        """A task for each worker that has nothing to compute; and one more, while enough are left for all."""
        for ahead, left in ((0, 1), (1, self.count)):
            for worker in self.workers:
                if len(self._tasks) >= left and worker.takes(self._tasks[0], ahead):
                    self._give(worker)

    def _give(self, worker: Worker) -> None:
        task = self._tasks.popleft()
        if not worker.tasks:
            worker.heard = time.monotonic()
        worker.tasks.append(task)
        overrides = {"force": task.force, "memory_budget": self._share(), **task.overrides}
        worker.child.send(
            {
                "item": to_values(task.item.updated(caption=None, extra={})),
                "folder": self._folder,
                "overrides": overrides,
            }
        )

    def _share(self) -> int | None:
        """Of memory, for each worker; None where each has a device to itself."""
        assert self.ready is not None
        if self.ready.devices:
            return self._options.memory_budget
        together = self._engine.on_one_machine(self.count, self.ready)
        return (self._options.memory_budget or self.ready.memory) // together

    def _listen(self) -> Iterator[tuple[Task, Line]]:
        """Waits a little for the workers to say something; outcomes that are final."""
        readable = self._engine.wait([worker.child for worker in self.workers], _TICK_SECONDS)
        now = time.monotonic()
        if now - self._looked > _AWAY_SECONDS:  # this process was stopped, and the workers may have been too
            for worker in self.workers:
                worker.heard = now
        self._looked = now
        for worker in list(self.workers):
            error: MovqError | None = None
            if worker.child in readable:
                worker.heard = now
                try:
                    for message in worker.child.messages():
                        yield from self._heard(worker, message)
                except EOFError:
                    error = _death(worker.child.death())
            elif not worker.child.started:
                worker.heard = now  # it waits for a machine
            elif (worker.tasks or not worker.ready) and now - worker.heard > self._patience(worker):
                error = MovqHangError(f"no progress for {self._patience(worker):g} s")
            if error is not None:
                yield from self._lost(worker, error)

    def _patience(self, worker: Worker) -> float:
        return self._timeout if worker.ready else max(self._timeout, _START_SECONDS)

    def _heard(self, worker: Worker, message: dict[str, Any]) -> Iterator[tuple[Task, Line]]:
        if message["kind"] == "progress":
            worker.done, worker.total = message["done"], message["total"]
        elif message["kind"] == "begin":
            worker.task, worker.done, worker.total = worker.tasks[worker.begun], 0, None
            worker.begun += 1
            worker.task.attempts += 1
        elif message["kind"] == "computed":
            worker.task = None
        elif message["kind"] == "unusable":
            self._do_without(worker, MovqError.from_dict(message))
        elif message["kind"] == "ready":
            ready = from_values(Ready, message["ready"])
            if self.ready is None:
                self.ready = ready
                self.count = self._wanted or self._engine.suitable(ready)
            elif ready.weights_digest != self.ready.weights_digest:
                self._do_without(worker, MovqError("the weights of a worker's machine are others"))
                return
            worker.ready, self._deaths = True, 0
        elif message["kind"] == "end" and worker.tasks:
            task = worker.tasks.popleft()
            task.attempts += not worker.begun  # it was never opened
            worker.begun = max(0, worker.begun - 1)
            worker.first_resident = worker.first_resident or message["resident"]
            if message["resident"] > max((self._share() or 0) // 2, 2 * worker.first_resident):
                worker.leaving = True
            if message["over"]:
                self._take_back(worker)
            if message["over"] or (worker.leaving and not worker.tasks):
                self._replace(worker)
            yield from self._outcome(task, from_values(Line, message["outcome"]))

    def _lost(self, worker: Worker, error: MovqError) -> Iterator[tuple[Task, Line]]:
        """A worker is dead, or must be ended."""
        if not worker.ready:
            self._deaths += 1
            if self._deaths > 2:
                self._do_without(worker, MovqCrashError(f"a worker cannot start: {error.marked}"))
                return
        opening = bool(worker.tasks) and not worker.begun
        if opening:
            worker.tasks[0].attempts += 1
            worker.begun = 1
        begun = [worker.tasks.popleft() for _ in range(worker.begun)]
        worker.begun = 0
        self._take_back(worker)
        self._replace(worker)
        for task in begun:
            if worker.child.lost:
                task.allowed = min(task.allowed + 1, _MOST_ATTEMPTS)
            written = not opening and task is not worker.task  # it was being written, which takes no memory
            yield from self._outcome(task, unmade(MovqCrashError(error.marked) if written else error), died=True)

    def _take_back(self, worker: Worker) -> None:
        """Put the tasks that a worker will not do in front of the others again; they were not attempted."""
        while worker.tasks:
            task = worker.tasks.pop()
            task.attempts -= len(worker.tasks) < worker.begun
            if not self._stopped:
                self._tasks.appendleft(task)

    def _do_without(self, worker: Worker, error: MovqError) -> None:
        """Goes on with the others, if there are any."""
        if len(self.workers) == 1:
            raise error
        warnings.warn(MovqWarning(f"one worker less: {error}"), stacklevel=2)
        worker.child.close()
        self.workers.remove(worker)
        self._deaths = 0

    def _replace(self, worker: Worker) -> None:
        worker.child.close()
        self.workers[self.workers.index(worker)] = self._start(worker.index)

    def _outcome(self, task: Task, outcome: Line, died: bool = False) -> Iterator[tuple[Task, Line]]:
        """Final, or the item waits for another attempt."""
        cause, again = outcome.get("cause"), not self._stopped
        last = self.count == 1 or self._have_devices  # there will not be more memory
        if again and cause == MovqMemoryError.cause and not (last and "chunk_frames" in task.overrides):
            if last or died:
                task.overrides["chunk_frames"] = self._smallest_chunk
            self._later.append(task)
        elif again and cause in (MovqCrashError.cause, MovqHangError.cause) and task.attempts < task.allowed:
            self._tasks.append(task)
        else:
            if task.first and outcome["status"] == "done":
                outcome["warnings"].append(f"made at attempt {task.attempts}; at the first: {task.first}")
            elif task.first:
                outcome["reason"] += f" (attempt {task.attempts}; at the first: {task.first})"
            yield task, outcome
            return
        task.first = task.first or outcome["reason"]

    @property
    def _have_devices(self) -> bool:
        return self.ready is not None and self.ready.devices > 0

    def _try_again_with_fewer(self) -> None:
        if not self._have_devices:
            self.count = max(1, self.count // 2)
        for worker in self.workers[self.count :]:
            worker.child.close()
        del self.workers[self.count :]
        self._tasks.extend(self._later)
        self._later.clear()


def _engine(batch: BatchOptions, options: EncodeOptions) -> Engine:
    if batch.engine == "local":
        return LocalEngine(options)
    if batch.engine == "ray":
        from .ray_engine import RayEngine

        return RayEngine(options, batch.ray_address, batch.ray_gpus)
    raise NotImplementedError(batch.engine)


def _absolute(options: EncodeOptions) -> EncodeOptions:
    """The same in any folder. Weights may also be the name of a model, which no file has."""
    weights, spill = options.weights, options.spill_dir
    return replace(
        options,
        weights=os.path.abspath(weights) if weights and os.path.exists(weights) else weights,
        spill_dir=spill and os.path.abspath(spill),
    )


def _death(how: str) -> MovqError:
    if how == "SIGKILL":
        return MovqMemoryError("its process was killed (SIGKILL), as the system does where memory runs out")
    return MovqCrashError(f"its process died ({how})")
