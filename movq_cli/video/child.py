"""The decoding process: reads one video and hands frames to movq through shared memory.

Whatever libav does to a process, it does to this one. It speaks JSON lines: one request on standard input, then there one
byte for every frame slot set free; on standard output "opened", then "frame" lines, then "end", or "error" or "bug".
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import time
import traceback
from dataclasses import asdict
from fractions import Fraction
from typing import Any, BinaryIO

_QUIET_SECONDS = 1.0


def main() -> None:
    """Runs until the request is served, standard input closes, or the reader of standard output is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; movq ends this process itself
    talk = _Talk(os.fdopen(os.dup(1), "wb"), sys.stdin.buffer)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    status = 0
    try:
        _serve(talk, json.loads(sys.stdin.buffer.readline()))
    except BrokenPipeError:
        status = 1
    except BaseException as error:
        from ..errors import MovqError

        if isinstance(error, MovqError):
            talk.say("error", reason=error.reason, exit_code=error.exit_code, about=error.about)
        elif isinstance(error, MemoryError):
            talk.say("error", reason="needs more memory to decode than there is", exit_code=1, about="")
        else:
            talk.say("bug", trace=traceback.format_exc())
    os._exit(status)  # libav's threads may hang at a normal exit


class _Talk:
    def __init__(self, out: BinaryIO, credits: BinaryIO) -> None:
        self._out, self._credits = out, credits
        self._last = time.monotonic()

    def say(self, kind: str, **values: Any) -> None:
        self._out.write(json.dumps({"kind": kind, **values}).encode() + b"\n")
        self._out.flush()
        self._last = time.monotonic()

    def alive(self) -> None:
        """Called often; says so when nothing else was said for a while."""
        if time.monotonic() - self._last > _QUIET_SECONDS:
            self.say("alive")

    def wait_for_slot(self) -> None:
        if not self._credits.read(1):
            raise BrokenPipeError


def _serve(talk: _Talk, request: dict[str, Any]) -> None:
    import av.logging

    from .decode import FILTER_NAME, Decoder, count_frames
    from .geometry import Picture
    from .selection import Selection
    from .source import open_video

    av.logging.set_level(av.logging.ERROR)
    fields = request["selection"]
    for name in ("start", "duration", "fps"):
        fields[name] = None if fields[name] is None else Fraction(fields[name])
    selection, picture = Selection(**fields), Picture(**request["picture"])
    path = os.fsdecode(request["path"].encode("utf-8", "surrogateescape"))
    with open_video(path, selection.stream) as source:
        source.stream.codec_context.thread_count = request["threads"]
        if request["mode"] == "count":
            talk.say("end", frames=count_frames(source, selection, talk.alive))
            return
        decoder = Decoder(source)
        if request["mode"] == "probe":
            talk.say("end", info=_plain(asdict(decoder.info)))
            return
        geometry = decoder.geometry(picture, request["multiple"])
        size = geometry.padded_width * geometry.padded_height * 3
        slots = max(2, min(request["ahead"], request["ahead_bytes"] // size))
        os.ftruncate(request["memory"], slots * size)
        talk.say(
            "opened", info=_plain(asdict(decoder.info)), geometry=geometry.to_dict(), slots=slots, filter=FILTER_NAME
        )
        import numpy as np

        ring = np.frombuffer(mmap.mmap(request["memory"], slots * size), np.uint8)
        ring = ring.reshape(slots, geometry.padded_height, geometry.padded_width, 3)
        sent = 0
        for shown in decoder.frames(selection, talk.alive):
            if sent >= slots:
                talk.wait_for_slot()
            slot = sent % slots
            geometry.place(decoder.rgb(shown.payload, geometry.scaled), ring[slot])
            talk.say("frame", slot=slot, time=str(shown.time), end=str(shown.end), index=shown.index)
            sent += 1
        talk.say("end", warnings=decoder.warnings, frames=sent)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Fraction) else v for k, v in values.items()}
