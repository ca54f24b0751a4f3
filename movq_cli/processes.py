"""Processes of movq's own: each runs one module's `main`, speaks in JSON lines, and ends with the process that made it.

What a library does to a process, it does to one of these. `Child` is the side that starts it in a new interpreter, `Talk` the
side started; forks.py starts those of which there are many.
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
    """Start a new interpreter that runs `main` of a module; `sys.argv[3]` there is for `settle`, the arguments follow."""
    # Linux ties "dies with its parent" to the thread that started it; others may end before the process does.
    parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
    command = [sys.executable, "-P", "-c", _START, json.dumps(sys.path), module, str(parent), *arguments]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, bufsize=0, **more)


def settle(parent: int) -> None:
    """Have this process end with its parent, and not by what a terminal tells a whole group: the parent decides that.

    On Linux the end comes at once, stopped or hung though the process may be; elsewhere a closed pipe has to do.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if parent and prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


class Spoken:
    """The conversation with a process that makes a Talk: through the pipes to its standard input and from its output."""

    def __init__(self, to: IO[bytes] | FileIO, out: IO[bytes] | FileIO) -> None:
        self._to, self._out = to, out
        self._inbox = b""
        self._messages: deque[dict[str, Any]] = deque()

    def fileno(self) -> int:
        """Becomes readable when it says something or is over."""
        return self._out.fileno()

    def send(self, data: bytes | dict[str, Any]) -> None:
        """A message, or the bytes that the process reads by itself. Nothing happens if it is over: `receive` tells."""
        with suppress(BrokenPipeError):
            self._to.write(data if isinstance(data, bytes) else json.dumps(data).encode() + b"\n")

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

    def hang_up(self) -> None:
        """Close the pipes."""
        self._to.close()
        self._out.close()


class Child(Spoken):
    """A process in a new interpreter, which runs `main` of a module. Close it."""

    started, lost = True, False

    def __init__(self, module: str) -> None:
        self._process = spawn(module, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        super().__init__(self._process.stdin, self._process.stdout)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def death(self) -> str:
        """How it ended: the name of a signal, or its exit code."""
        return name_of(self._process.wait())

    def kill(self) -> None:
        """Ends it at once, and waits for nothing."""
        if self._process.poll() is None:
            self._process.kill()

    def close(self) -> None:
        """Ends it, at once and for certain."""
        self.kill()
        self._process.wait()
        self.hang_up()


def name_of(code: int) -> str:
    """Name an end as `subprocess` numbers it."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class Talk:
    """The child's side: JSON lines to the process that made this one. Whatever else it prints goes nowhere."""

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
        """Any thread may. Raises BrokenPipeError where nobody listens any more."""
        with self._lock:
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
