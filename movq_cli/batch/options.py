"""`BatchOptions`: what a batch is made of and how it runs, besides how a video is encoded."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Any

from ..budget import one_of
from ..device import parse_bytes
from ..errors import MovqUsageError
from ..plan import EncodeOptions
from .shard import Shard
from .spans import Bucket, Pick, Spans
from .tars import LAYOUTS, SHARD_SIZE

TIMEOUT = 600.0
"""Seconds without progress after which a worker is taken to hang."""

ENGINES = ("local", "ray")


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """The defaults are those of `movq batch-encode`. Raises MovqUsageError for values that cannot be.

    Items: `lists` of them; `captions`, a file with one line for each; `buckets` ("FxHxW"), `pick` ("slide:8") and `short`
    cut items out of videos (spans.py); `shard` ("I/N") is the part of them that is made here.
    Running: `workers`, processes: None for as many as suit, 0 for this process itself (inline.py); `timeout` of workers, in
    seconds without progress; `verify`: read all videos and outputs that are there; `retry_failed`: try again what was refused;
    `replace`: make again what was made with other options or of another video of the same name; `engine` with `ray_address`
    and `ray_gpus`, of each worker.
    Output: `layout`, files or tar (None: as the folder has it, files in a new one), and the `shard_size` of tars.
    """

    lists: tuple[str, ...] = ()
    captions: str | None = None
    buckets: tuple[Bucket, ...] = ()
    pick: Pick | None = None
    short: str = "skip"
    shard: Shard | None = None
    workers: int | None = None
    timeout: float = TIMEOUT
    verify: bool = False
    retry_failed: bool = False
    replace: bool = False
    engine: str = "local"
    ray_address: str | None = None
    ray_gpus: float = 1.0
    layout: str | None = None
    shard_size: int = SHARD_SIZE

    def __post_init__(self) -> None:
        self.spans  # noqa: B018  # refuses what cannot be
        one_of("--engine", self.engine, ENGINES)
        if self.layout is not None:
            one_of("--layout", self.layout, LAYOUTS)
        for name, kind in (("shard", Shard), ("pick", Pick)):
            if not isinstance(value := getattr(self, name), kind | None):
                raise MovqUsageError(f"must be a text like that on the command line, got {value!r}", "--" + name)
        if self.workers is not None and self.workers < 0:
            raise MovqUsageError(f"must be 0 or more, got {self.workers}", "--workers")
        if self.workers == 0 and self.engine != "local":
            raise MovqUsageError("0 is this process: it goes with --engine local", "--workers")
        for name in ("timeout", "shard_size", "ray_gpus"):
            value = getattr(self, name)
            if not value > 0:
                raise MovqUsageError(f"must be above 0, got {value:g}", "--" + name.replace("_", "-"))
        if self.ray_gpus > 1 and self.ray_gpus % 1:
            raise MovqUsageError(f"above 1 must be a whole number, got {self.ray_gpus:g}", "--ray-gpus")

    @property
    def spans(self) -> Spans:
        return Spans(self.buckets, self.pick, self.short)


def split_overrides(
    options: EncodeOptions | None, batch: BatchOptions | None, overrides: dict[str, Any]
) -> tuple[EncodeOptions, BatchOptions]:
    """Both, with what is overridden by name; texts are read as on the command line. Raises MovqUsageError."""
    names = {field.name for field in fields(BatchOptions)}
    own = {name: overrides.pop(name) for name in names & set(overrides)}
    for name, read in (("pick", Pick.parse), ("shard", Shard.parse)):
        if isinstance(own.get(name), str):
            own[name] = read(own[name])
    if "buckets" in own:
        buckets = dict.fromkeys(Bucket.parse(one) if isinstance(one, str) else one for one in own["buckets"])
        own["buckets"] = tuple(buckets)
    if "lists" in own:
        own["lists"] = tuple(map(os.fspath, own["lists"]))
    if isinstance(own.get("shard_size"), str):
        own["shard_size"] = parse_bytes(own["shard_size"], "--shard-size")
    if own.get("captions") is not None:
        own["captions"] = os.fspath(own["captions"])
    return replace(options or EncodeOptions(), **overrides), replace(batch or BatchOptions(), **own)
