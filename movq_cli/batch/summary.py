"""Summary of a manifest: counts, seconds of video, bytes, speed, and errors by frequency."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from .manifest import STATUSES, Line

K = TypeVar("K", str, tuple[int, ...])

_NUMBER = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True)
class Failure:
    """A reason for which `count` items failed; `example` is the path of one.

    Reasons that differ only in numbers count as one.
    """

    reason: str
    count: int
    example: str


@dataclass(frozen=True)
class Summary:
    """Sums over the items of a manifest. Orphans are only counted, in `orphans`. `counts` are by status, `skipped` by cause.

    The other fields, except `failures`, are about items that are done: `frames` and `video_seconds` that were kept,
    `bytes` of latents, `raw_bytes` of the frames as 8-bit RGB, `source_bytes` of the videos, `work_seconds` of all
    workers together. `padded` (without those padded because they were short), `dropped` and `captions` count items,
    `tars` the tars that hold some, `first_frames` the items by kind of first frame. `weights` are digests. `shapes` of
    latents and `warnings` come with counts, most frequent first; warnings that differ only in numbers count as one.
    """

    items: int
    counts: dict[str, int]
    skipped: dict[str, int]
    orphans: int
    frames: int
    video_seconds: float
    bytes: int
    raw_bytes: int
    source_bytes: int
    work_seconds: float
    padded: int
    dropped: int
    captions: int
    tars: int
    first_frames: dict[str, int]
    weights: list[str]
    precisions: list[str]
    shapes: list[tuple[list[int], int]]
    warnings: list[tuple[str, int]]
    failures: list[Failure]

    @property
    def frames_per_second(self) -> float:
        """The speed of one worker."""
        return self.frames / self.work_seconds if self.work_seconds else 0.0


def summarise(lines: Iterable[Line]) -> Summary:
    """Sum up the lines of a manifest in one pass. Their order does not matter."""
    counts, skipped, first_frames = (Counter[str]() for _ in range(3))
    reasons, warned = _Kinds(), _Kinds()
    items = orphans = frames = size = raw = source = padded = dropped = captions = 0
    shapes = Counter[tuple[int, ...]]()
    video, work = [], []
    weights, precisions, tars = set[str](), set[str](), set[str]()
    for line in lines:
        if line.get("orphan"):
            orphans += 1
            continue
        items += 1
        counts[line["status"]] += 1
        if line["status"] == "done":
            frames += line["frames"]
            size += line["bytes"]
            raw += line["frames"] * line["width"] * line["height"] * 3
            source += line["source"].size
            padded += line["padded"] > 0 and "short" not in line.get("options", {})
            dropped += line["dropped"] > 0
            captions += bool(line.get("caption"))
            if "member" in line:
                tars.add(line["output"])
            shapes[tuple(line["shape"])] += 1
            first_frames.update(line.get("first_frame", {}).keys())
            video.append(line["duration"])
            work.append(line["seconds"])
            weights.add(line["weights_digest"])
            precisions.add(line["precision"])
            for text in line["warnings"]:
                warned.add(text, text)
        elif line["status"] == "skipped":
            skipped[line.get("cause", "")] += 1
        else:
            reasons.add(line["reason"], (line["path"], line["reason"]))
    return Summary(
        items=items,
        counts={status: counts[status] for status in STATUSES},
        skipped=dict(sorted(skipped.items())),
        orphans=orphans,
        frames=frames,
        video_seconds=math.fsum(video),
        bytes=size,
        raw_bytes=raw,
        source_bytes=source,
        work_seconds=math.fsum(work),
        padded=padded,
        dropped=dropped,
        captions=captions,
        tars=len(tars),
        first_frames=dict(first_frames),
        weights=sorted(weights),
        precisions=sorted(precisions),
        shapes=[(list(shape), count) for shape, count in _by_count(shapes)],
        warnings=warned.most(),
        failures=[Failure(reason, count, path) for (path, reason), count in reasons.most()],
    )


class _Kinds:
    """Counts texts by kind: those that differ only in numbers are of one. Of each, the first example in order is kept."""

    def __init__(self) -> None:
        self._counts, self._examples = Counter[str](), dict[str, Any]()

    def add(self, text: str, example: Any) -> None:
        """Count a text."""
        kind = _NUMBER.sub("N", text)
        self._counts[kind] += 1
        self._examples[kind] = min(example, self._examples.get(kind, example))

    def most(self) -> list[tuple[Any, int]]:
        """Return an example of each kind with its count, the most frequent first."""
        return [(self._examples[kind], count) for kind, count in _by_count(self._counts)]


def _by_count(counter: Counter[K]) -> list[tuple[K, int]]:
    """Return keys with their counts, most frequent first, equally frequent ones in order."""
    return sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))
