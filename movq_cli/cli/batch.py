"""`movq batch-encode SRC... -o DIR`: many videos, resumable."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from ..errors import CHOSEN, MovqUsageError, option, show_flags
from ..options import BatchOptions, EncodeOptions
from ..targets import prepared_batch
from ..values import format_bytes
from . import options as o
from .show import (
    LEAST_PART,
    compared,
    complain,
    duration,
    name_of,
    odd_rows,
    plural,
    say_shapes,
    say_target,
    say_whose_weights,
    tail,
)

if TYPE_CHECKING:
    from ..batch import BatchPlan, BatchResult, Found, Item, Line, Summary

_NAMES, _REASONS = 5, 20
_CAPTION = 60  # characters of a caption that a dry run shows


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
    dry_run: o.DryRun = False,
    verbose: Verbose = False,
    quiet: o.Quiet = False,
) -> None:
    """Encode folders, files and lists of videos to a folder of latents. Skips outputs that are up to date."""
    from ..batch import encode_batch, plan_batch
    from .watch import watching

    if merge is not None:
        _merge(
            merge, alone=not (sources or output or dry_run) and (options, batch) == (EncodeOptions(), BatchOptions())
        )
        return
    if again is not None:
        sources, output, options, batch = _recorded(again, bool(sources or output), options, batch)
    folder = _checked(sources, output, batch, verbose and not dry_run)
    if not quiet:
        _say_what_is_set(*prepared_batch(options, batch))
    allowed = _allowed(max_failures)
    if dry_run:
        _print_plan(plan_batch(sources or [], folder, options, batch), folder, quiet, verbose)
        return
    with watching(quiet) as watch, redirect_stdout(sys.stderr):  # Ray's messages go to stderr
        result = encode_batch(sources or [], folder, options, batch, watch=watch)
    _report(result, folder, quiet, *prepared_batch(options, batch))
    failed = sum(line["status"] == "failed" for line in result.lines)
    if result.stopped or failed > allowed(len(result.lines)):
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


def _checked(sources: list[str] | None, output: str | None, batch: BatchOptions, verbose: bool) -> str:
    """Return the output folder. Raises MovqUsageError if an option is missing, or has no effect with the others."""
    if not sources and not batch.lists:
        raise MovqUsageError("name a folder, files, a glob or a --list", "SRC")
    if output is None:
        raise MovqUsageError("name a folder for the latents", option="output")
    if verbose:
        raise MovqUsageError(f"goes with {option('dry_run')}", option="verbose")
    if batch.tar_size is not None and batch.layout != "tar":
        raise MovqUsageError(f"goes with {option('layout', 'tar')}", option="tar_size")
    for name, default in (("ray_address", None), ("ray_gpus", 1.0)):
        if batch.engine != "ray" and getattr(batch, name) != default:
            raise MovqUsageError(f"goes with {option('engine', 'ray')}", option=name)
    return output


def _say_what_is_set(options: EncodeOptions, batch: BatchOptions) -> None:
    """Print what --for sets, and the buckets that --aspects makes of those that are named."""
    say_target(options, batch.buckets)
    if batch.aspects:
        from ..batch.cut import spread_buckets
        from ..plan import open_weights

        every = spread_buckets(batch, options, open_weights(options).config).buckets
        complain(f"buckets: {', '.join(map(str, every))}")


def _merge(folder: str, alone: bool) -> None:
    from ..batch import merge_shards, summarise

    if not alone:
        raise MovqUsageError("takes the folder alone: nothing is encoded", option="merge")
    whole = summarise(merge_shards(folder))
    print(f"{name_of(folder)}: {counts_of(whole)} of {plural(whole.items, 'item')} in one manifest")


def counts_of(whole: Summary) -> str:
    """Return how many items have each status: `11 done, 1 skipped (short)`."""
    counts = ((status, count) for status, count in whole.counts.items() if count)
    return ", ".join(
        f"{count:,} {status}{by_cause(whole.skipped) if status == 'skipped' else ''}" for status, count in counts
    )


def by_cause(counts: Mapping[str, int]) -> str:
    """Return the causes for which items are skipped, with their counts if there are several: ` (3 short, 1 small)`."""
    return f" ({', '.join(f'{count:,} {cause}' if len(counts) > 1 else cause for cause, count in counts.items())})"


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
        _say_found(result.found)
        show_failures(whole, sys.stderr)
        _say_made(result.made, new)
        if result.orphans:
            say_orphans(result.orphans, output)
    if result.stopped:
        complain(
            f"stopped: {result.stopped}; {plural(result.left, 'item')} left: the same command goes on with them", output
        )
    print(f"{name_of(output)}: {_result_line(result, whole, new)}")
    if quiet:
        return
    if batch.shard is not None and not result.stopped:
        complain("when all shards are done, batch-encode --merge makes one manifest of theirs", output)
    if result.made:
        say_whose_weights(options)
        say_shapes(options, [line for line in result.lines if line["status"] == "done"])


def _say_made(made: list[Line], new: Summary) -> None:
    """Report changes to clips that users may not expect: crops, repeated and dropped frames; and warnings."""
    _say_crops([(line["path"], _kept(line)) for line in made if _is_cropped(line)])
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
        most = ", ".join(f"{text} ({count:,})" for text, count in new.warnings[:_NAMES])
        complain(f"{warned} with warnings, which the manifest and the headers have; most often: {most}")


def _result_line(result: BatchResult, whole: Summary, new: Summary) -> str:
    counts, items, took = counts_of(whole), plural(whole.items, "item"), duration(result.seconds)
    added = f"; first frames added to {plural(result.added, 'item')}" if result.added else ""
    if taken := say_taken(len(result.moved), len(result.copied)):
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
    before = f", {whole.items - new.items:,} of them before" if whole.items > new.items else ""
    workers = plural(result.workers, "worker") if result.workers else "this process"
    return (
        f"{counts} of {items}{before}; {duration(new.video_seconds)} of video to {format_bytes(new.bytes)} "
        f"({compared(new.bytes, new.raw_bytes, 'raw RGB')}, {compared(new.bytes, new.source_bytes, 'the sources')}) "
        f"in {took} by {workers}, {new.frames / result.seconds:.1f} frames/s{added}"
    )


def say_taken(moved: int, copied: int) -> str:
    """Return how many items got latents that were there: `1 moved with its video, 2 copied from equal videos`."""
    words = [f"{moved:,} moved with {'its video' if moved == 1 else 'their videos'}"] if moved else []
    words += [f"{copied:,} copied from {'an equal video' if copied == 1 else 'equal videos'}"] if copied else []
    return ", ".join(words)


def show_failures(summary: Summary, file: TextIO | None = None) -> None:
    """Print a table of the reasons for failures, the most frequent first."""
    from .tables import print_rows

    if summary.failures:
        rows = [[failure.reason, f"{failure.count:,}", failure.example] for failure in summary.failures[:_REASONS]]
        if len(summary.failures) > _REASONS:
            rest = summary.failures[_REASONS:]
            rows.append([f"{len(rest)} other reasons", f"{sum(failure.count for failure in rest):,}", ""])
        print_rows(["why items failed", "items", "for example"], rows, file)


def say_orphans(orphans: list[str], output: str) -> None:
    """Report the outputs that belong to no item."""
    complain(
        f"{plural(len(orphans), 'leftover output')}, whose video is gone, changed or cut differently: {_some(orphans)}",
        output,
    )


def _say_found(found: Found) -> None:
    """Report the files that were skipped, by reason and with some names, and columns that movq does not use."""
    for reason, count in sorted(Counter(reason for _, reason in found.ignored).items()):
        names = _some([os.path.basename(path) for path, why in found.ignored if why == reason])
        complain(f"skipped {count:,}, {reason}: {names}")
    for name, remark in found.remarks:
        complain(show_flags(remark), name)
    if found.extra:
        complain(f"columns that are kept as they are, in the manifest's extra: {', '.join(found.extra)}")


def _is_cropped(line: Line) -> bool:
    return line["status"] == "done" and "seen" in line and "buckets" in line.get("cut", {})


def _kept(line: Line) -> float:
    """Return the fraction of a video's picture that its crop keeps."""
    from ..video import part_kept

    seen, bucket = line["seen"], line["options"]
    return part_kept((seen.width, seen.height), (bucket["width"], bucket["height"]), (line["width"], line["height"]))


def _say_crops(parts: list[tuple[str, float]]) -> None:
    """Report, of (path, fraction of the picture that is kept), those that keep less than LEAST_PART."""
    bad = sorted((part, path) for path, part in parts if part < LEAST_PART)
    if bad:
        part, path = bad[0]
        complain(
            f"{plural(len(bad), 'item')} {'loses' if len(bad) == 1 else 'lose'} more than half of the picture to cropping "
            f"({path} keeps {part:.0%}): add a "
            "--bucket closer to that shape, with as many frames"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMES]) + (", ..." if len(names) > _NAMES else "")


def _print_plan(plan: BatchPlan, output: str, quiet: bool, verbose: bool) -> None:
    from .tables import print_pairs

    failed = sum(line["status"] == "failed" for line in plan.kept)
    good = [item for item in plan.planned if item.refusal is None]
    for item in good:
        print(_planned_line(item, plan.reason(item, flags=True) if verbose else ""))
    for item in plan.planned:
        if item.refusal is not None:
            complain(item.refusal.reason_with_flags, item.source_path)
    if not quiet:
        _say_found(plan.found)
        _say_crops([(item.source_path, item.kept) for item in good])
        if remark := odd_rows(plan.latent_sizes, plan.semantics):
            complain(remark)
    skipped = Counter(item.refusal.cause for item in plan.planned if isinstance(item.refusal, CHOSEN))
    left_out = skipped.total()
    again = sum(item.id in plan.reasons for item in good)
    print_pairs(
        {
            "items": f"{len(plan.kept) + len(plan.planned):,}",
            "up to date": f"{len(plan.kept) - failed:,}" if len(plan.kept) > failed else "",
            "failed before": f"{failed:,}; --retry-failed tries again what was refused" if failed else "",
            "skipped": f"{left_out:,}{by_cause(skipped)}" if skipped else "",
            "would fail": f"{len(plan.planned) - len(good) - left_out:,}"
            if len(good) + left_out < len(plan.planned)
            else "",
            "to encode": f"{len(good):,}, of {plural(plan.frames, 'frame')}",
            "first frames": f"to add to {plural(len(plan.first_frames), 'finished item')}" if plan.first_frames else "",
            "again": f"{again:,} of these{'' if verbose else '; --verbose says why'}" if again else "",
            "output size": f"{format_bytes(plan.moments_bytes)} for moments, {format_bytes(plan.mean_bytes)} for mean, "
            f"in {plan.store_dtype}",
        },
        title=output,
    )


def _planned_line(item: Item, reason: str) -> str:
    _, height, width = item.shape or (0, 0, 0)
    caption = f"; {name_of(item.caption[:_CAPTION])}" if item.caption else ""
    again = f"; again: {name_of(reason)}" if reason else ""
    frames = plural(item.encoded_frames, "frame")
    return f"{name_of(item.output)}: {frames}{tail(item.padded, 0)}, {width}x{height}{caption}{again}"
