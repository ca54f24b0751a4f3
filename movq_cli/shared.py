"""`SharedSource`: what spans of one video share while they are encoded, so that its file is read once for each purpose."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from typing import NamedTuple

from .files import FileIdentity, sha256_file
from .options import Selection
from .threads import in_background
from .video import FrameReader, FrameTimes, Survey, survey


class KnownSource(NamedTuple):
    """Facts of a file while it has this identity: its sha256 or "", and the packed `times` of its frames or b""."""

    identity: FileIdentity
    sha256: str = ""
    times: bytes = b""

    def joined(self, other: KnownSource | None) -> KnownSource:
        """Return this with what only the other one has, if it is of the same identity."""
        if other is None or other.identity != self.identity:
            return self
        return KnownSource(self.identity, self.sha256 or other.sha256, self.times or other.times)


class SharedSource:
    """The sha256 of a video, its survey, and the decoding process that goes on from span to span.

    `more` is True if another span is next. Only then is more read than one span needs.
    """

    def __init__(self, path: str, identity: FileIdentity, known: KnownSource | None) -> None:
        self._path, self._identity = path, identity
        self.more = False
        self.times = known.times if known else b""
        self.sha256 = Future[str]()
        if known and known.sha256:
            self.sha256.set_result(known.sha256)
        else:
            self.sha256 = in_background(lambda: sha256_file(path))
        self._times: FrameTimes | None = None
        self._opened: tuple[int | None, int | None] | None = None
        self._reader: FrameReader | None = None
        self._told = bool(self.times)

    def is_of(self, path: str, identity: FileIdentity) -> bool:
        """Return True if it is of this file, and the file could be read so far."""
        failed = self.sha256.done() and self.sha256.exception()
        return (self._path, self._identity) == (path, identity) and not failed

    def look(self, selection: Selection, alive: Callable[[], None]) -> None:
        """Read the times of the frames, if another span will need them too and they are not known yet."""
        opened = selection.stream, selection.max_pixels
        if self._opened not in (None, opened):
            self.times, self._times = b"", None
            self.close()
        if self.more and not self.times and self._opened != opened:
            with closing(survey([(self._path, selection)], alive)) as surveys:
                found = next(surveys)
            if isinstance(found, Survey):  # the reader will find out what is wrong otherwise
                self.times = found.times
        self._opened = opened

    def news(self) -> bytes:
        """Return the times of the frames, the first time that they are known here and not from outside; else b""."""
        told, self._told = self._told, self._told or bool(self.times)
        return b"" if told else self.times

    def count(self, selection: Selection) -> int | None:
        """Return how many frames a selection has, if the times of the frames are known. Raises MovqError."""
        if not self.times:
            return None
        if self._times is None:
            self._times = FrameTimes.unpacked(self.times)
        return self._times.count(selection)

    def read(self, start: Callable[..., FrameReader]) -> FrameReader:
        """Return the reader of the next span, made by `start` with the arguments of `read_frames` that spans share."""
        before = self._reader
        reader = start(times=self.times, more=self.more, after=before)
        if before is not None and not reader.follows(before):
            before.end_process()
        self._reader = reader if self.more else None
        return reader

    def close(self) -> None:
        """End a decoding process that waits for another span."""
        if self._reader is not None:
            self._reader.end_process()
        self._reader = None
