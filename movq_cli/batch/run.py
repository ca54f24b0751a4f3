"""`encode_batch`: many videos to a folder of latents and its manifest; resumable, with local workers."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import MovqError, MovqUsageError
from ..files import os_reason, refuse_inputs, sweep
from ..model.checkpoint import Checkpoint
from ..plan import EncodeOptions, open_weights
from .items import Found, find_items
from .manifest import Line, Manifest, only_one
from .pool import Pool, Task, Worker
from .report import compare_outputs
from .resume import Settings, Sorted, sort_out

THREADS = 1
"""Of each worker on a CPU: not by the number of workers, since threads change the last bits of a result."""

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
    if timeout <= 0:
        raise MovqUsageError(f"must be above 0, got {timeout:g}", "--timeout")
    started = time.monotonic()
    options = replace(options or EncodeOptions(), **overrides)
    folder = os.fspath(output)
    checkpoint = open_weights(options)
    found = gather(sources, lists, folder)
    state = BatchState(found)
    _make_folder(folder, checkpoint)
    with only_one(folder), ExitStack() as stack:
        sweep(folder)
        manifest = Manifest(folder)
        stack.callback(manifest.close)
        manifest.put_in_order()
        settings = settle(options, checkpoint, manifest)

        def passed() -> None:
            state.checked += 1
            watch(state)

        left = what_is_left(found, manifest, settings, folder, verify, retry_failed, passed)
        for line in left.kept:
            manifest.lines[line["id"]] = line
        state.begin(left)
        stopped, untried, count = "", 0, 0
        if left.todo:
            smallest = checkpoint.config.temporal_factor
            pool = stack.enter_context(Pool(settings.options, folder, workers, timeout, smallest))
            ready = pool.settled()
            settings = replace(settings, precision=ready.precision, device=ready.device.partition(":")[0])
            state.workers, count = pool.workers, min(pool.count, len(left.todo))
            known = {line.get("output") for line in manifest.lines.values()}
            tasks = [Task(item, _size(item.path), force=options.force or item.output in known) for item in left.todo]
            for task, outcome in pool.results(tasks, lambda: watch(state)):
                line = settings.line(task.item) | outcome
                manifest.append(line)
                state.count(line)
                watch(state)
                if line.get("cause") == "disk" and not stopped:
                    stopped, untried = line["reason"], pool.stop()
        named = {item.id for item in found.items}
        orphans = _settle_orphans(manifest, named, folder)
        manifest.put_in_order()
    state.phase = "over"
    watch(state)
    lines = [manifest.lines[name] for name in sorted(named & set(manifest.lines))]
    seconds = time.monotonic() - started
    return BatchResult(lines, state.made, found.skipped, orphans, count, seconds, stopped, untried)


def gather(sources: Sequence[str | os.PathLike[str]], lists: Sequence[str | os.PathLike[str]], folder: str) -> Found:
    """The items. Raises MovqError where there are none."""
    names, list_names = [os.fspath(source) for source in sources], [os.fspath(name) for name in lists]
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


def settle(options: EncodeOptions, checkpoint: Checkpoint, manifest: Manifest) -> Settings:
    """The settings of a batch. What options leave open is as in the batch before it, so that all outputs are alike."""
    semantics = checkpoint.semantics if options.semantics == "auto" else options.semantics
    of_these = [line for line in manifest.lines.values() if line.get("weights_digest") == checkpoint.digest]
    before = max(of_these, key=lambda line: line["status"] == "done", default=Line())
    precision = options.precision if options.precision != "auto" else before.get("precision", "auto")
    threads = options.threads or before.get("threads") or THREADS
    options = replace(options, precision=precision, threads=threads, short="refuse")
    return Settings(options, checkpoint.digest, semantics, "" if precision == "auto" else precision, threads)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):
        return 0


def _make_folder(folder: str, checkpoint: Checkpoint) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        reason = "is a file; name a folder" if isinstance(error, FileExistsError) else os_reason(error)
        raise MovqError(reason, folder) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MovqError("permission denied", folder)
    refuse_inputs(folder, *checkpoint.files)


def _settle_orphans(manifest: Manifest, named: Iterable[str], folder: str) -> list[str]:
    """Marks the lines of items that were not named and whose videos are gone, and drops them where nothing was made.

    Returns the outputs that belong to no item: theirs, and files in the folder that no line knows.
    """
    for name in set(manifest.lines) - set(named):
        line = manifest.lines[name]
        line.pop("orphan", None)
        if os.path.lexists(line["path"]):
            continue
        if line["status"] == "done" and os.path.exists(os.path.join(folder, line["output"])):
            line["orphan"] = True
        else:
            del manifest.lines[name]
    return compare_outputs(manifest.lines.values(), folder)[0]
