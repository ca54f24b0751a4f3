"""Probe videos before any of them is encoded: how many frames each has, and of which size.

A video that has not changed since the manifest recorded its facts is not probed again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..errors import MovqError
from ..files import FileIdentity, require_file, text_of
from ..options import EncodeOptions
from ..threads import in_threads
from ..video import VideoFacts, survey
from .choices import ALLOWING
from .item import Item
from .manifest import Line

_PROCESSES = 2

_RANGE = ("stream", "start", "duration", "fps", "fps_repeat", "every")
"""The options that decide the number of frames, before spans are cut."""


class Known:
    """The facts of unchanged videos, from the manifest; with `refused`, also why some of them cannot be read."""

    def __init__(self, lines: Iterable[Line], refused: bool = True) -> None:
        self._seen: dict[tuple[str, str], tuple[FileIdentity, VideoFacts]] = {}
        self._refused: dict[tuple[str, str, str], tuple[FileIdentity, str]] = {}
        for line in lines:
            if "source" not in line or "options" not in line:
                continue
            key = line["path"], _text(line["options"], _RANGE)
            if any(line.get("seen", ())):
                self._seen[key] = line["source"], line["seen"]
            elif "seen" in line and refused and line.get("cause") == "refused":
                self._refused[*key, _text(line["options"], ALLOWING)] = line["source"], line["reason"]

    def of(self, item: Item, identity: FileIdentity, options: EncodeOptions) -> VideoFacts | MovqError | None:
        """Return the facts of a video, or why it cannot be read; None if neither is known of the present file."""
        choices = item.encode_options(options).choices
        key = text_of(item.source_path), _text(choices, _RANGE)
        before, facts = self._seen.get(key, (None, VideoFacts()))
        if before == identity:
            return facts
        before, reason = self._refused.get((*key, _text(choices, ALLOWING)), (None, ""))
        return MovqError(reason) if before == identity else None


def _text(values: dict[str, Any], names: tuple[str, ...]) -> str:
    return json.dumps({name: values[name] for name in names if name in values}, sort_keys=True)


def probe_items(items: Sequence[Item], options: EncodeOptions, known: Known | None = None) -> Iterator[Item]:
    """Yield each item with the identity and the facts of its video, or with the reason why it has none, in order."""
    refusals: dict[tuple[type[MovqError], str], MovqError] = {}

    def found(item: Item, facts: VideoFacts | MovqError | None) -> Item:
        if isinstance(facts, MovqError):
            # Items refused for the same reason share one error: there may be a million.
            refusal = refusals.setdefault((type(facts), facts.marked), facts.bare())
            return item.updated(facts=item.identity and VideoFacts(), refusal=refusal)
        return item.updated(facts=facts)

    def identified(item: Item) -> Item:
        if item.refusal is not None:
            return item
        try:
            identity = FileIdentity.of(require_file(item.source_path))
        except MovqError as error:
            return found(item, error)
        return found(item.updated(identity=identity), None if known is None else known.of(item, identity, options))

    def look(part: Sequence[Item]) -> list[Item]:
        checked = list(map(identified, part))
        unknown = [number for number, item in enumerate(checked) if item.facts is None and item.refusal is None]
        wanted = ((checked[n].source_path, checked[n].encode_options(options).selection) for n in unknown)
        surveyed = survey((path, replace(selection, frames=None)) for path, selection in wanted)
        for number, facts in zip(unknown, surveyed, strict=True):
            checked[number] = found(checked[number], facts)
        return checked

    return in_threads(look, items, _PROCESSES)
