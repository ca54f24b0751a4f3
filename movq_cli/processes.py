"""Processes of movq's own. Each runs `main` of a module, speaks JSON lines, and ends with the process that started it.

If a library crashes or hangs, only one of these processes is lost. `Child` is the parent's side of one in a new
interpreter, `Talk` the side of the process itself. forks.py starts the kind of which many are needed.
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
from contextlib import suppress
from io import FileIO
from typing import IO, Any, BinaryIO

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from importlib import import_module; "
    "import_module(sys.argv[2]).main()"
)
_QUIET_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


def spawn(module: str, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
    """Start a new interpreter that runs `main` of a module. Its `sys.argv[3]` is for `settle`; the arguments follow."""
    # Linux ends the child when the thread that started it ends, and only the main thread lasts as long as the process.
    parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
    command = [sys.executable, "-P", "-c", _START, json.dumps(sys.path), module, str(parent), *arguments]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, bufsize=0, **more)


def settle(parent: int) -> None:
    """Make this process end with its parent, and ignore signals that a terminal sends to all: the parent decides.

    On Linux it ends at once, even if it is stopped or hangs. On other systems, or if `parent` is 0, it ends when it
    finds a pipe closed.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if parent and prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


class Spoken:
    """The conversation with a process that has a Talk, by pipes to its standard input and from its standard output."""

    def __init__(self, to: IO[bytes] | FileIO, out: IO[bytes] | FileIO) -> None:
        self._to, self._out = to, out
        self._inbox = b""
        self._messages: deque[dict[str, Any]] = deque()

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the process says something or has ended."""
        return self._out.fileno()

    def send(self, data: bytes | dict[str, Any]) -> None:
        """Send a message, or bytes that the process reads as they are. If it has ended, only `receive` will tell."""
        with suppress(BrokenPipeError):
            self._to.write(data if isinstance(data, bytes) else json.dumps(data).encode() + b"\n")

    def receive(self, seconds: float) -> dict[str, Any]:
        """Return its next message. Raises TimeoutError after `seconds` of silence, and EOFError if it has ended."""
        while not self._messages:
            if not select.select([self], [], [], seconds)[0]:
                raise TimeoutError
            self._read()
        return self._messages.popleft()

    def messages(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived; call it when readable. Raises EOFError if the process has ended."""
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

    def hang_up(self) -> None:
        """Close the pipes."""
        self._to.close()
        self._out.close()


class Child(Spoken):
    """A process in a new interpreter that runs `main` of a module. Close it after use."""

    started, lost = True, False

    def __init__(self, module: str) -> None:
        self._process = spawn(module, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        super().__init__(self._process.stdin, self._process.stdout)

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._process.pid

    def death(self) -> str:
        """Wait for its end, and return how it ended: the name of a signal, or its exit code."""
        return name_of(self._process.wait())

    def kill(self) -> None:
        """Kill the process, without waiting for its end."""
        if self._process.poll() is None:
            self._process.kill()

    def close(self) -> None:
        """Kill the process, wait for its end, and close the pipes."""
        self.kill()
        self._process.wait()
        self.hang_up()


def name_of(code: int) -> str:
    """Return how a process ended, from its return code in `subprocess`: the name of a signal, or the exit code."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class Talk:
    """The child's side: JSON lines to the process that started it. Anything else that it prints is discarded."""

    def __init__(self, parent: int | None = None) -> None:
        settle(int(sys.argv[3]) if parent is None else parent)
        self._out: BinaryIO = os.fdopen(os.dup(1), "wb")
        self.inbox: BinaryIO = sys.stdin.buffer
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        self._last = time.monotonic()
        self._lock = threading.Lock()

    def say(self, kind: str, **values: Any) -> None:
        """Send a message, from any thread. Raises BrokenPipeError if nobody reads it any more."""
        with self._lock:
            self._out.write(json.dumps({"kind": kind, **values}).encode() + b"\n")
            self._out.flush()
        self._last = time.monotonic()

    def alive(self) -> None:
        """Send "alive" if nothing else was sent for _QUIET_SECONDS. Call it often."""
        if time.monotonic() - self._last > _QUIET_SECONDS:
            self.say("alive")

    def hear(self) -> dict[str, Any] | None:
        """Return the next message, or None if no more will come."""
        line = self.inbox.readline()
        return dict(json.loads(line)) if line else None
