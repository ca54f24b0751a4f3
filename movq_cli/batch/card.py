"""The data set card of a batch: a README.md by which `datasets.load_dataset(FOLDER)` and the Hugging Face hub read it.

Of tars they read the members, of files the lines of the manifest. A README.md that movq did not write, or that was edited, is
left alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import MovqWarning
from ..files import WholeFile, short
from ..first_frame import PNG, SUFFIXES
from ..options import FIRST_FRAMES
from .manifest import NAME, Line
from .summary import Summary, summarise

CARD = "README.md"
_MARK = "<!-- Written by movq, and written anew after each batch, unless it is edited: {digest} -->"
_MARKED = re.compile(re.escape(_MARK).replace(r"\{digest\}", "([0-9a-f]*)"))
_MOST_SHAPES = 10
_PLAIN: Mapping[Any, str] = {str: "string", int: "int64", float: "float64", bool: "bool"}
_CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: {path}
dataset_info:
  features:
{features}
---

# Video latents

{mark}

{items} of {frames} frames, {seconds:,.1f} s of video, encoded by movq with weights of sha256 {weights}, in {precisions}.

| latents (1, C, T, H, W) | items |
|---|---|
{shapes}

{use}

`movq_cli.LatentDataset` reads this folder too: it draws from moments, and scales.
"""
_USE_FILES = """\
Each row is a line of the manifest; `row["output"]` is the latents file, below this folder.

```python
import datasets
from movq_cli import open_latents

rows = datasets.load_dataset(FOLDER, split="train").filter(lambda row: row["status"] == "done" and not row["orphan"])
latents = open_latents(f"{FOLDER}/{rows[0]['output']}").latents  # as stored, unscaled
```"""
_USE_TARS = """\
Each row is a sample of WebDataset: a latents file as bytes, and its description.

```python
import datasets
from safetensors.torch import load

rows = datasets.load_dataset(FOLDER, split="train", streaming=True)
for row in rows:
    latents, caption = load(row["safetensors"])["latents"], row["json"]["caption"]  # as stored, unscaled
```"""


def write_card(folder: str, lines: Iterable[Line]) -> None:
    """Write the card of a batch with these lines, unless nothing is done, or it is somebody else's.

    Warns if that one does not name what is to be read. Raises MovqError if it cannot be written.
    """
    whole = summarise(lines)
    if not whole.counts["done"]:
        return
    path, text = os.path.join(folder, CARD), _text(whole)
    before = _read(path)
    if before == text:
        return
    if before is not None and before != _signed(before):
        if "data_files" in before and _data_files(whole) not in before:
            text = (
                f"{path}: was not written by movq, or edited, and is left alone; it does not name {_data_files(whole)}"
            )
            warnings.warn(MovqWarning(text), stacklevel=3)
        return
    with WholeFile(path, force=True) as card:
        card.write(text.encode())
        card.commit()


def _read(path: str) -> str | None:
    """Return the text of a card, "" if what is there is no text file, or None if nothing is there."""
    if not os.path.lexists(path):
        return None
    if os.path.islink(path) or not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _signed(text: str) -> str:
    """Return a card with the digest of the rest of it in its mark; another text if it has no mark."""
    if not _MARKED.search(text):
        return _MARK
    plain = _MARKED.sub(_MARK.format(digest=""), text)
    return _MARKED.sub(_MARK.format(digest=short(hashlib.sha256(plain.encode()).hexdigest())), text)


def _data_files(whole: Summary) -> str:
    return "latents-*.tar" if whole.tars else NAME


def _text(whole: Summary) -> str:
    features = _of_tars(whole) if whole.tars else _of_manifest()
    shapes = [f"| {' x '.join(map(str, shape))} | {count:,} |" for shape, count in whole.shapes]
    if len(shapes) > _MOST_SHAPES:
        shapes[_MOST_SHAPES:] = [f"| {len(shapes) - _MOST_SHAPES:,} more | |"]
    text = _CARD.format(
        path=_data_files(whole),
        features="\n".join(f"  - {{name: {name}, {kind}}}" for name, kind in features.items()),
        mark=_MARK.format(digest=""),
        items=f"{whole.counts['done']:,} item{'' if whole.counts['done'] == 1 else 's'}",
        frames=f"{whole.frames:,}",
        seconds=whole.video_seconds,
        weights=", ".join(f"{short(digest)}…" for digest in whole.weights),
        precisions=" and ".join(whole.precisions),
        shapes="\n".join(shapes),
        use=_USE_TARS if whole.tars else _USE_FILES,
    )
    return _signed(text)


def _of_tars(whole: Summary) -> dict[str, str]:
    """Return the type of each member of a sample in a tar."""
    kinds = [kind for kind in FIRST_FRAMES if whole.first_frames.get(kind)]
    pictures = {SUFFIXES[kind].lstrip("."): "dtype: image" if kind == PNG else "dtype: binary" for kind in kinds}
    texts = dict.fromkeys(("__key__", "__url__"), "dtype: string")
    return {"safetensors": "dtype: binary"} | pictures | {"json": "dtype: json"} | texts


def _of_manifest() -> dict[str, str]:
    """Return the type of each field of a line, all of which a row then has."""
    return {name: _type(hint) for name, hint in get_type_hints(Line).items()}


def _type(hint: Any) -> str:
    """Return the type of a field in the words of `datasets`; what it has no words for is JSON."""
    if get_origin(hint) is list:
        return f"list: {_PLAIN[get_args(hint)[0]]}"
    return f"dtype: {'string' if get_origin(hint) is Literal else _PLAIN.get(hint, 'json')}"
