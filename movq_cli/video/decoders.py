"""Decoding processes as the rest of movq sees them: requests to them, and their answers. child.py is the other side."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from threading import Lock
from typing import Any

from ..errors import MovqCrashError, MovqError, MovqHangError
from ..forks import Forker
from ..options import Selection
from ..records import to_values
from .messages import Mode, Request

HANG_SECONDS = 120.0
"""A decoder that gives neither a frame nor a sign of life for this long is taken to hang."""

AHEAD_BYTES = 128 << 20
"""Shared memory that decoded frames may take, unless two of them need more."""

DECODER_BYTES = 4 << 30
"""Memory that decoding may take besides (8192x4320 of HEVC in 10 bits takes 1 GB)."""

_PLACE = 1 << 40
"""The distance of two places for frames in shared memory, which takes only as much memory as is written to."""

_decoders = Forker("movq_cli.video.child")


def warm_decoders() -> None:
    """Start the process that decoding processes are forked from. Without this call, it starts when first needed."""
    _decoders.warm()


class DecodingProcess:
    """A decoding process and the conversation with it."""

    def __init__(self, memory: int | None = None) -> None:
        self._child = _decoders.start(*(() if memory is None else (memory,)))

    def ask(self, path: str, mode: Mode, selection: Selection, **more: Any) -> None:
        """Send a request, with `more` of its fields."""
        self._path = path
        folder = _as_text(_working_folder())
        request = Request(mode, folder, _as_text(path), AHEAD_BYTES, DECODER_BYTES, selection=selection, **more)
        self._child.send(to_values(request))

    def receive(self, alive: Callable[[], None]) -> dict[str, Any]:
        """Return the next message that is more than a sign of life; `alive` is called for those.

        Raises MovqError for what went wrong with the file, RuntimeError for a bug.
        """
        while True:
            try:
                message = self._child.receive(HANG_SECONDS)
            except TimeoutError:
                self.close()
                raise MovqHangError(f"the decoder hung: nothing came for {HANG_SECONDS:.0f} s", self._path) from None
            except EOFError:
                how = self._child.death()
                if how == "SIGKILL":
                    how += ", as the system does where memory runs out"
                raise MovqCrashError(f"the decoder crashed on it ({how})", self._path) from None
            if message["kind"] == "error":
                raise MovqError.from_dict(message).named(self._path)
            if message["kind"] == "bug":
                raise RuntimeError(f"in the decoding process of {self._path}:\n{message['trace']}")
            if message["kind"] != "alive":
                return message
            alive()

    def close(self) -> None:
        """End the process."""
        self._child.close()


class FrameProcess(DecodingProcess):
    """A decoding process that passes frames on, to one reader after the other. The last to be `done` ends it.

    The requests have numbers. Two of them may be open at a time, each with its own place in the `memory`.
    """

    def __init__(self) -> None:
        self.memory = _anonymous_memory()
        super().__init__(self.memory)
        self._asked = 0
        self._open: list[int] = []
        self._more, self._well, self._told = False, True, b""
        self._lock = Lock()

    @property
    def takes_more(self) -> bool:
        """True if it may get another request."""
        return self._more and self._well and self.memory >= 0 and len(self._open) < 2

    def ask_for_frames(self, path: str, *, times: bytes, more: bool, **fields: Any) -> int:
        """Send a request, and return its number."""
        with self._lock:
            number, self._asked = self._asked, self._asked + 1
            self._open.append(number)
            self._more = more
            told, self._told = self._told, times
            self.ask(
                path,
                "frames",
                **fields,
                number=number,
                place=self.place(number),
                times=times if times != told else b"",
                more=more,
            )
            return number

    def place(self, number: int) -> int:
        """Return the place of a request's frames in the memory."""
        return number % 2 * _PLACE

    def serves(self, number: int) -> bool:
        """Return True if it has ended all requests before this one, and the last went well."""
        return self._well and self.memory >= 0 and self._open[:1] == [number]

    def free_slot(self, number: int) -> None:
        """Tell the process that a frame was taken."""
        with self._lock:
            self._child.send({"free": number})

    def done(self, number: int, well: bool) -> None:
        """End a request. The process ends with the last one, and as soon as one in front of others did not go `well`."""
        with self._lock:
            if number not in self._open:
                return
            first = self._open[0] == number
            self._open.remove(number)
            self._well = self._well and well
            if (first and not self._well) or not (self._open or self._more):
                self._end()

    def end(self) -> None:
        """End it, unless a reader is still open."""
        with self._lock:
            self._more = False
            if not self._open:
                self._end()

    def _end(self) -> None:
        self.close()
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1


def _as_text(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def _working_folder() -> str:
    """Return the folder that relative paths begin at; "/" if it was removed, as then no relative path exists."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def _anonymous_memory() -> int:
    """Return the descriptor of an empty file that only processes with this descriptor can see."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("movq-frames", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
