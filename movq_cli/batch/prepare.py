"""Everything in a batch before its first frame: find items, probe videos, cut items, compare them with the manifest.

Encoding and planning prepare in the same way, but only encoding creates the folder and locks it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..checkpoints.checkpoint import Checkpoint
from ..device import choose_device, choose_precision
from ..errors import MovqError, option
from ..files import os_reason, sweep
from ..model.config import AutoencoderConfig
from ..options import CODES, FIRST_FRAMES, INT8, NO_FIRST_FRAME, PRECISIONS, BatchOptions, EncodeOptions, batch_options
from ..plan import open_weights, representation
from ..shared import KnownSource
from ..targets import prepared_batch
from .cut import check_cut, cut_item, cut_to_dict, in_order, is_cut, spread_buckets
from .discover import Found, find_items
from .engines import require_ray
from .item import Item
from .locks import only_one
from .manifest import Line, Manifest, refuse_other_shards, video_of
from .presence import Presence
from .probe import Known, probe_items
from .record import Record, known_record, record_of
from .replace import refuse_to_replace
from .resume import Digests, ResumePlan, plan_resume
from .reuse import ReusePlan, plan_reuse
from .settings import Settings
from .state import BatchState, Watch
from .tars import Tars

THREADS = 1
"""CPU threads of each worker. It does not depend on the number of workers: threads change the last bits of a result."""


@dataclass
class Job:
    """A batch that is ready to begin.

    `found` has its videos, `items` the items cut out of them, in the order of encoding, `resume` those of them that are
    left to do, `reuse` which of these need not be encoded, `videos` what is known of videos that were read, by path, and
    `record` what the command was.
    """

    folder: str
    batch: BatchOptions
    checkpoint: Checkpoint
    found: Found
    state: BatchState
    manifest: Manifest
    settings: Settings
    tars: Tars
    items: list[Item]
    resume: ResumePlan
    reuse: ReusePlan
    videos: dict[str, KnownSource]
    record: Record


@contextmanager
def prepare(
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    options: EncodeOptions | None,
    batch: BatchOptions | None,
    overrides: dict[str, Any],
    watch: Watch,
    *,
    writing: bool,
) -> Iterator[Job]:
    """Prepare a Job from the arguments of `encode_batch`. If `writing`, create its folder and lock it in the `with`.

    Raises MovqError if sources, weights or the output folder are refused, and MovqUsageError if options are not valid.
    """
    typed = batch_options(options, batch, overrides)
    options, batch = prepared_batch(*typed)
    names = [os.fspath(source) for source in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
    folder = os.fspath(output)
    if batch.engine == "ray":
        require_ray()
    checkpoint = open_weights(options)
    batch = spread_buckets(batch, options, checkpoint.config)
    check_cut(batch, options, checkpoint.config)
    found = _find(names, batch, folder)
    state = BatchState(found, watch)
    with ExitStack() as stack:
        if writing:
            _make_folder(folder)
            stack.enter_context(only_one(folder, batch.shard))
            if batch.shard is None:  # other shards may be writing
                sweep(folder)
        manifest = Manifest(folder, batch.shard)
        stack.callback(manifest.close)
        settings = _settle(options, checkpoint, manifest, found, batch)
        items = _cut(found, manifest, settings, batch, checkpoint, state)
        tars = Tars(folder)
        digests = Digests()
        resume = _compare(items, manifest, settings, tars, digests, batch, state)
        presence = Presence(found.folders)
        refuse_to_replace(resume, items, manifest, settings, tars, presence, batch.replace)
        reuse = plan_reuse(resume.pending, items, manifest, settings, tars, digests, presence, verify=batch.verify)
        record = record_of(names, *typed, checkpoint, known_record(folder))
        known = digests.known()
        yield Job(
            folder, batch, checkpoint, found, state, manifest, settings, tars, items, resume, reuse, known, record
        )


def _find(names: Sequence[str], batch: BatchOptions, folder: str) -> Found:
    """Return the items of all videos, or those of the shard. Raises MovqError if the sources have no items."""
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise MovqError("is a file; name a folder", folder)
    if batch.shard is not None:
        refuse_other_shards(folder, batch.shard)
    columns = {column.field: column.name for column in batch.columns}
    found = find_items(names, batch.lists, folder, batch.captions, columns)
    if not found.items:
        raise MovqError("nothing to encode in it", ", ".join([*names, *batch.lists]))
    shard = batch.shard
    return found if shard is None else replace(found, items=[item for item in found.items if item.id in shard])


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise MovqError(os_reason(error), folder) from None
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise MovqError("permission denied", folder)


def _settle(
    options: EncodeOptions, checkpoint: Checkpoint, manifest: Manifest, found: Found, batch: BatchOptions
) -> Settings:
    """Return the settings of a batch.

    Precision and threads that options leave open are those of most of its finished outputs, and first frames are of all
    kinds that they have, so that all outputs are alike.
    """
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
    options = replace(
        options, precision=precision, threads=threads, short="refuse", first_frame=_first_frame(options, named)
    )
    if precision == "auto":
        # No output exists yet. Failed items are judged by this machine's precision, or tried again if others compute.
        failed = any(line.get("precision") for line in named) and batch.engine == "local"
        precision = choose_precision("auto", choose_device(options.device)) if failed else ""
    cut = cut_to_dict(batch, options)
    coded = options.store_dtype == INT8 or representation(options, checkpoint.config) == CODES
    return Settings(options, checkpoint.name, checkpoint.digest, semantics, precision, threads, cut=cut, coded=coded)


def _first_frame(options: EncodeOptions, named: Iterable[Line]) -> tuple[str, ...]:
    """Return the kinds of first frame that are asked for, or that any of these lines has."""
    if options.first_frame == (NO_FIRST_FRAME,):
        return options.first_frame
    known = {kind for line in named for kind in line.get("first_frame", ())}
    return tuple(kind for kind in FIRST_FRAMES if kind in options.first_frame or kind in known)


def _cut(
    found: Found,
    manifest: Manifest,
    settings: Settings,
    batch: BatchOptions,
    checkpoint: Checkpoint,
    state: BatchState,
) -> list[Item]:
    """Return the items to encode: the videos, not probed yet, or the items cut out of them if options ask for that."""
    if not is_cut(batch):
        return found.items
    fresh = batch.verify or settings.options.force
    known = None if fresh else Known(manifest.lines.values(), refused=not batch.retry_failed)
    parts = cut_items(found.items, batch, settings.options, checkpoint.config, known, state.video_looked_at)
    return in_order(parts)


def cut_items(
    items: Sequence[Item],
    batch: BatchOptions,
    options: EncodeOptions,
    config: AutoencoderConfig,
    known: Known | None = None,
    passed: Callable[[], None] = lambda: None,
) -> Iterator[Item]:
    """Probe the videos and yield the items cut out of each, in order. `passed` is called after each video."""
    for item in probe_items(items, options, known, spans=batch.pick is not None):
        yield from cut_item(item, batch, options, config)
        passed()


def _compare(
    items: list[Item],
    manifest: Manifest,
    settings: Settings,
    tars: Tars,
    digests: Digests,
    batch: BatchOptions,
    state: BatchState,
) -> ResumePlan:
    """Return the items that are left to do: all of them with the option `force`, or if the manifest is empty."""
    if settings.options.force:
        done = {id for id, line in manifest.lines.items() if line["status"] == "done"}
        forced = f"{option('force', True)} makes everything again"
        return ResumePlan(pending=items.copy(), reasons={item.id: forced for item in items if item.id in done})
    state.begin_checking(len(items))
    if not manifest.lines:
        state.item_checked(len(items))
        return ResumePlan(pending=items.copy())
    return plan_resume(
        items,
        manifest,
        settings,
        tars,
        digests,
        verify=batch.verify,
        retry_failed=batch.retry_failed,
        passed=state.item_checked,
    )
