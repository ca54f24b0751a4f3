"""`merge_shards`: make one manifest of the manifests of all shards of a batch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping

from ..errors import MovqError, option
from ..files import os_reason, sweep
from .card import write_card
from .locks import only_one
from .manifest import NAME, Line, lines_by_id, shard_manifests, unfinished_shards, write_lines
from .record import merge_records

_ALIKE = ("weights_digest", "semantics", "precision", "format_version")
_OF_ITEMS = ("start", "duration", "skip", "allow_partial", "max_pixels", "upscale")
_OF_CUT_ITEMS = ("frames", "short", "height", "width")


def merge_shards(folder: str | os.PathLike[str], *, dry_run: bool = False) -> list[Line]:
    """Merge the manifests of shards into one, delete them, and return its lines, sorted by id.

    Lines that are merged already stay as they are. With `dry_run`, nothing is written or deleted. Raises MovqError if no
    manifest is found, if a shard is missing or not finished, or if shards were made with different weights, semantics,
    precision, options or format versions.
    """
    folder = os.fspath(folder)
    with only_one(folder):
        paths = shard_manifests(folder)
        lines = _merged(folder, paths)
        if not dry_run:
            sweep(folder)
            write_lines(os.path.join(folder, NAME), lines.values())
            for path in paths.values():
                try:
                    os.unlink(path)
                except OSError as error:
                    raise MovqError(os_reason(error), path) from None
            write_card(folder, lines.values())
            merge_records(folder)
    return [lines[name] for name in sorted(lines)]


def _merged(folder: str, paths: Mapping[tuple[int, int], str]) -> dict[str, Line]:
    """Return the lines of all shards by id; those of the manifest if they are merged already."""
    before = lines_by_id(os.path.join(folder, NAME))
    shards = {key: lines_by_id(path) for key, path in paths.items()}
    if not shards and not before:
        raise MovqError("has no manifests of shards", folder)
    if before and all(before.get(name) == line for lines in shards.values() for name, line in lines.items()):
        return before
    _refuse_incomplete(folder, list(shards))
    _refuse_unlike(
        (paths[key], [line for name, line in lines.items() if before.get(name) != line])
        for key, lines in shards.items()
    )
    return {name: line for lines in shards.values() for name, line in lines.items()}


def _refuse_incomplete(folder: str, shards: list[tuple[int, int]]) -> None:
    """Raise MovqError unless every shard of one batch is found and finished."""
    counts = sorted({count for _, count in shards})
    if len(counts) > 1:
        raise MovqError(f"has shards of {' and of '.join(map(str, counts))}: they are not of one batch", folder)
    unfinished = unfinished_shards(folder)
    for key in ((index, counts[0]) for index in range(counts[0])):
        if key not in shards or key in unfinished:
            what = "is not finished" if key in shards else "was not run yet"
            name = f"{key[0]}/{key[1]}" + (f" ({key[1]}/{key[1]})" if not key[0] else "")
            raise MovqError(
                f"shard {name} {what}: run batch-encode with {option('shard', f'{key[0]}/{key[1]}')} first", folder
            )


def _refuse_unlike(shards: Iterable[tuple[str, Iterable[Line]]]) -> None:
    first: tuple[str, dict[str, str]] | None = None
    for path, lines in shards:
        for line in lines:
            if line["status"] != "done" or line.get("orphan"):
                continue
            made = _made_by(line)
            first = first or (path, made)
            for name, value in made.items():
                if value != first[1][name]:
                    other, name = first[1][name], name.removesuffix("_digest")
                    raise MovqError(
                        f"was made with {name} {value[:80]}, {os.path.basename(first[0])} with {other[:80]}; shards of one "
                        "batch are made alike: the same command "
                        f"without {option('shard')} and with {option('replace', True)} makes all so",
                        path,
                    )


def _made_by(line: Line) -> dict[str, str]:
    """Return the values that all lines of a batch must have in common, as texts."""
    cut = line.get("cut", {})
    own = _OF_ITEMS + (_OF_CUT_ITEMS if cut else ())
    options = {name: value for name, value in line.get("options", {}).items() if name not in own}
    return {
        **{name: str(line.get(name, "")) for name in _ALIKE},
        "options": json.dumps(options, sort_keys=True),
        "buckets and spans": json.dumps(cut, sort_keys=True),
    }
