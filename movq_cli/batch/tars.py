"""Tars of latents for WebDataset: `ID.safetensors` and `ID.json` for each item, and an index next to each tar.

The files of an item's first frame, if it has any, are members of the same key: `ID.first_frame.png` and so on.

A tar is whole or absent. Its index only saves time: if it is missing or does not fit, the tar itself is read through.
Items are packed in the order of the batch, not in the order in which they end. Until their tar is whole, their latents
are files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..errors import MovqError
from ..files import BLOCK, WholeFile, os_reason, require_file
from ..first_frame import LATENTS, SUFFIXES
from ..options import FIRST_FRAMES
from ..records import Count, from_values, parse_json, to_values
from .manifest import FirstFrameLine, Line
from .paths import Reach

_FORMAT = "movq-tar-index"
_FORMAT_VERSION = "1"
_JSON = ".json"
_MOST_JSON = 1 << 24  # bytes of the JSON of one item; captions are shorter
TAR = re.compile(r"latents-(\d+-of-\d+-)?\d{5,}\.tar")
"""The names of tars of latents in the folder of a batch."""


@dataclass(frozen=True)
class Part:
    """A file of one item in a tar, `bytes` long from `offset` on."""

    name: str
    offset: Count
    bytes: Count
    sha256: str


@dataclass(frozen=True)
class Member(Part):
    """The latents of one item in a tar, the place of their JSON, and the files of the first frame by kind."""

    id: str
    json_offset: Count
    json_bytes: Count
    json_sha256: str
    first_frame: dict[str, Part] = field(default_factory=dict)


def member_name(id: str) -> str:
    """Return the name of an item's latents in a tar.

    Dots and some underscores are escaped: a WebDataset key ends at the first dot, and WebDataset skips __names__ like
    these.
    """
    parts = [re.sub(r"[%.]", lambda c: f"%{ord(c[0]):02X}", part) for part in id.split("/")]
    return "/".join(re.sub(r"^_(?=_.*__$)", "%5F", part) for part in parts) + LATENTS


def first_frame_name(name: str, kind: str) -> str:
    """Return the name in a tar of the first frame that goes with latents of this name."""
    return name.removesuffix(LATENTS) + SUFFIXES[kind]


def index_path(tar: str) -> str:
    """Return the path of a tar's index."""
    return tar.removesuffix(".tar") + ".index.json"


class Tars:
    """The tars in the folder of a batch, and their members."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._reach = Reach(folder)
        self._known: dict[str, dict[str, Member]] = {}
        self._scanned = set[str]()

    def names(self) -> list[str]:
        """Return the names of the tars in the folder, sorted."""
        return sorted(entry.name for entry in os.scandir(self.folder) if TAR.fullmatch(entry.name) and entry.is_file())

    def members(self, tar: str) -> dict[str, Member]:
        """Return the members of a tar by id, in order. `tar` is relative to the folder.

        Raises MovqError if the tar is missing, not whole or not a tar of latents.
        """
        if tar not in self._known:
            path = self._reach.path(tar)
            readable = not self._reach.problem(index_path(tar))
            found = _read_index(path, require_file(path).st_size) if readable else None
            if not found:
                found = list(_scan(path))
                self._scanned.add(tar)
            self._known[tar] = {member.id: member for member in found}
        return self._known[tar]

    def put_index(self, tar: str) -> None:
        """Write the index of a tar if it is missing or does not fit. Raises MovqError if that fails."""
        members, path = self.members(tar), os.path.join(self.folder, tar)
        if tar in self._scanned:
            write_index(path, os.path.getsize(path), list(members.values()))
            self._scanned.remove(tar)

    def forget(self, tar: str) -> None:
        """Forget what is known of a tar that was rewritten or deleted. It is read again when needed."""
        self._known.pop(tar, None)
        self._scanned.discard(tar)

    def find(self, line: Line) -> Member:
        """Return the member that has the latents of a line. Raises MovqError if it does not agree with the line."""
        member = self.members(line["output"]).get(line["id"])
        if member is None or not _is_as_said(member, line):
            raise self._other(line["id"], line)
        return member

    def find_first_frame(self, line: Line, kind: str) -> Part:
        """Return the part of a tar that has the first frame of a line. Raises MovqError as `find` does."""
        said = line["first_frame"][kind]
        member = self.members(said["output"]).get(line["id"])
        part = member and member.first_frame.get(kind)
        if part is None or not _is_as_said(part, said):
            raise self._other(line["id"], said)
        return part

    def _other(self, id: str, said: Line | FirstFrameLine) -> MovqError:
        return MovqError(f"does not hold {id} as the manifest has it", os.path.join(self.folder, said["output"]))


def _is_as_said(part: Part, said: Line | FirstFrameLine) -> bool:
    return (part.name, part.bytes, part.sha256) == (said["member"], said["bytes"], said["sha256"])


def sha256_part(path: str, offset: int, size: int) -> str:
    """Return the sha256 of a part of a file in hex. Raises MovqError if it cannot be read."""
    digest = hashlib.sha256()
    for block in blocks(path, offset, size):
        digest.update(block)
    return digest.hexdigest()


class CutError(MovqError):
    """A file is missing or ends too early."""


def digest_of(data: bytes) -> str:
    """Return the sha256 of bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def json_name(name: str) -> str:
    """Return the name in a tar of the JSON of latents of this name."""
    return name.removesuffix(LATENTS) + _JSON


def blocks(path: str, offset: int, size: int) -> Iterator[bytes]:
    """Yield a part of a file in blocks. Raises CutError if the file is missing or ends early."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            while size:
                block = file.read(min(size, BLOCK))
                if not block:
                    raise CutError("is cut off", path)
                size -= len(block)
                yield block
    except FileNotFoundError:
        raise CutError("is gone", path) from None
    except OSError as error:
        raise MovqError(os_reason(error), path) from None


def write_index(tar: str, size: int, members: Sequence[Member]) -> None:
    """Write the index of a tar of `size` bytes."""
    values = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "bytes": size,
        "members": to_values(members),
    }
    with WholeFile(index_path(tar), force=True) as file:
        file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")
        file.commit()


def _read_index(tar: str, size: int) -> list[Member] | None:
    """Return the members in the index of a tar; None if the index cannot be read or does not fit the tar."""
    try:
        require_file(index_path(tar))
        with open(index_path(tar), "rb") as file:
            values = parse_json(file.read())
        if (values["format"], values["format_version"], values["bytes"]) != (_FORMAT, _FORMAT_VERSION, size):
            return None
        members = from_values(list[Member], values["members"])
    except (MovqError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    ends = (end for m in members for end in _ends(m))
    return members if max(ends, default=0) <= size and all(map(_is_named_by_rule, members)) else None


def _ends(member: Member) -> Iterator[int]:
    yield member.json_offset + member.json_bytes
    yield from (part.offset + part.bytes for part in (member, *member.first_frame.values()))


def _is_named_by_rule(member: Member) -> bool:
    name = member_name(member.id)
    return member.name == name and all(
        kind in SUFFIXES and part.name == first_frame_name(name, kind) for kind, part in member.first_frame.items()
    )


def _scan(path: str) -> Iterator[Member]:
    """Yield the members of a tar by reading it through. Raises MovqError if it is not whole or not a tar of latents."""
    try:
        with tarfile.open(path, "r:") as tar:
            found: dict[str, tarfile.TarInfo] = {}
            for info in tar:
                if not info.name.endswith(_JSON):
                    found[info.name] = info
                    continue
                file = tar.extractfile(info)
                if file is None or info.size > _MOST_JSON:
                    raise ValueError(info.name)
                yield _member(info, file.read(), found)
                if found:
                    raise ValueError(next(iter(found)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, tarfile.TarError) as error:
        raise MovqError(f"is not a tar of latents ({error})", path) from None


def _member(info: tarfile.TarInfo, said: bytes, found: dict[str, tarfile.TarInfo]) -> Member:
    """Return a member by its JSON, and take its files out of those `found` in front of it. Raises KeyError without them."""
    values = json.loads(said)
    id = str(values["id"])
    name = member_name(id)
    latents = found.pop(name)
    parts = {}
    said_first = values.get("first_frame", {})
    for kind in (kind for kind in FIRST_FRAMES if kind in said_first):
        part = found.pop(first_frame_name(name, kind))
        parts[kind] = Part(part.name, part.offset_data, part.size, str(said_first[kind]["sha256"]))
    place = id, info.offset_data, info.size, digest_of(said)
    return Member(name, latents.offset_data, latents.size, str(values["sha256"]), *place, parts)
