"""Names of outputs: a place in the output folder for each item, that no other has, on any file system."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable

from ..files import MAX_NAME, text_of
from .manifest import NAME

SUFFIX = ".safetensors"
_MARK_DIGITS = 10
_RESERVED = re.compile(r"(latents-(\d+-of-\d+-)?\d+\.(tar|index\.json)|manifest\.\d+-of-\d+\.jsonl)", re.IGNORECASE)
"""What a batch itself may put into its folder."""


class Places:
    """Ids and outputs given so far. Where two items would share one, the later gets a mark of what it is."""

    def __init__(self) -> None:
        self._ids = set[str]()
        self._files = {_folded(NAME)}
        self._folders = set[str]()
        self._ways = {"": ""}
        """The place of each folder, by its name. No file ever takes it."""

    def place(self, name: str, *of: str) -> tuple[str, str]:
        """An id and an output, from the name an item should have and all that it is."""
        wanted = text = text_of(name)
        tries = 0
        while text in self._ids:
            text = wanted + mark_of(name, *of, str(tries))
            tries += 1
        self._ids.add(text)
        above, slash, last = text.rpartition("/")
        way = self._way(above + slash)
        output = way + self._free(way, last, SUFFIX, self._files, self._folders)
        self._files.add(_folded(output))
        return text, output

    def _way(self, folder: str) -> str:
        """Return the place of a folder; its name and its place end with a slash."""
        if folder not in self._ways:
            above, slash, part = folder[:-1].rpartition("/")
            way = self._way(above + slash)
            self._ways[folder] = way = way + self._free(way, part, "", self._files) + "/"
            self._folders.add(_folded(way[:-1]))
        return self._ways[folder]

    def _free(self, way: str, part: str, suffix: str, *taken: set[str]) -> str:
        """A part of a path, short enough for a file system, that is not taken."""
        found, tries = _short(part, "", suffix), 0
        while self._is_taken(way + found, taken):
            found = _short(part, mark_of(way + part, *([str(tries)] if tries else [])), suffix)
            tries += 1
        return found

    def _is_taken(self, path: str, taken: Iterable[set[str]]) -> bool:
        folded = _folded(path)
        return any(folded in names for names in taken) or bool(_RESERVED.fullmatch(path))


def span_output(output: str, name: str) -> str:
    """The output of a span, called `name`, of the video whose own output this would be."""
    folder, last = os.path.split(output)
    part = last.removesuffix(SUFFIX) + name
    return os.path.join(folder, _short(part, "", SUFFIX))


def _folded(name: str) -> str:
    """The same for names that some file systems hold to be the same."""
    if name.isascii():
        return name if name.islower() else name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def mark_of(*of: str) -> str:
    """What tells a name from the same of something else."""
    return "~" + hashlib.sha256(b"\0".join(map(os.fsencode, of))).hexdigest()[:_MARK_DIGITS]


def _short(part: str, mark: str, suffix: str) -> str:
    """Shortened where it must be, then marked, so that long names with one beginning stay apart."""
    if len((part + mark + suffix).encode()) > MAX_NAME:
        mark = mark or mark_of(part)
        part = part.encode()[: MAX_NAME - len(mark) - len(suffix)].decode(errors="ignore")
    return part + mark + suffix
