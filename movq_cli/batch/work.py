"""The worker: one item in, what became of it out, as the manifest has it. `main` is the process that pool.py starts.

It loads the weights once and takes one item at a time. It hears a first message with its options, then one per item; it
says "ready", then of each item "progress", and "end" with what became of it. "unusable" is for weights or options that no item
could be encoded with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import Any

from ..codec import Progress
from ..device import available_memory, memory_errors, spare_page_faults, usable_cores
from ..encode import EncodeResult, VideoEncoder
from ..errors import MovqCrash, MovqError, printable
from ..files import require_file, write_error
from ..latents import is_latents
from ..plan import EncodeOptions
from ..processes import Talk
from ..video import Picture
from .items import Item
from .manifest import Line
from .paths import refuse_links


def source_hint(path: str) -> list[int]:
    """Size, mtime_ns and inode: what tells, without reading it, that a file was not changed."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def options_of(item: Item, options: EncodeOptions) -> EncodeOptions:
    """The batch's options with the item's own."""
    own = {name: value for name in ("start", "duration", "frames") if (value := getattr(item, name)) is not None}
    selection, picture = options.selection, options.picture
    if own or item.skip:
        selection = replace(selection, skip=item.skip, **own)
    if item.size is not None:
        picture = Picture(*item.size, upscale=picture.upscale)
    if selection is options.selection and picture is options.picture and not item.pad:
        return options
    return replace(options, selection=selection, picture=picture, short="pad" if item.pad else options.short)


def work(
    encoder: VideoEncoder,
    item: Item,
    folder: str,
    progress: Progress,
    alive: Callable[[], None] = lambda: None,
    **overrides: Any,
) -> Line:
    """Encodes an item into the output folder; the part of its line that says what became of it. Raises nothing but bugs.

    An older latents file is replaced, anything else only with the override `force`.
    """
    outcome = Line()
    output = os.path.join(folder, item.output)
    options = options_of(item, encoder.options)
    overrides |= {name: getattr(options, name) for name in ("selection", "picture", "short")}
    try:
        require_file(item.path)
        outcome["source"] = source_hint(item.path)
        refuse_links(folder, item.output)
        os.makedirs(os.path.dirname(output), exist_ok=True)
        overrides["force"] = overrides.get("force", False) or is_latents(output)
        result = encoder.encode(item.path, output, progress=progress, alive=alive, **overrides)
    except MovqError as error:
        return outcome | unmade(error)
    except OSError as error:
        return outcome | unmade(write_error(error, output))  # of a folder for it
    return outcome | _made(item, result)


def unmade(error: MovqError) -> Line:
    """The part of a line that says why there is no output."""
    if error.cause == "short":
        return Line(status="short", reason=printable(error.reason))
    return Line(status="failed", reason=printable(error.reason), cause=error.cause)


def _made(item: Item, result: EncodeResult) -> Line:
    return Line(
        status="done",
        output=item.output,
        bytes=result.bytes,
        sha256=result.sha256,
        shape=list(result.shape),
        dtype=result.dtype,
        width=result.width,
        height=result.height,
        frames=result.frames,
        padded=result.frames_padded,
        dropped=result.frames_dropped,
        duration=result.duration,
        source_sha256=result.source_sha256,
        weights_digest=result.weights_digest,
        chunk_frames=result.chunk_frames,
        seconds=round(result.seconds, 3),
        warnings=[printable(text) for text in result.warnings],
    ) | (Line(partial=True) if result.partial else Line())


def main() -> None:
    """Runs until standard input closes or nobody listens any more."""
    talk = Talk()
    with suppress(BrokenPipeError):
        _serve(talk)
    os._exit(0)  # threads still reading are not waited for


def _serve(talk: Talk) -> None:
    first = talk.hear()
    if first is None:
        return
    spare_page_faults()
    try:
        with memory_errors():
            encoder = VideoEncoder(EncodeOptions.from_dict(first["options"]))
            ready = describe(encoder)
    except Exception as error:
        known = error if isinstance(error, MovqError) else MovqCrash(f"{type(error).__name__}: {error}")
        talk.say("unusable", **known.to_dict())
        return
    talk.say("ready", ready=ready)
    while (message := talk.hear()) is not None:
        item = item_from_dict(message["item"])

        def progress(done: int, total: int | None) -> None:
            talk.say("progress", done=done, total=total)

        try:
            outcome = work(encoder, item, message["folder"], progress, talk.alive, **message["overrides"])
        except BrokenPipeError:
            raise
        except Exception as error:
            reason = f"a bug of movq: {type(error).__name__}: {error} (movq --debug encode shows where)"
            talk.say("end", outcome=unmade(MovqCrash(reason)), resident=0, over=True)
            return  # who knows what state this process is in
        talk.say("end", outcome=outcome, resident=_resident(), over=False)


def describe(encoder: VideoEncoder) -> dict[str, Any]:
    """Load the weights, and return the fields of pool.Ready."""
    import torch

    encoder.network  # noqa: B018  # loads them
    return {
        "precision": encoder.precision,
        "device": str(encoder.device),
        "devices": torch.cuda.device_count() if encoder.device.type == "cuda" else 0,
        "memory": available_memory(encoder.device),
        "cores": usable_cores(),
        "weights_digest": encoder.weights_digest.result(),
    }


_SENT = ("id", "path", "output", "start", "duration", "skip", "frames", "pad", "size")


def item_to_dict(item: Item) -> dict[str, Any]:
    """What encoding takes of an item, for another process, whose `item_from_dict` makes an item of it."""
    values = {name: getattr(item, name) for name in _SENT}
    return {name: str(value) if isinstance(value, Fraction) else value for name, value in values.items()}


def item_from_dict(values: Mapping[str, Any]) -> Item:
    times = {name: Fraction(values[name]) for name in ("start", "duration") if values[name] is not None}
    return Item(**{**values, **times})


def _resident() -> int:
    """Bytes of memory this process holds; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
