"""Write frames to a video, an array or a folder of pictures, one at a time. The output is whole or absent.

PyAV is imported only when a video or a picture is written.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from ..errors import MovqError, MovqUsageError
from ..files import WholeFile, WholeFolder
from ..options import OUTPUTS
from .clock import Clock, clock_at_rate, clock_of_format
from .pictures import encode_jpeg, encode_png, with_palette

if TYPE_CHECKING:
    import av
    from av.container import OutputContainer
    from av.video.stream import VideoStream


def library_versions() -> dict[str, str]:
    """Return the versions of PyAV, and of the FFmpeg that it brings or was built with."""
    import av

    return {"PyAV": av.__version__, "FFmpeg": str(getattr(av, "ffmpeg_version_info", ""))}


Encode = Callable[[np.ndarray], bytes]
"""A function that returns the file of a picture, RGB uint8 (H, W, 3)."""


class _Kind(NamedTuple):
    """A kind of video: libav's muxer and encoder, its pixels, also for odd sizes, and how to name it.

    The encoder takes `bytes_per_pixel` of a picture, and `_PER_FRAME` more for each of `waiting` frames that it
    may look ahead. `tick` is set if the format holds times in ticks of its own, in seconds; `holds` says so.
    """

    muxer: str
    encoder: str
    pixels: str
    odd_pixels: str
    words: str
    bytes_per_pixel: int
    waiting: int = 0
    tick: Fraction | None = None
    holds: str = ""


_MILLISECONDS = "Matroska and WebM hold times in whole milliseconds"
_H264 = ("libx264", "yuv420p", "yuv444p", "H.264", 30, 42)
_PER_FRAME = {"yuv420p": 4, "yuv444p": 7}  # bytes per pixel of a frame that waits in the encoder
_PER_PIXEL = 8  # bytes that a picture takes on its way to a file
_LIBAV_BYTES = 25 << 20  # all of these are measured: benchmarks/memory.py --writers
_KINDS = {
    ".mp4": _Kind("mp4", *_H264),
    ".mov": _Kind("mov", *_H264),
    ".mkv": _Kind(
        "matroska", "ffv1", "bgr0", "bgr0", "FFV1 lossless RGB", 82, tick=Fraction(1, 1000), holds=_MILLISECONDS
    ),
    ".webm": _Kind("webm", "libvpx-vp9", "yuv420p", "yuv420p", "VP9", 160, tick=Fraction(1, 1000), holds=_MILLISECONDS),
    ".gif": _Kind(
        "gif",
        "gif",
        "pal8",
        "pal8",
        "GIF of 256 colours",
        40,
        tick=Fraction(1, 100),
        holds="GIF holds times in hundredths of a second",
    ),
}
_PICTURES: Mapping[str, tuple[str, Encode]] = {
    ".png": ("PNG picture", encode_png),
    ".jpg": ("JPEG picture", encode_jpeg),
    ".jpeg": ("JPEG picture", encode_jpeg),
}
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

    @property
    def memory_bytes(self) -> int:
        """The bytes of memory that writing takes, at most."""
        height, width, _ = self._shape
        return _LIBAV_BYTES + _PER_PIXEL * height * width

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
    """Return a writer of the kind that the suffix of `path` asks for (OUTPUTS).

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
    if suffix in _PICTURES:
        return _PictureWriter(name, width, height, len(times), *_PICTURES[suffix], force)
    if suffix not in _KINDS:
        raise MovqUsageError(f"{suffix} is not a kind of output movq writes; name it {OUTPUTS}", name)
    if crf not in _CRF:
        raise MovqUsageError(f"must be from {_CRF[0]} to {_CRF[-1]}, got {crf}", option="crf")
    starts = np.asarray(times, np.float64)
    seconds = np.append(starts - starts[0], duration)
    if not (abs(seconds) < _LONGEST).all():
        raise MovqError("its frame times cannot be written: some are not numbers, or too large", name)
    kind = _KINDS[suffix]
    clock = clock_at_rate(seconds, fps) if kind.tick is None else clock_of_format(seconds, fps, kind.tick, kind.holds)
    return _VideoWriter(name, width, height, clock, kind, crf, threads, force)


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


class _FileWriter(FrameWriter):
    """Writes bytes to one file."""

    _file: WholeFile

    def _finish(self) -> int:
        self._file.commit()
        return self._file.size

    def _close(self) -> None:
        self._file.__exit__(None, None, None)


class _PictureWriter(_FileWriter):
    def __init__(
        self, path: str, width: int, height: int, frames: int, words: str, encode: Encode, force: bool
    ) -> None:
        super().__init__(width, height, frames)
        if frames != 1:
            raise MovqUsageError(
                f"holds one picture, and there are {frames} frames; a name without a suffix makes a folder of them",
                path,
            )
        self.description, self._encode = words, encode
        self._file = WholeFile(path, force=force)

    def _put(self, image: np.ndarray, index: int) -> None:
        self._file.write(self._encode(image))


class _ArrayWriter(_FileWriter):
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


class _VideoWriter(FrameWriter):
    def __init__(
        self, path: str, width: int, height: int, clock: Clock, kind: _Kind, crf: int, threads: int, force: bool
    ) -> None:
        super().__init__(width, height, len(clock.ticks) - 1)
        self._clock, self._kind, self.notes = clock, kind, clock.notes
        odd = width % 2 or height % 2
        self._pixels = kind.odd_pixels if odd else kind.pixels
        if self._pixels != kind.pixels:
            self.notes += (f"{width}x{height} has an odd side: written as H.264 4:4:4, which not every player shows",)
        self.description = f"{kind.words} {self._pixels}" if self._is_yuv else kind.words
        self._begun = False
        self._file = WholeFile(path, force=force)
        try:
            with self._errors():
                self._container, self._stream = self._begin(crf, threads)
        except BaseException:
            self._close()
            raise

    @property
    def memory_bytes(self) -> int:
        """The bytes of memory that writing takes, at most, with the frames that the encoder looks ahead."""
        height, width, _ = self._shape
        ahead = min(self._kind.waiting, self._frames) * _PER_FRAME.get(self._pixels, 0)
        return _LIBAV_BYTES + (self._kind.bytes_per_pixel + ahead) * height * width

    @property
    def _is_yuv(self) -> bool:
        return self._pixels.startswith("yuv")

    def _begin(self, crf: int, threads: int) -> tuple[OutputContainer, VideoStream]:
        import av
        from av.codec.context import Flags
        from av.video.reformatter import ColorRange, VideoReformatter

        self._reformatter = VideoReformatter()
        options = {"crf": str(crf)} if self._is_yuv else {}
        if self._kind.encoder == "libx264" and not self._clock.even:
            # An MP4 sample lasts from one decoding time to the next. That is as long as its frame only without
            # B-frames, or if all frames are equally long.
            options["bf"] = "0"
        if self._kind.encoder == "libvpx-vp9":
            options |= {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
        # Opened by path: with a Python file, signals that arrive while libav writes would be lost, or crash it.
        container = av.open(
            f"file:{self._file.place}",
            "w",
            format=self._kind.muxer,
            options=self._muxer_options(),
            container_options={"fflags": "+bitexact"},
        )
        height, width, _ = self._shape
        stream = cast("VideoStream", container.add_stream(self._kind.encoder, rate=self._clock.rate, options=options))
        stream.width, stream.height, stream.pix_fmt = width, height, self._pixels
        codec = stream.codec_context
        codec.time_base = self._clock.base
        codec.flags |= Flags.frame_duration
        codec.thread_count = threads
        codec.thread_type = "SLICE" if self._kind.encoder == "ffv1" else "FRAME"
        if self._is_yuv:
            codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
            codec.color_range = ColorRange.MPEG
        container.start_encoding()
        self._begun = True
        return container, stream

    def _muxer_options(self) -> dict[str, str]:
        """Return the options that make the last frame of a GIF last as long as it should; no other format needs any."""
        ticks = self._clock.ticks
        return {"final_delay": str(int(ticks[-1] - ticks[-2]))} if self._kind.muxer == "gif" else {}

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

        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        if self._pixels == "pal8":
            return with_palette(frame)
        return self._reformatter.reformat(
            frame,
            format=self._pixels,
            dst_colorspace=_BT709 if self._is_yuv else None,
            dst_color_range=ColorRange.MPEG if self._is_yuv else None,
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
