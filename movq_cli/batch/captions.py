"""Captions in files: `clip.txt` next to `clip.mp4`, a file with a line for each item, or the metadata file of a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from ..errors import MovqError, option
from ..files import os_reason
from .lists import Row, RowList
from .paths import hub_repository, leads_into

METADATA = ("metadata.csv", "metadata.jsonl")
"""The lists that describe the videos of their folder, as `datasets` finds them."""

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
    if os.path.realpath(path) != caption_path(os.path.realpath(video)):
        _refuse_link(path, sources)
    return _text(path, _MOST_BYTES).strip()


def read_metadata(
    path: str, videos: Collection[str], sources: Sequence[str], columns: Mapping[str, str] | None = None
) -> tuple[dict[str, Row], str]:
    """Return the rows of a metadata file by the path of their video, for those of `videos`, and a remark, which may be "".

    A video with several rows gets none, as they may be of spans. Raises MovqError if the file is not a list, or is a link
    that `read_caption` would not follow.
    """
    _refuse_link(path, sources)
    table = RowList(path, columns, describing=True)
    rows = list(table)
    times = Counter(row.path for row in rows)
    several = sum(count > 1 for path, count in times.items() if path in videos)
    unknown = sum(count for path, count in times.items() if path not in videos)
    remarks = [table.remark] if table.remark else []
    if column := table.unused_captions:
        remarks.append(f"has no captions, but texts in {column}: {option('columns', f'caption={column}')} takes them")
    if several:
        remarks.append(
            f"names {several:,} of the videos in several rows, and describes none of these: {option('lists')} takes spans"
        )
    if unknown:
        remarks.append(f"{unknown:,} of its {len(rows):,} rows name no video among the sources")
    return {row.path: row for row in rows if row.path in videos and times[row.path] == 1}, "; ".join(remarks)


def _refuse_link(path: str, sources: Sequence[str]) -> None:
    folder = os.path.dirname(path)
    if os.path.islink(path) and not leads_into(path, folder, *sources, hub_repository(folder)):
        raise MovqError("is a link to a file outside the source folders", path)


def read_captions(path: str) -> list[str]:
    """Return the lines of a file, each a caption, without empty lines at its end.

    Raises MovqError if the file is not text, or has an empty line in between, as it may be one line too many or too few.
    """
    lines = [line.strip() for line in _text(path).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        number = lines.index("") + 1
        raise MovqError(
            f"line {number} is empty: remove it, or use a list with a column caption, which may be empty", path
        )
    return lines


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
