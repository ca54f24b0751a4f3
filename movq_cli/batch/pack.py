"""Pack the outputs of a batch into tars, so that the manifest stays true even if the process is killed at any moment.

The tar is written first, whole; then its index; then the lines of the manifest; and then the packed files are deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import warnings
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from ..errors import MovqDiskError, MovqError, MovqWarning
from ..files import WholeFile, sha256_file, sync
from ..first_frame import LATENT, first_frame_path, is_first_frame
from ..values import Shard
from .item import Item
from .manifest import DESCRIBED, FirstFrameLine, Line, Manifest, first_frames_of
from .paths import refuse_links, remove_empty_folders
from .tars import (
    TAR,
    CutError,
    Member,
    Part,
    Tars,
    blocks,
    digest_of,
    first_frame_name,
    index_path,
    json_name,
    member_name,
    write_index,
)

_END = bytes(2 * tarfile.BLOCKSIZE)
_SAID = (
    *("id", "of", *DESCRIBED, "shape", "dtype", "width", "height", "frames", "padded", "dropped", "duration"),
    *("bytes", "sha256", "source_sha256", "weights_digest", "semantics", "precision", "options", "format_version"),
)
"""The fields of a line that go into an item's JSON: those that stay true if the tar is moved elsewhere."""


class Packer:
    """Packs the outputs of a batch into tars, in the order of the items, and records in the manifest where they are."""

    def __init__(self, tars: Tars, manifest: Manifest, items: Sequence[Item], size: int, shard: Shard | None) -> None:
        self._tars, self._manifest, self._size = tars, manifest, size
        self._folder = tars.folder
        self._prefix = "latents-" if shard is None else f"latents-{shard}-"
        self._own = TAR if shard is None else re.compile(self._prefix + r"\d{5,}\.tar")
        self._items, self._alone = items, shard is None
        self._ended = set[str]()
        self._next = 0
        self._ready: list[Line] = []
        self._room = 0
        self.written = 0
        self._tar_of: dict[str, str] = {}
        """The tar of each item that is packed already, by id. If the item is made again, it goes back into that tar."""
        self._open: dict[str, set[str]] = {}
        """By tar, the ids of items in it that may still be made again."""
        self._settle()

    def end(self, ids: Iterable[str]) -> None:
        """Note that these items are final, and pack those whose turn has come, once they fill a tar."""
        for id in ids:
            self._ended.add(id)
            if (tar := self._tar_of.get(id)) is not None:
                self._open[tar].discard(id)
                if not self._open[tar]:
                    self._update(tar)
        while self._next < len(self._items) and self._items[self._next].id in self._ended:
            line = self._manifest.lines.get(self._items[self._next].id, Line())
            self._next += 1
            if line.get("status") != "done" or line.get("member") or line["id"] in self._tar_of:
                continue
            if self._ready and self._room + _room(line) + len(_END) > self._size:
                self._pack()
            self._ready.append(line)
            self._room += _room(line)

    def finish(self) -> None:
        """Pack the remaining outputs, update tars with older ones, and, without shards, delete empty folders."""
        if self._ready:
            self._pack()
        for tar, items in self._open.items():
            if items:
                self._update(tar)
        if self._alone:  # with shards, other workers may be about to use these folders
            for folder in sorted({os.path.dirname(item.output) for item in self._items}, reverse=True):
                remove_empty_folders(self._folder, folder)

    def drop(self, tar: str, ids: Collection[str]) -> None:
        """Rewrite a tar without these items, or delete it if it has no others."""
        members = self._tars.members(tar).values()
        self._write(tar, [self._kept(member, tar) for member in members if member.id not in ids], new=False)

    def _kept(self, member: Member, tar: str) -> _Entry:
        """Return the entry of a member that stays in its tar."""
        line = self._manifest.lines.get(member.id)
        return _Entry(line if line is not None and line.get("output") == tar else None, member)

    def _names(self) -> list[str]:
        return list(filter(self._own.fullmatch, self._tars.names()))

    def _settle(self) -> None:
        """Read what the tars hold, write missing indexes, and delete files that a killed batch had packed already."""
        lines, items = self._manifest.lines, {item.id for item in self._items}
        for tar in self._names():
            try:
                members = self._tars.members(tar)
            except MovqError as error:  # its items are made again
                warnings.warn(MovqWarning(f"{error}: nothing in it is used"), stacklevel=2)
                continue
            try:
                self._tars.put_index(tar)
            except MovqDiskError:
                raise
            except MovqError as error:  # without an index the tar itself is read, as now
                warnings.warn(MovqWarning(str(error)), stacklevel=2)
            self._tar_of |= dict.fromkeys(members, tar)
            self._open[tar] = items & members.keys()
        for item in self._items:
            line = lines.get(item.id, Line())
            with suppress(MovqError):  # the tar does not have it, so the file is the only copy
                if "member" in line:
                    self._tars.find(line)
                    self._remove_packed(item.output, line)
            for kind, said in first_frames_of(line).items():
                with suppress(MovqError):
                    if "member" in said:
                        self._tars.find_first_frame(line, kind)
                        self._remove_packed(first_frame_path(item.output, kind), said, kind)

    def _remove_packed(self, name: str, said: Line | FirstFrameLine, kind: str = LATENT) -> None:
        """Delete a file below the folder that a tar has too. Raises MovqError if it cannot be read."""
        path = os.path.join(self._folder, name)
        if self._holds(name, said, kind) and sha256_file(path) == said["sha256"]:
            os.unlink(path)

    def _holds(self, name: str, said: Line | FirstFrameLine, kind: str = LATENT) -> bool:
        """Return True if a file below the folder has the size that is said, and movq wrote it: it may be deleted later."""
        path = os.path.join(self._folder, name)
        try:
            refuse_links(self._folder, name)
            return os.path.getsize(path) == said["bytes"] and is_first_frame(path, kind)
        except (OSError, MovqError):
            return False

    def _pack(self) -> None:
        """Write the outputs that are ready into a new tar."""
        number = 0
        while os.path.lexists(os.path.join(self._folder, tar := f"{self._prefix}{number:05d}.tar")):
            number += 1
        ready, self._ready, self._room = self._ready, [], 0
        self._write(tar, [_Entry(line, None) for line in ready], new=True)

    def _update(self, tar: str) -> None:
        """Rewrite a tar if items in it were made again, have other descriptions, or are in another tar now."""
        entries: list[_Entry] = []
        same = True
        for member in self._tars.members(tar).values():
            line = self._manifest.lines.get(member.id)
            if line is None or line["status"] != "done":
                entries.append(_Entry(None, member))  # keep the last latents that the item had
            elif line.get("member") is None:
                entries.append(_Entry(line, None))
                same = False
            elif line["output"] == tar:
                entries.append(_Entry(line, member))
                packed = all("member" in said for said in first_frames_of(line).values())
                same = same and packed and digest_of(_said(line)) == member.json_sha256
            else:
                same = False
        if not same:
            self._write(tar, entries, new=False)

    def _write(self, tar: str, entries: list[_Entry], new: bool) -> None:
        """Write a tar of these entries and record it in the manifest; it replaces the old one unless `new`.

        An old tar without any entries left is deleted.
        """
        path = os.path.join(self._folder, tar)
        members: list[Member] = []
        while entries and not members:
            try:
                members = self._write_whole(path, entries, new)
            except _DamagedError as damaged:  # it is left out, and may be made again
                entry = entries.pop(damaged.number)
                entries[damaged.number : damaged.number] = self._without(entry, damaged.kind)
        self._tars.forget(tar)
        self.written += bool(members)
        pairs = zip(entries, members, strict=True)
        self._manifest.append(*(_in_tar(entry.line, tar, member) for entry, member in pairs if entry.line is not None))
        gone = [name for entry in entries for name in entry.unpacked]
        if not entries and not new:
            gone += [tar, index_path(tar)]
        for name in gone:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._folder, name))

    def _without(self, entry: _Entry, kind: str) -> list[_Entry]:
        """Return what is left of an entry without its first frame of a kind, or, if that is "", without its latents."""
        line, member = entry
        what = f"first frame ({kind}) was" if kind else "latents were"
        again = f"batch-encode --first-frame {kind}" if kind else "the same command"
        reason = f"its {what} damaged before packing"
        about = line["path"] if line is not None else entry.id
        warnings.warn(MovqWarning(f"{about}: {reason}; {again} makes them again"), stacklevel=2)
        if line is not None:
            left = line.copy()
            if kind:
                left["first_frame"] = {k: said for k, said in left.pop("first_frame").items() if k != kind}
            else:
                left |= Line(status="failed", reason=reason, cause=MovqDiskError.cause)
            self._manifest.append(left)
            return [_Entry(left, member)] if kind else []
        if not kind or member is None:
            return []
        return [_Entry(None, replace(member, first_frame={k: v for k, v in member.first_frame.items() if k != kind}))]

    def _write_whole(self, path: str, entries: list[_Entry], new: bool) -> list[Member]:
        with WholeFile(path, force=not new) as file:
            tar = _TarWriter(file)
            members = [self._add(tar, path, number, entry) for number, entry in enumerate(entries)]
            tar.end()
            with suppress(FileNotFoundError):
                os.unlink(index_path(path))
            sync(self._folder)
            file.commit()
        write_index(path, tar.size, members)
        return members

    def _add(self, tar: _TarWriter, path: str, number: int, entry: _Entry) -> Member:
        """Add the files of an entry to a tar that replaces the one at `path`. Raises _DamagedError."""
        id, added, kind = entry.id, dict[str, Part](), ""
        name = member_name(id)
        try:
            for kind in ("", *entry.first_frames):
                added[kind] = tar.add(first_frame_name(name, kind) if kind else name, *self._source(entry, kind, path))
            kind = ""
            said = _said_before(path, entry.member) if entry.line is None else _said(entry.line)
        except CutError:
            raise _DamagedError(number, kind) from None
        place = tar.add(json_name(name), len(said), digest_of(said), [said])
        latents = vars(added.pop(""))
        return Member(
            **latents,
            id=id,
            json_offset=place.offset,
            json_bytes=place.bytes,
            json_sha256=place.sha256,
            first_frame=added,
        )

    def _source(self, entry: _Entry, kind: str, path: str) -> tuple[int, str, Iterable[bytes]]:
        """Return size, digest and bytes of the latents of an entry, or of its first frame of a kind. Raises CutError."""
        said = entry.said(kind)
        if said is None or "member" in said:
            part = entry.part(kind)
            if part is None:
                raise CutError("does not hold what the manifest says", path)
            return part.bytes, part.sha256, blocks(path, part.offset, part.bytes)
        if not self._holds(said["output"], said, kind or LATENT):
            raise CutError("is not what the manifest says", said["output"])
        return said["bytes"], said["sha256"], blocks(os.path.join(self._folder, said["output"]), 0, said["bytes"])


class _Entry(NamedTuple):
    """One item of a tar to be written: its files come from `member` of the old tar, or are those that `line` names.

    Without a line, all that the member has stays as it is.
    """

    line: Line | None
    member: Member | None

    @property
    def id(self) -> str:
        """The id of the item."""
        if self.line is not None:
            return self.line["id"]
        assert self.member is not None
        return self.member.id

    @property
    def first_frames(self) -> list[str]:
        """The kinds of its first frame."""
        if self.line is not None:
            return [*first_frames_of(self.line)]
        return [] if self.member is None else [*self.member.first_frame]

    @property
    def unpacked(self) -> list[str]:
        """The files that are not in a tar yet, relative to the folder."""
        if self.line is None:
            return []
        return [said["output"] for said in (self.line, *first_frames_of(self.line).values()) if "member" not in said]

    def said(self, kind: str) -> Line | FirstFrameLine | None:
        """Return what the manifest says of the latents, or of the first frame of a kind; None without a line."""
        if self.line is None:
            return None
        return self.line["first_frame"][kind] if kind else self.line

    def part(self, kind: str) -> Part | None:
        """Return the same part of the old tar, if it has it."""
        if self.member is None:
            return None
        return self.member.first_frame.get(kind) if kind else self.member


class _TarWriter:
    """Writes the members of a tar, of `size` bytes so far."""

    def __init__(self, file: WholeFile) -> None:
        self._file, self.size = file, 0

    def add(self, name: str, size: int, sha256: str, data: Iterable[bytes]) -> Part:
        """Write a member. Raises CutError if its data are not those of the digest."""
        header, digest = _header(name, size), hashlib.sha256()
        self._write(header)
        start = self.size
        for block in data:
            self._write(block)
            digest.update(block)
        if digest.hexdigest() != sha256:
            raise CutError("is damaged", name)
        self._write(bytes(-size % tarfile.BLOCKSIZE))
        return Part(name, start, size, sha256)

    def end(self) -> None:
        """Write the end of the tar."""
        self._write(_END)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)


class _DamagedError(Exception):
    """The latents of an entry are damaged, or its first frame of a `kind`; `number` is its index among the entries."""

    def __init__(self, number: int, kind: str) -> None:
        super().__init__(number, kind)
        self.number, self.kind = number, kind


def _in_tar(line: Line, tar: str, member: Member) -> Line:
    packed = line | Line(output=tar, member=member.name)
    if member.first_frame:
        packed["first_frame"] = line["first_frame"] | {
            kind: FirstFrameLine(output=tar, member=part.name, bytes=part.bytes, sha256=part.sha256)
            for kind, part in member.first_frame.items()
        }
    return packed


def _said(line: Line) -> bytes:
    values = {"caption": "", **{name: line[name] for name in _SAID if name in line}}  # type: ignore[literal-required]
    if first := first_frames_of(line):
        values["first_frame"] = {kind: {"bytes": one["bytes"], "sha256": one["sha256"]} for kind, one in first.items()}
    return _json(values)


def _said_before(path: str, member: Member | None) -> bytes:
    """Return the JSON of a member, without first frames that it has no longer."""
    assert member is not None
    said = b"".join(blocks(path, member.json_offset, member.json_bytes))
    values = json.loads(said)
    first = values.get("first_frame", {})
    if first.keys() == member.first_frame.keys():
        return said
    return _json(values | {"first_frame": {kind: first[kind] for kind in member.first_frame}})


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, sort_keys=True).encode()


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def _room(line: Line) -> int:
    """Return the bytes that an item takes in a tar, with headers and padding."""
    name = member_name(line["id"])
    sizes = {name: line["bytes"], json_name(name): len(_said(line))}
    sizes |= {first_frame_name(name, kind): said["bytes"] for kind, said in first_frames_of(line).items()}
    return sum(len(_header(name, size)) + size + -size % tarfile.BLOCKSIZE for name, size in sizes.items())
