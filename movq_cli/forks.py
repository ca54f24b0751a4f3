"""Start many processes, each in milliseconds: a process that has imported what they need forks them.

`Forker` is the side that asks; `main` runs in the process that forks. That one has a single thread and never imports
torch, so that a fork is a complete copy of it. It serves one request at a time and ends with the process that asks; its
children end with it.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from io import FileIO

from .processes import Spoken, Talk, name_of, settle, spawn

_REQUEST = struct.Struct("!ci")
"""_FORK and 0, sent with the descriptors for the child, or _END and the ID of the process to end."""
_REPLY = struct.Struct("!i")
"""The ID of the new process or a negative errno; for _END, the exit code as in `subprocess`."""
_FORK, _END = b"f", b"e"
_MOST_DESCRIPTORS = 3
_PATIENCE_SECONDS = 120.0
"""The time limit for an answer. The first answer comes when the module has been imported."""
_GRACE_SECONDS = 1.0


class Forked(Spoken):
    """A process that a Forker has forked, or is about to fork. Close it after use."""

    def __init__(self, forker: Forker, to: int, out: int) -> None:
        super().__init__(FileIO(to, "w"), FileIO(out))
        self._forker = forker
        self.line: socket.socket | None = None
        """The connection on which it was requested."""
        self.pid = 0
        self.how = ""
        """The name of a signal, an exit code, or why it could not start; empty until it is known."""

    def death(self) -> str:
        """End the process, if it has not ended, and return `how` it did."""
        if not self.how:
            self._forker.end(self)
        return self.how

    def close(self) -> None:
        """End the process and close the pipes."""
        self.death()
        self.hang_up()


class Forker:
    """Starts processes that run `main` of a module, by forking one that has imported it. Any thread may ask.

    The forking process starts with the first request, or with `warm`, and again if it is gone.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._begin()
        os.register_at_fork(after_in_child=self._forget)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._asked: deque[Forked] = deque()  # those whose process IDs have not arrived yet

    def warm(self) -> None:
        """Start the process that forks, without waiting for it."""
        with self._lock:
            self._connected()

    def start(self, *descriptors: int) -> Forked:
        """Fork a process, without waiting for it. Its `main` receives its parent's process ID and the descriptors."""
        child_in, to = os.pipe()
        out, child_out = os.pipe()
        forked = Forked(self, to, out)
        try:
            with self._lock, self._unspoiled():
                for line in (self._connected, self._reconnected):
                    try:
                        socket.send_fds(line(), [_REQUEST.pack(_FORK, 0)], [child_in, child_out, *descriptors])
                        break
                    except (BrokenPipeError, ConnectionResetError):
                        continue  # it was killed while it was idle
                forked.line = self._line
                self._asked.append(forked)
        finally:
            os.close(child_in)
            os.close(child_out)
        return forked

    def end(self, forked: Forked) -> None:
        """End a process and set its `how`."""
        with self._lock, self._unspoiled():
            try:
                if forked.line is self._line and self._line is not None:
                    while self._asked:
                        self._asked[0].pid = self._answer()
                        self._asked.popleft()
                    if forked.pid < 0:
                        forked.how = f"it could not start: {os.strerror(-forked.pid).lower()}"
                        return
                    self._line.sendall(_REQUEST.pack(_END, forked.pid))
                    forked.how = name_of(self._answer())
            except (EOFError, OSError):  # a hang too, by the time limit of the connection
                self._disconnect()
            forked.how = forked.how or "SIGKILL"  # it ended with the process that forked it

    @contextmanager
    def _unspoiled(self) -> Iterator[None]:
        """Disconnect if the body is interrupted: an unread answer would be taken for the answer to the next request."""
        try:
            yield
        except BaseException:
            self._disconnect()
            raise

    def _answer(self) -> int:
        assert self._line is not None
        data = self._line.recv(_REPLY.size, socket.MSG_WAITALL)
        if len(data) < _REPLY.size:
            raise EOFError
        return int(_REPLY.unpack(data)[0])

    def _connected(self) -> socket.socket:
        if self._line is None:
            ours, theirs = socket.socketpair()
            ours.settimeout(_PATIENCE_SECONDS)
            with theirs:
                self._process = spawn(
                    __name__,
                    str(theirs.fileno()),
                    self._module,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # without it, numpy starts threads
                )
            self._line = ours
            atexit.register(self.close)
        return self._line

    def _reconnected(self) -> socket.socket:
        self._disconnect()
        return self._connected()

    def _disconnect(self) -> None:
        """End the process that forks, and with it all that it has forked."""
        if self._line is None or self._process is None:
            return
        atexit.unregister(self.close)
        self._line.close()
        self._line = None
        self._asked.clear()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End the process that forks and all that it has forked."""
        with self._lock:
            self._disconnect()

    def _forget(self) -> None:
        """Start afresh in a fork of this process: the connection belongs to the parent."""
        if self._line is not None and self._process is not None:
            self._line.close()
            self._process.returncode = 0  # or Popen warns that it was not waited for
        self._begin()


def main() -> None:
    """Fork when asked, until the process that asks is gone."""
    parent, descriptor, module = sys.argv[-3:]
    settle(int(parent))
    line = socket.socket(fileno=int(descriptor))
    try:
        run = import_module(module).main
    except Exception:
        run = _tell(traceback.format_exc())
    gc.collect()
    gc.freeze()
    children: set[int] = set()
    with suppress(BrokenPipeError, ConnectionResetError):
        while True:
            request, descriptors, _, _ = socket.recv_fds(line, _REQUEST.size, _MOST_DESCRIPTORS)
            if not request:
                break
            kind, pid = _REQUEST.unpack(request)
            if kind == _FORK:
                reply = _fork(run, line, descriptors)
                if reply > 0:
                    children.add(reply)
            else:
                children.remove(pid)
                os.kill(pid, signal.SIGKILL)
                reply = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            line.sendall(_REPLY.pack(reply))
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _tell(trace: str) -> Callable[..., None]:
    """Return a replacement for a `main` that could not be imported, which reports the traceback."""

    def run(parent: int, *descriptors: int) -> None:
        Talk(parent).say("bug", trace=trace)

    return run


def _fork(run: Callable[..., None], line: socket.socket, descriptors: list[int]) -> int:
    """Fork a process; return its ID, or a negative errno.

    The first two descriptors become its standard input and output. It calls `run` with its parent's ID and the others.
    """
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        pid = -(error.errno or 1)
    if pid:
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    try:
        line.close()
        for place, descriptor in enumerate(descriptors[:2]):
            os.dup2(descriptor, place)
            os.close(descriptor)
        run(parent, *descriptors[2:])
    finally:
        os._exit(1)
