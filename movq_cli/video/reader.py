"""The side of video decoding that the rest of movq sees: `read_frames`, `probe`, `count_frames`, `survey`. No PyAV.

Decoding happens in a separate process (child.py), so that a crash or a hang of libav is an error of one file. It runs
ahead of the code that takes the frames, by a limited number of frames.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import MovqCrashError, MovqError, MovqHangError
from ..forks import Forker
from ..options import Picture, Selection
from ..records import from_values, to_values
from .geometry import Geometry
from .info import VideoFacts, VideoInfo
from .messages import Mode, Opened, Request

HANG_SECONDS = 120.0
"""A decoder that gives neither a frame nor a sign of life for this long is taken to hang."""

AHEAD_BYTES = 128 << 20
"""Shared memory that decoded frames may take, unless two of them need more."""

DECODER_BYTES = 4 << 30
"""Memory that decoding may take besides (8192x4320 of HEVC in 10 bits takes 1 GB)."""

_MOST_THREADS = 4
"""The most CPU threads that the decoding of one video takes."""

_decoders = Forker("movq_cli.video.child")


@dataclass(frozen=True)
class Frame:
    """One frame as a viewer shows it: `image` is RGB uint8 (H, W, 3), `time` in seconds of the source's own clock.

    `index` is its place among the frames that the source shows, `end` the time at which the next one would follow.
    """

    image: np.ndarray
    time: Fraction
    end: Fraction
    index: int


class FrameReader:
    """An iterator over frames, made by `read_frames`. Use it in a `with`, or close it, if it is not read to its end.

    The constructor starts the decoding process and returns at once. `info`, `geometry` and `filter` wait until it has
    opened the file. `warnings` and `partial` are set after the last frame; `partial` is True if more were to follow.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        selection: Selection,
        picture: Picture,
        multiple: int,
        ahead: int,
        threads: int,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = os.fspath(path)
        self.warnings: tuple[str, ...] = ()
        self.partial = False
        self._memory_fd = _anonymous_memory()
        self._memory: mmap.mmap | None = None
        self._worker = _Worker(self._memory_fd)
        self._worker.ask(
            self.path,
            "frames",
            selection,
            picture=picture,
            threads=min(threads, _MOST_THREADS),
            multiple=multiple,
            ahead=ahead,
        )
        self._worker.alive = alive
        self._opened: Opened | None = None
        self._over = False

    @property
    def info(self) -> VideoInfo:
        """The properties of the video; waits until it is open."""
        return self._open().info

    @property
    def geometry(self) -> Geometry:
        """The way from stored frames to the requested picture; waits until the video is open."""
        return self._open().geometry

    @property
    def filter(self) -> str:
        """The name of the filter that resamples frames and converts their colours; waits until the video is open."""
        return self._open().filter

    def __iter__(self) -> FrameReader:
        return self

    def __next__(self) -> Frame:
        if self._over:
            raise StopIteration
        try:
            self._open()
            message = self._worker.receive()
        except BaseException:
            self.close()
            raise
        if message["kind"] == "end":
            self._over = True
            self.warnings, self.partial = tuple(message["warnings"]), message["partial"]
            self.close()
            raise StopIteration
        image = self._slots[message["slot"]].copy()
        self._worker.free_slot()
        return Frame(image, Fraction(message["time"]), Fraction(message["end"]), message["index"])

    def _open(self) -> Opened:
        if self._opened is None:
            self._opened = opened = from_values(Opened, self._worker.receive())
            shape = opened.slots, opened.geometry.padded_height, opened.geometry.padded_width, 3
            self._memory = mmap.mmap(self._memory_fd, int(np.prod(shape)))
            self._slots = np.frombuffer(self._memory, np.uint8).reshape(shape)
        return self._opened

    def close(self) -> None:
        """End the decoding process and free its memory."""
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
    alive: Callable[[], None] = lambda: None,
) -> FrameReader:
    """Return the frames of a video as a viewer shows them: turned, with square pixels, in RGB by their colour tags.

    `multiple`: height and width become multiples of it, by the picture's `edge`. `ahead`: how many frames decoding may be
    in front, at most 128 MB of them, but at least two. `threads`: threads of the decoder. `alive` is called now and then
    while the decoder works and has no frame to give. Raises MovqError, when frames are taken, for a file that is missing,
    not a video, damaged or cut off in the range read.
    """
    return FrameReader(path, selection or Selection(), picture or Picture(), multiple, ahead, threads, alive)


def warm_decoders() -> None:
    """Start the process that decoding processes are forked from. Without this call, it starts when first needed."""
    _decoders.warm()


def probe(path: str | os.PathLike[str], max_pixels: int | None = None) -> VideoInfo:
    """Return the properties of a video. Decodes its first frame. Raises MovqError if it has none.

    `max_pixels` is as in a Selection.
    """
    return from_values(VideoInfo, _ask(path, "probe", Selection(max_pixels=max_pixels))["info"])


def count_frames(
    path: str | os.PathLike[str], selection: Selection | None = None, alive: Callable[[], None] = lambda: None
) -> int:
    """Return how many frames a selection has, from the times of packets, without decoding. Raises MovqError."""
    return int(_ask(path, "count", selection or Selection(), alive)["frames"])


def survey(wanted: Iterable[tuple[str, Selection]]) -> Iterator[VideoFacts | MovqError]:
    """Yield the facts of each video, or the error if it cannot be read. Decodes the first frame and counts the others.

    One process reads all videos, unless it has to be replaced, so that thousands of files take little time each.
    """
    worker: _Worker | None = None
    try:
        for path, selection in wanted:
            worker = worker or _Worker()
            worker.ask(path, "survey", selection)
            try:
                yield from_values(VideoFacts, worker.receive()["facts"])
            except MovqError as error:
                if isinstance(error, MovqCrashError | MovqHangError):
                    worker.close()
                    worker = None
                yield error
    finally:
        if worker is not None:
            worker.close()


def _ask(
    path: str | os.PathLike[str], mode: Mode, selection: Selection, alive: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    worker = _Worker()
    worker.alive = alive
    try:
        worker.ask(os.fspath(path), mode, selection)
        return worker.receive()
    finally:
        worker.close()


class _Worker:
    """A decoding process and the conversation with it. `alive` is called for messages that are only signs of life."""

    alive: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, memory: int | None = None) -> None:
        self._child = _decoders.start(*(() if memory is None else (memory,)))

    def ask(self, path: str, mode: Mode, selection: Selection, **more: Any) -> None:
        """Send a request, with `more` of its fields. A process answers one, or several surveys."""
        self._path = path
        folder = _as_text(_working_folder())
        request = Request(mode, folder, _as_text(path), AHEAD_BYTES, DECODER_BYTES, selection=selection, **more)
        self._child.send(to_values(request))

    def free_slot(self) -> None:
        self._child.send(b".")

    def receive(self) -> dict[str, Any]:
        """Return the next message that is more than a sign of life.

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
            self.alive()

    def close(self) -> None:
        self._child.close()


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
