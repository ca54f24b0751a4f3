"""`movq batch-encode SRC... -o DIR`: many videos, resumable."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from ..errors import MovqUsageError
from . import options as o
from .show import complain, duration, name_of, plural, ratio, say_whose_weights, size

if TYPE_CHECKING:
    from ..batch import BatchPlan, BatchResult, Summary
    from ..plan import EncodeOptions

BATCH = "Batch"
_NAMES, _REASONS = 5, 20


def _workers(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not int(text):
        raise MovqUsageError(f"must be auto or a number above 0, got {text!r}", "--workers")
    return int(text)


@o.takes_encode_options()
def batch_encode(
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="The folder of latents; made if missing.")
    ],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SRC...", help='Folders, with all below them; files; quoted globs; "-": a list on stdin.'
        ),
    ] = None,
    lists: Annotated[
        list[str] | None,
        typer.Option(
            "--list",
            rich_help_panel=BATCH,
            metavar="FILE",
            help="Text, CSV or JSON lines: path, and if wanted id, start, duration, caption; others go to the manifest.",
        ),
    ] = None,
    workers: Annotated[
        str,
        typer.Option(
            "--workers",
            rich_help_panel=BATCH,
            metavar="auto|N",
            help="Processes. auto: one per CUDA device, or per core.",
        ),
    ] = "auto",
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            rich_help_panel=BATCH,
            metavar="S",
            help="Seconds without progress that a file is given up after.",
        ),
    ] = 600.0,
    max_failures: Annotated[
        str,
        typer.Option(
            "--max-failures",
            rich_help_panel=BATCH,
            metavar="N|P%",
            help="So many failed items are no reason to exit 1.",
        ),
    ] = "0",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", rich_help_panel=BATCH, help="Try again what was refused before, too.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            rich_help_panel=BATCH,
            help="Read all videos and outputs that are there; try refused ones again.",
        ),
    ] = False,
    *,
    options: EncodeOptions,
    force: Annotated[bool, typer.Option("--force", rich_help_panel=o.RESULT, help="Make everything again.")] = False,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
) -> None:
    """Encode folders, files and lists of videos to a folder of latents. What is there already is not made again.

    On a CPU each worker has one thread unless --threads says otherwise: so the bytes do not depend on the number of workers.
    """
    from ..batch import encode_batch, plan_batch
    from .watch import watching

    if not sources and not lists:
        raise MovqUsageError("name a folder, files, a glob or a --list", "SRC")
    options = replace(options, force=force)
    allowed = _allowed(max_failures)
    count = _workers(workers)
    if dry_run:
        _print_plan(
            plan_batch(sources or [], output, options, lists=lists or [], verify=verify, retry_failed=retry_failed),
            output,
        )
        return
    if not quiet:
        say_whose_weights(options)
    with watching(quiet) as watch:
        result = encode_batch(
            sources or [],
            output,
            options,
            lists=lists or [],
            workers=count,
            timeout=timeout,
            verify=verify,
            retry_failed=retry_failed,
            watch=watch,
        )
    _report(result, output, quiet)
    failed = sum(line["status"] == "failed" for line in result.lines)
    if result.stopped or failed > allowed(len(result.lines)):
        raise typer.Exit(1)


def _allowed(text: str) -> Callable[[int], float]:
    """How many items of so many may fail. Raises MovqUsageError."""
    number, percent, rest = text.partition("%")
    try:
        most = float(number)
    except ValueError:
        most = -1
    if rest or not 0 <= most < float("inf"):
        raise MovqUsageError(f"must be a number of items, or a part of them like 1%, got {text!r}", "--max-failures")
    return lambda count: most * count / 100 if percent else most


def _report(result: BatchResult, output: str, quiet: bool) -> None:
    from ..batch import summarise

    whole, new = summarise(result.lines), summarise(result.made)
    if not quiet:
        _say_skipped(result.skipped)
        show_failures(whole, sys.stderr)
        if result.orphans:
            say_orphans(result.orphans, output)
        if new.padded:
            complain(
                f"{new.padded:,} of {plural(new.counts['done'], 'clip')} had their last frame repeated to fill the last latent; "
                "--tail drop leaves such frames out instead"
            )
        if new.dropped:
            complain(
                f"{new.dropped:,} of {plural(new.counts['done'], 'clip')} had frames at their end left out (--tail drop)"
            )
        if new.warnings:
            warned = plural(sum(bool(line.get("warnings")) for line in result.made), "clip")
            most = ", ".join(f"{text} ({count:,})" for text, count in new.warnings[:_NAMES])
            complain(f"{warned} with warnings, which the manifest and the headers have; most often: {most}")
    if result.stopped:
        complain(
            f"stopped: {result.stopped}; {plural(result.left, 'item')} left: the same command goes on with them", output
        )
    counts = ", ".join(f"{count:,} {status}" for status, count in whole.counts.items() if count)
    if not result.made:
        again = "; --retry-failed tries again what failed" if whole.counts["failed"] else ""
        print(
            f"{name_of(output)}: nothing to do: all of {plural(whole.items, 'item')} up to date, {counts}; "
            f"checked in {duration(result.seconds)}{again}"
        )
        return
    before = f", {whole.items - new.items:,} of them before" if whole.items > new.items else ""
    print(
        f"{name_of(output)}: {counts} of {plural(whole.items, 'item')}{before}; "
        f"{duration(new.video_seconds)} of video to {size(new.bytes)} ({ratio(new.raw_bytes, new.bytes)} of RGB, "
        f"{ratio(new.source_bytes, new.bytes)} of the sources) in {duration(result.seconds)} by "
        f"{plural(result.workers, 'worker')}, {new.frames / result.seconds:.1f} frames/s"
    )


def show_failures(summary: Summary, file: TextIO | None = None) -> None:
    """A table of the reasons, the most frequent first."""
    from .tables import print_rows

    if summary.failures:
        rows = [[failure.reason, f"{failure.count:,}", failure.example] for failure in summary.failures[:_REASONS]]
        if len(summary.failures) > _REASONS:
            rest = summary.failures[_REASONS:]
            rows.append([f"{len(rest)} other reasons", f"{sum(failure.count for failure in rest):,}", ""])
        print_rows(["why items failed", "items", "for example"], rows, file)


def say_orphans(orphans: list[str], output: str) -> None:
    complain(
        f"{plural(len(orphans), 'output')} of no video there is, or of an older state of one: {_some(orphans)}", output
    )


def _say_skipped(skipped: list[tuple[str, str]]) -> None:
    """What was passed over, by reason, with some names."""
    for reason, count in sorted(Counter(reason for _, reason in skipped).items()):
        names = _some([os.path.basename(path) for path, why in skipped if why == reason])
        complain(f"skipped {count:,}, {reason}: {names}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMES]) + (", ..." if len(names) > _NAMES else "")


def _print_plan(plan: BatchPlan, output: str) -> None:
    from .tables import print_pairs

    failed = sum(line["status"] == "failed" for line in plan.kept)
    good = [planned for planned in plan.planned if planned.refused is None]
    for planned in good:
        repeated = f" + {planned.padded} repeated" if planned.padded else ""
        print(
            f"{name_of(planned.item.output)}: {plural(planned.frames, 'frame')}{repeated} of {planned.width}x{planned.height}"
        )
    for planned in plan.planned:
        if planned.refused is not None:
            complain(planned.refused.reason, planned.item.path)
    _say_skipped(plan.found.skipped)
    print_pairs(
        {
            "items": f"{len(plan.found.items):,}",
            "up to date": f"{len(plan.kept) - failed:,}" if len(plan.kept) > failed else "",
            "failed before": f"{failed:,}; --retry-failed tries again what was refused" if failed else "",
            "would fail": f"{len(plan.planned) - len(good):,}" if len(good) < len(plan.planned) else "",
            "to encode": f"{len(good):,}, of {plural(plan.frames, 'frame')}",
            "output size": f"{size(plan.moments_bytes)} for moments, {size(plan.mean_bytes)} for mean, in {plan.store_dtype}",
        },
        title=output,
    )
