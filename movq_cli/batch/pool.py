"""Workers: processes that load the weights once and encode one item after the other. An engine decides where they run.

queue.py decides which item a worker gets.

A worker already has the next item while it encodes one, and may still be writing the one before. If it dies, or shows
no progress for too long, it is replaced, and the items it had begun get a second attempt, each with a worker to itself,
so that no item fails because of another. A worker that holds too much memory is replaced when its tasks are done. Items
that ran out of memory are tried again when all others are done, by half as many workers with twice the memory each, and
so on. The last attempt uses the smallest chunks and low strips, and so does every attempt after a worker died for lack of memory.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import MovqCrashError, MovqError, MovqHangError, MovqMemoryError, MovqWarning
from ..options import BatchOptions, EncodeOptions
from ..records import from_values, to_values
from ..shared import KnownSource
from .engines import Engine, Handle, LocalEngine, Ready
from .manifest import Line, unmade
from .queue import Queue, Task

_TICK_SECONDS = 0.5
_START_SECONDS = 180.0
_AWAY_SECONDS = 20.0
_MOST_ATTEMPTS = 5  # if machines are lost, which is not the fault of the item


@dataclass
class WorkerState:
    """The state of a worker, to be watched. `done` and `total` are frames of its item; `total` is None if unknown."""

    index: int
    task: Task | None = None
    ready: bool = False
    done: int = 0
    total: int | None = None


@dataclass(kw_only=True)
class Worker(WorkerState):
    """A process and its `tasks`, in the order given: the first `begun` have begun, and `task` is being computed.

    `heard` is when it last sent a message, `first_resident` its memory after its first task in bytes. A worker that is
    `leaving` gets no more tasks.
    """

    child: Handle
    heard: float = field(default_factory=time.monotonic)
    first_resident: int = 0
    tasks: deque[Task] = field(default_factory=deque)
    begun: int = 0
    leaving: bool = False

    def takes(self, task: Task, ahead: int) -> bool:
        """Return True if the worker may take `task` now, while `ahead` of its tasks are being computed or wait.

        A task that failed before shares the worker with no other.
        """
        alone = any(other.first for other in (*self.tasks, task))
        before = len(self.tasks) - self.begun + (self.task is not None)
        return self.ready and not self.leaving and before == ahead and not (alone and self.tasks)


class Pool:
    """Runs tasks on workers; `results` yields each task once its outcome is final. Close it, or use it in a `with`.

    `batch` gives the number of workers (None: as many as the engine thinks suitable, one for each CUDA device, or as
    many as cores and memory allow), the timeout and the engine. One worker starts at once. When it is ready, which
    `settled` waits for, `count` is the number of workers, and `results` starts the others. `least_memory` are options
    for the last attempts of items that ran out of memory.
    """

    def __init__(
        self, options: EncodeOptions, folder: str, batch: BatchOptions, least_memory: Mapping[str, int]
    ) -> None:
        self._options, self._folder = _absolute(options), os.path.abspath(folder)
        self._wanted, self._timeout = batch.workers, batch.timeout
        self._engine = _engine(batch, self._options)
        self._least_memory = least_memory
        self._tasks = Queue()
        self._later: list[Task] = []
        self._deaths = 0
        self._looked = time.monotonic()
        self._stopped = False
        self.ready: Ready | None = None
        self.count = 1
        self.workers = [self._start(0)]

    def settled(self) -> Ready:
        """Wait for the first worker. Raises MovqError if no item could be encoded at all."""
        while self.ready is None:
            for _ in self._listen():
                pass
        return self.ready

    def results(self, tasks: Sequence[Task], tick: Callable[[], None] = lambda: None) -> Iterator[tuple[Task, Line]]:
        """Yield each task with its outcome, in the order of their ends. Call `tick` about twice a second or more."""
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
        """Give out no further tasks."""
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
        if self.ready is not None:  # all workers compute as the first does
            options = replace(options, precision=self.ready.precision)
            if self.ready.devices and options.device in ("auto", "cuda"):
                options = replace(options, device=f"cuda:{index % self.ready.devices}")
        worker.child.send({"options": to_values(options)})
        return worker

    def _give_out(self) -> None:
        """Give a task to each worker with nothing to compute, and one more to each while enough are left for all."""
        for ahead, left in ((0, 1), (1, self.count)):
            for worker in self.workers:
                task = self._tasks.next_for(worker.index, idle=ahead == 0) if len(self._tasks) >= left else None
                if task is not None and worker.takes(task, ahead):
                    self._give(worker)

    def _give(self, worker: Worker) -> None:
        task, known, more = self._tasks.take(worker.index)
        if not worker.tasks:
            worker.heard = time.monotonic()
        worker.tasks.append(task)
        overrides = {"force": task.force, "memory_budget": self._share(), **task.overrides}
        worker.child.send(
            {
                "item": to_values(task.item.updated(caption=None, extra={}, times=b"")),
                "folder": self._folder,
                "latents": task.latents,
                "own": task.own,
                "known": to_values(known),
                "more": more,
                "overrides": overrides,
            }
        )

    def _share(self) -> int | None:
        """Return the memory budget of each worker in bytes; with CUDA devices, the option as given, or None."""
        assert self.ready is not None
        if self.ready.devices:
            return self._options.memory_budget
        together = self._engine.on_one_machine(self.count, self.ready)
        return (self._options.memory_budget or self.ready.memory) // together

    def _listen(self) -> Iterator[tuple[Task, Line]]:
        """Wait briefly for messages from the workers, act on them, and yield outcomes that are final."""
        readable = self._engine.wait([worker.child for worker in self.workers], _TICK_SECONDS)
        now = time.monotonic()
        if now - self._looked > _AWAY_SECONDS:  # this process was suspended, and the workers may have been too
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
                worker.heard = now  # it is waiting for a machine
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
            task.attempts += not worker.begun  # it failed before it began, so this attempt is not counted yet
            worker.begun = max(0, worker.begun - 1)
            worker.first_resident = worker.first_resident or message["resident"]
            if message["resident"] > max((self._share() or 0) // 2, 2 * worker.first_resident):
                worker.leaving = True
            self._tasks.note(task.path, from_values(KnownSource | None, message["known"]))  # type: ignore[arg-type]
            if message["over"]:
                self._take_back(worker)
            if message["over"] or (worker.leaving and not worker.tasks):
                self._replace(worker)
            yield from self._outcome(task, from_values(Line, message["outcome"]))

    def _lost(self, worker: Worker, error: MovqError) -> Iterator[tuple[Task, Line]]:
        """Replace a worker that died or must be ended. Yield the tasks it had begun that get no other attempt."""
        if not worker.ready:
            self._deaths += 1
            if self._deaths > 2:
                self._do_without(worker, MovqCrashError(f"a worker cannot start: {error.marked}"))
                return
        opening = bool(worker.tasks) and not worker.begun  # it died while opening the first
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
            # A task that has been computed is being written, which takes no memory.
            written = not opening and task is not worker.task
            yield from self._outcome(task, unmade(MovqCrashError(error.marked) if written else error), died=True)

    def _take_back(self, worker: Worker) -> None:
        """Put the tasks that a worker will not do back in front of the others. They do not count as attempted."""
        self._tasks.release(worker.index)
        for number, task in enumerate(worker.tasks):
            task.attempts -= number < worker.begun
        if not self._stopped:
            self._tasks.put_back(worker.tasks)
        worker.tasks.clear()

    def _do_without(self, worker: Worker, error: MovqError) -> None:
        """Go on without this worker. Raise `error` if it was the last one."""
        if len(self.workers) == 1:
            raise error
        warnings.warn(MovqWarning(f"one worker less: {error}"), stacklevel=2)
        worker.child.close()
        self._tasks.release(worker.index)
        self.workers.remove(worker)
        self._deaths = 0

    def _replace(self, worker: Worker) -> None:
        worker.child.close()
        self._tasks.release(worker.index)
        self.workers[self.workers.index(worker)] = self._start(worker.index)

    def _outcome(self, task: Task, outcome: Line, died: bool = False) -> Iterator[tuple[Task, Line]]:
        """Yield the task if its outcome is final, else keep it for another attempt. `died`: its worker died of it."""
        cause, again = outcome.get("cause"), not self._stopped
        last = self.count == 1 or self._have_devices  # a retry will not find more memory
        if again and cause == MovqMemoryError.cause and not (last and "chunk_frames" in task.overrides):
            if last or died:
                task.overrides |= self._least_memory
            self._later.append(task)
        elif again and cause in (MovqCrashError.cause, MovqHangError.cause) and task.attempts < task.allowed:
            self._tasks.extend([task])
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
    """Return the options with absolute paths, for any current folder. Weights may also be the name of a model."""
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
