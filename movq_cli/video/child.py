"""The decoding process, which reads one video and passes frames to movq through shared memory. forks.py forks it.

If libav crashes or hangs, only this process is lost. It reads one request as a JSON line from standard input, and then
one byte for every frame slot that is free again. It writes JSON lines to standard output: "opened", then "frame" lines,
then "end"; or "error" or "bug"; and "alive" now and then. A request for a survey may be followed by others.
"""

from __future__ import annotations

import mmap
import os
import resource
import traceback
from contextlib import suppress
from dataclasses import replace
from typing import Any

import av.logging
import numpy as np

from ..errors import MovqError
from ..processes import Talk
from ..records import from_values, to_values
from ..values import format_bytes
from .container import USUAL_PIXELS, open_video
from .counting import count_frames, has_variable_rate
from .frames import FILTER_NAME, Decoder
from .info import VideoFacts
from .keyframes import find_entry
from .messages import Opened, Request


def main(parent: int, memory: int | None = None) -> None:
    """Run until the request is served, standard input closes, or the reader of standard output is gone.

    `memory` is the descriptor of the file that frames go to.
    """
    talk = Talk(parent)
    status = 0
    try:
        while (values := talk.hear()) is not None:
            _answer(talk, values, memory)
            if values["mode"] != "survey":
                break
    except BrokenPipeError:
        status = 1
    os._exit(status)  # libav's threads may hang at a normal exit


def _answer(talk: Talk, values: dict[str, Any], memory: int | None) -> None:
    try:
        request = from_values(Request, values)
        try:
            _serve(talk, request, memory)
        except MemoryError:
            most = format_bytes(max(request.memory_limit, resource.getrlimit(resource.RLIMIT_DATA)[0]))
            raise MovqError(f"needs more memory to decode than the {most} there are for that") from None
    except BrokenPipeError:
        raise
    except MovqError as error:
        talk.say("error", **error.to_dict())
    except BaseException:
        talk.say("bug", trace=traceback.format_exc())


def _bound(memory_limit: int) -> None:
    """Make this process the first to be killed if the machine runs out of memory, and limit what more it may take.

    `memory_limit` is in bytes, on top of what the process has already taken.
    """
    with suppress(OSError):  # on systems other than Linux
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[5]) * resource.getpagesize()
        with suppress(ValueError):  # a lower limit is already set
            most = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (taken + memory_limit, most))


def _serve(talk: Talk, request: Request, memory: int | None) -> None:
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # or a repeated message is hidden, even from another file
    _bound(request.memory_limit)
    selection = request.selection
    folder, path = (os.fsdecode(text.encode("utf-8", "surrogateescape")) for text in (request.folder, request.path))
    os.chdir(folder)  # the asking process may have changed its folder since the forking one started
    with open_video(path, selection.stream, max_pixels=selection.max_pixels, threads=request.threads) as source:
        if (pixels := source.codec.width * source.codec.height) > USUAL_PIXELS:
            _bound(request.memory_limit * pixels // USUAL_PIXELS)
        if request.mode == "count":
            talk.say("end", frames=count_frames(source, selection, talk.alive))
            return
        entry = find_entry(path, selection, talk.alive) if request.mode == "frames" else None
        decoder = Decoder(source, selection.allow_partial, talk.alive, entry)
        if request.mode == "probe":
            with open_video(
                path, selection.stream, max_pixels=selection.max_pixels
            ) as again:  # `source` has lost packets
                info = replace(decoder.info, variable_rate=has_variable_rate(again))
            talk.say("end", info=to_values(info))
            return
        if request.mode == "survey":
            info = decoder.info
            with open_video(path, selection.stream, max_pixels=selection.max_pixels) as again:
                frames = count_frames(again, selection, talk.alive, until_gap=True)
            talk.say("end", facts=VideoFacts(frames, info.shown_width, info.shown_height))
            return
        geometry = decoder.geometry(request.picture, request.multiple)
        size = geometry.padded_width * geometry.padded_height * 3
        slots = max(2, min(request.ahead, request.ahead_bytes // size))
        assert memory is not None
        os.ftruncate(memory, slots * size)
        talk.say("opened", **to_values(Opened(decoder.info, geometry, slots, FILTER_NAME)))
        ring = np.frombuffer(mmap.mmap(memory, slots * size), np.uint8)
        ring = ring.reshape(slots, geometry.padded_height, geometry.padded_width, 3)
        sent = 0
        for shown in decoder.frames(selection):
            if sent >= slots:
                _wait_for_slot(talk)
            slot = sent % slots
            geometry.place(decoder.rgb(shown.payload, geometry.scaled), ring[slot])
            talk.say("frame", slot=slot, time=str(shown.time), end=str(shown.end), index=shown.index)
            sent += 1
        talk.say("end", warnings=decoder.warnings, frames=sent, partial=decoder.partial)


def _wait_for_slot(talk: Talk) -> None:
    if not talk.inbox.read(1):
        raise BrokenPipeError
