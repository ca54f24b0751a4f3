"""Resuming by content: which outputs are those this batch would make, and need not be made again.

An output is kept where the manifest and its own header agree with the video, the weights, the options that change the
latents and the format's version. Names and times prove nothing; unchanged size, time and inode of a video only spare
reading it again.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from threading import Lock
from typing import Any, TypeVar

from ..errors import MovqError, MovqWarning, printable
from ..files import FileIdentity, require_file, sha256_file, text_of
from ..latents import open_latents
from ..metadata import FORMAT_VERSION
from ..options import EncodeOptions
from .discover import Item
from .manifest import Line, Manifest
from .tars import Tars, sha256_part
from .worker import options_of

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 6  # they wait for disks, or digest without holding Python's lock
_PART = 64  # items, or videos that one process looks at before it is replaced


@dataclass(frozen=True)
class Settings:
    """What all outputs of a batch have in common. `threads` and `device` are recorded and make no difference.

    `precision` is "" while it is not known: then nothing was made with it.
    """

    options: EncodeOptions
    model: str
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

    def refreshed(self, item: Item, line: Line) -> Line:
        """Return the line of an item that is up to date, with what is said of the item now."""
        fresh = line.copy()
        for said in ("caption", "extra", "of", "cut", "seen", "orphan"):
            fresh.pop(said, None)  # type: ignore[misc]
        return fresh | self.described(item)


def _described(item: Item) -> Line:
    line = Line(id=item.id, path=text_of(item.source_path))
    if item.caption is not None:
        line["caption"] = item.caption
    if item.extra:
        line["extra"] = item.extra
    if item.of:
        line["of"] = item.of
    if item.facts is not None:
        line["seen"] = item.facts
    return line


@dataclass(frozen=True)
class ResumePlan:
    """The work that is left: `kept` are the lines of items that are up to date, `todo` the other items.

    `otherwise` are those of them that are finished, whole and of the same video, but were made with other weights or options.
    """

    kept: list[Line]
    todo: list[Item]
    otherwise: list[tuple[Item, Line]] = field(default_factory=list)


def plan_resume(
    items: Sequence[Item],
    manifest: Manifest,
    settings: Settings,
    tars: Tars,
    verify: bool,
    retry_failed: bool,
    passed: Callable[[], None],
) -> ResumePlan:
    """Compare what is wanted with what is there. `verify` reads all videos and outputs; `passed` is called for each item."""
    judge = _Judge(settings, tars, verify, retry_failed)

    def look(part: Sequence[Item]) -> list[_Verdict]:
        lines = (manifest.lines.get(item.id) for item in part)
        return [_Verdict.AGAIN if line is None else judge(item, line) for item, line in zip(part, lines, strict=True)]

    plan = ResumePlan([], [])
    unread: list[str] = []
    for item, verdict in zip(items, in_threads(look, items, _THREADS), strict=True):
        line = manifest.lines.get(item.id, Line())
        if verdict is _Verdict.KEEP:
            plan.kept.append(settings.refreshed(item, line))
        elif verdict is _Verdict.UNREAD:
            plan.kept.append(line)
            unread.append(item.source_path)
        else:
            plan.todo.append(item)
        if verdict is _Verdict.OTHERWISE:
            plan.otherwise.append((item, line))
        passed()
    if unread:
        text = f"{unread[0]}: cannot be read now; its finished output is kept"
        warnings.warn(MovqWarning(text + (f", and {len(unread) - 1:,} like it" if unread[1:] else "")), stacklevel=3)
    return plan


def in_threads(work: Callable[[Sequence[T]], list[R]], things: Sequence[T], threads: int) -> Iterator[R]:
    """The results of work that is done on parts of many things, in order, a few parts ahead.

    Who is interrupted meanwhile does not wait for what is running.
    """
    pool = ThreadPoolExecutor(threads)
    ahead = deque[Future[list[R]]]()
    try:
        for start in range(0, len(things), _PART):
            ahead.append(pool.submit(work, things[start : start + _PART]))
            if len(ahead) > 2 * threads:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


class _Digests:
    """Of files, each read once, whoever asks: a video may be that of many spans."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], Future[str]] = {}
        self._lock = Lock()

    def of(self, path: str, identity: FileIdentity) -> str:
        with self._lock:
            key = path, *map(str, identity)
            known = self._known.get(key)
            digest = self._known.setdefault(key, Future())
        if known is None:
            try:
                digest.set_result(sha256_file(path))
            except BaseException as error:
                digest.set_exception(error)
        return digest.result()


class _Verdict(Enum):
    KEEP = "up to date"
    AGAIN = "to be made, whatever there is"
    OTHERWISE = "finished, with other weights or options"
    UNREAD = "finished, and its video cannot be read now"


_MADE_BY = ("weights_digest", "semantics", "precision")


class _Judge:
    """Tells for an item what its line in the manifest is worth."""

    def __init__(self, settings: Settings, tars: Tars, verify: bool, retry_failed: bool) -> None:
        self._settings, self._tars, self._verify, self._retry_failed = settings, tars, verify, retry_failed
        self._digests = _Digests()

    def __call__(self, item: Item, line: Line) -> _Verdict:
        wanted = self._settings.line(item)
        if line.get("format_version") != wanted["format_version"]:
            return _Verdict.AGAIN
        try:
            return self._finished(item, line, wanted) if line["status"] == "done" else self._unmade(item, line, wanted)
        except (OSError, KeyError, MovqError):  # the output is gone, or is not what the line says
            return _Verdict.AGAIN

    def _finished(self, item: Item, line: Line, wanted: Line) -> _Verdict:
        if line.get("partial") and not self._settings.options.selection.allow_partial:
            return _Verdict.AGAIN
        if not _is_whole(self._tars, line, self._verify):
            return _Verdict.AGAIN
        try:
            if not self._is_same_video(item, line):
                return _Verdict.AGAIN
            readable = item.refusal is None
        except (OSError, MovqError):
            readable = False
        if _differ(line, wanted, item):
            return _Verdict.OTHERWISE
        if not readable:
            return _Verdict.UNREAD
        in_place = "member" in line or line["output"] == item.output
        return _Verdict.KEEP if in_place and _options(line) == _options(wanted, line) else _Verdict.AGAIN

    def _is_same_video(self, item: Item, line: Line) -> bool:
        """Tell whether a video is that of a finished line, reading it only if it was touched. Raises OSError and MovqError."""
        identity = FileIdentity.of(os.stat(item.source_path))
        if identity.size != line["source"].size:
            return False
        touched = identity != line["source"]
        if (touched or self._verify) and self._digests.of(item.source_path, identity) != line["source_sha256"]:
            return False
        line["source"] = identity
        return True

    def _unmade(self, item: Item, line: Line, wanted: Line) -> _Verdict:
        """Judge why there is no output: as long as all that the reason may come from is the same, it holds."""
        made_by = all(line.get(name) == wanted.get(name) for name in _MADE_BY)
        if not made_by or line.get("options", {}) != wanted["options"]:
            return _Verdict.AGAIN
        if self._retry_failed or self._verify or line.get("cause", MovqError.cause) != MovqError.cause:
            return _Verdict.AGAIN
        if "source" not in line or item.refusal is not None:
            return _Verdict.KEEP if _refusal(item) == line.get("reason") else _Verdict.AGAIN
        same = line["source"] == FileIdentity.of(os.stat(item.source_path)) and line.get("cut") == wanted.get("cut")
        return _Verdict.KEEP if same else _Verdict.AGAIN


def _options(line: Line, without: Line | None = None) -> dict[str, Any]:
    """Return a line's options as far as they matter to its latents; less what only allows more than in the line `without`."""
    options = {name: value for name, value in line.get("options", {}).items() if name != "allow_partial"}
    if without is not None and "upscale" not in without.get("options", {}):
        options.pop("upscale", None)  # what was made without it is what it would be with it
    computed = line.get("precision", "")
    if options.get("store_dtype") == {"tf32": "fp32"}.get(computed, computed):
        del options["store_dtype"]  # what auto is
    return options


def _differ(line: Line, wanted: Line, item: Item) -> bool:
    """Tell whether the command that made a line asked for other latents than this one."""
    return asked(line, item) != asked(wanted, item, line)


def asked(line: Line, item: Item, without: Line | None = None) -> dict[str, Any]:
    """Return what the command asked for that made a line: the names of its options, and their values; not the row's own.

    Where items are cut to buckets, their sizes and lengths follow from the buckets and `frames`, which are here instead.
    `without` is as in _options.
    """
    options, cut = _options(line, without), line.get("cut", {})
    for name in ("start", "duration"):
        if getattr(item, name) is not None:
            options.pop(name, None)
    options.pop("skip", None)  # where a span begins
    if "buckets" in cut:
        for name in ("frames", "height", "width"):
            options.pop(name, None)
        options |= {"buckets": cut["buckets"]} | ({"frames": cut["frames"]} if "frames" in cut else {})
    return options | {"weights": line.get("weights_digest")} | {name: line.get(name) for name in _MADE_BY[1:]}


def _refusal(item: Item) -> str:
    """Return why an item cannot be encoded, as far as that can be seen at once."""
    try:
        if item.refusal is not None:
            raise item.refusal
        require_file(item.source_path)
    except MovqError as error:
        return printable(error.reason_with_flags)
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
