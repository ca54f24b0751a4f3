"""Names of outputs: each item gets its own path in the output folder, unique on any file system."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable

from ..files import mark_of, short_name, text_of
from ..first_frame import LATENTS, SUFFIXES
from .manifest import NAME

_FIRST_FRAMES = "|".join(re.escape(suffix) for suffix in SUFFIXES.values())
_RESERVED = re.compile(
    rf"(latents-(\d+-of-\d+-)?\d+\.(tar|index\.json)|manifest\.\d+-of-\d+\.jsonl|run(\.\d+-of-\d+)?\.json|.*({_FIRST_FRAMES}))",
    re.IGNORECASE | re.DOTALL,
)
"""Names that a batch needs for its own files in the output folder, and for the first frames of items."""


class Places:
    """The ids and outputs given so far. If two items would share one, the later gets a mark that tells them apart."""

    def __init__(self) -> None:
        self._ids = set[str]()
        self._files = {_folded(NAME)}
        self._folders = set[str]()
        self._ways = {"": ""}
        """The path of each folder in the output folder, by its wanted name. Never given to a file."""

    def __contains__(self, name: str) -> bool:
        """Return True if an item has this id."""
        return text_of(name) in self._ids

    def place(self, name: str, *of: str) -> tuple[str, str]:
        """Return an id and an output for an item, from the name it should have and from what sets it apart."""
        wanted = text = text_of(name)
        tries = 0
        while text in self._ids:
            text = wanted + mark_of(name, *of, str(tries))
            tries += 1
        self._ids.add(text)
        above, slash, last = text.rpartition("/")
        way = self._way(above + slash)
        output = way + self._free(way, last, LATENTS, self._files, self._folders)
        self._files.add(_folded(output))
        return text, output

    def _way(self, folder: str) -> str:
        """Return the path of a folder in the output folder. Its name and the path end with a slash, or are empty."""
        if folder not in self._ways:
            above, slash, part = folder[:-1].rpartition("/")
            way = self._way(above + slash)
            self._ways[folder] = way = way + self._free(way, part, "", self._files) + "/"
            self._folders.add(_folded(way[:-1]))
        return self._ways[folder]

    def _free(self, way: str, part: str, suffix: str, *taken: set[str]) -> str:
        """Return a part of a path that is not taken, short enough for a file system."""
        found, tries = short_name(part, "", suffix), 0
        while self._is_taken(way + found, taken):
            found = short_name(part, mark_of(way + part, *([str(tries)] if tries else [])), suffix)
            tries += 1
        return found

    def _is_taken(self, path: str, taken: Iterable[set[str]]) -> bool:
        folded = _folded(path)
        return any(folded in names for names in taken) or bool(_RESERVED.fullmatch(path))


def span_output(output: str, name: str) -> str:
    """Return the output of a span from the output that its whole video would have; `name` is the suffix of the span."""
    folder, last = os.path.split(output)
    part = last.removesuffix(LATENTS) + name
    return os.path.join(folder, short_name(part, "", LATENTS))


def _folded(name: str) -> str:
    """Return the same text for all names that some file system takes for the same."""
    if name.isascii():
        return name if name.islower() else name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
