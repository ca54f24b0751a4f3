"""`encode_batch`: encode many videos into a folder of latents with a manifest, on workers; it can be resumed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..budget import least_memory
from ..errors import LASTING_CAUSES, MovqDiskError, MovqError
from ..options import FIRST_FRAMES, TAR_BYTES, BatchOptions, EncodeOptions
from ..shared import KnownSource
from .card import write_card
from .discover import Found
from .item import Item
from .locks import finish_shard
from .manifest import Line, count_described, files_of, first_frames_of, unmade
from .orphans import count_unnamed, find_orphans, mark_orphans, removable
from .pack import Packer
from .paths import remove_empty_folders
from .pool import Pool
from .prepare import Job, prepare
from .presence import Presence
from .queue import Task
from .record import record_run, write_record
from .reuse import Reuse, ReusePlan, Twins, drop_files, take_over
from .state import Watch, ignore

if TYPE_CHECKING:
    from .inline import Inline

_FULL = 3
"""The batch ends when the disk fails, or is full for, this many items in a row. One may only have been too large."""


@dataclass(frozen=True)
class BatchResult:
    """The result of a batch. `lines` are those of its items, `made` those that this run wrote.

    `orphans` are outputs that no item has any more, relative to the folder, and `removable` those that `prune_batch`
    removes, as a line of the manifest names them. `unnamed` counts the finished items that this batch did not name.
    `stopped` is why the batch ended early, with `left` items not tried. `described` is how many items that were kept
    have another caption or other columns now, `added` how many of them got first frames. Those that could not get
    theirs are failed in `lines`, and stay done in the manifest. `moved` are lines of renamed videos, and `copied` those
    of videos equal to others: nothing was encoded for them. `tars` is how many tars were written.
    """

    lines: list[Line]
    made: list[Line]
    found: Found
    orphans: list[str]
    workers: int
    seconds: float
    stopped: str = ""
    left: int = 0
    removable: Sequence[str] = ()
    unnamed: int = 0
    described: int = 0
    added: int = 0
    moved: Sequence[Line] = ()
    copied: Sequence[Line] = ()
    tars: int = 0

    @property
    def failed(self) -> int:
        """The number of items that failed."""
        return sum(line["status"] == "failed" for line in self.lines)

    @property
    def ignored(self) -> list[tuple[str, str]]:
        """The files that were not taken for videos or were named twice, as (path, reason)."""
        return self.found.ignored


def encode_batch(
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    options: EncodeOptions | None = None,
    batch: BatchOptions | None = None,
    *,
    watch: Watch = ignore,
    **overrides: Any,
) -> BatchResult:
    """Encode all videos of folders, files, globs and lists into a folder, whose manifest has the outcome of each.

    Outputs of an earlier batch that are up to date are kept. Options come as EncodeOptions and BatchOptions, or by
    name: `encode_batch(["clips"], "latents", save="mean", workers=2)`. `watch` is called often, always with the same
    BatchState. Raises MovqError if sources, weights or the output folder are refused, and MovqUsageError if options are
    not valid. Problems with a single video go into its line.
    """
    started = time.monotonic()
    with prepare(sources, output, options, batch, overrides, watch, writing=True) as job:
        run = _Run(job)
        write_record(job.folder, job.record, job.batch.shard)
        described = run.keep(job.resume.kept)
        run.encode(job.reuse, job.resume.first_frames)
        run.finish()
        # A shard does not know the outputs of the others, and would take them for orphans.
        whole = job.batch.shard is None
        orphans = find_orphans(job.manifest, job.folder) if whole else []
        unnamed = count_unnamed(job.manifest, job.items) if whole else 0
    job.state.end()
    lines = job.manifest.lines | run.without_first_frame
    return BatchResult(
        lines=[lines[name] for name in sorted({item.id for item in job.items} & set(lines))],
        made=job.state.made,
        found=job.found,
        orphans=orphans,
        workers=run.workers,
        seconds=time.monotonic() - started,
        stopped=run.stopped,
        left=job.state.left,
        removable=removable(job.manifest.lines.values(), orphans),
        unnamed=unnamed,
        described=described,
        added=job.state.added,
        moved=run.moved,
        copied=run.copied,
        tars=run.packer.written if run.packer else 0,
    )


class _Run:
    """The work of a batch: bring every item to its end, with a line for each.

    `stopped` is why it ended early, or ""; `workers` is how many it began with. `without_first_frame` are failed lines, by
    id, of items that are done but could not get their first frames.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._settings = job, job.settings
        self.workers, self.stopped = 0, ""
        self.without_first_frame: dict[str, Line] = {}
        self.moved, self.copied = list[Line](), list[Line]()
        self._twins: dict[str, Twins] = {}
        self._emptied = set[str]()
        """Folders that outputs were moved from."""
        self._stranded = list[Item]()
        """Twins of items that could not be encoded, for reasons that may not be theirs."""
        packed = job.tars.names() or any("member" in line for line in job.manifest.lines.values())
        layout = job.batch.layout or ("tar" if packed else "files")
        size = job.batch.tar_size or TAR_BYTES
        self.packer = Packer(job.tars, job.manifest, job.items, size, job.batch.shard) if layout == "tar" else None

    def keep(self, lines: Sequence[Line]) -> int:
        """Take over the lines of items that are up to date. Return how many have a new caption or new columns now."""
        manifest = self._job.manifest
        manifest.put_in_order()
        described = count_described(manifest, lines)
        manifest.lines |= {line["id"]: line for line in lines}
        if self.packer:
            unready = {item.id for item, _ in self._job.resume.first_frames}
            self.packer.end(line["id"] for line in lines if line["id"] not in unready)
        return described

    def encode(self, plan: ReusePlan, first_frames: Sequence[tuple[Item, tuple[str, ...]]]) -> None:
        """Reuse what can be reused, and encode the other items, and then the first frames of others that are done.

        Each comes to its end, unless something stops the batch.
        """
        twins = (twin for twins in plan.twins.values() for twin in twins.items)
        reused = (reuse.item for reuse in plan.reuses)
        self._job.state.begin_encoding([*reused, *plan.pending, *twins, *(item for item, _ in first_frames)])
        self._twins = plan.twins
        try:
            left, lacking = self._reuse_all(plan.reuses)
            pending = [*plan.pending, *left]
            tasks = self._tasks(item for item in pending if item.refusal is None)
            for item, kinds in (*first_frames, *lacking):
                task = self._task(item)
                task.latents, task.overrides["first_frame"] = False, kinds
                tasks.append(task)
            self._work(tasks, [item for item in pending if item.refusal is not None])
            stranded, self._stranded = self._stranded, []
            if stranded and not self.stopped:
                self._work(self._tasks(stranded), [])
        except MovqError as error:  # no worker is left, or the manifest cannot be written
            state = self._job.state
            if not (state.made or state.added or state.reused or isinstance(error, MovqDiskError)):
                raise
            self.stopped = error.with_flags

    def _work(self, tasks: list[Task], refused: Sequence[Item]) -> None:
        """Bring tasks to their end on workers, and the refused items without any."""
        if tasks:
            self._encode(tasks, refused)
        else:
            self._refuse(refused)

    def _reuse_all(self, reuses: Iterable[Reuse]) -> tuple[list[Item], list[tuple[Item, tuple[str, ...]]]]:
        """Do these reuses. Return the items that must be encoded after all, and those that lack first frames, with the kinds."""
        lines, moved = self._job.manifest.lines, dict[str, Line]()
        left, lacking = list[Item](), list[tuple[Item, tuple[str, ...]]]()
        for reuse in reuses:
            id = reuse.line["id"]
            line = moved.get(id) or lines[id]
            if id not in moved and "member" not in line:
                line = line | Line(output=reuse.line["output"])
            same = line["source_sha256"] == reuse.line["source_sha256"]
            new = self._reuse(reuse.item, line, reuse.is_move and "member" not in line) if same else None
            if new is None:
                left.append(reuse.item)
                continue
            if id not in lines:
                moved[id] = new
            kinds = tuple(kind for kind in self._settings.options.first_frames if kind not in first_frames_of(new))
            if kinds:
                lacking.append((reuse.item, kinds))
            else:
                self._end_reused(new)
        return left, lacking

    def _reuse(self, item: Item, line: Line, is_move: bool = False) -> Line | None:
        """Give an item the latents of a line, and return its own line; None if they cannot be taken over."""
        job = self._job
        try:
            new = take_over(item, line, job.manifest.lines.get(item.id), self._settings, job.tars, is_move=is_move)
        except (MovqError, OSError):
            return None
        job.manifest.append(new)
        (self.moved if is_move else self.copied).append(new)
        if is_move:
            drop_files(job.folder, line, new)
            self._emptied.add(os.path.dirname(line["output"]))
            if line["id"] != item.id:
                del job.manifest.lines[line["id"]]
        return new

    def _end_reused(self, line: Line) -> None:
        self._job.state.item_reused(line)
        if self.packer is not None:
            self.packer.end([line["id"]])

    def finish(self) -> None:
        """Mark orphans, put the manifest in order and, unless the batch was stopped, finish the tars and the shard."""
        job = self._job
        mark_orphans(job.manifest, job.items, job.folder, Presence(job.found.folders))
        if job.batch.shard is None:  # with shards, others may be about to use these folders
            for folder in sorted(self._emptied, reverse=True):
                remove_empty_folders(job.folder, folder)
        seconds = time.monotonic() - job.state.started
        record = record_run(job.record, job.state.made, seconds, max(1, self.workers), self._settings.device)
        try:
            if record != job.record:
                write_record(job.folder, record, job.batch.shard)
            if self.packer and not self.stopped:
                self.packer.finish()
            job.manifest.put_in_order()
            if job.batch.shard is None:
                write_card(job.folder, job.manifest.lines.values())
            elif not self.stopped:
                finish_shard(job.folder, job.batch.shard)
        except MovqDiskError as error:
            self.stopped = self.stopped or error.with_flags

    def _encode(self, tasks: list[Task], refused: Iterable[Item]) -> None:
        job, state = self._job, self._job.state
        with self._open_pool() as pool:
            ready = pool.settled()
            device = ready.device.partition(":")[0]
            self._settings = replace(job.settings, precision=ready.precision, device=device)
            state.workers, self.workers = pool.workers, min(pool.count, len(tasks))
            self._refuse(refused)
            full = 0
            for task, outcome in pool.results(tasks, state.tell):
                (self._end if task.latents else self._add_first_frame)(task.item, outcome)
                full = full + 1 if outcome.get("cause") == MovqDiskError.cause else 0
                if full == _FULL and not self.stopped:
                    self.stopped = outcome["reason"]
                    pool.stop()

    def _open_pool(self) -> Pool | Inline:
        job = self._job
        if job.batch.workers == 0:
            from .inline import Inline  # imports the encoder, which nothing else here needs

            return Inline(job.settings.options, job.folder)
        return Pool(job.settings.options, job.folder, job.batch, least_memory(job.checkpoint.config))

    def _tasks(self, items: Iterable[Item]) -> list[Task]:
        """Return the tasks, those of one video together and in its order.

        Items that failed for lack of disk space in an earlier batch come last.
        """
        lines, items = self._job.manifest.lines, list(items)
        full = {id for id, line in lines.items() if line.get("cause") == MovqDiskError.cause}
        places = {path: place for place, path in enumerate(dict.fromkeys(item.source_path for item in items))}
        items.sort(key=lambda item: (item.id in full, places[item.source_path], item.start or 0, item.skip))
        return [self._task(item) for item in items]

    def _task(self, item: Item) -> Task:
        line = self._job.manifest.lines.get(item.id, Line(status="failed"))
        own = (
            tuple(said["output"] for said in files_of(line) if "member" not in said) if line["status"] == "done" else ()
        )
        state, known = self._job.state, self._job.videos.get(item.source_path)
        if item.identity is not None and item.times:
            known = KnownSource(item.identity, times=item.times).joined(known)
        return Task(item, state.size_of(item.source_path), known, force=self._settings.options.force, own=own)

    def _refuse(self, items: Iterable[Item]) -> None:
        for item in items:
            assert item.refusal is not None
            source = Line() if item.identity is None else Line(source=item.identity)
            self._end(item, source | unmade(item.refusal))

    def _end(self, item: Item, outcome: Line) -> None:
        line = self._settings.line(item) | outcome
        if item.facts is not None and line.get("source") != item.identity:
            line.pop("seen", None)  # so that it is probed again
            line["warnings"] = [
                *line.get("warnings", []),
                "changed after it was looked at: the same command does that again",
            ]
        self._job.manifest.append(line)
        self._job.state.item_ended(line)
        if (twins := self._twins.pop(item.id, None)) is not None:
            for twin in twins.items:
                self._end_twin(twin, twins, line)
        if self.packer is not None:
            self.packer.end([item.id])

    def _end_twin(self, twin: Item, twins: Twins, line: Line) -> None:
        """Bring an item to its end whose video was equal to that of another item, which has this line now.

        What was refused of a video is refused of its twin. Anything else may have been about the other item alone.
        """
        assert twin.identity is not None
        if line["status"] == "done" and line["source_sha256"] == twins.sha256:
            new = self._reuse(twin, line)
            if new is not None:
                self._end_reused(new)
                return
        lasting = line.get("cause") in LASTING_CAUSES
        if line["status"] != "done" and lasting and line.get("source") == twins.identity:
            refused = Line(source=twin.identity, status=line["status"], reason=line["reason"], cause=line["cause"])
            self._end(twin, refused)
        else:
            self._stranded.append(twin)

    def _add_first_frame(self, item: Item, outcome: Line) -> None:
        """Add the first frame to the line of an item that is done already."""
        job, line = self._job, self._job.manifest.lines[item.id]
        if outcome.get("source_sha256", line["source_sha256"]) != line["source_sha256"]:
            outcome = unmade(MovqError("changed while it was read"))
        if outcome["status"] == "done":
            files = line.get("first_frame", {}) | outcome["first_frame"]
            known = {kind: files[kind] for kind in FIRST_FRAMES if kind in files}
            line = line | Line(first_frame=known | files)
            job.manifest.append(line)
            job.state.first_frame_added(line)
        else:
            reason = f"cannot get its first frame, though its latents are done: {outcome['reason']}"
            failed = outcome | Line(id=line["id"], path=line["path"], reason=reason)
            self.without_first_frame[item.id] = failed
            job.state.item_ended(failed)
        if self.packer is not None:
            self.packer.end([item.id])
