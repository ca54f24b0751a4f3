"""The dry run of a batch: what it would make, replace, skip and take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import typer

from ..errors import CHOSEN
from ..values import format_bytes
from .items import about_item, by_cause, say_crops, say_found, say_orphans, say_unnamed, taken_over
from .show import complain, duration, name_of, odd_rows, plural, tail

if TYPE_CHECKING:
    from ..batch import BatchPlan, Item
    from ..batch.dry_run import Room

_CAPTION = 60  # characters of a caption
_SHAPES = 8


def print_plan(
    plan: BatchPlan, output: str, allowed: Callable[[int], float], *, quiet: bool, verbose: bool, prune: bool
) -> None:
    """Print what a batch would do. Exit with 1 if it would: if more would fail than is `allowed` of its items."""
    from .tables import print_pairs

    for line in _lines(plan, verbose):
        print(line)
    for item in plan.planned:
        if item.refusal is not None:
            complain(item.refusal.reason_with_flags, about_item(item.source_path, item.id))
    if not quiet:
        _remark(plan, output, prune)
    if prune:
        for orphan in plan.removable:
            print(f"{name_of(orphan)}: would be removed")
    print_pairs(dict(_rows(plan)), title=output)
    room = plan.room
    if room.problem is not None:
        complain(room.problem)
    too_large = room.output_bytes > room.free_bytes
    if too_large:
        complain(
            f"latents of {format_bytes(room.output_bytes)} do not fit: {format_bytes(room.free_bytes)} are free", output
        )
    if plan.failing > allowed(plan.items) or room.problem is not None or too_large:
        raise typer.Exit(1)


def _lines(plan: BatchPlan, verbose: bool) -> Iterator[str]:
    """Yield a line for each item that would get latents."""
    for item in plan.encoded:
        yield _planned_line(item, plan.reason(item, flags=True) if verbose else "")
    for reuse in plan.reuses:
        how = "moved from" if reuse.is_move else "copied from"
        yield f"{name_of(reuse.item.output)}: {how} {name_of(reuse.line['output'])}"
    outputs = {item.id: item.output for item in plan.planned}
    for id, twins in plan.twins.items():
        for twin in twins:
            yield f"{name_of(twin.output)}: copied from {name_of(outputs[id])}, as the videos are equal"


def _planned_line(item: Item, reason: str) -> str:
    _, height, width = item.shape or (0, 0, 0)
    caption = f"; {name_of(item.caption[:_CAPTION])}" if item.caption else ""
    again = f"; again: {name_of(reason)}" if reason else ""
    frames = plural(item.encoded_frames, "frame")
    return f"{name_of(item.output)}: {frames}{tail(item.padded, 0)}, {width}x{height}{caption}{again}"


def _remark(plan: BatchPlan, output: str, prune: bool) -> None:
    say_found(plan.found)
    say_crops([(item.source_path, item.kept) for item in plan.encoded])
    if remark := odd_rows(plan.latent_sizes, plan.semantics):
        complain(remark)
    if plan.room.largest is not None:
        for text in (*plan.room.largest.budget.warnings, *plan.room.largest.budget.remarks):
            complain(f"the largest item: {text}", output)
    if plan.unnamed:
        say_unnamed(plan.unnamed, output)
    if plan.orphans and not prune:
        say_orphans(plan.orphans, len(plan.removable), output)


def _rows(plan: BatchPlan) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table; those without text are left out."""
    good, room = plan.encoded, plan.room
    twins = sum(map(len, plan.twins.values()))
    before = Counter(line["status"] for line in plan.kept)
    skipped = Counter(item.refusal.cause for item in plan.planned if isinstance(item.refusal, CHOSEN))
    skipped.update(line.get("cause", "") for line in plan.kept if line["status"] == "skipped")
    again = Counter(plan.reason(item, flags=True) for item in good if item.id in plan.reasons)
    fails = len(plan.planned) - len(good) - sum(isinstance(item.refusal, CHOSEN) for item in plan.planned)
    shapes = [f"{count:,} of {'x'.join(map(str, shape))}" for shape, count in plan.shapes]
    yield "items", f"{plan.items:,}"
    yield "up to date", f"{before['done']:,}" if before["done"] else ""
    yield (
        "failed before",
        f"{before['failed']:,}; --retry-failed tries again what was refused" if before["failed"] else "",
    )
    yield "skipped", f"{skipped.total():,}{by_cause(skipped)}" if skipped else ""
    yield "would fail", f"{fails:,}" if fails else ""
    yield (
        "reused",
        taken_over(
            sum(reuse.is_move for reuse in plan.reuses), sum(not reuse.is_move for reuse in plan.reuses) + twins
        ),
    )
    yield "described anew", f"{plan.described:,} finished, with other captions or columns" if plan.described else ""
    yield "to encode", f"{len(good):,}, of {plural(plan.frames, 'frame')}"
    yield "shapes", ", ".join(shapes[:_SHAPES]) + (f", and {len(shapes) - _SHAPES:,} more" if shapes[_SHAPES:] else "")
    first = [f"{' and '.join(plan.first_frame)} of each item to encode"] if plan.first_frame and good else []
    first += [f"to add to {plural(len(plan.first_frames), 'finished item')}"] if plan.first_frames else []
    yield "first frames", "; ".join(first)
    yield "to pack", f"{plan.to_pack:,} into tars" if plan.to_pack else ""
    yield "again", "; ".join(f"{count:,}: {name_of(reason)}" for reason, count in again.most_common())
    yield (
        "output size",
        (
            f"{format_bytes(plan.moments_bytes)} for moments, {format_bytes(plan.mean_bytes)} for mean, in {plan.store_dtype}; "
            f"{format_bytes(room.free_bytes)} are free"
        ),
    )
    yield from _needs(room)


def _needs(room: Room) -> Iterator[tuple[str, str]]:
    if room.largest is not None:
        budget = room.largest.budget
        each = f" in each of {room.workers} workers" if room.workers > 1 else ""
        strips = f", the largest picture in {budget.strips} strips" if budget.strips > 1 else ""
        yield "peak memory", f"about {format_bytes(budget.memory_bytes)}{each}{strips}"
        spilled = f"up to {format_bytes(budget.spill_bytes)}{each}, to {name_of(budget.spill_dir)}"
        yield "spilled", spilled if budget.spill_bytes else ""
    if room.seconds is not None and room.speed is not None:
        ran = f"{plural(room.speed.workers, 'worker')} on {room.speed.device}"
        yield "time", f"about {duration(room.seconds)}, as fast as before ({ran})"
