"""Resuming by content: which outputs are those this batch would make, and need not be made again.

An output is kept where the manifest and its own header agree with the video, the weights, the options that change the
latents and the format's version. Names and times prove nothing; unchanged size, time and inode of a video only spare
reading it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

from ..errors import MovqError, printable
from ..files import require_file, sha256_file, text_of
from ..latents import FORMAT_VERSION, open_latents
from ..plan import EncodeOptions
from .items import Item
from .manifest import Line, Manifest
from .tars import Tars, sha256_part
from .work import options_of, source_hint

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 6  # they wait for disks, or digest without holding Python's lock


@dataclass(frozen=True)
class Settings:
    """What all outputs of a batch have in common. `threads` and `device` are recorded and make no difference.

    `precision` is "" while it is not known: then nothing was made with it.
    """

    options: EncodeOptions
    weights_digest: str
    semantics: str
    precision: str
    threads: int
    device: str = ""
    cut: dict[str, Any] = field(default_factory=dict)

    def line(self, item: Item) -> Line:
        """The part of an item's line that is known before it is worked on."""
        return self.described(item) | Line(
            weights_digest=self.weights_digest,
            semantics=self.semantics,
            precision=self.precision,
            options=options_of(item, self.options).choices,
            format_version=FORMAT_VERSION,
            threads=self.threads,
            device=self.device,
        )

    def described(self, item: Item) -> Line:
        """The part of a line that says which item it is."""
        return _described(item) | (Line(cut=self.cut) if self.cut else Line())


def _described(item: Item) -> Line:
    line = Line(id=item.id, path=text_of(item.path))
    if item.caption is not None:
        line["caption"] = item.caption
    if item.extra:
        line["extra"] = item.extra
    if item.of:
        line["of"] = item.of
    if item.seen is not None:
        line["seen"] = [item.seen.frames, item.seen.width, item.seen.height]
    return line


@dataclass(frozen=True)
class Sorted:
    """`kept` are up-to-date lines of items that need no work; `todo` the others."""

    kept: list[Line]
    todo: list[Item]


def sort_out(
    items: Iterable[Item],
    manifest: Manifest,
    settings: Settings,
    tars: Tars,
    verify: bool,
    retry_failed: bool,
    passed: Callable[[], None],
) -> Sorted:
    """Compares what is wanted with what is there. `verify` reads all videos and outputs; `passed` is called for each item."""

    digests = _Digests()

    def look(item: Item) -> Line | None:
        line = manifest.lines.get(item.id)
        return None if line is None else _still(item, line, settings, tars, digests, verify, retry_failed)

    kept, todo = [], []
    items = list(items)
    for item, line in zip(items, in_threads(look, items, _THREADS), strict=True):
        if line is None:
            todo.append(item)
        else:
            kept.append(line)
        passed()
    return Sorted(kept, todo)


def in_threads(work: Callable[[T], R], things: Iterable[T], threads: int) -> Iterator[R]:
    """The results in order. Who is interrupted meanwhile does not wait for what is running."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(work, things)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


class _Digests:
    """Of files, each read once, whoever asks: a video may be that of many spans."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], Future[str]] = {}
        self._lock = Lock()

    def of(self, path: str, source: list[int]) -> str:
        with self._lock:
            key = path, *map(str, source)
            known = self._known.get(key)
            digest = self._known.setdefault(key, Future())
        if known is None:
            try:
                digest.set_result(sha256_file(path))
            except BaseException as error:
                digest.set_exception(error)
        return digest.result()


_RESULT = ("weights_digest", "semantics", "precision", "format_version")


def _whole(options: dict[str, Any]) -> dict[str, Any]:
    """Options as far as they matter to videos that are not cut off."""
    return {name: value for name, value in options.items() if name != "allow_partial"}


def _still(
    item: Item, line: Line, settings: Settings, tars: Tars, digests: _Digests, verify: bool, retry_failed: bool
) -> Line | None:
    """The line as it should be now, if it still holds; None if there is work to do."""
    wanted = settings.line(item)
    if any(line.get(name) != wanted.get(name) for name in _RESULT):
        return None
    if _whole(line.get("options", {})) != _whole(wanted["options"]):
        return None
    allowed = settings.options.selection.allow_partial
    if line.get("partial") and not allowed:
        return None
    if line["status"] == "failed" and allowed != ("allow_partial" in line["options"]):
        return None
    if line["status"] != "done" and (retry_failed or verify or line.get("cause", "refused") != "refused"):
        return None
    if "source" not in line or item.refusal is not None:
        return _refreshed(item, line, settings) if _refusal(item) == line.get("reason") else None
    try:
        source = source_hint(item.path)
        if source[0] != line["source"][0]:
            return None
        if line["status"] == "done":
            if "member" not in line and line["output"] != item.output:
                return None
            if not _is_whole(tars, line, verify):
                return None
            if (verify or line["source"] != source) and digests.of(item.path, source) != line["source_sha256"]:
                return None
        elif line.get("source") != source:
            return None
    except (OSError, KeyError, MovqError):
        return None
    return _refreshed(item, line, settings) | Line(source=source)


def _refreshed(item: Item, line: Line, settings: Settings) -> Line:
    """With what is said of the item now."""
    fresh = line.copy()
    for said in ("caption", "extra", "of", "cut", "seen", "orphan"):
        fresh.pop(said, None)  # type: ignore[misc]
    return fresh | settings.described(item)


def _refusal(item: Item) -> str:
    """Why an item cannot be encoded, as far as that can be seen at once."""
    try:
        if item.refusal is not None:
            raise item.refusal
        require_file(item.path)
    except MovqError as error:
        return printable(error.reason)
    return ""


def _is_whole(tars: Tars, line: Line, verify: bool) -> bool:
    output = os.path.join(tars.folder, line["output"])
    if "member" in line:
        member = tars.find(line)
        return not verify or sha256_part(output, member.offset, member.bytes) == line["sha256"]
    if os.path.getsize(output) != line["bytes"]:
        return False
    latents = open_latents(output)
    said = latents.metadata
    return (
        (said.source_sha256, said.weights_digest, said.semantics, said.precision, said.frames)
        == (line["source_sha256"], line["weights_digest"], line["semantics"], line["precision"], line["frames"])
        and list(latents.shape) == line["shape"]
        and (not verify or sha256_file(output) == line["sha256"])
    )
