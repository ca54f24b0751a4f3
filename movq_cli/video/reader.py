"""The side of video decoding that the rest of movq sees: `read_frames`, `probe`, `count_frames`, `survey`. No PyAV.

Decoding happens in a separate process (child.py), so that a crash or a hang of libav is an error of one file. It runs
ahead of the code that takes the frames, by a limited number of frames. Spans of one video, in order, may share a process,
which goes on from where it is.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import MovqCrashError, MovqError, MovqHangError
from ..options import Picture, Selection
from ..records import from_values
from .decoders import DecodingProcess, FrameProcess
from .geometry import Geometry
from .info import VideoFacts, VideoInfo
from .messages import Mode, Opened
from .times import FrameTimes

_MOST_THREADS = 4
"""The most CPU threads that the decoding of one video takes."""


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
    Frames come from the process of the reader `after`, if it was made with `more` and has gone well so far.
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
        times: bytes = b"",
        more: bool = False,
        after: FrameReader | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.warnings: tuple[str, ...] = ()
        self.partial = False
        self._memory: mmap.mmap | None = None
        self._alive = alive
        self._request: dict[str, Any] = dict(
            selection=selection,
            picture=picture,
            threads=min(threads, _MOST_THREADS),
            multiple=multiple,
            ahead=ahead,
            times=times,
            more=more,
        )
        self._opened: Opened | None = None
        self._over = self._joined = False
        self._begin(None if after is None else after._process)

    def _begin(self, before: FrameProcess | None) -> None:
        """Send the request, to the process `before` if it takes another one."""
        self._joined = before is not None and before.takes_more
        self._process = before if before is not None and self._joined else FrameProcess()
        self._number = self._process.ask_for_frames(self.path, **self._request)

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
            message = self._process.receive(self._alive)
        except BaseException:
            self.close()
            raise
        if message["kind"] == "end":
            self._over = True
            self.warnings, self.partial = tuple(message["warnings"]), message["partial"]
            self.close()
            raise StopIteration
        image = self._slots[message["slot"]].copy()
        self._process.free_slot(self._number)
        return Frame(image, Fraction(message["time"]), Fraction(message["end"]), message["index"])

    def _open(self) -> Opened:
        if self._opened is None:
            self._opened = opened = from_values(Opened, self._first_answer())
            shape = opened.slots, opened.geometry.padded_height, opened.geometry.padded_width, 3
            self._memory = mmap.mmap(
                self._process.memory, int(np.prod(shape)), offset=self._process.place(self._number)
            )
            self._slots = np.frombuffer(self._memory, np.uint8).reshape(shape)
        return self._opened

    def _first_answer(self) -> dict[str, Any]:
        """Return the answer to the request. If a shared process fails, which may be due to others, a new one gets it."""
        if self._joined:
            with suppress(MovqError):
                if self._process.serves(self._number):
                    return self._process.receive(self._alive)
            self._process.done(self._number, well=False)
            self._request["more"] = False  # the next reader has joined the process that failed, or will find it gone
            self._begin(None)
        return self._process.receive(self._alive)

    def follows(self, other: FrameReader) -> bool:
        """Return True if its frames come from the same process as those of another reader."""
        return self._process is other._process

    def end_process(self) -> None:
        """End the decoding process as soon as no reader needs it."""
        self._process.end()

    def close(self) -> None:
        """End the decoding process, unless it goes on for another reader, and free its memory."""
        if self._memory is not None:
            del self._slots
            self._memory.close()
            self._memory = None
        self._process.done(self._number, well=self._over)

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
    times: bytes = b"",
    more: bool = False,
    after: FrameReader | None = None,
) -> FrameReader:
    """Return the frames of a video as a viewer shows them: turned, with square pixels, in RGB by their colour tags.

    `multiple`: height and width become multiples of it, by the picture's `edge`. `ahead`: how many frames decoding may be
    in front, at most 128 MB of them, but at least two. `threads`: threads of the decoder. `alive` is called now and then
    while the decoder works and has no frame to give. Raises MovqError, when frames are taken, for a file that is missing,
    not a video, damaged or cut off in the range read.

    Many spans of one video take little more time than decoding it once if each reader but the last is made with `more`,
    and each but the first `after` the one before. A reader is read to its end before the next. `times` are those that
    `survey` gave.
    """
    selection, picture = selection or Selection(), picture or Picture()
    return FrameReader(path, selection, picture, multiple, ahead, threads, alive, times, more, after)


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


@dataclass(frozen=True)
class Survey:
    """The size of a video as shown, in pixels, and the `times` of its frames, packed, which count any selection."""

    width: int
    height: int
    times: bytes

    @cached_property
    def _unpacked(self) -> FrameTimes:
        return FrameTimes.unpacked(self.times)

    def facts(
        self, selection: Selection, start: Fraction | None = None, duration: Fraction | None = None
    ) -> VideoFacts:
        """Return the facts for a selection, with another start and duration if these are given.

        Raises MovqError if it is too fast for the video, or the video is damaged.
        """
        return VideoFacts(self._unpacked.count(selection, start, duration, until_gap=True), self.width, self.height)


def survey(
    wanted: Iterable[tuple[str, Selection]], alive: Callable[[], None] = lambda: None
) -> Generator[Survey | MovqError]:
    """Yield the survey of each video, or the error if it cannot be read. Decodes the first frame and reads all packets.

    Only the options of a selection that say how a video is opened matter. One process reads all videos, unless it has to
    be replaced, so that thousands of files take little time each.
    """
    process: DecodingProcess | None = None
    try:
        for path, selection in wanted:
            process = process or DecodingProcess()
            process.ask(path, "survey", selection)
            try:
                found = process.receive(alive)
                yield Survey(found["width"], found["height"], from_values(bytes, found["times"]))
            except MovqError as error:
                if isinstance(error, MovqCrashError | MovqHangError):
                    process.close()
                    process = None
                yield error
    finally:
        if process is not None:
            process.close()


def _ask(
    path: str | os.PathLike[str], mode: Mode, selection: Selection, alive: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    process = DecodingProcess()
    try:
        process.ask(os.fspath(path), mode, selection)
        return process.receive(alive)
    finally:
        process.close()
