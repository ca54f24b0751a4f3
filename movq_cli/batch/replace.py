"""Refusing to replace outputs unasked: those of other videos that are there, and those made with other weights or options."""

from __future__ import annotations

import json
import mmap
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ..errors import MovqError, MovqWarning, option
from ..files import short
from ..headers import parse_header
from ..options import SHORT_IN_BATCH, EncodeOptions
from .discover import Item
from .manifest import Line, Manifest, video_of
from .resume import ResumePlan, Settings, asked
from .tars import Tars


def refuse_to_replace(plan: ResumePlan, manifest: Manifest, settings: Settings, tars: Tars, replace: bool) -> None:
    """Raise MovqError where finished outputs would be replaced, unless `replace` or the option `force` asks for that.

    Warns of videos that are in the manifest under other ids.
    """
    if not manifest.lines:
        return
    allowed = replace or settings.options.force
    _refuse_other_videos(plan.todo, manifest, settings, allowed)
    if plan.otherwise and not allowed:
        _refuse_other_options(plan.otherwise, settings, tars)


def is_there(line: Line) -> bool:
    """Tell whether a line's video is there, as far as its path shows it: bytes that are not UTF-8 are written out in it."""
    return os.path.isfile(line["path"]) or "\\x" in line["path"]


def _refuse_other_videos(todo: Iterable[Item], manifest: Manifest, settings: Settings, allowed: bool) -> None:
    others: list[tuple[Item, Line]] = []
    renamed = 0
    made: dict[tuple[str, str], set[str]] = {}  # as which videos the manifest has what is made of one by some options
    for line in manifest.lines.values():
        made.setdefault((line["path"], json.dumps(line.get("options"), sort_keys=True)), set()).add(video_of(line))
    for item in todo:
        line, wanted = manifest.lines.get(item.id, Line()), settings.line(item)
        if line.get("status") == "done" and line["path"] != wanted["path"] and is_there(line):
            others.append((item, line))
        elif not line and item.refusal is None:
            names = made.get((wanted["path"], json.dumps(wanted["options"], sort_keys=True)), {item.video})
            renamed += item.video not in names
    if others and not allowed:
        item, line = others[0]
        more = f", and {len(others) - 1:,} more like it" if len(others) > 1 else ""
        raise MovqError(
            f"would replace {item.output}, which is of {line['path']}{more}; name all sources in one command, take another "
            f"folder, or use {option('replace', True)}",
            item.source_path,
        )
    if renamed:
        text = (
            f"{renamed:,} videos are in the manifest under other names and are encoded again: were the sources others?"
        )
        warnings.warn(MovqWarning(text), stacklevel=3)


def _refuse_other_options(otherwise: list[tuple[Item, Line]], settings: Settings, tars: Tars) -> None:
    models = {settings.weights_digest: settings.model}
    kinds: Counter[tuple[str, str]] = Counter()
    for item, line in otherwise:
        if line["weights_digest"] not in models:
            models[line["weights_digest"]] = _model_of(line, tars)
        kinds[_difference(asked(line, item), asked(settings.line(item), item, line), models)] += 1
    (made, wanted), count = kinds.most_common(1)[0]
    outputs = "1 finished output here was" if count == 1 else f"{count:,} finished outputs here were"
    more = f", and {len(otherwise) - count:,} with others" if len(otherwise) > count else ""
    raise MovqError(
        f"{outputs} made with {made}{more}; this command says {wanted}. Use {option('replace', True)} to make them again, or "
        "another folder",
        tars.folder,
    )


def _difference(made: dict[str, Any], wanted: dict[str, Any], models: dict[str, str]) -> tuple[str, str]:
    """Say what two commands asked for, as far as it differs."""
    names = [name for name in {"weights": None} | made | wanted if made.get(name) != wanted.get(name)]
    if "weights" in names:  # others come with other semantics, and are computed in another precision
        names = [name for name in names if name not in ("semantics", "precision")]

    def say(values: dict[str, Any]) -> str:
        return ", ".join(models[values[name]] if name == "weights" else _say(name, values.get(name)) for name in names)

    return say(made), say(wanted)


def _say(name: str, value: Any) -> str:
    """Name an option with its value; one that is not given, by what that means."""
    if value is None:
        value = _DEFAULTS.get(name)
    if name == "frames" and value is None:
        return "all frames"
    if isinstance(value, list):
        return " ".join(option(name, one) for one in value)
    if value is None or value is False:
        return f"no {option(name)}"
    return option(name, value)


_DEFAULTS = EncodeOptions().flat() | {"short": SHORT_IN_BATCH[0]}


def _model_of(line: Line, tars: Tars) -> str:
    """Return the name of the model that a line's latents are of, from their header; else the beginning of its digest."""
    try:
        start = tars.find(line).offset if "member" in line else 0
        with open(os.path.join(tars.folder, line["output"]), "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            name = parse_header(data[start : start + line["bytes"]]).metadata["model"]
    except (MovqError, OSError, ValueError, KeyError, TypeError, RecursionError):
        name = ""
    return name or short(line["weights_digest"])
