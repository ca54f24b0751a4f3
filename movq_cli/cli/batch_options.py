"""The options of `movq batch-encode` that other commands do not have, declared once."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import MovqUsageError
from .options import decorate

if TYPE_CHECKING:
    from ..batch import BatchOptions

_ITEMS, RUN, SHARDS, _OUTPUT = "Batch: items", "Batch: how it runs", "Batch: shards", "Batch: output"

Lists = Annotated[
    list[str] | None,
    typer.Option(
        "--list",
        rich_help_panel=_ITEMS,
        metavar="FILE",
        help="Text, CSV or JSON lines: path, and if wanted id, start, duration, caption; others go to the manifest.",
    ),
]
Captions = Annotated[
    str | None,
    typer.Option(
        "--captions",
        rich_help_panel=_ITEMS,
        metavar="FILE",
        help="A caption per line, for each row of the list, or each item in order of id. (default: clip.txt beside clip.mp4)",
    ),
]
Buckets = Annotated[
    list[str] | None,
    typer.Option(
        "--bucket",
        rich_help_panel=_ITEMS,
        metavar="FxHxW",
        help="Repeatable. Each video takes the longest that it fills, then the nearest in aspect; scaled and cropped to it.",
    ),
]
PickOption = Annotated[
    str | None,
    typer.Option(
        "--pick",
        rich_help_panel=_ITEMS,
        metavar="head|uniform:K|slide:S|random:K",
        help="Cut spans of --frames, or of the bucket: the first, K evenly, one each S frames, K drawn by --seed.",
    ),
]
Short = Annotated[
    str,
    typer.Option(
        "--short",
        rich_help_panel=_ITEMS,
        metavar="skip|pad",
        help="Videos with too few frames: only say so, or repeat their last frame.",
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        rich_help_panel=SHARDS,
        metavar="I/N|auto",
        help="Only this part of the videos: 0/8 to 7/8, or 1/8 to 8/8. auto: as SLURM or torchrun number this process.",
    ),
]
Workers = Annotated[
    str,
    typer.Option(
        "--workers",
        rich_help_panel=RUN,
        metavar="auto|N",
        help="Number of processes. auto: one per CUDA device, or per core. 0: this process, one item after the other, without "
        "a time limit or second attempts.",
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", rich_help_panel=RUN, metavar="S", help="Seconds without progress that a file is given up after."
    ),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", rich_help_panel=RUN, help="Try again what was refused before, too.")
]
Replace = Annotated[
    bool,
    typer.Option(
        "--replace",
        rich_help_panel=RUN,
        help="Make finished outputs again that were made with other weights or options, or of another video of that name.",
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        rich_help_panel=RUN,
        help="Read all videos and outputs that are there; try refused ones again.",
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        rich_help_panel=RUN,
        metavar="local|ray",
        help="Workers on this machine, or on a Ray cluster with shared storage.",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        rich_help_panel=RUN,
        metavar="ADDRESS",
        help="Of the cluster. (default: the one of this machine, or a new one on it)",
    ),
]
RayGpus = Annotated[
    float,
    typer.Option(
        "--ray-gpus",
        rich_help_panel=RUN,
        metavar="F",
        help="GPUs of each worker, where there are any; 0.5: two share one.",
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout",
        rich_help_panel=_OUTPUT,
        metavar="files|tar",
        help="A file for each item, or tars as WebDataset reads them. (default: as DIR has it, files in a new one)",
    ),
]
ShardSize = Annotated[
    str | None,
    typer.Option("--shard-size", rich_help_panel=_OUTPUT, metavar="SIZE", help="Of a tar, at most. (default: 1GB)"),
]


def _workers(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise MovqUsageError(f"must be auto or a number of processes, got {text!r}", "--workers")
    return int(text)


def batch_options(
    lists: Lists = None,
    captions: Captions = None,
    buckets: Buckets = None,
    pick: PickOption = None,
    short: Short = "skip",
    shard: ShardOption = None,
    workers: Workers = "auto",
    timeout: Timeout = 600.0,
    retry_failed: RetryFailed = False,
    replace: Replace = False,
    verify: Verify = False,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    ray_gpus: RayGpus = 1.0,
    layout: Layout = None,
    shard_size: ShardSize = None,
) -> BatchOptions:
    """BatchOptions. Raises MovqUsageError."""
    from ..batch import BatchOptions, Bucket, Pick, Shard
    from ..batch.tars import SHARD_SIZE
    from ..device import parse_bytes

    if shard_size is not None and layout != "tar":
        raise MovqUsageError("goes with --layout tar", "--shard-size")
    if engine != "ray" and (ray_address is not None or ray_gpus != 1.0):
        raise MovqUsageError("goes with --engine ray", "--ray-address" if ray_address is not None else "--ray-gpus")
    return BatchOptions(
        lists=tuple(lists or ()),
        captions=captions,
        buckets=tuple(dict.fromkeys(map(Bucket.parse, buckets or ()))),
        pick=None if pick is None else Pick.parse(pick),
        short=short,
        shard=None if shard is None else Shard.parse(shard),
        workers=_workers(workers),
        timeout=timeout,
        verify=verify,
        retry_failed=retry_failed,
        replace=replace,
        engine=engine,
        ray_address=ray_address,
        ray_gpus=ray_gpus,
        layout=layout,
        shard_size=SHARD_SIZE if shard_size is None else parse_bytes(shard_size, "--shard-size"),
    )


takes_batch_options = partial(decorate, "batch", batch_options, batch_options)
"""Decorates a command: its `batch` are BatchOptions, from all options above."""
