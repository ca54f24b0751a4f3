"""Resume a batch by content: decide which outputs are kept, and why the others are made again.

An output is kept if the manifest and its own header agree with the video, the weights, the options that change the
latents and the version of the format. File names and times are not evidence of content. If size, time and inode of a
video are all unchanged, it is not read again.

FINISHED and UNMADE, below, are the rules: lists of checks, each of which returns a reason or "" to pass.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from threading import Lock
from typing import Literal, NamedTuple

from ..errors import LASTING_CAUSES, MovqError, MovqWarning, option, printable
from ..files import FileIdentity, require_file, sha256_file, text_of
from ..latents import open_latents
from ..metadata import FORMAT_VERSIONS
from ..shared import KnownSource
from ..threads import in_threads
from .choices import choices_of, describe_difference, made_alike, options_of
from .item import Item
from .manifest import Line, Manifest
from .settings import Settings
from .tars import Tars, sha256_part

_THREADS = 6  # they wait for disks, or compute digests without holding the GIL


@dataclass(frozen=True)
class ResumePlan:
    """The work that is left. `kept` are the lines of items that are not made again, `pending` are the other items.

    `first_frames` are the items that are kept but lack first frames, each with the kinds that it lacks.
    `differing` are the pending items whose outputs are finished and whole, and whose videos are not known to have
    changed, but which were made with other weights or options. `reasons` say, by id, why an item that the manifest
    knows is made again.
    """

    kept: list[Line] = field(default_factory=list)
    pending: list[Item] = field(default_factory=list)
    differing: list[tuple[Item, Line]] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    first_frames: list[tuple[Item, tuple[str, ...]]] = field(default_factory=list)


def plan_resume(
    items: Sequence[Item],
    manifest: Manifest,
    settings: Settings,
    tars: Tars,
    digests: Digests,
    *,
    verify: bool,
    retry_failed: bool,
    passed: Callable[[], None],
) -> ResumePlan:
    """Compare the items of a batch with the manifest.

    `verify` reads all videos and outputs; `retry_failed` tries refused items again; `passed` is called after each item.
    """

    def judge(part: Sequence[Item]) -> list[_Verdict]:
        lines = (manifest.lines.get(item.id) for item in part)
        return [
            _NEW if line is None else _judge(_Case(item, line, settings, tars, digests, verify, retry_failed))
            for item, line in zip(part, lines, strict=True)
        ]

    plan, unread, without = ResumePlan(), list[str](), False
    for item, verdict in zip(items, in_threads(judge, items, _THREADS), strict=True):
        if verdict.end in (_End.AGAIN, _End.DIFFERS):
            plan.pending.append(item)
            if verdict.reason:
                plan.reasons[item.id] = verdict.reason
        if verdict.end is _End.DIFFERS:
            plan.differing.append((item, manifest.lines[item.id]))
        if verdict.end is _End.KEEP:
            plan.kept.append(settings.refreshed(item, manifest.lines[item.id]))
            if verdict.lacking:
                plan.first_frames.append((item, verdict.lacking))
        if verdict.end is _End.UNREADABLE:
            plan.kept.append(manifest.lines[item.id])
            unread.append(item.source_path)
            without = without or bool(verdict.lacking)
        passed()
    if unread:
        text = f"{unread[0]}: cannot be read now; its finished output is kept"
        text += ", without the first frame that is asked for" if without else ""
        warnings.warn(MovqWarning(text + (f", and {len(unread) - 1:,} like it" if unread[1:] else "")), stacklevel=3)
    return plan


class _End(Enum):
    """The consequence of a check that gives a reason; KEEP if all checks pass."""

    KEEP = "up to date"
    AGAIN = "made again"
    DIFFERS = "made again, if replacing is allowed"
    UNREADABLE = "kept, because its video cannot be read now"


class _Verdict(NamedTuple):
    end: _End
    reason: str = ""
    lacking: tuple[str, ...] = ()


_NEW = _Verdict(_End.AGAIN)


@dataclass(frozen=True)
class _Case:
    """An item and its line in the manifest, to be compared."""

    item: Item
    line: Line
    settings: Settings
    tars: Tars
    digests: Digests
    verify: bool
    retry_failed: bool

    @cached_property
    def wanted(self) -> Line:
        """The line that an output made now would have, as far as it is known before encoding."""
        return self.settings.line(self.item)

    @cached_property
    def video(self) -> Literal["same", "changed", "unreadable"]:
        """The state of the video since the line was written. It is read only if it was touched, or with `verify`."""
        path, line = self.item.source_path, self.line
        try:
            identity = FileIdentity.of(os.stat(path))
            if identity.size != line["source"].size:
                return "changed"
            touched = identity != line["source"]
            if (touched or self.verify) and self.digests.of(path, identity) != line["source_sha256"]:
                return "changed"
        except (OSError, MovqError):
            return "unreadable"
        line["source"] = identity
        return "same" if self.item.refusal is None else "unreadable"


def _other_format(case: _Case) -> str:
    """Compare with all versions that this movq writes: which of them it is follows from an option."""
    made = case.line.get("format_version", "?")
    known = " and ".join(FORMAT_VERSIONS)
    return "" if made in FORMAT_VERSIONS else f"it was made in format version {made}, this movq writes {known}"


def _part_of_a_damaged_video(case: _Case) -> str:
    partial = case.line.get("partial") and not case.settings.options.selection.allow_partial
    return f"it is part of a damaged video, and {option('allow_partial', True)} is not given" if partial else ""


def _output_gone_or_changed(case: _Case) -> str:
    try:
        return "" if is_whole(case.tars, case.line, case.verify) else "its output is not what the manifest says"
    except FileNotFoundError:
        return "its output is gone"
    except (OSError, KeyError, MovqError):
        return "its output cannot be read"


def _video_changed(case: _Case) -> str:
    if case.video != "changed":
        return ""
    other = case.line["path"] != text_of(case.item.source_path) and os.path.lexists(case.line["path"])
    return f"it is of another video, {case.line['path']}" if other else "its video has changed"


def _made_differently(case: _Case) -> str:
    """Compare the options of commands, not of rows: a row may change without anybody meaning to replace the rest.

    What differs must matter to the item: another bucket may be offered that it does not fit.
    """
    same = made_alike(case.line, case.wanted)
    if same and case.item.refusal is None and options_of(case.line) == options_of(case.wanted, case.line):
        return ""
    made = choices_of(case.line, case.item)
    wanted = choices_of(case.wanted, case.item, case.line)
    return _difference(made, wanted, "this command says")


def _video_unreadable(case: _Case) -> str:
    return "its video cannot be read now" if case.video == "unreadable" else ""


def _output_elsewhere(case: _Case) -> str:
    moved = "member" not in case.line and case.line["output"] != case.item.output
    return f"its output was {case.line['output']}" if moved else ""


def _row_changed(case: _Case) -> str:
    return _difference(options_of(case.line), options_of(case.wanted, case.line), "its row says")


FINISHED = (
    (_other_format, _End.AGAIN),
    (_part_of_a_damaged_video, _End.AGAIN),
    (_output_gone_or_changed, _End.AGAIN),
    (_video_changed, _End.AGAIN),
    (_made_differently, _End.DIFFERS),
    (_video_unreadable, _End.UNREADABLE),
    (_output_elsewhere, _End.AGAIN),
    (_row_changed, _End.AGAIN),
)
"""The rules for a finished item: the first check that gives a reason decides."""


def _tried_differently(case: _Case) -> str:
    if made_alike(case.line, case.wanted) and case.line.get("options", {}) == case.wanted["options"]:
        return ""
    return "it was tried with other weights or options"


def _retry_asked_for(case: _Case) -> str:
    if not (case.retry_failed or case.verify):
        return ""
    return f"{option('retry_failed' if case.retry_failed else 'verify', True)} tries again what was refused"


def _may_go_better(case: _Case) -> str:
    return "" if case.line.get("cause", MovqError.cause) in LASTING_CAUSES else "what failed may go better now"


def _refused_otherwise(case: _Case) -> str:
    """Compare the refusals of then and now if either came without opening the video, else the video and its cut."""
    item, line = case.item, case.line
    if "source" not in line or item.refusal is not None:
        return "" if _refusal(item) == line.get("reason") else "what was wrong with it is no longer so"
    try:
        same = line["source"] == FileIdentity.of(os.stat(item.source_path))
    except OSError:
        return "its video cannot be read now"
    if same and line.get("cut") == case.wanted.get("cut"):
        return ""
    return "items are cut otherwise now" if same else "its video has changed since it was refused"


UNMADE = (
    (_other_format, _End.AGAIN),
    (_tried_differently, _End.AGAIN),
    (_retry_asked_for, _End.AGAIN),
    (_may_go_better, _End.AGAIN),
    (_refused_otherwise, _End.AGAIN),
)
"""The rules for an item that was skipped or failed: its reason holds until something it may depend on changes."""


def _judge(case: _Case) -> _Verdict:
    done = case.line["status"] == "done"
    for check, end in FINISHED if done else UNMADE:
        if reason := check(case):
            return _Verdict(end, reason, _lacking(case) if end is _End.UNREADABLE else ())
    return _Verdict(_End.KEEP, lacking=_lacking(case) if done else ())


def _lacking(case: _Case) -> tuple[str, ...]:
    """Return the kinds of first frame that are asked for and that a finished item does not have, whole."""

    def there(kind: str) -> bool:
        with suppress(OSError, KeyError, MovqError):
            return _first_frame_is_whole(case.tars, case.line, kind, case.verify)
        return False

    return tuple(kind for kind in case.settings.options.first_frames if not there(kind))


def _difference(made: dict[str, object], wanted: dict[str, object], who: str) -> str:
    if made == wanted:
        return ""
    before, now = describe_difference(made, wanted)
    return f"it was made with {before}; {who} {now}"


def _refusal(item: Item) -> str:
    """Return why an item cannot be encoded, as far as that is known without opening its video; "" if nothing is."""
    try:
        if item.refusal is not None:
            raise item.refusal
        require_file(item.source_path)
    except MovqError as error:
        return printable(error.reason_with_flags)
    return ""


def is_whole(tars: Tars, line: Line, verify: bool) -> bool:
    """Return True if the output of a line agrees with it; `verify` reads it whole.

    Raises OSError, KeyError or MovqError if the output is missing or cannot be read.
    """
    output = os.path.join(tars.folder, line["output"])
    if "member" in line:
        member = tars.find(line)
        return not verify or sha256_part(output, member.offset, member.bytes) == line["sha256"]
    if os.path.getsize(output) != line["bytes"]:
        return False
    latents = open_latents(output)
    m = latents.metadata
    return (
        (m.source_sha256, m.weights_digest, m.semantics, m.precision, m.frames)
        == (line["source_sha256"], line["weights_digest"], line["semantics"], line["precision"], line["frames"])
        and list(latents.shape) == line["shape"]
        and (not verify or sha256_file(output) == line["sha256"])
    )


def is_usable(line: Line, tars: Tars, verify: bool) -> bool:
    """Return True if the output of a line can be read, and agrees with it; `verify` reads it whole."""
    try:
        return is_whole(tars, line, verify)
    except (OSError, KeyError, MovqError):
        return False


def _first_frame_is_whole(tars: Tars, line: Line, kind: str, verify: bool) -> bool:
    """Return True if a first frame agrees with the line; `verify` reads it. Raises OSError, KeyError or MovqError."""
    said = line["first_frame"][kind]
    path = os.path.join(tars.folder, said["output"])
    if "member" in said:
        part = tars.find_first_frame(line, kind)
        return not verify or sha256_part(path, part.offset, part.bytes) == said["sha256"]
    return os.path.getsize(path) == said["bytes"] and (not verify or sha256_file(path) == said["sha256"])


class Digests:
    """The digests of videos, each computed once for all threads, because many spans may come from one video."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, FileIdentity], Future[str]] = {}
        self._lock = Lock()

    def of(self, path: str, identity: FileIdentity) -> str:
        """Return the sha256 of a file in hex. The file is read once for each identity."""
        with self._lock:
            key = path, identity
            known = self._known.get(key)
            digest = self._known.setdefault(key, Future())
        if known is None:
            try:
                digest.set_result(sha256_file(path))
            except BaseException as error:
                digest.set_exception(error)
        return digest.result()

    def known(self) -> dict[str, KnownSource]:
        """Return the digests that could be computed, by path."""
        done = ((key, digest) for key, digest in self._known.items() if not digest.exception())
        return {path: KnownSource(identity, digest.result()) for (path, identity), digest in done}
