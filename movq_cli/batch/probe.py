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
from ..video import Survey, VideoFacts, survey
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


def probe_items(
    items: Sequence[Item], options: EncodeOptions, known: Known | None = None, spans: bool = False
) -> Iterator[Item]:
    """Yield each item with the identity and the facts of its video, or with the reason why it has none, in order.

    A video is looked at once for all of its items. They keep the times of its frames if they are several, or if `spans`
    will be cut out of them.
    """
    looks = _Looks(items, options, known, spans)
    of_one_video: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        if item.refusal is None:
            of_one_video.setdefault(item.source_path, []).append(number)
    place = 0
    for numbers in in_threads(looks.look, list(of_one_video.items()), _PROCESSES):
        looks.unfinished.difference_update(numbers)
        while place < len(items) and place not in looks.unfinished:
            yield looks.items[place]
            place += 1
    yield from looks.items[place:]


class _Looks:
    """Looks at the videos of `items`, which get their facts. The numbers of those that wait for them are `unfinished`."""

    def __init__(self, items: Sequence[Item], options: EncodeOptions, known: Known | None, spans: bool) -> None:
        self.items = list(items)
        self.unfinished = {number for number, item in enumerate(items) if item.refusal is None}
        self._options, self._known, self._spans = options, known, spans
        self._refusals: dict[tuple[type[MovqError], str], MovqError] = {}

    def look(self, part: Sequence[tuple[str, list[int]]]) -> list[list[int]]:
        """Look at videos by their paths, each with the numbers of its items. Return these numbers."""
        unknown = [(path, others) for path, numbers in part if (others := self._identify(path, numbers))]
        surveys = survey((path, self._options.selection) for path, _ in unknown)
        for (_, numbers), found in zip(unknown, surveys, strict=True):
            self._share(numbers, found)
        return [numbers for _, numbers in part]

    def _identify(self, path: str, numbers: list[int]) -> list[int]:
        """Give items of one video its identity, and the facts that are known. Return the numbers of the others."""
        try:
            identity = FileIdentity.of(require_file(path))
        except MovqError as error:
            for number in numbers:
                self._give(number, error)
            return []
        unknown = []
        for number in numbers:
            item = self.items[number] = self.items[number].updated(identity=identity)
            facts = None if self._known is None else self._known.of(item, identity, self._options)
            if facts is None:
                unknown.append(number)
            else:
                self._give(number, facts)
        return unknown

    def _share(self, numbers: list[int], found: Survey | MovqError) -> None:
        """Give items of one video their facts."""
        whole = replace(self._options.selection, frames=None)
        times = found.times if isinstance(found, Survey) and (self._spans or numbers[1:]) else b""
        for number in numbers:
            item = self.items[number]
            try:
                facts = found if isinstance(found, MovqError) else found.facts(whole, item.start, item.duration)
            except MovqError as error:
                facts = error
            self._give(number, facts, times)

    def _give(self, number: int, facts: VideoFacts | MovqError, times: bytes = b"") -> None:
        item = self.items[number]
        if isinstance(facts, MovqError):
            # Items refused for the same reason share one error: there may be a million.
            refusal = self._refusals.setdefault((type(facts), facts.marked), facts.bare())
            self.items[number] = item.updated(facts=item.identity and VideoFacts(), refusal=refusal)
        else:
            self.items[number] = item.updated(facts=facts, times=times)
