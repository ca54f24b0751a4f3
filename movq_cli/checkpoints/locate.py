"""Finding the files of a checkpoint from a file, a folder, or the id of a model in the Hugging Face cache.

No torch here, and no network access.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import MovqError
from ..files import file_name, os_reason, require_file
from .layouts import read_object

SINGLE = "diffusion_pytorch_model.safetensors"
INDEX = f"{SINGLE}.index.json"
_VAE = "vae"
_CONFIG = "config.json"
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
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


def locate(path_or_id: str | os.PathLike[str]) -> Located:
    """Find the files of a path or model id. Raises MovqError if there are none; for an id it says how to fetch it."""
    text = os.fspath(path_or_id)
    if os.path.isdir(text):
        folder = _folder_of_weights(text)
        if folder is None:
            raise MovqError(f"has no {SINGLE}, nor its index, nor a {_VAE} folder with one", text)
        return _in_folder(folder, _folder_name(folder))
    if is_model_id(text):
        folder = _in_cache(text)
        if folder is None:
            raise MovqError(
                f"no such file or folder, and no model of that id in the Hugging Face cache {hub_cache()}; "
                f"to fetch it: {fetching(text)}",
                text,
            )
        return _in_folder(folder, text)
    require_file(text)
    return Located(text, Path(file_name(text)).stem, file_name(text), (text,), config=_config_in(os.path.dirname(text)))


def locate_cached(model: str) -> Located | None:
    """Find a model in the Hugging Face cache and in no other place. Returns None if it is not there, or is no model id."""
    folder = _in_cache(model) if _ID.fullmatch(model) else None
    return None if folder is None else _in_folder(folder, model)


def fetching(model: str) -> str:
    """Return the command that downloads a model's autoencoder to the Hugging Face cache; "" if its id is not valid."""
    return "" if _ID.fullmatch(model) is None else f'hf download {model} --include "{_VAE}/*"'


def is_model_id(text: str) -> bool:
    """Return True if a text looks like ORG/NAME, without the suffix of a file, and is not an existing path."""
    suffix = os.path.splitext(text)[1].lower()
    return _ID.fullmatch(text) is not None and suffix not in _FILE_SUFFIXES and not os.path.lexists(text)


def holds_weights(folder: str | os.PathLike[str]) -> bool:
    """Return True if a folder is a diffusers autoencoder or a whole model with one."""
    return _folder_of_weights(os.fspath(folder)) is not None


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


def hub_cache() -> str:
    """Return the folder of the Hugging Face cache, found in the same way as huggingface_hub does."""
    environment = os.environ
    home = environment.get("HF_HOME") or os.path.join(environment.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return os.path.expanduser(os.path.expandvars(cache))


def _in_cache(model: str) -> str | None:
    """Return the folder of the autoencoder's weights in the cached main revision of a model, or None."""
    for name in (INDEX, SINGLE, f"{_VAE}/{INDEX}", f"{_VAE}/{SINGLE}"):
        path = _cached_file(model, name)
        if path is not None:
            return os.path.dirname(path)
    return None


def _cached_file(model: str, name: str) -> str | None:
    """Return the path of a model's file in the cache, or None. Uses huggingface_hub, or without it the same rules."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        stored = Path(hub_cache(), f"models--{model.replace('/', '--')}")
        try:
            commit = (stored / "refs" / "main").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
        path = stored / "snapshots" / commit / name
        return str(path) if _is_base_name(commit) and path.is_file() else None
    try:
        found = try_to_load_from_cache(model, name, cache_dir=hub_cache())
    except ValueError:  # not a valid model id
        return None
    return found if isinstance(found, str) else None


def _folder_of_weights(folder: str) -> str | None:
    for candidate in (folder, os.path.join(folder, _VAE)):
        if any(os.path.isfile(os.path.join(candidate, name)) for name in (INDEX, SINGLE)):
            return candidate
    return None


def _folder_name(folder: str) -> str:
    """Return a folder's name, or its parent's if the folder is called vae, as in every whole model."""
    path = Path(os.path.abspath(folder))
    return file_name(path.parent if path.name == _VAE and path.parent.name else path)


def _in_folder(folder: str, name: str) -> Located:
    """Return the files of a folder. An index takes precedence over a single file, as in diffusers.

    Raises MovqError for an index that is invalid or names files that do not exist.
    """
    config, index = _config_in(folder), os.path.join(folder, INDEX)
    if not os.path.isfile(index):
        return Located(folder, name, name, (os.path.join(folder, SINGLE),), config=config)
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
