"""Buckets and spans: which frames of a video become items, and at which size.

All of this follows from the number of frames and the size of a video, before any of it is encoded.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from ..codec import fit_tail
from ..errors import MovqError, MovqTooShortError, MovqTooSmallError, MovqUsageError, MovqWarning, option
from ..files import mark_of
from ..model.config import AutoencoderConfig
from ..options import PAD, BatchOptions, EncodeOptions, Picture
from ..plan import too_short
from ..values import Bucket
from ..video import VideoFacts, plan_geometry
from ..video.geometry import Orientation, on_multiple
from .item import Item
from .names import span_output

_LENGTH = f"{option('frames')} or {option('buckets')}"
_SIZE = f"{option('height')}, {option('width')}, {option('short_side')} and {option('fit')}"


def is_cut(batch: BatchOptions) -> bool:
    """Return True if the items depend on the numbers of frames and the sizes of the videos."""
    return bool(batch.buckets) or batch.pick is not None or batch.short == "pad"


def cut_to_dict(batch: BatchOptions, options: EncodeOptions) -> dict[str, Any]:
    """Return how all videos are cut, for the manifest; empty if they are not cut."""
    if not is_cut(batch):
        return {}
    asked = {
        "buckets": sorted(str(bucket) for bucket in batch.buckets),
        "pick": batch.pick and str(batch.pick),
        "frames": options.selection.frames,
        "short": batch.short,
    }
    return {name: value for name, value in asked.items() if value}


def spread_buckets(batch: BatchOptions, options: EncodeOptions, config: AutoencoderConfig) -> BatchOptions:
    """Return the options with the siblings that `aspects` asks for among the buckets, as if each had been named.

    Raises MovqUsageError if no bucket is named, by the user or the target.
    """
    if not batch.aspects:
        return batch
    if not batch.buckets:
        raise MovqUsageError(f"needs {option('buckets')}, whose siblings it adds", option="aspects")
    multiple = options.picture.padding(config.spatial_factor)
    every = dict.fromkeys(sibling for bucket in batch.buckets for sibling in bucket.siblings(multiple))
    return replace(batch, buckets=tuple(every), aspects=False)


def check_cut(batch: BatchOptions, options: EncodeOptions, config: AutoencoderConfig) -> None:
    """Raise MovqUsageError if options do not go together; warn of buckets whose sizes are padded or cropped."""
    frames, picture = options.selection.frames, options.picture
    if batch.pick is not None and not batch.buckets and frames is None:
        raise MovqUsageError(f"needs {_LENGTH}, which say how long a span is", option="pick")
    if batch.short == "pad" and not batch.buckets and frames is None:
        raise MovqUsageError(f"pad needs {_LENGTH}, which say how long a clip must be", option="short")
    if batch.buckets and picture != Picture(**picture.allowing):
        raise MovqUsageError(f"goes without {_SIZE}: it says the size", option="buckets")
    if frames is not None and batch.buckets and frames < (shortest := min(b.frames for b in batch.buckets)):
        raise MovqUsageError(f"{frames} is less than the shortest bucket needs, {shortest}", option="frames")
    for bucket in batch.buckets:
        if picture.multiple is not None and picture.edge == PAD:
            _refuse_other_sizes(bucket, picture.multiple)
        multiple = picture.padding(config.spatial_factor)
        full = on_multiple((bucket.height, bucket.width), multiple, picture.edge)
        if not all(full):
            raise MovqUsageError(f"{bucket} is too small to be cropped to multiples of {multiple}", option="buckets")
        if full != (bucket.height, bucket.width):
            how = "its edge is repeated up to" if picture.edge == PAD else "it is cropped to"
            text = f"--bucket {bucket}: {how} {full[0]}x{full[1]}, which latents fill"
            warnings.warn(MovqWarning(text), stacklevel=3)


def _refuse_other_sizes(bucket: Bucket, multiple: int) -> None:
    """Raise MovqUsageError, naming the nearest, if a bucket's sides are not multiples of a number."""
    near = Bucket(bucket.frames, *(max(1, round(side / multiple)) * multiple for side in (bucket.height, bucket.width)))
    if near != bucket:
        raise MovqUsageError(
            f"{bucket} is not a multiple of {multiple} in height and width; the nearest is {near}", option="buckets"
        )


def cut_item(item: Item, batch: BatchOptions, options: EncodeOptions, config: AutoencoderConfig) -> list[Item]:
    """Return the items cut out of a video whose facts are known, or the item itself with the reason why none can be.

    Without a pick, a video is one item.
    """
    if item.refusal is not None:
        return [item]
    try:
        return _cut_item(item, batch, options, config)
    except MovqError as error:
        return [item.updated(refusal=error.bare())]


def _cut_item(item: Item, batch: BatchOptions, options: EncodeOptions, config: AutoencoderConfig) -> list[Item]:
    facts = item.facts
    assert facts is not None
    if not facts.frames:
        raise MovqError("has no frame in the range asked for")
    length, size, picture = item.frames or options.selection.frames, None, options.picture
    if length is not None and facts.frames < length and batch.short != "pad":
        raise too_short(facts.frames, length)
    if batch.buckets:
        bucket = _bucket(facts, min(facts.frames, length or facts.frames), batch, picture.upscale, _at(options))
        length, size = bucket.frames, (bucket.height, bucket.width)
        picture = Picture(*size, **picture.allowing)
    kept = min(facts.frames, length or facts.frames)
    pad = length is not None and kept < length
    padded, dropped = fit_tail(kept, options.tail, config.temporal_factor, length or 0)
    height, width = _encoded_size(facts.width, facts.height, picture, config.spatial_factor)
    shape = kept - dropped + padded, height, width
    item = item.updated(frames=length, size=size, pad=pad, shape=shape, padded=padded)
    if batch.pick is None:
        return [item]
    assert length is not None
    starts = batch.pick.starts(facts.frames, length, f"{options.seed} {item.id}")
    return [_span(item, start, length) for start in starts]


@lru_cache(1024)
def _encoded_size(width: int, height: int, picture: Picture, factor: int) -> tuple[int, int]:
    """Return the height and width that a video of width x height is encoded in. Raises MovqError if it is too small."""
    geometry = plan_geometry(width, height, Fraction(1), Orientation(), picture, picture.padding(factor))
    return geometry.padded_height, geometry.padded_width


def _at(options: EncodeOptions) -> str:
    """Return the rate asked for, as a part of a message."""
    fps = options.selection.fps
    return "" if fps is None else f" at {option('fps', f'{float(fps):g}')}"


def _bucket(facts: VideoFacts, frames: int, batch: BatchOptions, upscale: bool, at: str) -> Bucket:
    """Return the longest bucket that fits; of several, the nearest in aspect ratio.

    Of buckets equal in both, one that does not enlarge the picture comes first, then the largest. `at` is the rate asked
    for, in words. Raises MovqError if none fits.
    """
    shortest = min(bucket.frames for bucket in batch.buckets)
    if shortest > frames:
        if batch.short != "pad":
            raise MovqTooShortError(f"has only {frames} frames{at}; the shortest bucket needs {shortest}")
        frames = shortest
    fitting = [bucket for bucket in batch.buckets if bucket.frames <= frames]
    fitting = [bucket for bucket in fitting if upscale or not bucket.enlarges(facts.width, facts.height)]
    if not fitting:
        raise MovqTooSmallError(
            f"shows {facts.width}x{facts.height}, which would be enlarged for every bucket of up to {frames} frames; "
            f"{option('upscale', True)} allows it"
        )

    def rank(bucket: Bucket) -> tuple[float, ...]:
        aspect = abs(math.log(bucket.width * facts.height / (bucket.height * facts.width)))
        enlarges = bucket.enlarges(facts.width, facts.height)
        return -bucket.frames, round(aspect, 9), enlarges, -bucket.height * bucket.width

    return min(fitting, key=rank)


def _span(item: Item, start: int, length: int) -> Item:
    name = f"_{start}-{length}"
    return item.updated(id=item.id + name, output=span_output(item.output, name), of=item.id, skip=start)


def in_order(items: Iterable[Item]) -> list[Item]:
    """Return items sorted by shape, those of one shape in their old order, each with an id of its own.

    An item that is not a span keeps the id of its video, with a mark added if a span of another video has the same id.
    """
    items = list(items)
    spans = {item.id for item in items if item.of}
    apart = (
        item.updated(id=item.id + mark_of(item.source_path)) if not item.of and item.id in spans else item
        for item in items
    )
    return sorted(apart, key=lambda item: item.shape or ())
