"""Processes of movq's own: each runs one module's `main`, speaks in JSON lines, and ends with the process that made it.

What a library does to a process, it does to one of these. `Child` is the side that starts it, `Talk` the side started.
And a thread, for what can be done meanwhile.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, BinaryIO

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from importlib import import_module; "
    "import_module(sys.argv[2]).main()"
)
_QUIET_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


class Child:
    """A process that runs `main` of a module, which begins by making a Talk. Close it."""

    started, lost = True, False

    def __init__(self, module: str, pass_fds: tuple[int, ...] = ()) -> None:
        # Linux ties "dies with its parent" to the thread that started it; others may end before the process does.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps(sys.path), module, str(parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=pass_fds,
            bufsize=0,
        )
        self._inbox = b""
        self._messages: deque[dict[str, Any]] = deque()

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """Becomes readable when it says something or is over."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, data: bytes | dict[str, Any]) -> None:
        """A message, or the bytes that the child reads by itself. Nothing happens if it is over: `receive` tells."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(data if isinstance(data, bytes) else json.dumps(data).encode() + b"\n")

    def receive(self, seconds: float) -> dict[str, Any]:
        """Its next message. Raises TimeoutError after so many seconds of silence, EOFError where it is over."""
        while not self._messages:
            if not select.select([self], [], [], seconds)[0]:
                raise TimeoutError
            self._read()
        return self._messages.popleft()

    def messages(self) -> list[dict[str, Any]]:
        """What it has said since; for when it is readable. Raises EOFError where it is over and has said all."""
        self._read()
        said = list(self._messages)
        self._messages.clear()
        return said

    def _read(self) -> None:
        data = os.read(self.fileno(), 65536)
        if not data:
            raise EOFError
        *lines, self._inbox = (self._inbox + data).split(b"\n")
        self._messages.extend(map(json.loads, lines))

    def death(self) -> str:
        """How it ended: the name of a signal, or its exit code."""
        code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """Ends it at once, and waits for nothing."""
        if self._process.poll() is None:
            self._process.kill()

    def close(self) -> None:
        """Ends it, at once and for certain."""
        self.kill()
        process = self._process
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


class Talk:
    """The child's side: JSON lines to the process that made this one. Whatever else it prints goes nowhere.

    Ctrl-C and its like reach a whole group of processes; the parent decides what they mean.
    """

    def __init__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _die_with_parent(int(sys.argv[3]))
        self._out: BinaryIO = os.fdopen(os.dup(1), "wb")
        self.inbox: BinaryIO = sys.stdin.buffer
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        self._last = time.monotonic()

    def say(self, kind: str, **values: Any) -> None:
        """Raises BrokenPipeError where nobody listens any more."""
        self._out.write(json.dumps({"kind": kind, **values}).encode() + b"\n")
        self._out.flush()
        self._last = time.monotonic()

    def alive(self) -> None:
        """Called often; says so when nothing else was said for a while."""
        if time.monotonic() - self._last > _QUIET_SECONDS:
            self.say("alive")

    def hear(self) -> dict[str, Any] | None:
        """The next message; None when there will be none."""
        line = self.inbox.readline()
        return dict(json.loads(line)) if line else None


def _die_with_parent(parent: int) -> None:
    """Has Linux kill this process with its parent, stopped or hung though it may be; elsewhere a closed pipe has to do."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if parent and prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def in_background(work: Callable[[], str]) -> Future[str]:
    """Runs `work` in a thread that nobody waits for who does not want its result: digests of large files take a while."""
    future: Future[str] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
