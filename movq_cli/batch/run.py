"""`encode_batch`: many videos to a folder of latents and its manifest; resumable, with workers."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from ..device import choose_device, choose_precision
from ..errors import MovqDiskError, MovqError
from ..files import os_reason, sweep
from ..model.checkpoint import Checkpoint
from ..options import PRECISIONS, TAR_BYTES, BatchOptions, EncodeOptions, with_overrides
from ..plan import open_weights
from .cut import check_cut, cut_to_dict, in_order, is_cut
from .discover import Found, Item, find_items
from .inline import Inline
from .manifest import Line, Manifest, finish_shard, only_one, refuse_other_shards, video_of
from .pack import Packer
from .pool import Pool, Task, WorkerState
from .probe import Known, cut_items
from .replace import is_there, refuse_to_replace
from .resume import ResumePlan, Settings, plan_resume
from .summary import compare_outputs, note_places
from .tars import Tars
from .worker import unmade

THREADS = 1
"""Of each worker on a CPU: not by the number of workers, since threads change the last bits of a result."""

_FULL = 3
"""So many items in a row that the disk has no room for end a batch; a single one may only have been too large."""


@dataclass
class BatchState:
    """How far a batch is, for those who watch it.

    `phase` is looking (at videos, of which `looked` are done), checking (`items`, of which `checked` are), encoding or over.
    Of this run: lines `made`, their `ended` by status, `frames` and `video_seconds` of those done; `source_bytes` of the videos
    to be encoded, `source_bytes_done` of those that are; `workers` as they are now.
    """

    found: Found
    phase: str = "checking"
    looked: int = 0
    items: int = 0
    checked: int = 0
    todo: int = 0
    source_bytes: int = 0
    started: float = field(default_factory=time.monotonic)
    made: list[Line] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    source_bytes_done: int = 0
    frames: int = 0
    video_seconds: float = 0.0
    workers: Sequence[WorkerState] = ()

    @property
    def left(self) -> int:
        return self.todo - len(self.made)

    def begin(self, left: ResumePlan) -> None:
        self.phase, self.started = "encoding", time.monotonic()
        self.todo = len(left.todo)
        self.source_bytes = sum(_size(item.source_path) for item in left.todo)

    def count(self, line: Line) -> None:
        self.made.append(line)
        self.ended[line["status"]] += 1
        self.source_bytes_done += line["source"].size if "source" in line else 0
        if line["status"] == "done":
            self.frames += line["frames"]
            self.video_seconds += line["duration"]


Watch = Callable[[BatchState], None]


@dataclass(frozen=True)
class BatchResult:
    """What a batch came to. `lines` are those of its items; `made` those that this run wrote.

    `orphans` are outputs, relative to the folder, of videos that are gone or of no item at all; `stopped` why the batch
    ended early, with `left` items not tried; `described` how many that were made before have another caption now, or other
    columns; `tars` how many were written.
    """

    lines: list[Line]
    made: list[Line]
    found: Found
    orphans: list[str]
    workers: int
    seconds: float
    stopped: str = ""
    left: int = 0
    described: int = 0
    tars: int = 0

    @property
    def ignored(self) -> list[tuple[str, str]]:
        """Files that are not taken for videos, or were named twice: (path, why)."""
        return self.found.ignored


def encode_batch(
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    options: EncodeOptions | None = None,
    batch: BatchOptions | None = None,
    *,
    watch: Watch = lambda state: None,
    **overrides: Any,
) -> BatchResult:
    """Encodes all videos of folders, files, globs and lists into a folder, which has a manifest of what became of each.

    What a batch before this one did is not done again. Options come as EncodeOptions and BatchOptions, or by name:
    `encode_batch(["clips"], "latents", save="mean", workers=2)`. `watch` is called often, with the same object.
    Raises MovqError for sources, weights or an output folder that are refused, MovqUsageError for options that cannot be;
    what is wrong with a single video is in its line.
    """
    started = time.monotonic()
    options, batch = with_overrides(options, batch, overrides)
    folder = os.fspath(output)
    checkpoint = open_weights(options)
    check_cut(batch, options, checkpoint.config)
    found = gather(sources, batch, folder)
    state = BatchState(found)
    _make_folder(folder)
    with only_one(folder, batch.shard), ExitStack() as stack:
        if batch.shard is None:  # others may be writing
            sweep(folder)
        manifest = Manifest(folder, batch.shard)
        stack.callback(manifest.close)
        settings = settle(options, checkpoint, manifest, found, batch)
        items = cut_as_wanted(found, manifest, settings, batch, checkpoint, state, watch)
        tars = Tars(folder)
        layout = batch.layout or ("tar" if tars.names() else "files")
        packer = Packer(tars, manifest, items, batch.shard_size or TAR_BYTES, batch.shard) if layout == "tar" else None
        left = what_is_left(items, manifest, settings, tars, batch, state, watch)
        refuse_to_replace(left, manifest, settings, tars, batch.replace)
        manifest.put_in_order()
        described = sum(_said(manifest.lines[line["id"]]) != _said(line) for line in left.kept)
        manifest.lines |= {line["id"]: line for line in left.kept}
        if packer:
            packer.end(line["id"] for line in left.kept)
        state.begin(left)
        run = _Run(folder, settings, batch, manifest, state, packer, watch)
        stopped = run.all(left.todo, checkpoint.config.temporal_factor)
        _mark_orphans(manifest, items, folder)
        try:
            if packer and not stopped:
                packer.finish()
            manifest.put_in_order()
            if batch.shard is not None and not stopped:
                finish_shard(folder, batch.shard)
        except MovqDiskError as error:
            if not stopped:
                stopped = error.with_flags
        # What other shards have made is theirs to know.
        orphans = _orphans(manifest, folder) if batch.shard is None else []
    state.phase = "over"
    watch(state)
    lines = [manifest.lines[name] for name in sorted({item.id for item in items} & set(manifest.lines))]
    seconds = time.monotonic() - started
    return BatchResult(
        lines=lines,
        made=state.made,
        found=found,
        orphans=orphans,
        workers=run.workers,
        seconds=seconds,
        stopped=stopped,
        left=state.left,
        described=described,
        tars=packer.written if packer else 0,
    )


def _said(line: Line) -> tuple[Any, ...]:
    return line.get("caption"), line.get("extra")


@dataclass
class _Run:
    """The work itself: every item to its end, and a line for each."""

    folder: str
    settings: Settings
    batch: BatchOptions
    manifest: Manifest
    state: BatchState
    packer: Packer | None
    watch: Watch
    workers: int = 0

    def all(self, todo: Sequence[Item], smallest_chunk: int) -> str:
        """Why it ended early, or nothing."""
        refused = [item for item in todo if item.refusal is not None]
        items = [item for item in todo if item.refusal is None]
        try:
            if items:
                return self._encode(items, refused, smallest_chunk)
            self._refuse(refused)
            return ""
        except MovqError as error:  # no worker is left, or the manifest cannot be written
            if not self.state.made and not isinstance(error, MovqDiskError):
                raise
            return error.with_flags

    def _refuse(self, items: Iterable[Item]) -> None:
        for item in items:
            assert item.refusal is not None
            source = Line() if item.identity is None else Line(source=item.identity)
            self._end(item, source | unmade(item.refusal))

    def _encode(self, items: list[Item], refused: Iterable[Item], smallest_chunk: int) -> str:
        lines, options = self.manifest.lines, self.settings.options
        inline = self.batch.workers == 0
        with Inline(options, self.folder) if inline else Pool(options, self.folder, self.batch, smallest_chunk) as pool:
            ready = pool.settled()
            device = ready.device.partition(":")[0]
            self.settings = replace(self.settings, precision=ready.precision, device=device)
            self.state.workers, self.workers = pool.workers, min(pool.count, len(items))
            self._refuse(refused)
            items.sort(key=lambda item: lines.get(item.id, Line()).get("cause") == MovqDiskError.cause)
            tasks = [
                Task(
                    item,
                    _size(item.source_path),
                    force=options.force or lines.get(item.id, Line()).get("output") == item.output,
                )
                for item in items
            ]
            stopped, full = "", 0
            for task, outcome in pool.results(tasks, lambda: self.watch(self.state)):
                self._end(task.item, outcome)
                full = full + 1 if outcome.get("cause") == MovqDiskError.cause else 0
                if full == _FULL and not stopped:
                    stopped = outcome["reason"]
                    pool.stop()
            return stopped

    def _end(self, item: Item, outcome: Line) -> None:
        line = self.settings.line(item) | outcome
        if item.identity is not None and line.get("source") != item.identity:
            line.pop("seen", None)  # so that it is looked at again
            line["warnings"] = [
                *line.get("warnings", []),
                "changed after it was looked at: the same command does that again",
            ]
        self.manifest.append(line)
        if self.packer is not None:
            self.packer.end([item.id])
        self.state.count(line)
        self.watch(self.state)


def gather(sources: Sequence[str | os.PathLike[str]], batch: BatchOptions, folder: str) -> Found:
    """The items, of all videos, or of those of the shard. Raises MovqError where there are none at all."""
    names = [os.fspath(source) for source in sources]
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise MovqError("is a file; name a folder", folder)
    if batch.shard is not None:
        refuse_other_shards(folder, batch.shard)
    found = find_items(names, batch.lists, folder, batch.captions)
    if not found.items:
        raise MovqError("nothing to encode in it", ", ".join([*names, *batch.lists]))
    shard = batch.shard
    return found if shard is None else replace(found, items=[item for item in found.items if item.id in shard])


def cut_as_wanted(
    found: Found,
    manifest: Manifest,
    settings: Settings,
    batch: BatchOptions,
    checkpoint: Checkpoint,
    state: BatchState | None = None,
    watch: Watch = lambda state: None,
) -> list[Item]:
    """The items that the videos are cut into; the videos themselves, not looked at, where that is not wanted."""
    if not is_cut(batch):
        return found.items

    def passed() -> None:
        if state is not None:
            state.phase, state.looked = "looking", state.looked + 1
            watch(state)

    fresh = batch.verify or settings.options.force
    known = None if fresh else Known(manifest.lines.values(), refused=not batch.retry_failed)
    return in_order(cut_items(found.items, batch, settings.options, checkpoint.config, known, passed))


def what_is_left(
    items: Sequence[Item],
    manifest: Manifest,
    settings: Settings,
    tars: Tars,
    batch: BatchOptions,
    state: BatchState | None = None,
    watch: Watch = lambda state: None,
) -> ResumePlan:
    """Return the items to encode: all of them if options force it, or if the manifest is empty."""
    if settings.options.force:
        return ResumePlan([], list(items))

    def passed(count: int = 1) -> None:
        if state is not None:
            state.checked += count
            watch(state)

    if state is not None:
        state.phase, state.items = "checking", len(items)
    if not manifest.lines:
        passed(len(items))
        return ResumePlan([], list(items))
    return plan_resume(items, manifest, settings, tars, batch.verify, batch.retry_failed, passed)


def settle(
    options: EncodeOptions, checkpoint: Checkpoint, manifest: Manifest, found: Found, batch: BatchOptions
) -> Settings:
    """Return the settings of a batch. What options leave open is as it was for most of its outputs, so that all are alike."""
    semantics = checkpoint.semantics if options.semantics == "auto" else options.semantics
    videos = {item.id for item in found.items}
    named = [line for line in manifest.lines.values() if video_of(line) in videos] or list(manifest.lines.values())
    used = Counter(
        (line["precision"], line["threads"])
        for line in named
        if line["status"] == "done"
        and line.get("weights_digest") == checkpoint.digest
        and line.get("precision") in PRECISIONS
        and line.get("threads")
    )
    before = used.most_common(1)[0][0] if used else ("auto", THREADS)
    precision = options.precision if options.precision != "auto" else before[0]
    threads = options.threads or before[1]
    options = replace(options, precision=precision, threads=threads, short="refuse")
    if precision == "auto":
        # Nothing is made yet. What failed is judged by what this machine computes in; where others compute, it is tried again.
        failed = any(line.get("precision") for line in named) and batch.engine == "local"
        precision = choose_precision("auto", choose_device(options.device)) if failed else ""
    cut = cut_to_dict(batch, options)
    return Settings(options, checkpoint.name, checkpoint.digest, semantics, precision, threads, cut=cut)


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


def _orphans(manifest: Manifest, folder: str) -> list[str]:
    places: dict[str, bool] = {}
    for _ in note_places(manifest.lines.values(), places):
        pass
    return compare_outputs(places, folder)[0]


def _mark_orphans(manifest: Manifest, items: Sequence[Item], folder: str) -> None:
    """Marks the lines of items that were not named and whose videos are gone, or are cut into other items now; drops them
    where there never was an output. What it cannot tell of stays as it was.
    """
    named, videos = {item.id for item in items}, {item.video for item in items}
    for name in set(manifest.lines) - named:
        line = manifest.lines[name]
        there = is_there(line) or not os.path.isdir(os.path.dirname(line["path"]))  # or what it is on is not mounted
        if there and video_of(line) not in videos:
            continue
        if line["status"] == "done" and os.path.exists(os.path.join(folder, line["output"])):
            line["orphan"] = True
        else:
            del manifest.lines[name]
