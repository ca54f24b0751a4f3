"""The engine that runs workers on this machine, and the protocol of all engines. ray_engine.py has another."""

from __future__ import annotations

import select
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from ..errors import MovqError
from ..memory import PROCESS_BYTES
from ..options import EncodeOptions
from ..processes import Child

WORKER_BYTES = 3 * PROCESS_BYTES
"""Bytes of memory to reserve for a worker while nothing is known about its videos."""

WORKER = "movq_cli.batch.worker"
"""The module that every worker runs, with any engine."""


@dataclass(frozen=True)
class Ready:
    """A worker's report that its weights are loaded: their digest, its device and precision, and its machine.

    `devices` is the number of the machine's CUDA devices (0 if the worker computes on a CPU), `memory` the free bytes
    of the worker's device less a margin, `cores` the usable CPU cores.
    """

    precision: str
    device: str
    devices: int
    memory: int
    cores: int
    weights_digest: str


class Handle(Protocol):
    """A worker, as the pool sees it."""

    @property
    def started(self) -> bool:
        """True once the worker has a machine to run on."""

    @property
    def lost(self) -> bool:
        """True if the worker ended for a reason that its item did not cause, such as a lost machine."""

    def send(self, data: dict[str, Any]) -> None:
        """Send a message. Do nothing if the worker has ended; `messages` reports that."""

    def messages(self) -> list[dict[str, Any]]:
        """Return its new messages. Call it after `wait` has returned this worker.

        Raises EOFError if the worker has ended and no messages are left.
        """

    def death(self) -> str:
        """Return how the worker ended."""

    def kill(self) -> None:
        """End the worker without waiting for it."""

    def close(self) -> None:
        """End the worker for good."""


class Engine(Protocol):
    """Starts workers and waits for their messages."""

    def start(self) -> Handle:
        """Start a worker."""

    def wait(self, handles: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Return the workers that have messages; wait up to `seconds` for the first."""

    def suitable(self, ready: Ready) -> int:
        """Return the default number of workers: as many as devices, or as cores and memory allow."""

    def on_one_machine(self, count: int, ready: Ready) -> int:
        """Return how many of `count` workers may share one machine, and so its memory."""

    def close(self) -> None:
        """End the engine. Its workers have been closed before."""


def require_ray() -> None:
    """Raise MovqError if Ray is not installed."""
    if find_spec("ray") is None:
        raise MovqError("ray needs Ray: pip install 'movq-cli[ray]'", option="engine")


class LocalEngine:
    """Runs workers as processes on this machine."""

    def __init__(self, options: EncodeOptions) -> None:
        self._options = options

    def start(self) -> Child:
        """Start a process."""
        return Child(WORKER)

    def wait(self, handles: Sequence[Child], seconds: float) -> Sequence[Child]:
        """Return the processes that have messages; wait up to `seconds` for the first."""
        return select.select(handles, [], [], seconds)[0]

    def suitable(self, ready: Ready) -> int:
        """Return one for each CUDA device, or on a CPU as many as cores and memory allow.

        If the options name one CUDA device, return 1.
        """
        if ready.devices:
            return ready.devices if self._options.device in ("auto", "cuda") else 1
        memory = self._options.memory_budget or ready.memory
        return max(1, min(ready.cores // (self._options.threads or 1), memory // WORKER_BYTES))

    def on_one_machine(self, count: int, ready: Ready) -> int:
        """Return `count`: all workers are on this machine."""
        return count

    def close(self) -> None:
        """Do nothing: the pool closes each process."""
        pass
