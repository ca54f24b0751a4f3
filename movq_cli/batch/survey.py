"""`plan_batch`: what a batch would do, without doing it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from ..codec import fit_tail
from ..device import choose_device, choose_precision
from ..errors import MovqError, MovqShort
from ..plan import EncodeOptions, open_weights, stored_bytes
from ..video import Surveyed, survey
from .items import Found, Item
from .manifest import Line, Manifest
from .resume import in_threads
from .run import gather, settle, what_is_left
from .work import options_of

_PROCESSES = 2


@dataclass(frozen=True)
class PlannedItem:
    """What an item would take: `frames` kept and `padded`, at a size that includes padding; or why it would be refused."""

    item: Item
    frames: int = 0
    padded: int = 0
    width: int = 0
    height: int = 0
    refused: MovqError | None = None


@dataclass(frozen=True)
class BatchPlan:
    """`kept` are lines of items that would not be touched, `planned` the others. Bytes are of the latents to be made."""

    found: Found
    kept: list[Line]
    planned: list[PlannedItem]
    frames: int
    moments_bytes: int
    mean_bytes: int
    store_dtype: str


def plan_batch(
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    options: EncodeOptions | None = None,
    *,
    lists: Sequence[str | os.PathLike[str]] = (),
    verify: bool = False,
    retry_failed: bool = False,
    **overrides: Any,
) -> BatchPlan:
    """What `encode_batch` would do: frames are counted from packet times, not decoded. Raises as it would."""
    options = replace(options or EncodeOptions(), **overrides)
    folder = os.fspath(output)
    checkpoint = open_weights(options)
    config = checkpoint.config
    found = gather(sources, lists, folder)
    manifest = Manifest(folder)
    settings = settle(options, checkpoint, manifest, found)
    options = settings.options
    sorted_out = what_is_left(found, manifest, settings, folder, verify, retry_failed)

    def look(items: Sequence[Item]) -> list[PlannedItem]:
        wanted = [(item.path, options_of(item, options).selection) for item in items]
        surveyed = survey(wanted, options.picture, config.spatial_factor)
        return [
            _planned(item, what, options, config.temporal_factor) for item, what in zip(items, surveyed, strict=True)
        ]

    todo = sorted_out.todo
    parts = in_threads(look, (todo[i::_PROCESSES] for i in range(_PROCESSES)), _PROCESSES)
    planned = sorted(chain.from_iterable(parts), key=lambda plan: plan.item.id)
    numbers = sum(
        math.prod(config.latent_shape(plan.frames + plan.padded, plan.height, plan.width))
        for plan in planned
        if plan.refused is None
    )
    precision = choose_precision(options.precision, choose_device(options.device))
    store_dtype, item_bytes = stored_bytes(options, precision)
    halves = 2 if config.double_z else 1
    return BatchPlan(
        found=found,
        kept=sorted_out.kept,
        planned=planned,
        frames=sum(plan.frames for plan in planned),
        moments_bytes=numbers * item_bytes,
        mean_bytes=numbers // halves * item_bytes,
        store_dtype=store_dtype,
    )


def _planned(item: Item, found: Surveyed | MovqError, options: EncodeOptions, factor: int) -> PlannedItem:
    if item.problem or isinstance(found, MovqError):
        return PlannedItem(item, refused=found if isinstance(found, MovqError) else MovqError(item.problem))
    try:
        if not found.frames:
            raise MovqError("has no frame in the range asked for")
        wanted = options.selection.frames
        if wanted is not None and found.frames < wanted:
            raise MovqShort(f"has {found.frames} of the {wanted} frames asked for")
        padded, dropped = fit_tail(found.frames, options.tail, factor)
    except MovqError as error:
        return PlannedItem(item, refused=error)
    return PlannedItem(item, found.frames - dropped, padded, found.width, found.height)
