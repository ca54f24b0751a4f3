"""`read_frames`, `probe` and `count_frames`: the side of video decoding that the rest of movq sees. No PyAV here.

Decoding happens in a process of its own (child.py), so that a crash or a hang of libav is an error of one file, and runs
ahead of whoever takes the frames, by a bounded number of them.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import MovqError, MovqUsageError
from .geometry import Geometry, Picture
from .info import VideoInfo
from .selection import Selection

HANG_SECONDS = 120.0
"""A decoder that neither gives a frame nor says that it is at work for so long is taken to hang."""

AHEAD_BYTES = 128 << 20
"""Shared memory that decoded frames may take, but for at least two of them."""

_START = "import json,sys; sys.path[:] = json.loads(sys.argv[1]); from movq_cli.video.child import main; main()"


@dataclass(frozen=True)
class Frame:
    """One frame as a viewer shows it: `image` RGB uint8 (H, W, 3), `time` in seconds of the source's own clock.

    `index` is its place among the frames the source shows, `end` when the next one would follow.
    """

    image: np.ndarray
    time: Fraction
    end: Fraction
    index: int


class FrameReader:
    """An iterator of frames; made by `read_frames`. Close it, or use it in a `with`.

    Making one starts the decoding process and returns at once. `info` and `geometry` wait for it to have opened the file;
    `warnings` is complete once the frames are.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        selection: Selection,
        picture: Picture,
        multiple: int,
        ahead: int,
        threads: int,
    ) -> None:
        self.path = os.fspath(path)
        self.warnings: tuple[str, ...] = ()
        self._memory_fd = _anonymous_memory()
        self._memory: mmap.mmap | None = None
        self._worker = _Worker(
            self.path, "frames", selection, picture, threads, self._memory_fd, multiple=multiple, ahead=ahead
        )
        self._opened: dict[str, Any] | None = None
        self._over = False

    @property
    def info(self) -> VideoInfo:
        return _info(self._open()["info"])

    @property
    def geometry(self) -> Geometry:
        return Geometry.from_dict(self._open()["geometry"])

    @property
    def filter(self) -> str:
        """What resampling and colour conversion were done by."""
        return str(self._open()["filter"])

    def __iter__(self) -> FrameReader:
        return self

    def __next__(self) -> Frame:
        self._open()
        if self._over:
            raise StopIteration
        message = self._worker.receive()
        if message["kind"] == "end":
            self._over = True
            self.warnings = tuple(message["warnings"])
            raise StopIteration
        image = self._slots[message["slot"]].copy()
        self._worker.free_slot()
        return Frame(image, Fraction(message["time"]), Fraction(message["end"]), message["index"])

    def _open(self) -> dict[str, Any]:
        if self._opened is None:
            self._opened = opened = self._worker.receive()
            geometry = Geometry.from_dict(opened["geometry"])
            shape = opened["slots"], geometry.padded_height, geometry.padded_width, 3
            self._memory = mmap.mmap(self._memory_fd, int(np.prod(shape)))
            self._slots = np.frombuffer(self._memory, np.uint8).reshape(shape)
        return self._opened

    def close(self) -> None:
        """Ends the decoding process and frees its memory."""
        self._worker.close()
        if self._memory is not None:
            del self._slots
            self._memory.close()
            self._memory = None
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_frames(
    path: str | os.PathLike[str],
    selection: Selection | None = None,
    picture: Picture | None = None,
    *,
    multiple: int = 1,
    ahead: int = 8,
    threads: int = 2,
) -> FrameReader:
    """The frames of a video as a viewer shows them: turned, with square pixels, in RGB by the file's own colour tags.

    `multiple`: pad height and width, by repeating the right and bottom edge, to multiples of it. `ahead`: how many frames
    decoding may be in front, never more than 128 MB of them but at least two. `threads`: of the decoder.
    Raises MovqError, when frames are taken, for a file that is missing, not a video, damaged or cut off in the range read.
    """
    return FrameReader(path, selection or Selection(), picture or Picture(), multiple, ahead, threads)


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """What a video is. Decodes its first frame. Raises MovqError where there is none."""
    return _info(_ask(path, "probe", Selection())["info"])


def count_frames(path: str | os.PathLike[str], selection: Selection | None = None) -> int:
    """How many frames a selection has, from the times of packets, without decoding. Raises MovqError."""
    return int(_ask(path, "count", selection or Selection())["frames"])


def _ask(path: str | os.PathLike[str], mode: str, selection: Selection) -> dict[str, Any]:
    worker = _Worker(os.fspath(path), mode, selection, Picture(), 1, None)
    try:
        return worker.receive()
    finally:
        worker.close()


def _info(values: dict[str, Any]) -> VideoInfo:
    fractions = {k: Fraction(values[k]) for k in ("pixel_aspect", "fps", "duration") if values[k] is not None}
    return VideoInfo(**{**values, **fractions, "warnings": tuple(values["warnings"])})


class _Worker:
    """A decoding process and the conversation with it."""

    def __init__(
        self,
        path: str,
        mode: str,
        selection: Selection,
        picture: Picture,
        threads: int,
        memory: int | None,
        *,
        multiple: int = 1,
        ahead: int = 1,
    ) -> None:
        self._path = path
        chosen = {k: str(v) if isinstance(v, Fraction) else v for k, v in asdict(selection).items()}
        request = {
            "mode": mode,
            "path": os.fsencode(path).decode("utf-8", "surrogateescape"),
            "selection": chosen,
            "picture": asdict(picture),
            "multiple": multiple,
            "ahead": ahead,
            "ahead_bytes": AHEAD_BYTES,
            "threads": threads,
            "memory": memory,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=() if memory is None else (memory,),
            bufsize=0,
        )
        self._inbox = b""
        self._send(json.dumps(request).encode() + b"\n")

    def free_slot(self) -> None:
        self._send(b".")

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then the process is over, and what it said last is still to be read
            self._process.stdin.write(data)

    def receive(self) -> dict[str, Any]:
        """The next message that matters. Raises MovqError for what went wrong with the file, RuntimeError for a bug."""
        while True:
            message = json.loads(self._line())
            if message["kind"] == "error":
                kind = MovqUsageError if message["exit_code"] == 2 else MovqError
                raise kind(message["reason"], message["about"] or self._path)
            if message["kind"] == "bug":
                raise RuntimeError(f"in the decoding process of {self._path}:\n{message['trace']}")
            if message["kind"] != "alive":
                return dict(message)

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        out = self._process.stdout
        while b"\n" not in self._inbox:
            if not select.select([out], [], [], HANG_SECONDS)[0]:
                self.close()
                raise MovqError(f"the decoder hung: nothing came for {HANG_SECONDS:.0f} s", self._path)
            data = os.read(out.fileno(), 1 << 16)
            if not data:
                raise MovqError(f"the decoder crashed on it ({self._death()})", self._path)
            self._inbox += data
        line, self._inbox = self._inbox.split(b"\n", 1)
        return line

    def _death(self) -> str:
        code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def close(self) -> None:
        process = self._process
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _anonymous_memory() -> int:
    """The descriptor of an empty file that only its holders can see."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("movq-frames", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
