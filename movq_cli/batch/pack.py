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
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from ..errors import MovqDiskError, MovqError, MovqWarning
from ..files import WholeFile, sha256_file, sync
from ..latents import is_latents
from ..values import Shard
from .item import Item
from .manifest import DESCRIBED, Line, Manifest
from .paths import refuse_links
from .tars import TAR, CutError, Member, Tars, blocks, digest_of, index_path, json_name, member_name, write_index

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
                while folder:
                    with suppress(OSError, MovqError):  # it is gone, not empty, or behind a link
                        refuse_links(self._folder, folder)
                        os.rmdir(os.path.join(self._folder, folder))
                    folder = os.path.dirname(folder)

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
            line, path = lines.get(item.id, Line()), os.path.join(self._folder, item.output)
            if "member" in line and self._holds(item.output, line):
                with suppress(MovqError):  # the tar does not have it, so the file is the only copy
                    self._tars.find(line)
                    if sha256_file(path) == line["sha256"]:
                        os.unlink(path)

    def _holds(self, name: str, line: Line) -> bool:
        """Return True if a file below the folder is latents of the line's size: it may be packed and then deleted."""
        path = os.path.join(self._folder, name)
        try:
            refuse_links(self._folder, name)
            return os.path.getsize(path) == line["bytes"] and is_latents(path)
        except (OSError, MovqError):
            return False

    def _pack(self) -> None:
        """Write the outputs that are ready into a new tar."""
        number = 0
        while os.path.lexists(os.path.join(self._folder, tar := f"{self._prefix}{number:05d}.tar")):
            number += 1
        ready, self._ready, self._room = self._ready, [], 0
        self._write(tar, [_Part(line, None) for line in ready], new=True)

    def _update(self, tar: str) -> None:
        """Rewrite a tar if items in it were made again, have other descriptions, or are in another tar now."""
        parts: list[_Part] = []
        same = True
        for member in self._tars.members(tar).values():
            line = self._manifest.lines.get(member.id)
            if line is None or line["status"] != "done":
                parts.append(_Part(None, member))  # keep the last latents that the item had
            elif line.get("member") is None:
                parts.append(_Part(line, None))
                same = False
            elif line["output"] == tar:
                parts.append(_Part(line, member))
                same = same and digest_of(_said(line)) == member.json_sha256
            else:
                same = False
        if not same:
            self._write(tar, parts, new=False)

    def _write(self, tar: str, parts: list[_Part], new: bool) -> None:
        """Write a tar of these parts and record it in the manifest; it replaces the old one unless `new`.

        An old tar without any parts left is deleted.
        """
        path = os.path.join(self._folder, tar)
        members: list[Member] = []
        while parts and not members:
            try:
                members = self._write_whole(path, parts, new)
            except _DamagedError as damaged:  # the item is left out, and the next batch makes it again
                line = parts.pop(damaged.number).line
                if line is not None:
                    reason = "its latents were damaged before they were packed"
                    warnings.warn(
                        MovqWarning(f"{line['path']}: {reason}; the same command makes them again"), stacklevel=2
                    )
                    self._manifest.append(line | Line(status="failed", reason=reason, cause=MovqDiskError.cause))
        self._tars.forget(tar)
        self.written += bool(members)
        pairs = zip(parts, members, strict=True)
        self._manifest.append(*(_in_tar(part.line, tar, member) for part, member in pairs if part.line is not None))
        gone = [part.line["output"] for part in parts if part.line is not None and part.member is None]
        if not parts and not new:
            gone += [tar, index_path(tar)]
        for name in gone:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._folder, name))

    def _write_whole(self, path: str, parts: list[_Part], new: bool) -> list[Member]:
        members = []
        at = 0
        with WholeFile(path, force=not new) as file:

            def add(name: str, size: int, data: Iterable[bytes]) -> tuple[int, str]:
                nonlocal at
                header = _header(name, size)
                file.write(header)
                digest, start = hashlib.sha256(), at + len(header)
                for block in data:
                    file.write(block)
                    digest.update(block)
                rest = -size % tarfile.BLOCKSIZE
                file.write(bytes(rest))
                at = start + size + rest
                return start, digest.hexdigest()

            for number, (line, member) in enumerate(parts):
                if member is not None:
                    id, name, size, expected = member.id, member.name, member.bytes, member.sha256
                    data = blocks(path, member.offset, size)
                else:
                    assert line is not None
                    if not self._holds(line["output"], line):
                        raise _DamagedError(number)
                    id, name, size, expected = line["id"], member_name(line["id"]), line["bytes"], line["sha256"]
                    data = blocks(os.path.join(self._folder, line["output"]), 0, size)
                try:
                    offset, sha256 = add(name, size, data)
                    if sha256 != expected:
                        raise _DamagedError(number)
                    said = _said(line) if line is not None else _said_before(path, member)
                except CutError:
                    raise _DamagedError(number) from None
                json_offset, json_sha256 = add(json_name(name), len(said), [said])
                members.append(Member(id, name, offset, size, sha256, json_offset, len(said), json_sha256))
            file.write(_END)
            with suppress(FileNotFoundError):
                os.unlink(index_path(path))
            sync(self._folder)
            file.commit()
        write_index(path, at + len(_END), members)
        return members


class _Part(NamedTuple):
    """One item of a tar to be written. Its latents come from `member` of the old tar, or else from the file in `line`.

    Without a line, the JSON of the member stays as it is.
    """

    line: Line | None
    member: Member | None


class _DamagedError(Exception):
    """The latents of a part are damaged; `number` is its index among the parts."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _in_tar(line: Line, tar: str, member: Member) -> Line:
    return line | Line(output=tar, member=member.name)


def _said(line: Line) -> bytes:
    values = {"caption": "", **{name: line[name] for name in _SAID if name in line}}  # type: ignore[literal-required]
    return json.dumps(values, ensure_ascii=False, sort_keys=True).encode()


def _said_before(path: str, member: Member | None) -> bytes:
    assert member is not None
    return b"".join(blocks(path, member.json_offset, member.json_bytes))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def _room(line: Line) -> int:
    """Return the bytes that an item takes in a tar, with headers and padding."""
    name = member_name(line["id"])
    parts = (name, line["bytes"]), (json_name(name), len(_said(line)))
    return sum(len(_header(name, size)) + size + -size % tarfile.BLOCKSIZE for name, size in parts)
