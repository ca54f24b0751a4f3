"""Refuse to replace, unless asked, outputs of other existing videos and outputs made with other weights or options."""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import MovqError, option
from ..files import short, text_of
from ..headers import parse_header
from .choices import choices_of, describe_difference
from .item import Item
from .manifest import Line, Manifest
from .presence import Presence
from .resume import ResumePlan, is_usable
from .settings import Settings
from .tars import Tars


def refuse_to_replace(
    plan: ResumePlan,
    items: Sequence[Item],
    manifest: Manifest,
    settings: Settings,
    tars: Tars,
    presence: Presence,
    replace: bool,
) -> None:
    """Raise MovqError if finished outputs would be replaced, unless `replace` or the option `force` asks for it.

    Outputs of videos that are items of this batch under another name are taken over before anything replaces them.
    """
    if not manifest.lines:
        return
    allowed = replace or settings.options.force
    if not allowed:
        _refuse_other_cuts(items, manifest, settings, tars.folder)
        _refuse_other_videos(plan, items, manifest, tars, presence)
    if plan.differing and not allowed:
        _refuse_other_options(plan.differing, settings, tars)


def _refuse_other_videos(
    plan: ResumePlan, items: Iterable[Item], manifest: Manifest, tars: Tars, presence: Presence
) -> None:
    """Raise MovqError if a whole output of one video would be replaced by that of another.

    A video that may come back counts, unless others of its folder are recognized in the folder of the new one: then the
    folder was moved, and this video has changed as well.
    """
    done = [
        (item, line) for item in plan.pending if (line := manifest.lines.get(item.id, Line())).get("status") == "done"
    ]
    if not done:
        return
    paths = {text_of(item.source_path) for item in items}
    moves = {_move(manifest.lines[line["id"]]["path"], line["path"]) for line in plan.kept}
    others: list[tuple[Item, Line]] = []
    for item, line in done:
        if line["path"] in paths or presence.is_gone(line):
            continue
        moved = _move(line["path"], text_of(item.source_path)) in moves and not os.path.lexists(line["path"])
        if not moved and is_usable(line, tars, verify=False):
            others.append((item, line))
    if others:
        item, line = others[0]
        more = f", and {len(others) - 1:,} more like it" if len(others) > 1 else ""
        raise MovqError(
            f"would replace {item.output}, which is of {line['path']}{more}; name all sources in one command, take another "
            f"folder, or use {option('replace', True)}",
            item.source_path,
        )


def _move(before: str, now: str) -> tuple[str, str]:
    """Return the folders in which two paths differ, without their common end."""
    while os.path.basename(before) == os.path.basename(now) != "":
        before, now = os.path.dirname(before), os.path.dirname(now)
    return before, now


def _refuse_other_cuts(items: Iterable[Item], manifest: Manifest, settings: Settings, folder: str) -> None:
    """Raise MovqError if finished spans of these videos were cut otherwise, and would belong to no item any more."""
    names, paths = {item.id for item in items}, {text_of(item.source_path) for item in items if item.refusal is None}
    spans = [
        line
        for id, line in manifest.lines.items()
        if "of" in line and id not in names and line["path"] in paths and line["status"] == "done"
        if not line.get("orphan") and line.get("cut") != settings.cut
    ]
    if spans:
        cut = spans[0].get("cut", {})
        differing = [name for name in cut | settings.cut if cut.get(name) != settings.cut.get(name)]
        before, now = (" ".join(_in_words(name, each.get(name)) for name in differing) for each in (cut, settings.cut))
        raise MovqError(
            f"{len(spans):,} finished spans here were cut with {before}; this command says {now}, and would leave them over. "
            f"Use {option('replace', True)} for that, another folder, or {option('again')} to go on as before",
            folder,
        )


def _in_words(name: str, value: Any) -> str:
    if value is None:
        return f"no {option(name)}"
    return " ".join(option(name, one) for one in (value if isinstance(value, list) else [value]))


def _refuse_other_options(differing: list[tuple[Item, Line]], settings: Settings, tars: Tars) -> None:
    models = {settings.weights_digest: settings.model}
    kinds: Counter[tuple[str, str]] = Counter()
    for item, line in differing:
        if line["weights_digest"] not in models:
            models[line["weights_digest"]] = _model_of(line, tars)
        made, wanted = choices_of(line, item), choices_of(settings.line(item), item, line)
        kinds[describe_difference(made, wanted, models)] += 1
    (before, now), count = kinds.most_common(1)[0]
    outputs = "1 finished output here was" if count == 1 else f"{count:,} finished outputs here were"
    more = f", and {len(differing) - count:,} with others" if len(differing) > count else ""
    raise MovqError(
        f"{outputs} made with {before}{more}; this command says {now}. Use {option('replace', True)} to make them again, "
        f"another folder, or {option('again')} to go on as before",
        tars.folder,
    )


def _model_of(line: Line, tars: Tars) -> str:
    """Return the name of the model of a line's latents, from their header, or else the start of the weights' digest."""
    try:
        start = tars.find(line).offset if "member" in line else 0
        with open(os.path.join(tars.folder, line["output"]), "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            name = parse_header(data[start : start + line["bytes"]]).metadata["model"]
    except (MovqError, OSError, ValueError, KeyError, TypeError, RecursionError):
        name = ""
    return name or short(line["weights_digest"])
