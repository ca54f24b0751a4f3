"""`encode_batch`: encode many videos into a folder of latents with a manifest, on workers; it can be resumed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import MovqDiskError, MovqError
from ..options import TAR_BYTES, BatchOptions, EncodeOptions
from .discover import Found
from .item import Item
from .manifest import DESCRIBED, Line, finish_shard, unmade
from .orphans import find_orphans, mark_orphans
from .pack import Packer
from .pool import Pool, Task
from .prepare import Job, prepare
from .state import Watch, ignore, size_of

if TYPE_CHECKING:
    from .inline import Inline

_FULL = 3
"""The batch ends when the disk fails, or is full for, this many items in a row. One may only have been too large."""


@dataclass(frozen=True)
class BatchResult:
    """The result of a batch. `lines` are those of its items, `made` those that this run wrote.

    `orphans` are outputs that no item has any more, relative to the folder. `stopped` is why the batch ended early,
    with `left` items not tried. `described` is how many items that were kept have another caption or other columns now.
    `tars` is how many tars were written.
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
        described = run.keep(job.resume.kept)
        run.encode(job.resume.pending)
        run.finish()
        # A shard does not know the outputs of the others, and would take them for orphans.
        orphans = find_orphans(job.manifest, job.folder) if job.batch.shard is None else []
    job.state.end()
    lines = job.manifest.lines
    return BatchResult(
        lines=[lines[name] for name in sorted({item.id for item in job.items} & set(lines))],
        made=job.state.made,
        found=job.found,
        orphans=orphans,
        workers=run.workers,
        seconds=time.monotonic() - started,
        stopped=run.stopped,
        left=job.state.left,
        described=described,
        tars=run.packer.written if run.packer else 0,
    )


class _Run:
    """The work of a batch: bring every item to its end, with a line for each.

    `stopped` is why it ended early, or ""; `workers` is how many it began with.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._settings = job, job.settings
        self.workers, self.stopped = 0, ""
        layout = job.batch.layout or ("tar" if job.tars.names() else "files")
        size = job.batch.tar_size or TAR_BYTES
        self.packer = Packer(job.tars, job.manifest, job.items, size, job.batch.shard) if layout == "tar" else None

    def keep(self, lines: Sequence[Line]) -> int:
        """Take over the lines of items that are up to date. Return how many have a new caption or new columns now."""
        manifest = self._job.manifest
        manifest.put_in_order()
        described = sum(_description(manifest.lines[line["id"]]) != _description(line) for line in lines)
        manifest.lines |= {line["id"]: line for line in lines}
        if self.packer:
            self.packer.end(line["id"] for line in lines)
        return described

    def encode(self, pending: Sequence[Item]) -> None:
        """Encode these items, each to its end, unless something stops the batch."""
        self._job.state.begin_encoding(pending)
        refused = [item for item in pending if item.refusal is not None]
        items = [item for item in pending if item.refusal is None]
        try:
            if items:
                self._encode(items, refused)
            else:
                self._refuse(refused)
        except MovqError as error:  # no worker is left, or the manifest cannot be written
            if not self._job.state.made and not isinstance(error, MovqDiskError):
                raise
            self.stopped = error.with_flags

    def finish(self) -> None:
        """Mark orphans, put the manifest in order and, unless the batch was stopped, finish the tars and the shard."""
        job = self._job
        mark_orphans(job.manifest, job.items, job.folder)
        try:
            if self.packer and not self.stopped:
                self.packer.finish()
            job.manifest.put_in_order()
            if job.batch.shard is not None and not self.stopped:
                finish_shard(job.folder, job.batch.shard)
        except MovqDiskError as error:
            self.stopped = self.stopped or error.with_flags

    def _encode(self, items: list[Item], refused: Iterable[Item]) -> None:
        job, state = self._job, self._job.state
        with self._open_pool() as pool:
            ready = pool.settled()
            device = ready.device.partition(":")[0]
            self._settings = replace(job.settings, precision=ready.precision, device=device)
            state.workers, self.workers = pool.workers, min(pool.count, len(items))
            self._refuse(refused)
            full = 0
            for task, outcome in pool.results(self._tasks(items), state.tell):
                self._end(task.item, outcome)
                full = full + 1 if outcome.get("cause") == MovqDiskError.cause else 0
                if full == _FULL and not self.stopped:
                    self.stopped = outcome["reason"]
                    pool.stop()

    def _open_pool(self) -> Pool | Inline:
        job = self._job
        if job.batch.workers == 0:
            from .inline import Inline  # imports the encoder, which nothing else here needs

            return Inline(job.settings.options, job.folder)
        return Pool(job.settings.options, job.folder, job.batch, job.checkpoint.config.temporal_factor)

    def _tasks(self, items: Iterable[Item]) -> list[Task]:
        """Return the tasks. Items that failed for lack of disk space in an earlier batch come last."""
        lines, force = self._job.manifest.lines, self._settings.options.force
        tasks = []
        for item in sorted(items, key=lambda item: lines.get(item.id, Line()).get("cause") == MovqDiskError.cause):
            own = lines.get(item.id, Line()).get("output") == item.output
            tasks.append(Task(item, size_of(item.source_path), force=force or own))
        return tasks

    def _refuse(self, items: Iterable[Item]) -> None:
        for item in items:
            assert item.refusal is not None
            source = Line() if item.identity is None else Line(source=item.identity)
            self._end(item, source | unmade(item.refusal))

    def _end(self, item: Item, outcome: Line) -> None:
        line = self._settings.line(item) | outcome
        if item.identity is not None and line.get("source") != item.identity:
            line.pop("seen", None)  # so that it is probed again
            line["warnings"] = [
                *line.get("warnings", []),
                "changed after it was looked at: the same command does that again",
            ]
        self._job.manifest.append(line)
        if self.packer is not None:
            self.packer.end([item.id])
        self._job.state.item_ended(line)


def _description(line: Line) -> tuple[Any, ...]:
    return tuple(line.get(name) for name in DESCRIBED)
