"""The decoding process, which reads one video and passes frames to movq through shared memory. forks.py forks it.

If libav crashes or hangs, only this process is lost. It reads requests as JSON lines from standard input, and between
them one line for every frame slot that is free again. It writes JSON lines to standard output: "opened", then "frame"
lines, then "end"; or "error" or "bug"; and "alive" now and then. A request for a survey may be followed by others, and a
request for frames by some for other frames of the same video.
"""

from __future__ import annotations

import mmap
import os
import resource
import traceback
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import av.logging
import numpy as np

from ..errors import MovqError
from ..options import Selection
from ..processes import Talk
from ..records import from_values, to_values
from ..values import format_bytes
from .container import USUAL_PIXELS, Source, open_video
from .counting import has_variable_rate, read_times
from .decoding import NoEntryError
from .frames import FILTER_NAME, Decoder
from .messages import Opened, Request
from .times import FrameTimes


def main(parent: int, memory: int | None = None) -> None:
    """Run until the request is served, standard input closes, or the reader of standard output is gone.

    `memory` is the descriptor of the file that frames go to.
    """
    talk = Talk(parent)
    status = 0
    try:
        served = _Served(talk, memory)
        while (values := served.next_request()) is not None:
            if not served.answer(values):
                break
    except BrokenPipeError:
        status = 1
    os._exit(status)  # libav's threads may hang at a normal exit


def _bound(taken: int, memory_limit: int) -> None:
    """Make this process the first to be killed if the machine runs out of memory, and limit what it may take.

    `memory_limit` is in bytes, on top of what the process had `taken` when it began.
    """
    with suppress(OSError):  # on systems other than Linux
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        with suppress(ValueError):  # a lower limit is already set
            most = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (taken + memory_limit, most))


def _taken() -> int:
    """Return the bytes of memory that this process has taken; 0 on systems other than Linux."""
    with suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[5]) * resource.getpagesize()
    return 0


class _Served:
    """The requests of this process, one after the other, and the video that it keeps open for the next."""

    def __init__(self, talk: Talk, memory: int | None) -> None:
        self._talk, self._memory = talk, memory
        self._requests = deque[dict[str, Any]]()
        self._taken = _taken()
        self._times: FrameTimes | None = None
        self._opened: tuple[Any, ...] = ()
        self._kept = ExitStack()
        self._decoder: Decoder | None = None

    def next_request(self) -> dict[str, Any] | None:
        """Return the next request, or None if no more will come."""
        while not self._requests:
            values = self._talk.hear()
            if values is None:
                return None
            if "mode" in values:
                self._requests.append(values)
        return self._requests.popleft()

    def _wait_for_slot(self, number: int) -> None:
        while (values := self._talk.hear()) is not None:
            if "mode" in values:
                self._requests.append(values)
            elif values["free"] == number:
                return
        raise BrokenPipeError

    def answer(self, values: dict[str, Any]) -> bool:
        """Answer a request. Return True if others may follow."""
        talk = self._talk
        try:
            request = from_values(Request, values)
            try:
                self._serve(request)
            except MemoryError:
                most = format_bytes(max(request.memory_limit, resource.getrlimit(resource.RLIMIT_DATA)[0]))
                raise MovqError(f"needs more memory to decode than the {most} there are for that") from None
        except BrokenPipeError:
            raise
        except MovqError as error:
            talk.say("error", **error.to_dict())
            return bool(values["mode"] == "survey")
        except BaseException:
            talk.say("bug", trace=traceback.format_exc())
            return False
        return bool(values["mode"] == "survey" or values["more"])

    def _serve(self, request: Request) -> None:
        av.logging.set_level(av.logging.ERROR)
        av.logging.set_skip_repeated(False)  # or a repeated message is hidden, even from another file
        _bound(self._taken, request.memory_limit)
        selection = request.selection
        folder, path = (os.fsdecode(text.encode("utf-8", "surrogateescape")) for text in (request.folder, request.path))
        os.chdir(folder)  # the asking process may have changed its folder since the forking one started
        if request.mode == "frames":
            self._send_frames(path, request)
            return
        with open_video(path, selection.stream, max_pixels=selection.max_pixels) as source:
            self._bound_for(source, request)
            if request.mode == "count":
                times = read_times(source, self._talk.alive)
                self._talk.say("end", frames=times.count(selection))
                return
            info = Decoder(source, selection.allow_partial, self._talk.alive).info
        with open_video(path, selection.stream, max_pixels=selection.max_pixels) as again:  # `source` has lost packets
            if request.mode == "probe":
                info = replace(info, variable_rate=has_variable_rate(again))
                self._talk.say("end", info=to_values(info))
                return
            times = read_times(again, self._talk.alive)
        self._talk.say("end", width=info.shown_width, height=info.shown_height, times=to_values(times.packed()))

    def _bound_for(self, source: Source, request: Request) -> None:
        """Give the decoding of very large pictures more memory."""
        if (pixels := source.codec.width * source.codec.height) > USUAL_PIXELS:
            _bound(self._taken, request.memory_limit * pixels // USUAL_PIXELS)

    def _decoder_for(self, path: str, request: Request) -> Decoder:
        """Return an open video: the one that is open, if it can go on from where it is."""
        selection = request.selection
        opened = path, selection.stream, selection.max_pixels, selection.allow_partial, request.threads
        if opened != self._opened:
            self._opened, self._times, self._decoder = opened, None, None
        if request.times:
            self._times = FrameTimes.unpacked(request.times)
        elif self._times is None and (selection.start or selection.skip) and not selection.allow_partial:
            self._times = _times_until(path, selection, request.more, self._talk)
        if self._decoder is not None and self._decoder.goes_on(selection, self._times):
            return self._decoder
        return self._open(path, request)

    def _open(self, path: str, request: Request) -> Decoder:
        self._kept.close()
        selection = request.selection
        source = self._kept.enter_context(
            open_video(path, selection.stream, max_pixels=selection.max_pixels, threads=request.threads)
        )
        self._bound_for(source, request)
        self._decoder = Decoder(source, selection.allow_partial, self._talk.alive, request.more)
        self._kept.callback(self._decoder.close)
        return self._decoder

    def _send_frames(self, path: str, request: Request) -> None:
        talk, decoder = self._talk, self._decoder_for(path, request)
        geometry = decoder.geometry(request.picture, request.multiple)
        size = geometry.padded_width * geometry.padded_height * 3
        slots = max(2, min(request.ahead, request.ahead_bytes // size))
        assert self._memory is not None
        end = request.place + slots * size
        os.ftruncate(self._memory, max(end, os.fstat(self._memory).st_size))
        talk.say("opened", **to_values(Opened(decoder.info, geometry, slots, FILTER_NAME)))
        ring = np.frombuffer(mmap.mmap(self._memory, slots * size, offset=request.place), np.uint8)
        ring = ring.reshape(slots, geometry.padded_height, geometry.padded_width, 3)
        for times, jumps in ((self._times, True), (self._times, False), (None, False)):
            frames = decoder.frames(request.selection, times, jumps)
            try:
                first = list(islice(frames, 1))
                break
            except NoEntryError:
                decoder = self._open(path, request)
        sent = 0
        for shown in chain(first, frames):
            if sent >= slots:
                self._wait_for_slot(request.number)
            slot = sent % slots
            geometry.place(decoder.rgb(shown.payload, geometry.scaled), ring[slot])
            talk.say("frame", slot=slot, time=str(shown.time), end=str(shown.end), index=shown.index)
            sent += 1
        talk.say("end", warnings=decoder.warnings, frames=sent, partial=decoder.partial)


def _times_until(path: str, selection: Selection, all_of_them: bool, talk: Talk) -> FrameTimes:
    """Return the times of all frames, or of as many as tell where decoding for a selection may begin."""
    with open_video(path, selection.stream, max_pixels=selection.max_pixels) as source:
        return read_times(source, talk.alive, None if all_of_them else selection)
