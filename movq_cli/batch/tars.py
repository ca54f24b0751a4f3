"""Tars of latents, as WebDataset reads them: `ID.safetensors` and `ID.json` of each item, an index beside each tar.

A tar is whole or absent. Its index only saves reading it through: without one, or with one that does not fit, the tar itself
is read. Items are packed in their order, whatever order they end in: until a tar is whole, theirs are files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from ..errors import MovqDiskError, MovqError
from ..files import BLOCK, WholeFile, os_reason, require_file, sync, write_error
from ..latents import is_latents
from .items import Item
from .manifest import Line, Manifest
from .shard import Shard

LAYOUTS = ("files", "tar")
SHARD_SIZE = 10**9
"""Bytes of a tar that no further item is added to, if it would exceed them."""

_FORMAT = "movq-tar-index"
_FORMAT_VERSION = "1"
_LATENTS, _JSON = ".safetensors", ".json"
_TAR = re.compile(r"latents-(\d+-of-\d+-)?\d{5,}\.tar")
_END = bytes(2 * tarfile.BLOCKSIZE)
_SAID = (
    *("id", "of", "caption", "extra", "shape", "dtype", "width", "height", "frames", "padded", "dropped", "duration"),
    *("bytes", "sha256", "source_sha256", "weights_digest", "semantics", "precision", "options", "format_version"),
)
"""Of an item's line, what is in its JSON: what is true wherever the tar is taken."""


@dataclass(frozen=True)
class Member:
    """Latents in a tar: `bytes` from `offset` on. `json_sha256` is of what is said of them."""

    id: str
    name: str
    offset: int
    bytes: int
    sha256: str
    json_sha256: str


def member_name(id: str) -> str:
    """What an item is called in a tar. A WebDataset key ends at the first dot, and leaves out __names__ like these."""
    parts = [re.sub(r"[%.]", lambda c: f"%{ord(c[0]):02X}", part) for part in id.split("/")]
    return "/".join(re.sub(r"^_(?=_.*__$)", "%5F", part) for part in parts) + _LATENTS


def is_tar(name: str) -> bool:
    """Whether this is what a tar of latents is called in the folder of a batch."""
    return _TAR.fullmatch(name) is not None


def index_path(tar: str) -> str:
    return tar.removesuffix(".tar") + ".index.json"


class Tars:
    """The tars in the folder of a batch, and what is in them."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._known: dict[str, dict[str, Member]] = {}

    def members(self, tar: str) -> dict[str, Member]:
        """By id, in order. `tar` is relative to the folder. Raises MovqError where it is not there, or no tar of ours."""
        if tar not in self._known:
            path = os.path.join(self.folder, tar)
            size = require_file(path).st_size
            self._known[tar] = {member.id: member for member in _read_index(path, size) or _scan(path)}
        return self._known[tar]

    def forget(self, tar: str) -> None:
        self._known.pop(tar, None)

    def find(self, line: Line) -> Member:
        """Where the latents of a line are. Raises MovqError where they are not what the line says."""
        member = self.members(line["output"]).get(line["id"])
        if member is None or (member.name, member.bytes, member.sha256) != (
            line["member"],
            line["bytes"],
            line["sha256"],
        ):
            raise MovqError(
                f"does not hold {line['id']} as the manifest has it", os.path.join(self.folder, line["output"])
            )
        return member


def sha256_part(path: str, offset: int, size: int) -> str:
    """Hex digest of a part of a file. Raises MovqError."""
    digest = hashlib.sha256()
    for block in _blocks(path, offset, size):
        digest.update(block)
    return digest.hexdigest()


class Packer:
    """Packs the outputs of a batch into tars as their turn comes, and keeps the manifest true of where they are."""

    def __init__(self, tars: Tars, manifest: Manifest, items: Sequence[Item], size: int, shard: Shard | None) -> None:
        self._tars, self._manifest, self._size = tars, manifest, size
        self._folder = tars.folder
        self._prefix = "latents-" if shard is None else f"latents-{shard}-"
        self._own = _TAR if shard is None else re.compile(self._prefix + r"\d{5,}\.tar")
        self._items, self._alone = items, shard is None
        self._ended = set[str]()
        self._next = 0
        self._ready: list[Line] = []
        self._room = 0
        self._packed = set[str]()
        """What is in tars that were here before: if it is made again, it takes its own place."""
        self._settle()

    def end(self, ids: Iterable[str]) -> None:
        """These items are final. Packs those whose turn has come, as far as they fill tars."""
        self._ended.update(ids)
        while self._next < len(self._items) and self._items[self._next].id in self._ended:
            line = self._manifest.lines.get(self._items[self._next].id, Line())
            self._next += 1
            if line.get("status") != "done" or line.get("member") or line["id"] in self._packed:
                continue
            if self._ready and self._room + _room(line) + len(_END) > self._size:
                self._pack()
            self._ready.append(line)
            self._room += _room(line)

    def finish(self) -> None:
        """Packs what is left, and brings tars up to date that hold something older."""
        if self._ready:
            self._pack()
        for tar in self._names():
            self._update(tar)
        if self._alone:  # else workers of other shards may be about to use them
            for folder in sorted({os.path.dirname(item.output) for item in self._items}, reverse=True):
                while folder:
                    with suppress(OSError):  # it is gone already, or not empty
                        os.rmdir(os.path.join(self._folder, folder))
                    folder = os.path.dirname(folder)

    def _names(self) -> list[str]:
        return sorted(filter(self._own.fullmatch, os.listdir(self._folder)))

    def _settle(self) -> None:
        """After a kill: tars that are whole and not in the manifest yet, and files that are in a tar and still there."""
        for tar in self._names():
            packed: list[Line] = []
            for member in self._tars.members(tar).values():
                self._packed.add(member.id)
                line = self._manifest.lines.get(member.id, Line())
                if line.get("sha256") == member.sha256 and "member" not in line:
                    packed.append(_packed(line, tar, member))
            if packed:
                self._manifest.append(*packed)
        for item in self._items:
            line, path = self._manifest.lines.get(item.id, Line()), os.path.join(self._folder, item.output)
            if (
                "member" in line
                and os.path.isfile(path)
                and os.path.getsize(path) == line["bytes"]
                and is_latents(path)
            ):
                os.unlink(path)

    def _pack(self) -> None:
        """What is ready, as a new tar."""
        names = (name.removeprefix(self._prefix).removesuffix(".tar") for name in self._names())
        tar = f"{self._prefix}{1 + max((int(name) for name in names if name.isdecimal()), default=-1):05d}.tar"
        ready, self._ready, self._room = self._ready, [], 0
        self._write(tar, [(line, None) for line in ready], new=True)

    def _update(self, tar: str) -> None:
        """Rewrites a tar where items in it were made again or are described otherwise."""
        wanted: list[tuple[Line | None, Member | None]] = []
        same = True
        for member in self._tars.members(tar).values():
            line = self._manifest.lines.get(member.id)
            if line is None or line["status"] != "done":
                wanted.append((None, member))  # the last that there was of it
            elif line.get("member") is None:
                wanted.append((line, None))
                same = False
            elif line["output"] == tar:
                wanted.append((line, member))
                same = same and _digest(_said(line)) == member.json_sha256
            else:
                same = False
        if not same:
            self._write(tar, wanted, new=False)

    def _write(self, tar: str, wanted: list[tuple[Line | None, Member | None]], new: bool) -> None:
        """A tar of latents: files, where no member is given, else parts of the tar of this name as it is."""
        path = os.path.join(self._folder, tar)
        while True:
            try:
                members = self._write_whole(path, wanted, new)
                break
            except _Damaged as damaged:  # it stays what it is, and is made again by the next batch
                wanted = [(line, member) for line, member in wanted if line is not damaged.line]
                reason = "its file was damaged before it was packed"
                self._manifest.append(damaged.line | Line(status="failed", reason=reason, cause=MovqDiskError.cause))
                if not wanted:
                    return
        self._tars.forget(tar)
        fresh = [(line, member) for (line, _), member in zip(wanted, members, strict=True) if line is not None]
        self._manifest.append(*(_packed(line, tar, member) for line, member in fresh))
        for (line, old), _ in zip(wanted, members, strict=True):
            if line is not None and old is None:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._folder, line["output"]))

    def _write_whole(self, path: str, wanted: list[tuple[Line | None, Member | None]], new: bool) -> list[Member]:
        members = []
        at = 0
        with WholeFile(path, force=not new) as file:

            def add(name: str, size: int, blocks: Iterable[bytes]) -> tuple[int, str]:
                nonlocal at
                header = _header(name, size)
                file.write(header)
                digest, start = hashlib.sha256(), at + len(header)
                for block in blocks:
                    file.write(block)
                    digest.update(block)
                rest = -size % tarfile.BLOCKSIZE
                file.write(bytes(rest))
                at = start + size + rest
                return start, digest.hexdigest()

            for line, member in wanted:
                if member is not None:
                    name, size, blocks = member.name, member.bytes, _blocks(path, member.offset, member.bytes)
                else:
                    assert line is not None
                    name, size = member_name(line["id"]), line["bytes"]
                    blocks = _blocks(os.path.join(self._folder, line["output"]), 0, size)
                try:
                    offset, sha256 = add(name, size, blocks)
                except _Cut:
                    sha256 = ""
                if line is not None and sha256 != line["sha256"]:
                    raise _Damaged(line)
                said = _said(line) if line is not None else _said_before(path, member)
                _, json_sha256 = add(_json_name(name), len(said), [said])
                id = line["id"] if line is not None else member.id  # type: ignore[union-attr]
                members.append(Member(id, name, offset, size, sha256, json_sha256))
            file.write(_END)
            with suppress(FileNotFoundError):
                os.unlink(index_path(path))
            sync(self._folder)
            file.commit()
        _write_index(path, at + len(_END), members)
        return members


class _Damaged(Exception):
    def __init__(self, line: Line) -> None:
        super().__init__(line["id"])
        self.line = line


class _Cut(MovqError):
    """A file ends before it should."""


def _packed(line: Line, tar: str, member: Member) -> Line:
    return line | Line(output=tar, member=member.name)


def _said(line: Line) -> bytes:
    values = {"caption": "", **{name: line[name] for name in _SAID if name in line}}  # type: ignore[literal-required]
    return json.dumps(values, ensure_ascii=False, sort_keys=True).encode()


def _said_before(path: str, member: Member | None) -> bytes:
    assert member is not None
    with tarfile.open(path, "r:") as tar, suppress(KeyError):
        file = tar.extractfile(_json_name(member.name))
        if file is not None:
            return file.read()
    raise MovqError(f"says nothing of {member.id}", path)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def _room(line: Line) -> int:
    """Bytes that an item takes of a tar."""
    name = member_name(line["id"])
    parts = (name, line["bytes"]), (_json_name(name), len(_said(line)))
    return sum(len(_header(name, size)) + size + -size % tarfile.BLOCKSIZE for name, size in parts)


def _json_name(name: str) -> str:
    return name.removesuffix(_LATENTS) + _JSON


def _blocks(path: str, offset: int, size: int) -> Iterator[bytes]:
    """A part of a file. Raises _Cut where there is less."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            while size:
                block = file.read(min(size, BLOCK))
                if not block:
                    raise _Cut("is cut off", path)
                size -= len(block)
                yield block
    except FileNotFoundError:
        raise _Cut("is gone", path) from None
    except OSError as error:
        raise MovqError(os_reason(error), path) from None


def _write_index(tar: str, size: int, members: Sequence[Member]) -> None:
    values = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "bytes": size,
        "members": list(map(asdict, members)),
    }
    try:
        with WholeFile(index_path(tar), force=True) as file:
            file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")
            file.commit()
    except OSError as error:
        raise write_error(error, index_path(tar)) from error


def _read_index(tar: str, size: int) -> list[Member] | None:
    """The members that a tar's index names; None if it is not this tar's."""
    try:
        with open(index_path(tar), "rb") as file:
            values = json.load(file)
        if (values["format"], values["format_version"], values["bytes"]) != (_FORMAT, _FORMAT_VERSION, size):
            return None
        members = [Member(**member) for member in values["members"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    numbers = [number for member in members for number in (member.offset, member.bytes)]
    fits = all(type(number) is int and 0 <= number <= size for number in numbers)
    return members if fits else None


def _scan(path: str) -> Iterator[Member]:
    """The members of a tar, read through. Raises MovqError for one that is not whole, or not ours."""
    try:
        with tarfile.open(path, "r:") as tar:
            latents: tarfile.TarInfo | None = None
            for info in tar:
                if info.name.endswith(_LATENTS):
                    latents = info
                    continue
                file = tar.extractfile(info)
                if file is None or latents is None:
                    raise ValueError(info.name)
                said = file.read()
                values = json.loads(said)
                name, sha256 = str(values["id"]), str(values["sha256"])
                yield Member(name, latents.name, latents.offset_data, latents.size, sha256, _digest(said))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, tarfile.TarError) as error:
        raise MovqError(f"is not a tar of latents ({error})", path) from None
