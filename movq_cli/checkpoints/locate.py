"""Finding the files of a checkpoint from a file, a folder, or the id of a model in the Hugging Face cache.

No torch here, and no network access.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import MovqError, MovqWarning
from ..files import file_name, os_reason, require_file
from .cache import MAIN, hub_cache, names_of, parse_id, revisions, snapshot
from .configs import read_object, some
from .folders import SINGLE, VAE, WeightsFile, choose_weights, contents, weights_file, weights_files

_CONFIG = "config.json"
_FILE_SUFFIXES = {
    *(".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".json"),
    *(".tar", ".zip", ".npy", ".npz", ".txt", ".csv", ".jsonl"),
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".png", ".jpg", ".jpeg", ".webp"),
}


@dataclass(frozen=True)
class Located:
    """The files of a checkpoint. `path` is the file, or the folder of the files.

    `placed` maps each tensor to its file, from the index of a sharded checkpoint; None without an index. `config` is
    the config.json next to the files, if any. `name` is the model's name if its files do not say one. `source` is the
    file or model it came from.
    """

    path: str
    name: str
    source: str
    weights: tuple[str, ...]
    placed: Mapping[str, str] | None = None
    index: str | None = None
    config: str | None = None


def locate(path_or_id: str | os.PathLike[str], pytorch: bool = False) -> Located:
    """Find the files of a path or model id. Raises MovqError if it has none; for an id it says how to fetch it.

    With `pytorch`, a folder may have only PyTorch files.
    """
    text = os.fspath(path_or_id)
    if os.path.isdir(text):
        file = choose_weights(text, pytorch)
        if file is None:
            raise MovqError(
                f"has no {SINGLE}, nor its index, nor a {VAE} folder with one; it has {contents(text)}", text
            )
        return _of_file(file, _folder_name(file.folder))
    if is_model_id(text):
        located = _in_cache(text, pytorch)
        if located is None:
            raise _not_cached(text)
        return located
    require_file(text)
    index = weights_file(os.path.dirname(text) or ".", os.path.basename(text))
    if index is not None and index.is_index:
        return _of_file(index, _folder_name(index.folder))
    return Located(text, Path(file_name(text)).stem, file_name(text), (text,), config=_config_in(os.path.dirname(text)))


def locate_cached(model: str) -> Located | None:
    """Find a model in the Hugging Face cache and in no other place. Returns None if it is not there, or is no model id."""
    return _in_cache(model) if parse_id(model) else None


def fetching(text: str) -> str:
    """Return the command that downloads a model's autoencoder to the Hugging Face cache; "" if its id is not valid."""
    parsed = parse_id(text)
    if parsed is None:
        return ""
    revision = "" if parsed[1] == MAIN else f"--revision {parsed[1]} "
    return f'hf download {parsed[0]} {revision}--include "{VAE}/*"'


def is_model_id(text: str) -> bool:
    """Return True if a text looks like ORG/NAME or ORG/NAME@REVISION, without a file's suffix, and no such path exists."""
    suffix = os.path.splitext(text)[1].lower()
    return parse_id(text) is not None and suffix not in _FILE_SUFFIXES and not os.path.lexists(text)


def holds_weights(folder: str | os.PathLike[str]) -> bool:
    """Return True if a folder is a diffusers autoencoder or a whole model with one, also one of PyTorch files."""
    return bool(weights_files(os.fspath(folder)))


def is_pytorch(path: str) -> bool:
    """Return True if a file begins like a PyTorch file, a zip archive or a pickle. The rest is not checked."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise MovqError(os_reason(error), path) from None
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"))


def refuse_pytorch(path: str) -> None:
    """Raise MovqError for a PyTorch file, with the command that converts it."""
    if is_pytorch(path):
        raise MovqError(
            "is a PyTorch file, which can hold code; `movq weights convert FILE -o OUT.safetensors` makes weights of it, "
            "`movq decode FILE --from LAYOUT` shows a trainer's latents",
            path,
        )


def _in_cache(text: str, pytorch: bool = False) -> Located | None:
    """Return the files of a model id in the cache, also under its organisation's other name, with a warning."""
    parsed = parse_id(text)
    assert parsed is not None
    model, revision = parsed
    for name in names_of(model):
        folder = snapshot(name, revision)
        file = None if folder is None else choose_weights(folder, pytorch)
        if file is not None:
            if name != model:
                warnings.warn(MovqWarning(f"the Hugging Face cache has {model} as {name}, which is used"), stacklevel=2)
            return replace(_of_file(file, text), source=text.replace(model, name, 1))
    return None


def _not_cached(text: str) -> MovqError:
    """Return the error of an id that the cache does not have, which names the revisions that it has."""
    parsed = parse_id(text)
    assert parsed is not None
    model, revision = parsed
    found = [f"{name}@{each}" for name in names_of(model) for each in revisions(name)]
    has = f"no revision {revision} of it" if found else "no model of that id"
    others = f", but {some(found)}: name one of these" if found else ""
    return MovqError(
        f"no such file or folder, and {has} in the Hugging Face cache {hub_cache()}{others}; "
        f"to fetch it: {fetching(text)}",
        text,
    )


def _folder_name(folder: str) -> str:
    """Return a folder's name, or its parent's if the folder is called vae, as in every whole model."""
    path = Path(os.path.abspath(folder))
    return file_name(path.parent if path.name == VAE and path.parent.name else path)


def _of_file(file: WeightsFile, name: str) -> Located:
    """Return the files of a folder by its weights file, or by the index of several.

    Raises MovqError for an index that is invalid or names files that do not exist.
    """
    folder, config = file.folder, _config_in(file.folder)
    if not file.is_index:
        return Located(folder, name, name, (file.path,), config=config)
    index = file.path
    placed = read_object(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise MovqError("has no weight_map", index)
    for shard in placed.values():
        if not isinstance(shard, str) or not _is_base_name(shard):
            raise MovqError(f"names {shard!r}, which is not a file of the same folder", index)
    files = {shard: os.path.join(folder, shard) for shard in sorted(set(placed.values()))}
    for shard, path in files.items():
        if not os.path.isfile(path):
            raise MovqError(f"lacks {shard}, which its index names", folder)
    placed = {name: files[shard] for name, shard in placed.items()}
    return Located(folder, name, name, tuple(files.values()), placed, index, config)


def _config_in(folder: str) -> str | None:
    path = os.path.join(folder, _CONFIG)
    return path if os.path.isfile(path) else None


def _is_base_name(name: str) -> bool:
    return bool(re.fullmatch(r"\w[\w.-]*", name, re.ASCII))
