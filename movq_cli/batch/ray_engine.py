"""Run workers on a Ray cluster: each is an actor that starts the usual worker process and passes messages on.

Ray carries only paths and messages, never frames or latents: videos, weights and the output folder must be on storage
that all machines share. If an actor is killed or its machine is lost, its worker counts as dead.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import MovqError, MovqUsageError, MovqWarning
from ..options import EncodeOptions
from ..processes import Child
from .engines import WORKER, WORKER_BYTES, Ready

_POLL_SECONDS = 0.25
_CONNECT_SECONDS = 10.0
_PATIENCE_SECONDS = 60.0


class Relay:
    """The actor: runs a worker's process and relays its messages."""

    def __init__(self) -> None:
        self._child = Child(WORKER)

    def exchange(self, messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
        """Send messages to the worker. Return its answers of the next moment, and how it ended if it has, else None."""
        for message in messages:
            self._child.send(message)
        if not select.select([self._child], [], [], _POLL_SECONDS)[0]:
            return [], None
        try:
            return self._child.messages(), None
        except EOFError:
            return [], self._child.death()


class RayHandle:
    """A worker behind a Relay, as the pool sees it."""

    def __init__(self, actor: Any) -> None:
        self.started = self.lost = False
        self._actor = actor
        self._unsent: list[dict[str, Any]] = []
        self._said: list[dict[str, Any]] = []
        self._pending: Any = None
        self._death: str | None = None

    def send(self, data: dict[str, Any]) -> None:
        """Queue a message for the next exchange."""
        self._unsent.append(data)

    def messages(self) -> list[dict[str, Any]]:
        """Return its new messages. Raises EOFError if it has ended and none are left."""
        if not self._said and self._death is not None:
            raise EOFError
        said, self._said = self._said, []
        return said

    def death(self) -> str:
        """Return how the worker ended."""
        return self._death or "it was ended"

    def kill(self) -> None:
        """End the actor without waiting for it."""
        import ray

        with suppress(Exception):  # the actor is dead already, or Ray is
            ray.kill(self._actor)

    def close(self) -> None:
        """End the actor."""
        self.kill()

    @property
    def heard(self) -> bool:
        """True if it has messages or has ended."""
        return bool(self._said) or self._death is not None

    def ask(self) -> Any:
        """Begin an exchange, unless one is under way, and return the reference to wait for."""
        if self._pending is None:
            self._pending, self._unsent = self._actor.exchange.remote(self._unsent), []
        return self._pending

    def take(self) -> None:
        """Take the answer of the exchange, which has arrived."""
        import ray

        pending, self._pending = self._pending, None
        try:
            with _unwrapped():
                said, self._death = ray.get(pending)
            self._said += said
            self.started = True
        except ray.exceptions.RayError as error:
            self._death, self.lost = "its actor or machine is gone: " + type(error).__name__, True


class RayEngine:
    """Runs workers as actors on a cluster: at `address`, or of the environment or this machine, or a new one here."""

    def __init__(self, options: EncodeOptions, address: str | None, gpus: float) -> None:
        if options.device not in ("auto", "cpu", "cuda"):
            raise MovqUsageError(
                f"goes with auto, cpu or cuda: Ray gives devices out, got {options.device}", option="device"
            )
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no use of the network unless asked for
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                _require_listener(address)
                with _our_signals():
                    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except (OSError, RuntimeError, ValueError) as error:
                raise MovqError(
                    f"no cluster at {address}: {str(error).splitlines()[0]}", option="ray_address"
                ) from None
        self._threads = options.threads or 1
        has_gpus = _resources().get("GPU", 0) > 0
        self._gpus = gpus if has_gpus and options.device != "cpu" else 0
        if options.device == "cuda" and not self._gpus:
            raise MovqError("no machine of the cluster has a GPU", option="device")
        self._waits = time.monotonic()
        self._actor = ray.remote(Relay).options(num_cpus=self._threads, num_gpus=self._gpus, max_restarts=0)

    def start(self) -> RayHandle:
        """Ask the cluster for an actor."""
        return RayHandle(self._actor.remote())

    def wait(self, handles: Sequence[RayHandle], seconds: float) -> Sequence[RayHandle]:
        """Return the actors that have messages or have ended. Warn once if none gets a machine."""
        import ray

        if not any(handle.heard for handle in handles):
            asked = {handle.ask(): handle for handle in handles}
            with _unwrapped():
                ray.wait(list(asked), num_returns=1, timeout=seconds)
                there, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
            for answer in there:
                asked[answer].take()
        if any(handle.started for handle in handles):
            self._waits = time.monotonic()
        elif time.monotonic() - self._waits > _PATIENCE_SECONDS:
            self._waits = float("inf")
            needed = f"{self._threads} CPUs" + (f" and {self._gpus:g} GPUs" if self._gpus else "")
            warnings.warn(MovqWarning(f"no machine of the cluster has {needed} free: still waiting"), stacklevel=2)
        return [handle for handle in handles if handle.heard]

    def suitable(self, ready: Ready) -> int:
        """Return as many workers as the cluster's GPUs, or its CPUs and memory, allow."""
        import ray

        resources = _resources()
        if self._gpus:
            return max(1, int(resources["GPU"] / self._gpus))
        machines = sum(bool(node["Alive"]) for node in ray.nodes())
        most = machines * (ready.memory // WORKER_BYTES)
        return max(1, min(int(resources.get("CPU", 1)) // self._threads, most))

    def on_one_machine(self, count: int, ready: Ready) -> int:
        """Return how many of `count` workers may be on one machine, by its cores."""
        return min(count, max(1, ready.cores // self._threads))

    def close(self) -> None:
        """Leave the cluster; end it if it was started here."""
        import ray

        if self._ours:
            ray.shutdown()


def _resources() -> dict[str, float]:
    import ray

    resources: dict[str, float] = ray.cluster_resources()
    return resources


def _require_listener(address: str | None) -> None:
    """Raise OSError if nothing listens at HOST:PORT. Ray itself would keep trying for minutes."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise the exception of a signal handler instead of the SystemError that Ray's compiled code makes of it."""
    try:
        yield
    except SystemError as error:
        raise (error.__cause__ or error.__context__ or error) from None


@contextmanager
def _our_signals() -> Iterator[None]:
    """Restore the signal handlers of this process at the end, because Ray replaces them when it starts."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        with suppress(ValueError):  # only the main thread may set them
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
