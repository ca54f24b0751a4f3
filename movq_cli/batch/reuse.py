"""Reuse of latents: of a video that was renamed, and of one that is equal to another. Nothing is encoded for these.

A video is recognized by its content, and the latents must have been made as they would be made now. They get a header with
the new name of their source. What is copied is checked against its digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import MovqError
from ..files import FileIdentity, WholeFile, file_name, sync, text_of
from ..first_frame import LATENT, PNG, first_frame_path, is_first_frame
from ..headers import header_at, header_bytes, parse_header
from ..metadata import FORMAT_VERSIONS
from ..threads import in_threads
from .choices import MADE_BY, options_of
from .item import Item
from .manifest import FirstFrameLine, Line, Manifest, first_frames_of
from .paths import refuse_foreign, refuse_links
from .presence import Presence
from .resume import Digests, is_usable
from .settings import Settings
from .tars import Tars, blocks

_THREADS = 6


class _Key(NamedTuple):
    """Latents with one key may be shared: content, options, and the suffix, by which FFmpeg may choose how to read a file."""

    sha256: str
    suffix: str
    options: str


@dataclass(frozen=True)
class Reuse:
    """An item that gets the latents of a finished `line`. If `is_move`, that line and its files are no longer needed."""

    item: Item
    line: Line
    is_move: bool


class Twins(NamedTuple):
    """Items whose videos are equal to that of an item that is still to be encoded: its identity and digest."""

    identity: FileIdentity | None
    sha256: str
    items: list[Item]


@dataclass(frozen=True)
class ReusePlan:
    """The items that are left to encode, `pending`, and those that are not.

    `reuses` must be done in their order, before anything is encoded. `twins` get the latents of a pending item, by its id.
    """

    pending: list[Item] = field(default_factory=list)
    reuses: list[Reuse] = field(default_factory=list)
    twins: dict[str, Twins] = field(default_factory=dict)


def plan_reuse(
    pending: Sequence[Item],
    items: Sequence[Item],
    manifest: Manifest,
    settings: Settings,
    tars: Tars,
    digests: Digests,
    presence: Presence,
    *,
    verify: bool,
) -> ReusePlan:
    """Find, for the `pending` of all `items` of a batch, latents that another item has, or will have.

    With the option `force`, all of them are pending. Only videos that have the size of another are read, and not those whose
    file is the same in another folder, except with `verify`.
    """
    if settings.options.force or not pending:
        return ReusePlan([*pending])
    finished = _finished(manifest, settings)
    known = _identified(pending)
    shas = _contents(known, () if verify else finished, finished, digests)
    keys = [
        _key(sha256, item.source_path, settings.line(item)) if sha256 else None
        for item, sha256 in zip(known, shas, strict=True)
    ]
    wanted, contents = set(keys), set(shas)
    donors: dict[_Key, list[Line]] = {}
    for line in finished:
        if line["source_sha256"] in contents:
            offered = _key(line["source_sha256"], line["path"], line)
            if offered in wanted:
                donors.setdefault(offered, []).append(line)
    names, taken = {item.id for item in items}, set[str]()
    reuses, left = list[Reuse](), list[Item]()
    leaders: dict[_Key, Item] = {}
    twins: dict[str, Twins] = {}
    for item, key in zip(known, keys, strict=True):
        if key is None:
            left.append(item)
            continue
        places = (place for line in donors.get(key, ()) for place in (line, _beside(line, item, tars)))
        if (
            found := next((line for line in places if line is not None and is_usable(line, tars, verify)), None)
        ) is not None:
            is_move = found["id"] not in taken and _is_free(found, item, names, presence)
            taken |= {found["id"]} if is_move else set()
            reuses.append(Reuse(item, found, is_move))
        elif (leader := leaders.setdefault(key, item)) is item:
            left.append(item)
        else:
            twins.setdefault(leader.id, Twins(leader.identity, key.sha256, [])).items.append(item)
    ordered, circular = _in_order(reuses)
    return ReusePlan([*left, *circular], ordered, twins)


def _finished(manifest: Manifest, settings: Settings) -> list[Line]:
    """Return the lines of outputs that were made as this batch makes them, but for options."""
    made = {name: getattr(settings, name) for name in MADE_BY}
    partial = settings.options.selection.allow_partial
    return [
        line
        for line in manifest.lines.values()
        if line["status"] == "done"
        and all(line.get(name) == made[name] for name in MADE_BY)
        and line.get("format_version") in FORMAT_VERSIONS
        and (partial or not line.get("partial"))
    ]


def _identified(items: Sequence[Item]) -> list[Item]:
    """Return items with the identity of their video, which is looked up once for all items of a video."""
    found: dict[str, FileIdentity | None] = {item.source_path: item.identity for item in items}

    def identified(item: Item) -> Item:
        if item.identity is not None or item.refusal is not None:
            return item
        if found[item.source_path] is None:
            try:
                state = os.stat(item.source_path)
            except (OSError, ValueError):
                return item
            if not stat.S_ISREG(state.st_mode):  # it is refused when its turn comes
                return item
            found[item.source_path] = FileIdentity.of(state)
        return item.updated(identity=found[item.source_path])

    return list(map(identified, items))


def _contents(items: Sequence[Item], unread: Iterable[Line], finished: Sequence[Line], digests: Digests) -> list[str]:
    """Return the digest of each item's video, or "" if no other can be equal to it.

    A file is not read if one of the `unread` lines has it, of the same identity and name, in another folder.
    """
    sizes = {line["source"].size for line in finished}
    moved = {(line["source"], os.path.basename(line["path"])): line["source_sha256"] for line in unread}
    paths: dict[int, set[str]] = {}
    for item in items:
        if item.identity is not None:
            paths.setdefault(item.identity.size, set()).add(item.source_path)

    def content(item: Item) -> str:
        identity = item.identity
        if identity is None or item.refusal is not None:
            return ""
        same = moved.get((identity, file_name(item.source_path)))
        if same is not None:
            return same
        if identity.size not in sizes and len(paths[identity.size]) == 1:
            return ""
        try:
            return digests.of(item.source_path, identity)
        except MovqError:
            return ""

    return list(in_threads(lambda part: [content(item) for item in part], items, _THREADS))


def _key(sha256: str, path: str, line: Line) -> _Key:
    return _Key(sha256, os.path.splitext(path)[1].lower(), json.dumps(options_of(line), sort_keys=True))


def _beside(line: Line, item: Item, tars: Tars) -> Line | None:
    """Return a line with the output of an item, if nothing is where it says: latents may have been moved with their videos."""
    if "member" in line or os.path.lexists(os.path.join(tars.folder, line["output"])):
        return None
    return line | Line(output=item.output)


def _is_free(line: Line, item: Item, names: set[str], presence: Presence) -> bool:
    """Return True if nothing but this item needs the latents of a line: its video is gone, or is the item's own."""
    if line["id"] in names:
        return line["id"] == item.id
    renamed = item.identity == line["source"] and not os.path.lexists(line["path"])
    return renamed or presence.is_gone(line) or line["path"] == text_of(item.source_path)


def _in_order(reuses: list[Reuse]) -> tuple[list[Reuse], list[Item]]:
    """Return reuses so that no output is replaced before others took it over, and the items of circles, to be encoded.

    Two videos that have exchanged their names are such a circle.
    """
    makes = [_used(reuse.item.id, Line(output=reuse.item.output)) for reuse in reuses]
    takes = [_used(reuse.line["id"], reuse.line) - made for reuse, made in zip(reuses, makes, strict=True)]
    needed = Counter(use for uses in takes for use in uses)
    makers: dict[tuple[str, str], list[int]] = {}
    for number, uses in enumerate(makes):
        for use in uses:
            makers.setdefault(use, []).append(number)
    waiting = dict.fromkeys(range(len(reuses)))
    ready = deque(number for number in waiting if not any(needed[use] for use in makes[number]))
    ordered, circular = list[Reuse](), list[Item]()
    while waiting:
        if ready:
            number = ready.popleft()
            if number not in waiting:
                continue
            ordered.append(reuses[number])
        else:
            number = next(iter(waiting))
            circular.append(reuses[number].item)
        del waiting[number]
        for use in takes[number]:
            needed[use] -= 1
            free = makers.get(use, []) if not needed[use] else []
            ready.extend(other for other in free if not any(needed[one] for one in makes[other]))
    return ordered, circular


def _used(id: str, line: Line) -> set[tuple[str, str]]:
    """Return the line and the file that a finished item has, or gets: neither may be replaced while others need it."""
    return {("id", id), ("file", line["output"])} if "member" not in line else {("id", id)}


def take_over(
    item: Item, line: Line, before: Line | None, settings: Settings, tars: Tars, *, is_move: bool = False
) -> Line:
    """Give an item the latents and first frames of a finished `line`, and return its own line.

    `before` is the line that the item has: files that it names may be replaced. In a move, files that stay as they are are
    renamed, and `drop_files` deletes the others. A first frame that cannot be taken over is left out. Raises MovqError or
    OSError if the latents cannot be.
    """
    assert item.identity is not None
    own = _files(line) if is_move else {}
    if before is not None and before["status"] == "done":
        own |= _files(before)
    new = settings.refreshed(item, line) | Line(source=item.identity)
    if not is_move:
        new["seconds"] = 0.0
    new.pop("member", None)
    new.pop("first_frame", None)
    first = {}
    for kind in first_frames_of(line):
        with suppress(MovqError, OSError):
            first[kind] = _take(item, line, kind, own, tars, is_move)
    new |= _take(item, line, "", own, tars, is_move)  # type: ignore[typeddict-item]
    return new | Line(first_frame=first) if first else new


def drop_files(folder: str, line: Line, keep: Line) -> None:
    """Delete the files of a line that was moved, if movq wrote them, but for those that the new line has."""
    for name, kind in _files(line).items():
        path = os.path.join(folder, name)
        if name not in _files(keep) and is_first_frame(path, kind):
            with suppress(MovqError, OSError):
                refuse_links(folder, name)
                os.unlink(path)


def _files(line: Line) -> dict[str, str]:
    """Return the files of a line that are not in tars, relative to the folder, and of which kind each is."""
    files = {} if "member" in line else {line["output"]: LATENT}
    return files | {part["output"]: kind for kind, part in first_frames_of(line).items() if "member" not in part}


def _take(item: Item, line: Line, kind: str, own: Collection[str], tars: Tars, is_move: bool) -> FirstFrameLine:
    """Put the latents of a line, or with a `kind` a first frame, where the item needs them. Return where, size and digest."""
    folder, part = tars.folder, line["first_frame"][kind] if kind else line
    output = first_frame_path(item.output, kind) if kind else item.output
    source, path = os.path.join(folder, part["output"]), os.path.join(folder, output)
    refuse_links(folder, output)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    refuse_foreign(folder, output, kind or LATENT, own)
    at, size = 0, part["bytes"]
    if "member" in part:
        at = (tars.find_first_frame(line, kind) if kind else tars.find(line)).offset
    elif not is_first_frame(source, kind or LATENT):
        raise MovqError("is not what movq wrote", source)
    head, new = (b"", b"") if kind == PNG else _headers(source, at, file_name(item.source_path), line)
    if is_move and head == new and os.path.getsize(source) == size:
        os.rename(source, path)
        for changed in {os.path.dirname(path), os.path.dirname(source)}:
            sync(changed)
        return FirstFrameLine(output=output, bytes=size, sha256=part["sha256"])
    whole, made = hashlib.sha256(head), hashlib.sha256(new)
    with WholeFile(path, force=True) as file:
        file.write(new)
        for block in blocks(source, at + len(head), size - len(head)):
            file.write(block)
            whole.update(block)
            made.update(block)
        if whole.hexdigest() != part["sha256"]:
            raise MovqError("is damaged: its bytes are not those that the manifest says", source)
        size = file.size
        file.commit()
    return FirstFrameLine(output=output, bytes=size, sha256=made.hexdigest())


def _headers(path: str, at: int, name: str, line: Line) -> tuple[bytes, bytes]:
    """Return the header of a line's latents, at a byte of a file, and the same with another name of their source.

    Raises MovqError if they are of another video than the line says.
    """
    before = header_at(path, at)
    try:
        header = parse_header(before)
        if header.metadata["source_sha256"] != line["source_sha256"]:
            raise ValueError("of another video")
        if header.metadata["source_name"] == name:
            return before, before
        tensors = sorted(header.tensors.items(), key=lambda tensor: tensor[1].start)
        return before, header_bytes(
            {name: (entry.dtype, entry.shape) for name, entry in tensors}, header.metadata | {"source_name": name}
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MovqError(f"is not what the manifest says ({error})", path) from None
