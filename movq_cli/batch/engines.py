"""Where workers run: on this machine. What an engine is; ray_engine.py has another."""

from __future__ import annotations

import select
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..budget import PROCESS_BYTES
from ..options import EncodeOptions
from ..processes import Child

WORKER_BYTES = 3 * PROCESS_BYTES
"""Memory that is thought to be enough for a worker, where nothing is known of its videos."""

WORKER = "movq_cli.batch.worker"
"""The module that every worker runs, whichever engine started it."""


@dataclass(frozen=True)
class Ready:
    """A worker that has loaded its weights, of this digest.

    `precision` and `device` are its own; CUDA `devices`, free bytes of `memory` and `cores` are its machine's.
    """

    precision: str
    device: str
    devices: int
    memory: int
    cores: int
    weights_digest: str


class Handle(Protocol):
    """A worker, as the pool speaks to it."""

    @property
    def started(self) -> bool:
        """Whether it has a machine to run on."""

    @property
    def lost(self) -> bool:
        """Whether it is over because its machine is gone, or what else is no fault of its item."""

    def send(self, data: dict[str, Any]) -> None:
        """A message to it. Nothing happens if it is over: `messages` tells."""

    def messages(self) -> list[dict[str, Any]]:
        """What it has said since; after `wait` named it. Raises EOFError where it is over and has said all."""

    def death(self) -> str:
        """How it ended."""

    def kill(self) -> None:
        """End it, and wait for nothing."""

    def close(self) -> None:
        """End it, for certain."""


class Engine(Protocol):
    """Starts workers and hears of them."""

    def start(self) -> Handle:
        """Start a worker."""

    def wait(self, handles: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Those that have something to say; waits for one at most so long."""

    def suitable(self, ready: Ready) -> int:
        """How many workers, where nobody says: as many as there are devices or cores, and as memory allows."""

    def on_one_machine(self, count: int, ready: Ready) -> int:
        """How many of so many share the memory of one."""

    def close(self) -> None:
        """End the engine; its workers are closed before."""


class LocalEngine:
    """Processes of this machine."""

    def __init__(self, options: EncodeOptions) -> None:
        self._options = options

    def start(self) -> Child:
        """Start a process."""
        return Child(WORKER)

    def wait(self, handles: Sequence[Child], seconds: float) -> Sequence[Child]:
        """Return the processes that have something to say."""
        return select.select(handles, [], [], seconds)[0]

    def suitable(self, ready: Ready) -> int:
        """Return one for each CUDA device, or for each core as far as memory allows."""
        if ready.devices:
            return ready.devices if self._options.device in ("auto", "cuda") else 1
        memory = self._options.memory_budget or ready.memory
        return max(1, min(ready.cores // (self._options.threads or 1), memory // WORKER_BYTES))

    def on_one_machine(self, count: int, ready: Ready) -> int:
        """Return all of them."""
        return count

    def close(self) -> None:
        """Do nothing: processes are closed one by one."""
        pass
