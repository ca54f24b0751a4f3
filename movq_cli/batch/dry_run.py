"""`plan_batch`: what a batch would do, without doing it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..device import choose_device, choose_precision
from ..options import BatchOptions, EncodeOptions, with_overrides
from ..plan import open_weights, stored_bytes
from .cut import check_cut, is_cut
from .discover import Found, Item
from .manifest import Line, Manifest
from .probe import cut_items
from .replace import refuse_to_replace
from .run import cut_as_wanted, gather, settle, what_is_left
from .tars import Tars


@dataclass(frozen=True)
class BatchPlan:
    """`kept` are lines of items that would not be touched, `planned` the other items, cut out of their videos: with a shape,
    or with the reason why they would be refused. Bytes are of the latents to be made, `frames` without padding.
    """

    found: Found
    kept: list[Line]
    planned: list[Item]
    frames: int
    moments_bytes: int
    mean_bytes: int
    store_dtype: str


def plan_batch(
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    options: EncodeOptions | None = None,
    batch: BatchOptions | None = None,
    **overrides: Any,
) -> BatchPlan:
    """What `encode_batch` would do: frames are counted from packet times, not decoded. Raises as it would."""
    options, batch = with_overrides(options, batch, overrides)
    folder = os.fspath(output)
    checkpoint = open_weights(options)
    config = checkpoint.config
    check_cut(batch, options, config)
    found = gather(sources, batch, folder)
    manifest = Manifest(folder, batch.shard)
    settings = settle(options, checkpoint, manifest, found, batch)
    options = settings.options
    items = cut_as_wanted(found, manifest, settings, batch, checkpoint)
    tars = Tars(folder)
    left = what_is_left(items, manifest, settings, tars, batch)
    refuse_to_replace(left, manifest, settings, tars, batch.replace)
    planned = left.todo if is_cut(batch) else cut_items(left.todo, batch, options, config)
    shapes = [item.shape for item in planned if item.refusal is None and item.shape is not None]
    numbers = sum(math.prod(config.latent_shape(*shape)) for shape in shapes)
    precision = choose_precision(options.precision, choose_device(options.device))
    store_dtype, item_bytes = stored_bytes(options, precision)
    halves = 2 if config.double_z else 1
    return BatchPlan(
        found=found,
        kept=left.kept,
        planned=planned,
        frames=sum(item.encoded_frames for item in planned),
        moments_bytes=numbers * item_bytes,
        mean_bytes=numbers // halves * item_bytes,
        store_dtype=store_dtype,
    )
