"""`encode_batch`: many videos to a folder of latents and its manifest; resumable, with local workers."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from ..device import PRECISIONS
from ..errors import MovqDiskError, MovqError, MovqUsageError, MovqWarning
from ..files import os_reason, sweep
from ..model.checkpoint import Checkpoint
from ..plan import EncodeOptions, open_weights
from .items import Found, Item, find_items
from .manifest import Line, Manifest, only_one
from .pool import Pool, Task, Worker
from .report import compare_outputs
from .resume import Settings, Sorted, sort_out

THREADS = 1
"""Of each worker on a CPU: not by the number of workers, since threads change the last bits of a result."""

_FULL = 3
"""So many items in a row that the disk has no room for end a batch; a single one may only have been too large."""

TIMEOUT = 600.0
"""Seconds without progress after which a worker is taken to hang."""


@dataclass
class BatchState:
    """How far a batch is, for those who watch it.

    `phase` is checking, encoding or over. Of this run: lines `made`, their `ended` by status, `frames` and `video_seconds`
    of those done; `bytes` of the videos to be encoded, `bytes_done` of those that are; `workers` as they are now.
    """

    found: Found
    phase: str = "checking"
    checked: int = 0
    todo: int = 0
    bytes: int = 0
    started: float = field(default_factory=time.monotonic)
    made: list[Line] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    bytes_done: int = 0
    frames: int = 0
    video_seconds: float = 0.0
    workers: list[Worker] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.todo - len(self.made)

    def begin(self, left: Sorted) -> None:
        self.phase, self.started = "encoding", time.monotonic()
        self.todo = len(left.todo)
        self.bytes = sum(_size(item.path) for item in left.todo)

    def count(self, line: Line) -> None:
        self.made.append(line)
        self.ended[line["status"]] += 1
        self.bytes_done += line["source"][0] if "source" in line else 0
        if line["status"] == "done":
            self.frames += line["frames"]
            self.video_seconds += line["duration"]


Watch = Callable[[BatchState], None]


@dataclass(frozen=True)
class BatchResult:
    """What a batch came to. `lines` are those of its items; `made` those that this run wrote.

    `orphans` are outputs, relative to the folder, of videos that are gone or of no item at all; `stopped` why the batch
    ended early, with `left` items not tried.
    """

    lines: list[Line]
    made: list[Line]
    skipped: list[tuple[str, str]]
    orphans: list[str]
    workers: int
    seconds: float
    stopped: str = ""
    left: int = 0


def encode_batch(
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    options: EncodeOptions | None = None,
    *,
    lists: Sequence[str | os.PathLike[str]] = (),
    workers: int | None = None,
    timeout: float = TIMEOUT,
    verify: bool = False,
    retry_failed: bool = False,
    watch: Watch = lambda state: None,
    **overrides: Any,
) -> BatchResult:
    """Encodes all videos of folders, files, globs and lists into a folder, which has a manifest of what became of each.

    What a batch before this one did is not done again. Options are as for `encode_video`. `workers`: processes, None for
    as many as suit the machine; `timeout`: seconds without progress; `verify`: read all videos and outputs that are there;
    `retry_failed`: also those that were refused. `watch` is called often, with the same object.
    Raises MovqError for sources, weights or an output folder that are refused, MovqUsageError for options that cannot be;
    what is wrong with a single video is in its line.
    """
    if workers is not None and workers < 1:
        raise MovqUsageError(f"must be above 0, got {workers}", "--workers")
    if not timeout > 0:
        raise MovqUsageError(f"must be above 0, got {timeout:g}", "--timeout")
    started = time.monotonic()
    options = replace(options or EncodeOptions(), **overrides)
    folder = os.fspath(output)
    checkpoint = open_weights(options)
    found = gather(sources, lists, folder)
    state = BatchState(found)
    _make_folder(folder)
    with only_one(folder), ExitStack() as stack:
        sweep(folder)
        manifest = Manifest(folder)
        stack.callback(manifest.close)
        manifest.put_in_order()
        settings = settle(options, checkpoint, manifest, found)

        def passed() -> None:
            state.checked += 1
            watch(state)

        left = what_is_left(found, manifest, settings, folder, verify, retry_failed, passed)
        _refuse_to_replace(left.todo, manifest, settings)
        for line in left.kept:
            manifest.lines[line["id"]] = line
        state.begin(left)
        stopped, full, count = "", 0, 0
        if left.todo:
            smallest = checkpoint.config.temporal_factor
            pool = stack.enter_context(Pool(settings.options, folder, workers, timeout, smallest))
            ready = pool.settled()
            settings = replace(settings, precision=ready.precision, device=ready.device.partition(":")[0])
            state.workers, count = pool.workers, min(pool.count, len(left.todo))
            known = {line.get("output") for line in manifest.lines.values()}
            left.todo.sort(key=lambda item: manifest.lines.get(item.id, Line()).get("cause") == MovqDiskError.cause)
            tasks = [Task(item, _size(item.path), force=options.force or item.output in known) for item in left.todo]
            try:
                for task, outcome in pool.results(tasks, lambda: watch(state)):
                    line = settings.line(task.item) | outcome
                    manifest.append(line)
                    state.count(line)
                    watch(state)
                    full = full + 1 if line.get("cause") == MovqDiskError.cause else 0
                    if full == _FULL and not stopped:
                        stopped = line["reason"]
                        pool.stop()
            except MovqError as error:  # no worker is left, or the manifest cannot be written
                if not state.made and not isinstance(error, MovqDiskError):
                    raise
                stopped = str(error)
        named = {item.id for item in found.items}
        orphans = _settle_orphans(manifest, named, folder)
        try:
            manifest.put_in_order()
        except MovqDiskError:
            if not stopped:
                raise
    state.phase = "over"
    watch(state)
    lines = [manifest.lines[name] for name in sorted(named & set(manifest.lines))]
    seconds = time.monotonic() - started
    return BatchResult(lines, state.made, found.skipped, orphans, count, seconds, stopped, state.left)


def gather(sources: Sequence[str | os.PathLike[str]], lists: Sequence[str | os.PathLike[str]], folder: str) -> Found:
    """The items. Raises MovqError where there are none."""
    names, list_names = [os.fspath(source) for source in sources], [os.fspath(name) for name in lists]
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise MovqError("is a file; name a folder", folder)
    found = find_items(names, list_names, folder)
    if not found.items:
        raise MovqError("nothing to encode in it", ", ".join([*names, *list_names]))
    return found


def what_is_left(
    found: Found,
    manifest: Manifest,
    settings: Settings,
    folder: str,
    verify: bool = False,
    retry_failed: bool = False,
    passed: Callable[[], None] = lambda: None,
) -> Sorted:
    """What there is to do: everything, where options force it."""
    if settings.options.force:
        return Sorted([], list(found.items))
    return sort_out(found.items, manifest, settings, folder, verify, retry_failed, passed)


def settle(options: EncodeOptions, checkpoint: Checkpoint, manifest: Manifest, found: Found) -> Settings:
    """The settings of a batch. What options leave open is as it was for most of its items, so that all outputs are alike."""
    semantics = checkpoint.semantics if options.semantics == "auto" else options.semantics
    named = [manifest.lines[item.id] for item in found.items if item.id in manifest.lines]
    used = Counter(
        (line["precision"], line["threads"])
        for line in named
        if line.get("weights_digest") == checkpoint.digest
        and line.get("precision") in PRECISIONS
        and line.get("threads")
    )
    before = used.most_common(1)[0][0] if used else ("auto", THREADS)
    precision = options.precision if options.precision != "auto" else before[0]
    threads = options.threads or before[1]
    options = replace(options, precision=precision, threads=threads, short="refuse")
    return Settings(options, checkpoint.digest, semantics, "" if precision == "auto" else precision, threads)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):
        return 0


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise MovqError(os_reason(error), folder) from None
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise MovqError("permission denied", folder)


def _refuse_to_replace(todo: Iterable[Item], manifest: Manifest, settings: Settings) -> None:
    """Raises MovqError where items would take the places of others whose videos are there; warns of videos under new ids."""
    others: list[tuple[Item, Line]] = []
    renamed = 0
    made: dict[str, list[Any]] = {}
    for line in manifest.lines.values():
        made.setdefault(line["path"], []).append(line.get("options"))
    for item in todo:
        line, wanted = manifest.lines.get(item.id, Line()), settings.line(item)
        if line.get("status") == "done" and line["path"] != wanted["path"] and _is_there(line):
            others.append((item, line))
        elif not line and wanted["options"] in made.get(wanted["path"], []):
            renamed += 1
    if others and not settings.options.force:
        item, line = others[0]
        more = f", and {len(others) - 1:,} more like it" if len(others) > 1 else ""
        raise MovqError(
            f"would replace {item.output}, which is of {line['path']}{more}; name all sources in one command, take another "
            "folder, or --force",
            item.path,
        )
    if renamed:
        text = (
            f"{renamed:,} videos are in the manifest under other names and are encoded again: were the sources others?"
        )
        warnings.warn(MovqWarning(text), stacklevel=3)


def _is_there(line: Line) -> bool:
    """Whether a line's video is there, as far as its path can be told: bytes that are no UTF-8 are written out in it."""
    return os.path.isfile(line["path"]) or "\\x" in line["path"]


def _settle_orphans(manifest: Manifest, named: Iterable[str], folder: str) -> list[str]:
    """Marks the lines of items that were not named and whose videos are gone; drops them where there never was an output.

    Returns the outputs that are not of the present state of a video there is: theirs, and others that no line has.
    """
    for name in set(manifest.lines) - set(named):
        line = manifest.lines[name]
        line.pop("orphan", None)
        if _is_there(line) or not os.path.isdir(os.path.dirname(line["path"])):  # or what it is on is not mounted
            continue
        if line["status"] == "done" and os.path.exists(os.path.join(folder, line["output"])):
            line["orphan"] = True
        else:
            del manifest.lines[name]
    return compare_outputs(manifest.lines.values(), folder)[0]
