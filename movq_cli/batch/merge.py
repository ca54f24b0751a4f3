"""`merge_shards`: the manifests of all shards of a batch, made one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from ..errors import MovqError
from ..files import os_reason
from .manifest import NAME, Line, only_one, read_lines, shard_manifests, write_lines

_ALIKE = ("weights_digest", "semantics", "precision", "format_version")
_OF_ITEMS = ("start", "duration", "skip", "frames", "short", "height", "width", "upscale")


def merge_shards(folder: str | os.PathLike[str]) -> list[Line]:
    """Makes the manifest of a batch of those of its shards, which are then gone; its lines, in order of id.

    Raises MovqError where there are none or one is missing, and where they were not made alike: by other weights, semantics,
    precision or options.
    """
    folder = os.fspath(folder)
    with only_one(folder):
        before = _by_id(os.path.join(folder, NAME))
        paths = shard_manifests(folder)
        shards = {key: _by_id(path) for key, path in sorted(paths.items())}
        if not shards:
            raise MovqError("has no manifests of shards", folder)
        counts = sorted({count for _, count in shards})
        if len(counts) > 1:
            raise MovqError(f"has shards of {' and of '.join(map(str, counts))}: they are not of one batch", folder)
        missing = [index for index in range(counts[0]) if (index, counts[0]) not in shards]
        known = all(before.get(name) == line for lines in shards.values() for name, line in lines.items())
        if missing and not (before and known):  # else an earlier merge was interrupted when it was all but done
            names = ", ".join(f"{index}/{counts[0]}" for index in missing)
            raise MovqError(f"has no manifest of shard {names} yet: run that first", folder)
        _refuse_unlike(
            (paths[key], [line for name, line in lines.items() if before.get(name) != line])
            for key, lines in shards.items()
        )
        merged = {name: line for lines in ([before] if missing else shards.values()) for name, line in lines.items()}
        write_lines(os.path.join(folder, NAME), merged.values())
        for path in paths.values():
            try:
                os.unlink(path)
            except OSError as error:
                raise MovqError(os_reason(error), path) from None
    return [merged[name] for name in sorted(merged)]


def _by_id(path: str) -> dict[str, Line]:
    return {line["id"]: line for line in read_lines(path)} if os.path.lexists(path) else {}


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
                        f"was made with {name} {value[:80]}, {os.path.basename(first[0])} with {other[:80]}: shards of one "
                        "batch are made alike",
                        path,
                    )


def _made_by(line: Line) -> dict[str, str]:
    """What all lines of a batch have in common."""
    options = {name: value for name, value in line.get("options", {}).items() if name not in _OF_ITEMS}
    return {**{name: str(line.get(name, "")) for name in _ALIKE}, "options": json.dumps(options, sort_keys=True)}
