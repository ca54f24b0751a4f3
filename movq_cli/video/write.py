"""Write frames to a video, an array or a folder of pictures, one at a time. The output is whole or absent.

PyAV is imported only when a video or a PNG picture is written.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MovqError, MovqUsageError
from ..files import WholeFile, WholeFolder

if TYPE_CHECKING:
    import av
    from av.container import OutputContainer
    from av.video.stream import VideoStream

POSSIBLE = ".mp4 or .mov (H.264), .mkv (FFV1, lossless), .npy (an array), or no suffix (a folder of PNG pictures)"
"""The output names that `open_writer` knows."""

_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
# In seconds. Frames at 24, 25, 30 and 60 per second, also divided by 1.001, last a whole number of these.
_FINE = Fraction(1, 360000)
_MATROSKA = Fraction(1, 1000)
_SLACK = 1e-3  # seconds; tolerance for frames that were moved by a file that holds whole milliseconds
_LONGEST = 1e9  # seconds
_CRF = range(52)
_NUMBERED = re.compile(r"\d{6,}\.png")
_BT709 = 1  # in AVColorSpace, AVColorPrimaries, AVColorTransferCharacteristic and swscale's matrices alike


class FrameWriter(ABC):
    """Writes frames in order; made by `open_writer`. Use it in a `with`: without `finish`, nothing stays behind.

    `description` says how frames are stored ("H.264 yuv420p"), `notes` what the user should know about it.
    """

    description = ""
    notes: tuple[str, ...] = ()

    def __init__(self, width: int, height: int, frames: int) -> None:
        self._shape = height, width, 3
        self._frames = frames
        self._written = 0

    def write(self, frames: np.ndarray) -> None:
        """Write the next frames, RGB uint8 (n, H, W, 3). Raises MovqError if they cannot be written."""
        if frames.dtype != np.uint8 or frames.shape[1:] != self._shape:
            raise ValueError(f"frames are {frames.dtype} {frames.shape}, not uint8 (n, *{self._shape})")
        if self._written + len(frames) > self._frames:
            raise ValueError(f"more frames than the {self._frames} announced")
        for image in frames:
            self._put(np.ascontiguousarray(image), self._written)
            self._written += 1

    def finish(self) -> int:
        """Give the whole output its name, and return its size in bytes. Raises MovqError if it cannot be written."""
        if self._written != self._frames:
            raise ValueError(f"{self._written} frames, not the {self._frames} announced")
        return self._finish()

    @abstractmethod
    def _put(self, image: np.ndarray, index: int) -> None: ...

    @abstractmethod
    def _finish(self) -> int: ...

    @abstractmethod
    def _close(self) -> None: ...

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def open_writer(
    path: str | os.PathLike[str],
    *,
    width: int,
    height: int,
    times: Sequence[float] | np.ndarray,
    duration: float,
    fps: Fraction | None = None,
    crf: int = 18,
    threads: int = 2,
    force: bool = False,
) -> FrameWriter:
    """Return a writer of the kind that the suffix of `path` asks for (POSSIBLE).

    `times`: the time of every frame in seconds, on any clock; a video starts at 0. `duration`: seconds from the first
    frame to the end of the last. `fps`: the rate, if one is known. `crf`: the quality of H.264, 0 to 51; lower is
    better. `threads`: threads of the encoder. Raises MovqUsageError for a name or crf that is not possible, and
    MovqError for a path that exists (unless `force`) or cannot be written, or for times that no file can hold: all
    before the first frame.
    """
    name = os.fspath(path)
    suffix = os.path.splitext(name)[1].lower()
    if suffix == "":
        return _FolderWriter(name, width, height, len(times), force)
    if suffix == ".npy":
        return _ArrayWriter(name, width, height, len(times), force)
    if suffix not in _FORMATS:
        raise MovqUsageError(f"{suffix} is not a kind of output movq writes; name it {POSSIBLE}", name)
    if crf not in _CRF:
        raise MovqUsageError(f"must be from {_CRF[0]} to {_CRF[-1]}, got {crf}", option="crf")
    starts = np.asarray(times, np.float64)
    seconds = np.append(starts - starts[0], duration)
    if not (abs(seconds) < _LONGEST).all():
        raise MovqError("its frame times cannot be written: some are not numbers, or too large", name)
    clock = _matroska_clock(seconds, fps) if suffix == ".mkv" else _clock(seconds, fps)
    return _VideoWriter(name, width, height, clock, _FORMATS[suffix], crf, threads, force)


def write_png(path: str | os.PathLike[str], image: np.ndarray, *, force: bool = False) -> None:
    """Write an RGB uint8 (H, W, 3) picture as a PNG file.

    Raises MovqError if the path exists (unless `force`) or cannot be written.
    """
    with WholeFile(path, force=force) as file:
        file.write(encode_png(image))
        file.commit()


def encode_png(image: np.ndarray) -> bytes:
    """Return the PNG file of an RGB uint8 (H, W, 3) picture."""
    import av

    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width, _ = image.shape
    codec.pix_fmt, codec.time_base, codec.sample_aspect_ratio = "rgb24", Fraction(1), Fraction(1)
    codec.options = {"pred": "avg"}
    codec.thread_count = 1
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    return b"".join(map(bytes, (*codec.encode(frame), *codec.encode(None))))


class _FolderWriter(FrameWriter):
    description = "PNG pictures"

    def __init__(self, path: str, width: int, height: int, frames: int, force: bool) -> None:
        super().__init__(width, height, frames)
        self._digits = max(6, len(str(frames - 1)))
        self._bytes = 0
        self._folder = WholeFolder(path, _NUMBERED, force=force)

    def _put(self, image: np.ndarray, index: int) -> None:
        data = encode_png(image)
        self._folder.write(f"{index:0{self._digits}d}.png", data)
        self._bytes += len(data)

    def _finish(self) -> int:
        self._folder.commit()
        return self._bytes

    def _close(self) -> None:
        self._folder.__exit__(None, None, None)


class _ArrayWriter(FrameWriter):
    description = "uint8 array (frames, height, width, RGB)"

    def __init__(self, path: str, width: int, height: int, frames: int, force: bool) -> None:
        super().__init__(width, height, frames)
        self._file = WholeFile(path, force=force)
        said = {"descr": "|u1", "fortran_order": False, "shape": (frames, height, width, 3)}
        try:
            np.lib.format.write_array_header_1_0(self._file, said)
        except BaseException:
            self._close()
            raise

    def _put(self, image: np.ndarray, index: int) -> None:
        self._file.write(image.data)

    def _finish(self) -> int:
        self._file.commit()
        return self._file.size

    def _close(self) -> None:
        self._file.__exit__(None, None, None)


@dataclass(frozen=True)
class _Clock:
    """The times of frames in whole ticks of `base` seconds: int64 (frames + 1,), from 0; the last is the end.

    `rate` is in frames per second, nominal if frames are not evenly spaced.
    """

    base: Fraction
    ticks: np.ndarray
    rate: Fraction
    notes: tuple[str, ...] = ()

    @property
    def even(self) -> bool:
        return bool((np.diff(self.ticks) == self.ticks[1]).all())


def _clock(seconds: np.ndarray, fps: Fraction | None) -> _Clock:
    """Return a clock that ticks at the rate if every frame falls on a tick, else one with ticks too fine to matter.

    `seconds`: float64 (frames + 1,).
    """
    if fps is not None and max(fps.numerator, fps.denominator) < 1 << 31:
        places = seconds * float(fps)
        ticks = np.rint(places).astype(np.int64)
        near = abs(places - ticks) <= min(0.25, _SLACK * float(fps))
        if near.all() and (np.diff(ticks) > 0).all():
            return _Clock(1 / fps, ticks, fps)
    return _free_clock(seconds, fps, _FINE)


def _matroska_clock(seconds: np.ndarray, fps: Fraction | None) -> _Clock:
    clock = _free_clock(seconds, fps, _MATROSKA)
    moved = abs(seconds - clock.ticks * float(_MATROSKA)).max()
    if clock.notes or moved < float(_FINE):
        return clock
    rounded = "Matroska holds times in whole milliseconds: frame times are rounded to them"
    return _Clock(clock.base, clock.ticks, clock.rate, (rounded,))


def _free_clock(seconds: np.ndarray, fps: Fraction | None, base: Fraction) -> _Clock:
    """Return a clock with every frame at its nearest tick, but at least one tick after the frame before."""
    order = np.arange(len(seconds))
    wanted = np.rint(seconds / float(base)).astype(np.int64)
    ticks = np.maximum.accumulate(wanted - order) + order
    late = int((ticks != wanted)[:-1].sum())
    notes = (f"{late} frame times do not grow: those frames follow the one before at once",) if late else ()
    rate = fps or Fraction(len(wanted) - 1) / max(Fraction(float(seconds[-1])), _MATROSKA)
    rate = min(max(rate, Fraction(1, 100)), Fraction(1000)).limit_denominator(1 << 20)  # within what libav can hold
    return _Clock(base, ticks, rate, notes)


class _VideoWriter(FrameWriter):
    def __init__(
        self, path: str, width: int, height: int, clock: _Clock, format: str, crf: int, threads: int, force: bool
    ) -> None:
        super().__init__(width, height, len(clock.ticks) - 1)
        self._clock, self.notes = clock, clock.notes
        self._lossless = format == "matroska"
        self._pixels = "bgr0" if self._lossless else "yuv420p"
        if not self._lossless and (width % 2 or height % 2):
            self._pixels = "yuv444p"
            self.notes += (f"{width}x{height} is odd: written as H.264 4:4:4, which not every player shows",)
        self.description = "FFV1 lossless RGB" if self._lossless else f"H.264 {self._pixels}"
        self._begun = False
        self._file = WholeFile(path, force=force)
        try:
            with self._errors():
                self._container, self._stream = self._begin(format, crf, threads)
        except BaseException:
            self._close()
            raise

    def _begin(self, format: str, crf: int, threads: int) -> tuple[OutputContainer, VideoStream]:
        import av
        from av.codec.context import Flags
        from av.video.reformatter import ColorRange, VideoReformatter

        self._reformatter = VideoReformatter()
        options: dict[str, str] = {}
        if not self._lossless:
            # An MP4 sample lasts from one decoding time to the next. That is as long as its frame only without
            # B-frames, or if all frames are equally long.
            options = {"crf": str(crf)} if self._clock.even else {"crf": str(crf), "bf": "0"}
        # Opened by path: with a Python file, signals that arrive while libav writes would be lost, or crash it.
        container = av.open(f"file:{self._file.place}", "w", format=format, container_options={"fflags": "+bitexact"})
        height, width, _ = self._shape
        stream = container.add_stream("ffv1" if self._lossless else "libx264", rate=self._clock.rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, self._pixels
        codec = stream.codec_context
        codec.time_base = self._clock.base
        codec.flags |= Flags.frame_duration
        codec.thread_count = threads
        codec.thread_type = "SLICE" if self._lossless else "FRAME"
        if not self._lossless:
            codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
            codec.color_range = ColorRange.MPEG
        container.start_encoding()
        self._begun = True
        return container, stream

    def _put(self, image: np.ndarray, index: int) -> None:
        with self._errors():
            frame = self._frame(image)
            ticks = self._clock.ticks
            frame.pts, frame.time_base = int(ticks[index]), self._clock.base
            frame.duration = int(ticks[index + 1] - ticks[index])
            self._mux(frame)

    def _frame(self, image: np.ndarray) -> av.VideoFrame:
        import av
        from av.video.reformatter import ColorRange, Interpolation

        from .frames import FILTER

        return self._reformatter.reformat(
            av.VideoFrame.from_ndarray(image, format="rgb24"),
            format=self._pixels,
            dst_colorspace=None if self._lossless else _BT709,
            dst_color_range=None if self._lossless else ColorRange.MPEG,
            interpolation=FILTER | Interpolation.FULL_CHR_H_INP,
            threads=1,
        )

    def _mux(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def _finish(self) -> int:
        with self._errors():
            self._mux(None)
            self._begun = False
            self._container.close()
        self._file.commit()
        return self._file.size

    def _close(self) -> None:
        try:
            if self._begun:
                with suppress(Exception):  # what this writes has no name and is discarded
                    self._container.close()
        finally:
            self._file.__exit__(None, None, None)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what libav raises into a MovqError about the path."""
        import av.error

        try:
            yield
        except av.error.FFmpegError as error:
            raise MovqError(f"cannot be written ({str(error.strerror or error).lower()})", self._file.path) from error
