"""`plan_batch`: find out what `encode_batch` would do, without doing it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..device import choose_device, choose_precision
from ..errors import show_flags, show_names
from ..options import BatchOptions, EncodeOptions
from ..plan import stored_bytes
from .cut import is_cut
from .discover import Found
from .item import Item
from .manifest import Line
from .prepare import cut_items, prepare
from .reuse import Reuse
from .state import ignore


@dataclass(frozen=True)
class BatchPlan:
    """The work that a batch would do.

    `kept` are the lines of items that would not be touched; `planned` are the other items, cut out of their videos,
    each with a shape or with the reason why it would be refused. `frames` counts the frames to encode, without padding.
    `moments_bytes` and `mean_bytes` are the bytes of the latents to be made, for each of the two representations.
    `first_frames` are the items that are kept and get first frames, each with their kinds. `reuses` are items that get
    latents that are there, and `twins` those that get the latents of a planned item, by its id. `latent_sizes` are the
    different (height, width) of these latents. The method `reason` reads `reasons`.
    """

    found: Found
    kept: list[Line]
    planned: list[Item]
    frames: int
    moments_bytes: int
    mean_bytes: int
    store_dtype: str
    semantics: str
    latent_sizes: list[tuple[int, int]]
    reasons: dict[str, str]
    first_frames: list[tuple[Item, tuple[str, ...]]]
    reuses: list[Reuse]
    twins: dict[str, list[Item]]

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
        options, config, planned = job.settings.options, job.checkpoint.config, job.reuse.pending
        if not is_cut(job.batch):  # `prepare` has not looked at the videos: encoding does that one by one
            planned = list(cut_items(planned, job.batch, options, config))
    shapes = [item.shape for item in planned if item.refusal is None and item.shape is not None]
    numbers = sum(math.prod(config.latent_shape(*shape)) for shape in shapes)
    precision = choose_precision(options.precision, choose_device(options.device))
    store_dtype, item_bytes = stored_bytes(options, precision, config)
    halves = 2 if config.double_z else 1
    return BatchPlan(
        found=job.found,
        kept=job.resume.kept,
        planned=planned,
        frames=sum(item.encoded_frames for item in planned),
        moments_bytes=numbers * item_bytes,
        mean_bytes=numbers // halves * item_bytes,
        store_dtype=store_dtype,
        semantics=job.settings.semantics,
        latent_sizes=[config.latent_shape(*shape)[3:] for shape in dict.fromkeys(shapes)],
        reasons=job.resume.reasons,
        first_frames=job.resume.first_frames,
        reuses=job.reuse.reuses,
        twins={id: twins.items for id, twins in job.reuse.twins.items()},
    )
