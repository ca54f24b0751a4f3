"""`movq batch-encode SRC... -o DIR`: many videos, resumable."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import MovqUsageError, option
from ..options import BatchOptions, EncodeOptions
from ..targets import prepared_batch
from ..values import format_bytes
from . import options as o
from .items import counts_of, say_crops, say_found, say_orphans, say_unnamed, show_failures, taken_over
from .planned import print_plan
from .show import (
    compared,
    complain,
    duration,
    name_of,
    odd_rows,
    plural,
    say_shapes,
    say_target,
    say_whose_weights,
)

if TYPE_CHECKING:
    from ..batch import BatchResult, Line, Summary

_WARNINGS = 5


Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Folder for the latents; created if missing. Required, except with --merge and --again.",
    ),
]
Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="SRC", help='Folders, with all below them; files; quoted globs; "-": a list on stdin.'),
]
MaxFailures = Annotated[
    str,
    typer.Option(
        "--max-failures",
        rich_help_panel=o.RUN,
        metavar="N|P%",
        help="Still exit 0 with up to this many failures: a number, or a percentage. (default: 0)",
        show_default=False,
    ),
]
Merge = Annotated[
    str | None,
    typer.Option(
        "--merge",
        rich_help_panel=o.SHARDS,
        metavar="DIR",
        help="Only merge the manifests of all shards in this folder.",
    ),
]
Again = Annotated[
    str | None,
    typer.Option(
        "--again",
        rich_help_panel=o.RUN,
        metavar="DIR",
        help="Go on with the batch in this folder, by the sources and options of its own record.",
    ),
]
Prune = Annotated[
    bool,
    typer.Option(
        "--prune", rich_help_panel=o.RUN, help="At the end, remove leftover outputs and their lines; asks first."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", rich_help_panel=o.RUN, help="With --prune: do not ask.")]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        rich_help_panel=o.RESULT,
        help="With --dry-run: say why items would be made again.",
    ),
]


EXAMPLES = o.examples(
    ("movq batch-encode clips -o latents", "all videos below clips; run it again to make what is missing"),
    (
        "movq batch-encode --list clips.csv -o latents --bucket 49x480x720 --fps 8 --dry-run",
        "what a list would become",
    ),
)


@o.takes(options=EncodeOptions, batch=BatchOptions)
def batch_encode(
    output: Output = None,
    sources: Sources = None,
    *,
    options: EncodeOptions,
    batch: BatchOptions,
    max_failures: MaxFailures = "0",
    merge: Merge = None,
    again: Again = None,
    prune: Prune = False,
    yes: Yes = False,
    dry_run: o.DryRun = False,
    verbose: Verbose = False,
    quiet: o.Quiet = False,
) -> None:
    """Encode folders, files and lists of videos to a folder of latents. Skips outputs that are up to date."""
    from ..batch import encode_batch, plan_batch
    from .watch import watching

    if merge is not None:
        others = sources or output or prune or again or (options, batch) != (EncodeOptions(), BatchOptions())
        _merge(merge, dry_run, alone=not others)
        return
    if again is not None:
        sources, output, options, batch = _recorded(again, bool(sources or output), options, batch)
    folder = _checked(sources, output, batch)
    _check_switches(batch, dry_run, verbose, prune, yes)
    if not quiet:
        _say_what_is_set(*prepared_batch(options, batch))
    allowed = _allowed(max_failures)
    if dry_run:
        plan = plan_batch(sources or [], folder, options, batch)
        print_plan(plan, folder, allowed, quiet=quiet, verbose=verbose, prune=prune)
        return
    with watching(quiet) as watch, redirect_stdout(sys.stderr):  # Ray's messages go to stderr
        result = encode_batch(sources or [], folder, options, batch, watch=watch)
    _report(result, folder, quiet, *prepared_batch(options, batch))
    if prune:
        _prune(folder, result, yes)
    if result.stopped or result.failed > allowed(len(result.lines)):
        raise typer.Exit(1)


def _recorded(
    folder: str, named: bool, options: EncodeOptions, batch: BatchOptions
) -> tuple[list[str], str, EncodeOptions, BatchOptions]:
    """Return the sources, folder and options of a batch's own record, with those given that may differ, and print it."""
    from ..batch import read_record

    if named:
        raise MovqUsageError("takes the folder alone: sources and folder are those of its record", option="again")
    record = read_record(folder)
    complain(f"goes on with: {shlex.join([*record.command, '-o', os.path.relpath(folder)])}", folder)
    return [*record.sources], folder, *record.again(options, batch)


def _checked(sources: list[str] | None, output: str | None, batch: BatchOptions) -> str:
    """Return the output folder. Raises MovqUsageError if an option is missing, or has no effect with the others."""
    if not sources and not batch.lists:
        raise MovqUsageError("name a folder, files, a glob or a --list", "SRC")
    if output is None:
        raise MovqUsageError("name a folder for the latents", option="output")
    if batch.tar_size is not None and batch.layout != "tar":
        raise MovqUsageError(f"goes with {option('layout', 'tar')}", option="tar_size")
    for name, default in (("ray_address", None), ("ray_gpus", 1.0)):
        if batch.engine != "ray" and getattr(batch, name) != default:
            raise MovqUsageError(f"goes with {option('engine', 'ray')}", option=name)
    return output


def _check_switches(batch: BatchOptions, dry_run: bool, verbose: bool, prune: bool, yes: bool) -> None:
    """Raise MovqUsageError if a switch of the command has no effect with the others, or needs another."""
    if verbose and not dry_run:
        raise MovqUsageError(f"goes with {option('dry_run')}", option="verbose")
    if yes and not prune:
        raise MovqUsageError(f"goes with {option('prune')}", option="yes")
    if prune and batch.shard is not None:
        raise MovqUsageError(f"goes without {option('shard')}, as a shard does not know the others", option="prune")
    if prune and not (yes or dry_run or (sys.stdin and sys.stdin.isatty())):
        raise MovqUsageError(f"needs {option('yes')} where nobody can be asked", option="prune")


def _say_what_is_set(options: EncodeOptions, batch: BatchOptions) -> None:
    """Print what --for sets, and the buckets that --aspects makes of those that are named."""
    say_target(options, batch.buckets)
    if batch.aspects:
        from ..batch.cut import spread_buckets
        from ..plan import open_weights

        every = spread_buckets(batch, options, open_weights(options).config).buckets
        complain(f"buckets: {', '.join(map(str, every))}")


def _merge(folder: str, dry_run: bool, alone: bool) -> None:
    from ..batch import merge_shards, summarise

    if not alone:
        raise MovqUsageError("takes the folder alone: nothing is encoded", option="merge")
    whole = summarise(merge_shards(folder, dry_run=dry_run))
    would = " would be" if dry_run else ""
    print(f"{name_of(folder)}: {counts_of(whole)} of {plural(whole.items, 'item')}{would} in one manifest")


def _prune(folder: str, result: BatchResult, yes: bool) -> None:
    """Remove leftover outputs, after a question at a terminal, unless the batch was stopped."""
    from ..batch import prune_batch

    count = 0 if result.stopped else len(result.removable)
    if count and (yes or typer.confirm(f"Remove {plural(count, 'leftover output')}?", err=True)):
        removed = prune_batch(folder, result.removable)
        print(f"{name_of(folder)}: {plural(len(removed), 'leftover output')} removed")


def _allowed(text: str) -> Callable[[int], float]:
    """Return a function from the number of items to how many may fail. Raises MovqUsageError."""
    number, percent, rest = text.partition("%")
    try:
        most = float(number)
    except ValueError:
        most = -1
    if rest or not 0 <= most < float("inf"):
        raise MovqUsageError(
            f"must be a number of items, or a part of them like 1%, got {text!r}", option="max_failures"
        )
    return lambda count: most * count / 100 if percent else most


def _report(result: BatchResult, output: str, quiet: bool, options: EncodeOptions, batch: BatchOptions) -> None:
    from ..batch import summarise

    whole, new = summarise(result.lines), summarise(result.made)
    if not quiet:
        say_found(result.found)
        show_failures(whole, sys.stderr)
        _say_made(result.made, new)
        if result.unnamed:
            say_unnamed(result.unnamed, output)
        if result.orphans:
            say_orphans(result.orphans, len(result.removable), output)
    if result.stopped:
        complain(
            f"stopped: {result.stopped}; {plural(result.left, 'item')} left: the same command goes on with them", output
        )
    print(f"{name_of(output)}: {_result_line(result, whole, new)}")
    if quiet:
        return
    if batch.shard is not None and not result.stopped:
        complain("when all shards are done, batch-encode --merge makes one manifest of theirs", output)
    packed = sum("member" in line for line in result.lines)
    if batch.layout == "files" and packed:
        complain(f"{plural(packed, 'item')} in tars, which stay packed: --layout files is for new ones", output)
    if result.made:
        say_whose_weights(options)
        say_shapes(options, [line for line in result.lines if line["status"] == "done"])


def _say_made(made: list[Line], new: Summary) -> None:
    """Report changes to clips that users may not expect: crops, repeated and dropped frames; and warnings."""
    say_crops([(line["path"], _kept(line)) for line in made if _is_cropped(line)])
    done = [line for line in made if line["status"] == "done"]
    if done and (remark := odd_rows([(line["shape"][3], line["shape"][4]) for line in done], done[0]["semantics"])):
        complain(remark)
    clips = plural(new.counts["done"], "clip")
    if new.padded:
        complain(
            f"{new.padded:,} of {clips} have their last frame repeated to fill the last latent; "
            "--tail drop leaves such frames out instead"
        )
    if new.dropped:
        complain(f"{new.dropped:,} of {clips} had frames at their end left out (--tail drop)")
    if new.warnings:
        warned = plural(sum(bool(line.get("warnings")) for line in made), "clip")
        most = ", ".join(f"{text} ({count:,})" for text, count in new.warnings[:_WARNINGS])
        complain(f"{warned} with warnings, which the manifest and the headers have; most often: {most}")


def _result_line(result: BatchResult, whole: Summary, new: Summary) -> str:
    counts, items, took = counts_of(whole), plural(whole.items, "item"), duration(result.seconds)
    added = f"; first frames added to {plural(result.added, 'item')}" if result.added else ""
    if taken := taken_over(len(result.moved), len(result.copied)):
        added = f"; {taken}{added}"
    if not result.made:
        again = "; --retry-failed tries the failed ones again" if whole.counts["failed"] else ""
        news = f"; {plural(result.described, 'item')} described differently" if result.described else ""
        news += f"; {plural(result.tars, 'tar')} written" if result.tars else ""
        if added:
            return f"{items}: {counts}{added}{news}; in {took}{again}"
        return f"{items}, nothing new: {counts}{news}; checked in {took}{again}"
    if not new.counts["done"]:
        return f"{counts} of {items}{added or '; nothing was made'} in {took}"
    earlier = whole.items - new.items - len(result.moved) - len(result.copied)
    before = f", {earlier:,} of them before" if earlier else ""
    workers = plural(result.workers, "worker") if result.workers else "this process"
    return (
        f"{counts} of {items}{before}; {duration(new.video_seconds)} of video to {format_bytes(new.bytes)} "
        f"({compared(new.bytes, new.raw_bytes, 'raw RGB')}, {compared(new.bytes, new.source_bytes, 'the sources')}) "
        f"in {took} by {workers}, {new.frames / result.seconds:.1f} frames/s{added}"
    )


def _is_cropped(line: Line) -> bool:
    return line["status"] == "done" and "seen" in line and "buckets" in line.get("cut", {})


def _kept(line: Line) -> float:
    """Return the fraction of a video's picture that its crop keeps."""
    from ..video import part_kept

    seen, bucket = line["seen"], line["options"]
    return part_kept((seen.width, seen.height), (bucket["width"], bucket["height"]), (line["width"], line["height"]))
