"""`plan_batch`: find out what `encode_batch` would do, without doing it."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..device import available_memory, choose_device, choose_precision, usable_cores
from ..errors import CHOSEN, MovqError, show_flags, show_names
from ..options import BatchOptions, EncodeOptions
from ..plan import Plan, plan_encode, representation, stored_bytes
from .cut import is_cut
from .discover import Found
from .engines import LocalEngine, Ready
from .item import Item
from .manifest import Line, count_described, files_of
from .orphans import count_unnamed, find_orphans, mark_orphans, place_of, removable
from .prepare import Job, cut_items, prepare
from .presence import Presence
from .record import Speed
from .reuse import Reuse
from .state import ignore


@dataclass(frozen=True)
class Room:
    """The memory and disk that a batch takes, and how long.

    `workers` is how many would run, 0 if nothing is to be encoded. `largest` is the plan of the item with the most pixels in
    one of them, or `problem` why it has none. `output_bytes` are those of the latents to be made, `free_bytes` those of the
    disk. `seconds` is None if no run in the folder has measured a speed, which `speed` is.
    """

    workers: int
    largest: Plan | None
    problem: MovqError | None
    output_bytes: int
    free_bytes: int
    seconds: float | None
    speed: Speed | None


@dataclass(frozen=True)
class BatchPlan:
    """The work that a batch would do.

    `kept` are the lines of items that would not be touched, and `described` how many of them have another caption or other
    columns now; `planned` are the other items, cut out of their videos, each with a shape or with the reason why it would be
    refused. `frames` counts the frames to encode, without padding. `moments_bytes` and `mean_bytes` are the bytes of the
    latents to be made, for each of the two representations. `first_frames` are the items that are kept and get first
    frames, each with their kinds; `first_frame` are the kinds that items to encode get. `reuses` are items that get latents
    that are there, and `twins` those that get the latents of a planned item, by its id. `latent_sizes` are the different
    (height, width) of these latents. `orphans` are outputs that no item would have any more, and `removable` those that
    `prune_batch` would remove. `unnamed` counts finished items that this batch does not name, `to_pack` those that would go
    into tars. The method `reason` reads `reasons`.
    """

    found: Found
    kept: list[Line]
    described: int
    planned: list[Item]
    frames: int
    moments_bytes: int
    mean_bytes: int
    store_dtype: str
    semantics: str
    latent_sizes: list[tuple[int, int]]
    reasons: dict[str, str]
    first_frames: list[tuple[Item, tuple[str, ...]]]
    first_frame: tuple[str, ...]
    reuses: list[Reuse]
    twins: dict[str, list[Item]]
    orphans: list[str]
    removable: list[str]
    unnamed: int
    to_pack: int
    room: Room

    @property
    def encoded(self) -> list[Item]:
        """The items that would be encoded."""
        return [item for item in self.planned if item.refusal is None]

    @property
    def items(self) -> int:
        """The number of items."""
        return len(self.kept) + len(self.planned) + len(self.reuses) + sum(map(len, self.twins.values()))

    @property
    def failing(self) -> int:
        """The number of items that would fail, or failed before and are not tried again."""
        refused = sum(item.refusal is not None and not isinstance(item.refusal, CHOSEN) for item in self.planned)
        return refused + sum(line["status"] == "failed" for line in self.kept)

    @property
    def shapes(self) -> list[tuple[tuple[int, int, int], int]]:
        """The shapes (frames, height, width) of items that would be encoded, with counts, the most frequent first."""
        return Counter(item.shape for item in self.encoded if item.shape is not None).most_common()

    def reason(self, item: Item, *, flags: bool = False) -> str:
        """Return why an item would be made again; "" if the manifest does not know it.

        The text names options as in Python, or as on the command line with `flags`.
        """
        return (show_flags if flags else show_names)(self.reasons.get(item.id, ""))


def plan_batch(
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    options: EncodeOptions | None = None,
    batch: BatchOptions | None = None,
    **overrides: Any,
) -> BatchPlan:
    """Return the work that `encode_batch` would do. Frames are counted from packet times, not decoded.

    Raises the same errors as `encode_batch`.
    """
    with prepare(sources, output, options, batch, overrides, ignore, writing=False) as job:
        options, config, planned = job.settings.options, job.checkpoint.config, [*job.reuse.pending]
        if not is_cut(job.batch):  # `prepare` has not looked at the videos: encoding does that one by one
            planned = list(cut_items(planned, job.batch, options, config))
        twins = {id: twins.items for id, twins in job.reuse.twins.items()}
        for leader in [item for item in planned if item.refusal is not None and item.id in twins]:
            planned += [twin.updated(refusal=leader.refusal) for twin in twins.pop(leader.id)]
        described = count_described(job.manifest, job.resume.kept)
        orphans = _orphans(job, planned)
        lines = job.manifest.lines.values()
    good = [item for item in planned if item.refusal is None]
    shapes = [item.shape for item in good if item.shape is not None]
    numbers = sum(math.prod(config.latent_shape(*shape)) for shape in shapes)
    precision = job.settings.precision or choose_precision(options.precision, choose_device(options.device))
    store_dtype, item_bytes = stored_bytes(options, precision, config)
    halves = 2 if config.double_z else 1
    moments_bytes, mean_bytes = numbers * item_bytes, numbers // halves * item_bytes
    saved = moments_bytes if representation(options, config) == "moments" else mean_bytes
    saved += sum(reuse.line["bytes"] for reuse in job.reuse.reuses if not reuse.is_move)
    return BatchPlan(
        found=job.found,
        kept=job.resume.kept,
        described=described,
        planned=planned,
        frames=sum(item.encoded_frames for item in planned),
        moments_bytes=moments_bytes,
        mean_bytes=mean_bytes,
        store_dtype=store_dtype,
        semantics=job.settings.semantics,
        latent_sizes=[config.latent_shape(*shape)[3:] for shape in dict.fromkeys(shapes)],
        reasons=job.resume.reasons,
        first_frames=job.resume.first_frames,
        first_frame=options.first_frames,
        reuses=job.reuse.reuses,
        twins=twins,
        orphans=orphans,
        removable=removable(lines, orphans),
        unnamed=count_unnamed(job.manifest, job.items) if job.batch.shard is None else 0,
        to_pack=_to_pack(job, planned),
        room=_room(job, good, saved),
    )


def _orphans(job: Job, planned: Sequence[Item]) -> list[str]:
    """Return the outputs that would be orphans after the batch. Changes only the lines that the job holds in memory."""
    manifest = job.manifest
    if job.batch.shard is not None or not os.path.isdir(job.folder):
        return []
    manifest.lines |= {line["id"]: line for line in job.resume.kept}
    moved = [reuse.line for reuse in job.reuse.reuses if reuse.is_move]
    for line in moved:
        manifest.lines.pop(line["id"], None)
    mark_orphans(manifest, job.items, job.folder, Presence(job.found.folders))
    replaced = {place_of(said) for line in moved for said in files_of(line)} | {item.output for item in planned}
    return [place for place in find_orphans(manifest, job.folder) if place not in replaced]


def _to_pack(job: Job, planned: Sequence[Item]) -> int:
    """Return how many items would go from files, or from encoding, into tars."""
    packed = any("member" in line for line in job.manifest.lines.values())
    if (job.batch.layout or ("tar" if packed else "files")) != "tar":
        return 0
    new = sum(item.refusal is None for item in planned) + len(job.reuse.reuses)
    return new + sum(line["status"] == "done" and "member" not in line for line in job.resume.kept)


def _room(job: Job, good: Sequence[Item], output_bytes: int) -> Room:
    """Return what a batch takes that encodes these items."""
    options, batch = job.settings.options, job.batch
    workers = largest = problem = None
    if good:  # torch is imported only then
        device = choose_device(options.device)
        cuda, memory = device.type == "cuda", options.memory_budget or available_memory(device)
        ready = Ready("", str(device), int(cuda), memory, usable_cores(), "")
        workers = LocalEngine(options).suitable(ready) if batch.workers is None else batch.workers
        workers = max(1, min(len(good), workers))
        item = max(good, key=lambda item: math.prod(item.shape[1:] if item.shape else ()))
        own = replace(item.encode_options(options), memory_budget=memory if cuda else memory // workers)
        try:
            largest = plan_encode(item.source_path, own.beside(os.path.join(job.folder, item.output)))
        except MovqError as error:
            problem = error.named(item.source_path)
    speed = job.record.speed
    pixels = sum(math.prod(item.shape or ()) for item in good)
    place = job.folder
    while not os.path.isdir(place):
        place = os.path.dirname(os.path.abspath(place))
    return Room(
        workers=workers or 0,
        largest=largest,
        problem=problem,
        output_bytes=output_bytes,
        free_bytes=shutil.disk_usage(place).free,
        seconds=pixels / speed.pixels_per_second if speed is not None and pixels else None,
        speed=speed,
    )
