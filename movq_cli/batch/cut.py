"""Looking at videos before they are encoded, and cutting items out of them by what is seen.

What the manifest says of a video that has not changed since is not looked at again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..errors import MovqError
from ..files import require_file, text_of
from ..model.config import AutoencoderConfig
from ..options import EncodeOptions
from ..video import Surveyed, survey
from .items import Item, Seen
from .manifest import Line
from .resume import in_threads
from .spans import Spans
from .work import options_of, source_hint

_PROCESSES = 2
_PART = 64  # videos that one process looks at before it is replaced

_RANGE = ("stream", "start", "duration", "fps", "fps_repeat", "every")
"""Options that the number of frames depends on, before spans are cut."""


class Known:
    """What the manifest knows of videos, as far as they have not changed since; of those `refused` too, if asked for."""

    def __init__(self, lines: Iterable[Line], refused: bool = True) -> None:
        self._seen: dict[tuple[str, str], list[int]] = {}
        self._refused: dict[tuple[str, str, bool], tuple[list[int], str]] = {}
        for line in lines:
            if "source" not in line or "options" not in line:
                continue
            key = line["path"], _text(line["options"], _RANGE)
            if any(line.get("seen", ())):
                self._seen[key] = [*line["source"], *line["seen"]]
            elif "seen" in line and refused and line.get("cause") == "refused":
                self._refused[*key, "allow_partial" in line["options"]] = line["source"], line["reason"]

    def of(self, item: Item, source: list[int], options: EncodeOptions) -> Seen | MovqError | None:
        key = text_of(item.path), _text(options_of(item, options).choices, _RANGE)
        seen = self._seen.get(key)
        if seen is not None and seen[:3] == source:
            return Seen(source, *seen[3:])
        before, reason = self._refused.get((*key, options.selection.allow_partial), ([], ""))
        return MovqError(reason) if before == source else None


def _text(values: dict[str, Any], names: tuple[str, ...]) -> str:
    return json.dumps({name: values[name] for name in names if name in values}, sort_keys=True)


def cut_items(
    items: Sequence[Item],
    spans: Spans,
    options: EncodeOptions,
    config: AutoencoderConfig,
    known: Known | None = None,
    passed: Callable[[], None] = lambda: None,
) -> list[Item]:
    """What is cut out of the videos of items, in their order. `passed` is called for each video.

    What cannot be encoded is in it as one item with its refusal.
    """
    cut: list[Item] = []
    for item, seen in _looked(items, options, known):
        if isinstance(seen, Seen):
            cut += spans.items(replace(item, seen=seen), seen, options, config)
        else:
            cut.append(replace(item, refusal=seen) if seen is not None else item)
        passed()
    return cut


def _looked(
    items: Sequence[Item], options: EncodeOptions, known: Known | None
) -> Iterator[tuple[Item, Seen | MovqError | None]]:
    """Each item with what is seen of its video, in order; None where it is refused already."""
    found: dict[int, Seen | MovqError] = {}
    sources: dict[int, list[int]] = {}
    for number, item in enumerate(items):
        if item.refusal is not None:
            continue
        try:
            require_file(item.path)
            sources[number] = source_hint(item.path)
        except (OSError, MovqError) as error:
            found[number] = error if isinstance(error, MovqError) else MovqError("no such file or folder", item.path)
            continue
        if known is not None and (before := known.of(item, sources[number], options)) is not None:
            found[number] = before
    left = [number for number in sources if number not in found]
    parts = [left[i : i + _PART] for i in range(0, len(left), _PART)]

    def look(part: Sequence[int]) -> list[Surveyed | MovqError]:
        wanted = ((items[i].path, options_of(items[i], options).selection) for i in part)
        return list(survey((path, replace(selection, frames=None)) for path, selection in wanted))

    looked = (one for part in in_threads(look, parts, _PROCESSES) for one in part)
    for number, item in enumerate(items):
        seen = found.get(number)
        if number in sources and seen is None:
            now = next(looked)
            seen = now if isinstance(now, MovqError) else Seen(sources[number], now.frames, now.width, now.height)
        if number in sources and isinstance(seen, MovqError):
            item = replace(item, seen=Seen(sources[number]))
        yield item, seen
