"""Captions in files: `clip.txt` next to `clip.mp4`, or one file with a line for each item."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..errors import MovqError
from ..files import os_reason
from .paths import hub_repository, leads_into

SUFFIX = ".txt"
_MOST_BYTES = 1 << 20


def caption_path(video: str) -> str:
    """Return the path at which the caption of a video in a folder would be."""
    return os.path.splitext(video)[0] + SUFFIX


def read_caption(video: str, sources: Sequence[str]) -> str:
    """Return the text of the caption file of a video, without white space around it.

    The user did not name this file, so a link is followed only into its own folder, a source folder, or the same
    repository of the Hugging Face cache, or to the caption file of the file that the video itself links to. Raises
    MovqError for other links, and for a file that is not UTF-8 text or is larger than 1 MiB.
    """
    path = caption_path(video)
    folder, beside = os.path.dirname(path), caption_path(os.path.realpath(video))
    known = os.path.realpath(path) == beside or leads_into(path, folder, *sources, hub_repository(folder))
    if os.path.islink(path) and not known:
        raise MovqError("is a link to a file outside the source folders", path)
    return _text(path, _MOST_BYTES).strip()


def read_captions(path: str) -> list[str]:
    """Return the lines of a file, each a caption, which may be empty. Raises MovqError if the file is not text."""
    lines = _text(path).split("\n")
    if not lines[-1]:
        lines.pop()  # the file ends in a newline, which begins no further line
    return [line.strip() for line in lines]


def _text(path: str, most: int | None = None) -> str:
    try:
        if not os.path.isfile(path):
            raise MovqError("no such file" if not os.path.lexists(path) else "is not a regular file", path)
        if most is not None and os.path.getsize(path) > most:
            raise MovqError(f"is larger than {most:,} bytes: no caption", path)
        with open(path, encoding="utf-8-sig", newline=None) as file:
            return file.read()
    except UnicodeDecodeError:
        raise MovqError("is not UTF-8", path) from None
    except OSError as error:
        raise MovqError(os_reason(error), path) from None
