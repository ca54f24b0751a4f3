"""Words for the items of a batch, of one that ran and of one that is planned."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from ..errors import show_flags
from .show import LEAST_PART, complain, plural

if TYPE_CHECKING:
    from ..batch import Found, Summary

_NAMES, _REASONS = 5, 20


def counts_of(whole: Summary) -> str:
    """Return how many items have each status: `11 done, 1 skipped (short)`."""
    counts = ((status, count) for status, count in whole.counts.items() if count)
    return ", ".join(
        f"{count:,} {status}{by_cause(whole.skipped) if status == 'skipped' else ''}" for status, count in counts
    )


def by_cause(counts: Mapping[str, int]) -> str:
    """Return the causes for which items are skipped, with their counts if there are several: ` (3 short, 1 small)`."""
    return f" ({', '.join(f'{count:,} {cause}' if len(counts) > 1 else cause for cause, count in counts.items())})"


def taken_over(moved: int, copied: int) -> str:
    """Return how many items got latents that were there: `1 renamed, 2 copied from equal videos`."""
    words = [f"{moved:,} renamed"] if moved else []
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


def say_orphans(orphans: list[str], removable: int, output: str) -> None:
    """Report outputs that belong to no item, and how many of them --prune removes."""
    some_of = "them" if removable == len(orphans) else f"{removable:,} of them"
    how = f"; --prune removes {some_of}" if removable else ""
    complain(f"{plural(len(orphans), 'leftover output')} of no item: {some(orphans)}{how}", output)


def say_unnamed(count: int, output: str) -> None:
    """Report finished items that a command did not name."""
    complain(f"{plural(count, 'finished item')} not named by this command, which stay as they are", output)


def about_item(path: str, id: str) -> str:
    """Return what a message is about: a video, or an item that is not called as its file is."""
    return path if path.endswith(id) else f"{path} ({id})"


def say_found(found: Found) -> None:
    """Report the files that were skipped, by reason and with some names, and columns that movq does not use."""
    for reason, count in sorted(Counter(reason for _, reason in found.ignored).items()):
        names = some([os.path.basename(path) for path, why in found.ignored if why == reason])
        complain(f"skipped {count:,}, {reason}: {names}")
    for name, remark in found.remarks:
        complain(show_flags(remark), name)
    if found.extra:
        complain(f"columns that are kept as they are, in the manifest's extra: {', '.join(found.extra)}")


def say_crops(parts: list[tuple[str, float]]) -> None:
    """Report, of (path, fraction of the picture that is kept), those that keep less than LEAST_PART."""
    bad = sorted((part, path) for path, part in parts if part < LEAST_PART)
    if bad:
        part, path = bad[0]
        complain(
            f"{plural(len(bad), 'item')} {'loses' if len(bad) == 1 else 'lose'} more than half of the picture to cropping "
            f"({path} keeps {part:.0%}): add a "
            "--bucket closer to that shape, with as many frames, or --aspects"
        )


def some(names: list[str]) -> str:
    """Return the first names of a list, as text."""
    return ", ".join(names[:_NAMES]) + (", ..." if len(names) > _NAMES else "")
