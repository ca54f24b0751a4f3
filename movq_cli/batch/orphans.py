"""Orphans, which are outputs that no item has any more, and outputs that are missing."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ..errors import MovqError
from ..files import text_of
from ..first_frame import LATENTS, PNG, SUFFIXES, is_first_frame
from ..latents import is_latents
from .item import Item
from .manifest import FirstFrameLine, Line, Manifest, files_of, is_of_a_batch, video_of
from .paths import Reach
from .presence import Presence
from .tars import Tars


def note_places(lines: Iterable[Line], places: dict[str, bool]) -> Iterator[Line]:
    """Yield the same lines, and note in `places` the place of each output, and whether it is an orphan.

    The place of an output, or of its first frame, is its path, or TAR:NAME in a tar.
    """
    for line in lines:
        if line["status"] == "done":
            places.update(dict.fromkeys(map(place_of, files_of(line)), line.get("orphan", False)))
        yield line


def compare_outputs(places: Mapping[str, bool], folder: str) -> tuple[list[str], list[str]]:
    """Return the orphans in the folder of a manifest, and the outputs that are missing from it, both sorted.

    Orphans are latents that the manifest does not name, or names as orphans. `places` come from `note_places`. A tar
    that cannot be read is an orphan itself. What lies below the manifest of another batch is not looked at.
    """
    present = set[str]()
    for below, folders, names in os.walk(folder):
        inside = os.path.relpath(below, folder)
        if inside != "." and any(map(is_of_a_batch, names)):
            folders.clear()
            continue
        present |= {
            os.path.normpath(os.path.join(inside, name)) for name in names if name.endswith((LATENTS, SUFFIXES[PNG]))
        }
    claimed = {place for place, orphan in places.items() if not orphan}
    reach = Reach(folder)
    strays = {name for name in present - claimed if not reach.problem(name) and _is_ours(os.path.join(folder, name))}
    tars = Tars(folder)
    for tar in tars.names():
        try:
            members = tars.members(tar).values()
            held = {f"{tar}:{part.name}" for member in members for part in (member, *member.first_frame.values())}
        except MovqError:
            strays.add(tar)
            continue
        present |= held
        strays |= held - claimed
    return sorted(strays), sorted(places.keys() - present)


def find_orphans(manifest: Manifest, folder: str) -> list[str]:
    """Return the orphans among the outputs of a batch, relative to its folder."""
    places: dict[str, bool] = {}
    for _ in note_places(manifest.lines.values(), places):
        pass
    return compare_outputs(places, folder)[0]


def mark_orphans(manifest: Manifest, items: Sequence[Item], folder: str, presence: Presence) -> None:
    """Mark as orphans the lines of items that were not named, if nothing needs their outputs any more.

    Their video is gone, or is cut into other items now, or is an item under another name that has the same latents. Such
    lines are deleted if they have no output. All other lines stay, and are no orphans.
    """
    named = {item.id for item in items}
    cut = {(item.video, text_of(item.source_path)) for item in items if item.refusal is None}
    refused = {item.id for item in items if item.refusal is not None}  # not cut, as it cannot be looked at
    whole = {text_of(item.source_path) for item in items if item.start is None and item.duration is None}
    living = [line for line in manifest.lines.values() if line["status"] == "done" and not line.get("orphan")]
    made = {_made_of(line) for line in living if line["id"] in named}
    replaced = {key for line in living for key in (_made_of(line), (video_of(line), line["path"]))}
    for name in set(manifest.lines) - named:
        line = manifest.lines[name]
        has_output = line["status"] == "done" and os.path.exists(os.path.join(folder, line["output"]))
        gone = (video_of(line), line["path"]) in cut or (video_of(line) not in refused and presence.is_gone(line))
        renamed = _made_of(line) in made if has_output else _is_whole(line) and line["path"] in whole
        if has_output and (gone or renamed):
            line["orphan"] = True
        elif has_output and replaced.isdisjoint((_made_of(line), (video_of(line), line["path"]))):
            line.pop("orphan", None)  # its video has come back
        elif not has_output and (gone or renamed):
            del manifest.lines[name]


def _made_of(line: Line) -> tuple[str, str, str]:
    """Return the values that two finished items of one video share if they have the same latents."""
    options = json.dumps(line.get("options"), sort_keys=True)
    return line["path"], line.get("source_sha256", ""), f"{options} {line.get('weights_digest')}"


def count_unnamed(manifest: Manifest, items: Iterable[Item]) -> int:
    """Return how many finished items of a batch are not among these, and are no orphans: they stay as they are."""
    named = {item.id for item in items}
    return sum(
        line["status"] == "done" and not line.get("orphan") and id not in named for id, line in manifest.lines.items()
    )


def removable(lines: Iterable[Line], orphans: Collection[str]) -> list[str]:
    """Return those of the orphans that may be removed: outputs that lines name, and name as orphans."""
    named = {place_of(part) for line in lines if line.get("orphan") for part in files_of(line)}
    return sorted(named.intersection(orphans))


def _is_whole(line: Line) -> bool:
    """Return True if a line is that of a whole video."""
    return "of" not in line and not line.get("options", {}).keys() & {"start", "duration"}


def _is_ours(path: str) -> bool:
    """Return True for latents, and for a picture of movq's that is called as the first frame of some."""
    return is_first_frame(path, PNG) if path.endswith(SUFFIXES[PNG]) else is_latents(path)


def place_of(said: Line | FirstFrameLine) -> str:
    """Return the place of an output: its path in the folder, or TAR:NAME in a tar."""
    return f"{said['output']}:{said['member']}" if "member" in said else said["output"]
