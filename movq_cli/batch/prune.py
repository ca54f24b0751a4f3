"""Remove outputs that no item of a batch has any more, and their lines."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress

from ..errors import MovqError, option
from ..files import sync
from .card import write_card
from .locks import only_one
from .manifest import Manifest, files_of, shard_manifests
from .orphans import find_orphans, place_of, removable
from .pack import Packer
from .paths import refuse_links, remove_empty_folders
from .tars import TAR, Tars


def prune_batch(folder: str | os.PathLike[str], orphans: Collection[str]) -> list[str]:
    """Remove these orphans from the folder of a batch, with the lines that name them, and return those that were removed.

    `orphans` are named as in `BatchResult.orphans`. Only those are removed that a line names, and names as an orphan still:
    other latents in the folder may never have been of this batch. The lines go last, so that a process that is killed
    leaves nothing behind that could not be removed later. Raises MovqError if another batch is at work in the folder, or if
    it has shards that are not merged.
    """
    folder = os.fspath(folder)
    with only_one(folder):
        if shard_manifests(folder):
            raise MovqError(f"is of a batch in shards: put them together first, by {option('merge')}", folder)
        manifest = Manifest(folder)
        try:
            present = find_orphans(manifest, folder)
            gone = set(removable(manifest.lines.values(), present)) & set(orphans)
            in_tars = {place for place in gone if _is_in_tar(place)}
            _remove_files(folder, gone - in_tars)
            _rewrite_tars(manifest, in_tars, folder)
            left = set(present) - gone
            for id, line in list(manifest.lines.items()):
                if line.get("orphan") and left.isdisjoint(map(place_of, files_of(line))):
                    del manifest.lines[id]
            manifest.put_in_order()
        finally:
            manifest.close()
        write_card(folder, manifest.lines.values())
    return sorted(gone)


def _is_in_tar(place: str) -> bool:
    return TAR.fullmatch(place.partition(":")[0]) is not None


def _remove_files(folder: str, names: Collection[str]) -> None:
    for name in sorted(names):
        refuse_links(folder, name)
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
    for above in {os.path.dirname(name) for name in names}:
        remove_empty_folders(folder, above)
    sync(folder)


def _rewrite_tars(manifest: Manifest, places: Collection[str], folder: str) -> None:
    """Rewrite the tars that hold these places without them."""
    if not places:
        return
    tars = Tars(folder)
    packer = Packer(tars, manifest, [], 0, None)
    for tar in sorted({place.partition(":")[0] for place in places}):
        packer.drop(tar, {member.id for member in tars.members(tar).values() if f"{tar}:{member.name}" in places})
