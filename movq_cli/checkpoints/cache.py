"""The Hugging Face cache: which revisions of a model it has, and where. No network access."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .folders import weights_files

MAIN = "main"
_ID = re.compile(
    r"(?P<model>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>\w[\w.-]*(?:/\w[\w.-]*)*))?", re.ASCII
)
_RENAMED = {"THUDM": "zai-org", "zai-org": "THUDM"}
"""The organisation of CogVideoX has changed its name; its models are cached under the name that they were fetched by."""


def parse_id(text: str) -> tuple[str, str] | None:
    """Return model and revision of a text like ORG/NAME or ORG/NAME@REVISION; None for another text."""
    found = _ID.fullmatch(text)
    return None if found is None else (found["model"], found["revision"] or MAIN)


def hub_cache() -> str:
    """Return the folder of the Hugging Face cache, found in the same way as huggingface_hub does."""
    environment = os.environ
    home = environment.get("HF_HOME") or os.path.join(environment.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return os.path.expanduser(os.path.expandvars(cache))


def names_of(model: str) -> list[str]:
    """Return the ids under which a model may be cached: its own, and the one with its organisation's other name."""
    organisation, name = model.split("/")
    other = _RENAMED.get(organisation)
    return [model] if other is None else [model, f"{other}/{name}"]


def snapshot(model: str, revision: str) -> str | None:
    """Return the folder of a revision (a branch, tag or commit) of a cached model; None if it has no weights."""
    for name in sorted({name for each in _snapshots(model) for name in _weights_below(each)}):
        path = _cached_file(model, name, revision)
        if path is not None:
            return path.removesuffix(name).rstrip("/")
    return None


def revisions(model: str) -> list[str]:
    """Return the revisions of a cached model that have weights: branches and tags, then commits without either."""
    refs = _stored(model) / "refs"
    named = {
        path.relative_to(refs).as_posix(): found
        for path in sorted(refs.rglob("*"))
        if path.is_file() and (found := snapshot(model, path.relative_to(refs).as_posix())) is not None
    }
    reached = {os.path.basename(folder) for folder in named.values()}
    return [*named, *(each.name for each in _snapshots(model) if each.name not in reached and _weights_below(each))]


def _stored(model: str) -> Path:
    return Path(hub_cache(), f"models--{model.replace('/', '--')}")


def _snapshots(model: str) -> list[Path]:
    try:
        return sorted((_stored(model) / "snapshots").iterdir())
    except OSError:
        return []


def _weights_below(folder: Path) -> list[str]:
    """Return the weights files of a snapshot, relative to it."""
    return [os.path.relpath(file.path, folder) for file in weights_files(str(folder))]


def _cached_file(model: str, name: str, revision: str) -> str | None:
    """Return the path of a model's file in the cache, or None. Uses huggingface_hub, or without it the same rules."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        stored = _stored(model)
        try:
            commit = (stored / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            commit = revision
        path = stored / "snapshots" / commit / name
        return str(path) if re.fullmatch(r"\w[\w.-]*", commit, re.ASCII) and path.is_file() else None
    try:
        found = try_to_load_from_cache(model, name, cache_dir=hub_cache(), revision=revision)
    except ValueError:  # not a valid model id
        return None
    return found if isinstance(found, str) else None
