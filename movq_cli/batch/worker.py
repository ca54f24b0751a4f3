"""The worker: receives items and sends back the outcome of each. `main` runs in the process that pool.py starts.

It loads the weights once. Three items are in progress at a time, so that encoding does not wait for files: one thread
opens the next, the main thread encodes one, and a third thread writes and syncs the one before. The first message to it
has the options, and each further message has an item. It sends "ready", and then for each item, in order, "begin",
"progress", "computed", and "end" with the outcome. It sends "unusable" instead of "ready" if no item can be encoded
with these weights or options.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any

from ..codec import Progress
from ..device import available_memory, memory_errors, spare_page_faults, usable_cores
from ..encode import VideoEncoder
from ..encoding import EncodeResult, Encoding
from ..errors import MovqCrashError, MovqError, printable
from ..fields import changed
from ..files import FileIdentity, require_file, write_error
from ..first_frame import LATENT, FirstFrameFile, first_frame_path
from ..options import EncodeOptions
from ..processes import Talk
from ..records import from_values, to_values
from ..shared import KnownSource
from ..video import warm_decoders
from .engines import Ready
from .item import Item
from .manifest import FirstFrameLine, Line, unmade
from .paths import refuse_foreign, refuse_links

_OPEN_AT_ONCE = 2
"""Videos that are open at a time: the one being encoded, and the next."""


class Work:
    """An item on its way into the output folder. The constructor opens the video; then call `compute`, then `finish`.

    Without `latents`, only the files of its first frame are made. Refusals go into the line, so only bugs raise. Files that
    movq wrote are replaced, and those of its `own` that the manifest names; any others only with the override `force`.
    `known` are facts of the video, and `more` says that another span of it is next.
    """

    def __init__(
        self,
        encoder: VideoEncoder,
        item: Item,
        folder: str,
        alive: Callable[[], None] = lambda: None,
        open_at_once: int = 1,
        latents: bool = True,
        own: Collection[str] = (),
        known: KnownSource | None = None,
        more: bool = False,
        **overrides: Any,
    ) -> None:
        self._item, self._latents = item, latents
        self._outcome = Line()
        self._encoding: Encoding | None = None
        self._times = b""
        self._output = output = os.path.join(folder, item.output)
        options = item.encode_options(changed(encoder.options, overrides))
        overrides |= {name: getattr(options, name) for name in ("selection", "picture", "short")}
        with self._refusing():
            self._outcome["source"] = FileIdentity.of(require_file(item.source_path))
            refuse_links(folder, item.output)
            os.makedirs(os.path.dirname(output), exist_ok=True)
            if not overrides.get("force"):
                self._refuse_others(folder, options, own)
            overrides["force"] = True
            self._encoding = encoder.begin(
                item.source_path,
                output,
                alive=alive,
                open_at_once=open_at_once,
                latents=latents,
                known=known,
                more=more,
                **overrides,
            )
            self._times = self._encoding.shared.news()
            self._encoding.count()

    def _refuse_others(self, folder: str, options: EncodeOptions, own: Collection[str]) -> None:
        """Raise MovqOutputError if a file that movq did not write is at the place of one of the item's."""
        places = {first_frame_path(self._item.output, kind): kind for kind in options.first_frames}
        for name, kind in (places | ({self._item.output: LATENT} if self._latents else {})).items():
            refuse_foreign(folder, name, kind, own)

    def compute(self, progress: Progress) -> None:
        """Encode the frames, unless the item was refused."""
        if self._encoding is not None:
            with self._refusing():
                self._encoding.compute(progress)

    def finish(self) -> Line:
        """Name and sync the output. Return the part of the item's line that has its outcome."""
        if self._encoding is not None:
            with self._refusing(), self._encoding as encoding:
                self._outcome |= self._made(encoding.finish()) if self._latents else self._added(encoding)
        return self._outcome

    @property
    def learned(self) -> KnownSource | None:
        """Facts of the video that the batch may not know yet; None unless the item is done."""
        outcome = self._outcome
        if outcome.get("status") != "done":
            return None
        return KnownSource(outcome["source"], outcome["source_sha256"], self._times)

    def _made(self, result: EncodeResult) -> Line:
        m = result.metadata
        return (
            Line(
                status="done",
                output=self._item.output,
                bytes=result.output_bytes,
                sha256=result.sha256,
                shape=list(result.shape),
                dtype=result.dtype,
                width=m.width,
                height=m.height,
                frames=m.frames,
                padded=m.frames_padded,
                dropped=m.frames_dropped,
                duration=m.duration,
                source_sha256=m.source_sha256,
                weights_digest=m.weights_digest,
                chunk_frames=result.chunk_frames,
                strips=result.strips,
                spilled_bytes=result.spilled_bytes,
                seconds=round(result.seconds, 3),
                warnings=[printable(text) for text in m.warnings],
            )
            | (Line(partial=True) if m.partial else Line())
            | self._first_frame(result.first_frame)
        )

    def _added(self, encoding: Encoding) -> Line:
        source_sha256, files = encoding.finish_first_frame()
        return Line(status="done", source_sha256=source_sha256) | self._first_frame(files)

    def _first_frame(self, files: dict[str, FirstFrameFile]) -> Line:
        if not files:
            return Line()
        return Line(
            first_frame={
                kind: FirstFrameLine(
                    output=first_frame_path(self._item.output, kind), bytes=file.bytes, sha256=file.sha256
                )
                for kind, file in files.items()
            }
        )

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (MovqError, OSError) as error:
            known = error if isinstance(error, MovqError) else write_error(error, self._output)
            self._outcome |= unmade(known)
            if self._encoding is not None:
                self._encoding.close()
                self._encoding = None


def main() -> None:
    """Run until standard input closes or nothing reads standard output any more."""
    talk = Talk()
    with suppress(BrokenPipeError):
        _serve(talk)
    os._exit(0)  # do not wait for threads that are still reading


def _serve(talk: Talk) -> None:
    first = talk.hear()
    if first is None:
        return
    spare_page_faults()
    warm_decoders()
    try:
        with memory_errors():
            encoder = VideoEncoder(from_values(EncodeOptions, first["options"]))
            ready = describe(encoder)
    except Exception as error:
        known = error if isinstance(error, MovqError) else MovqCrashError(f"{type(error).__name__}: {error}")
        talk.say("unusable", **known.to_dict())
        return
    talk.say("ready", ready=to_values(ready))
    with _last_words(talk):
        _take_turns(talk, encoder)


@contextmanager
def _last_words(talk: Talk) -> Iterator[None]:
    """Send a bug as the outcome of the item, and end the process from any thread, because its state is unknown."""
    try:
        yield
    except BrokenPipeError:
        os._exit(0)
    except Exception as error:
        reason = f"a bug of movq: {type(error).__name__}: {error} (movq --debug encode shows where)"
        with suppress(BrokenPipeError):
            talk.say("end", outcome=unmade(MovqCrashError(reason)), resident=0, over=True, known=None)
        os._exit(0)


def _take_turns(talk: Talk, encoder: VideoEncoder) -> None:
    """Open items in one thread, compute them in this one, finish them in a third, each one item after the other."""

    def opened(message: dict[str, Any]) -> Work:
        item = from_values(Item, message["item"])
        how = {name: message[name] for name in ("latents", "own", "more")}
        how["known"] = from_values(KnownSource | None, message["known"])  # type: ignore[arg-type]
        return Work(encoder, item, message["folder"], talk.alive, _OPEN_AT_ONCE, **how, **message["overrides"])

    def finish(work: Work, resident: int) -> None:
        with _last_words(talk):
            outcome, known = work.finish(), to_values(work.learned)
            talk.say("end", outcome=outcome, resident=resident, over=False, known=known)

    def progress(done: int, total: int | None) -> None:
        talk.say("progress", done=done, total=total)

    with ThreadPoolExecutor(1) as opener, ThreadPoolExecutor(1) as finisher:
        items: SimpleQueue[Future[Work] | None] = SimpleQueue()

        def listen() -> None:
            while (message := talk.hear()) is not None:
                items.put(opener.submit(opened, message))
            items.put(None)

        Thread(target=listen, daemon=True).start()
        before: Future[None] | None = None
        while (opening := items.get()) is not None:
            work = opening.result()
            talk.say("begin")
            work.compute(progress)
            talk.say("computed")
            if before is not None:
                before.result()
            before = finisher.submit(finish, work, _resident())
        if before is not None:
            before.result()


def describe(encoder: VideoEncoder) -> Ready:
    """Load the weights, and return how and where this process will compute."""
    import torch

    encoder.network  # noqa: B018  # loads them
    devices = torch.cuda.device_count() if encoder.device.type == "cuda" else 0
    if devices:  # the CPU's cores are free for decoding, which a device would wait for
        encoder.decoder_threads = max(1, usable_cores() // devices)
    return Ready(
        precision=encoder.precision,
        device=str(encoder.device),
        devices=devices,
        memory=available_memory(encoder.device),
        cores=usable_cores(),
        weights_digest=encoder.weights_digest.result(),
    )


def _resident() -> int:
    """Return the resident memory of this process in bytes; 0 if the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
