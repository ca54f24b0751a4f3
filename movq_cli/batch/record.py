"""`run.json`, the record of a batch: its sources, options and weights, and what ran it, so that it can go on without them.

Each batch writes it, and each shard its own until they are merged. Nothing in it is part of the promise that the same
command makes the same bytes, and nothing reads it unasked. It is read only where the folder and the file are the user's own,
because it says which files to open.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from fractions import Fraction
from importlib import metadata
from typing import Annotated, Any, TypeVar

import msgspec

from .._version import __version__
from ..checkpoints.checkpoint import Checkpoint
from ..errors import MovqError, MovqUsageError, flag
from ..fields import changed
from ..files import WholeFile, os_reason, short
from ..options import KNOBS, NO_FIRST_FRAME, BatchOptions, EncodeOptions, batch_options
from ..plan import open_weights
from ..records import MOST, Count, from_values, to_values
from ..targets import prepared
from ..values import Shard, format_fraction
from ..video import library_versions
from .discover import split_glob
from .lists import absolute
from .manifest import Line

_FORMAT, _FORMAT_VERSION = "movq-run", "1"
_NAME = "run.json"
_OF_SHARDS = re.compile(r"run\.(\d+)-of-(\d+)\.json")
_RUN = {"workers", "timeout", "engine", "ray_address", "ray_gpus"}
_ONCE = {"force", "replace", "retry_failed", "verify", "shard", "skip", "sizes", *_RUN}
"""Options of one run, and fields that no command sets: they are not recorded."""
_FREE = {
    *(KNOBS - {"weights", "semantics", "precision"}),
    *("retry_failed", "replace", "verify", "force", "shard", "layout", "tar_size"),
    *_RUN,
}
"""Options that may differ from one run to the next: none of them changes what is encoded, or how."""
_PATHS = {"lists", "captions", "spill_dir", "weights"}
_INPUT = "-"
_SHORT_RUN = 30.0  # seconds


@dataclass(frozen=True)
class Speed:
    """The pixels of frames that a run encoded in a second, with this many workers on this kind of device."""

    pixels_per_second: Annotated[float, msgspec.Meta(ge=1, lt=MOST)]
    workers: Count
    device: str


@dataclass(frozen=True)
class Record:
    """The record of a batch. Paths are absolute here, and relative to the folder in the file; globs have their folder escaped.

    `options` and `batch` are those of the command, but for options of one run. `made_by` are the versions of movq, torch,
    PyAV and FFmpeg, `weights` the name and digest of the model. `speed` is None until a run has encoded something.
    """

    sources: tuple[str, ...]
    options: EncodeOptions
    batch: BatchOptions
    weights: Mapping[str, str]
    made_by: Mapping[str, str] = field(default_factory=dict)
    speed: Speed | None = None

    @property
    def command(self) -> list[str]:
        """The command that this record stands for, without its -o, by paths relative to the current folder."""
        words = ["movq", "batch-encode", *map(_but_input(os.path.relpath), self.sources)]
        for name, value in _turned(_values(self.options) | _values(self.batch), os.path.relpath).items():
            for one in value if isinstance(value, list) else [value]:
                words += [flag(name)] if one is True else [flag(name), str(one)]
        return words

    def again(self, options: EncodeOptions, batch: BatchOptions) -> tuple[EncodeOptions, BatchOptions]:
        """Return the options of this record, with those given instead that may differ from run to run.

        Raises MovqUsageError for any other that is given and differs, and MovqError if the weights are no longer the same.
        """
        options, batch = _located(options), _located(batch)
        given = _values(options, once=True) | _values(batch, once=True)
        recorded = _values(self.options) | _values(self.batch)
        for name, value in given.items():
            if name not in _FREE and value != recorded.get(name):
                was = f"is {_text(recorded[name])} in the record" if name in recorded else "is not in the record"
                raise MovqUsageError(f"{was}: to change it, run the whole command", option=name)
        found = open_weights(prepared(self.options))
        if found.digest != self.weights["digest"]:
            raise MovqError(
                f"are not those of the record: {self.weights['name']}, {short(self.weights['digest'])}", found.path
            )
        free = {name: getattr(options, name, getattr(batch, name, None)) for name in given.keys() & _FREE}
        return batch_options(self.options, self.batch, free)


def record_of(
    sources: Sequence[str], options: EncodeOptions, batch: BatchOptions, checkpoint: Checkpoint, before: Record | None
) -> Record:
    """Return the record of a batch that is about to begin.

    It has the versions and speed of the one `before`, if its weights are the same, until something is encoded.
    """
    weights = {"name": checkpoint.name, "digest": checkpoint.digest}
    known = before if before is not None and before.weights == weights else None
    named = tuple(map(_but_input(_source), sources))
    made_by, speed = (known.made_by, known.speed) if known is not None else ({}, None)
    return Record(named, _located(options), _located(batch), weights, made_by, speed)


def write_record(folder: str, record: Record, shard: Shard | None) -> None:
    """Write the record of a batch or of a shard. Raises MovqError if it cannot be written."""
    place = os.path.realpath(folder)

    def relative(path: str) -> str:
        return _relative(path, place)

    values = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "sources": [_written(source, relative) for source in record.sources],
        "options": _turned(_values(record.options), relative),
        "batch": _turned(_values(record.batch), relative),
        "weights": dict(record.weights),
        "made_by": dict(record.made_by),
        "speed": None if record.speed is None else to_values(record.speed),
    }
    path = os.path.join(folder, _NAME if shard is None else f"run.{shard}.json")
    text = json.dumps(values, indent=1).encode() + b"\n"
    if _bytes(path) != text:
        with WholeFile(path, force=True) as file:
            file.write(text)
            file.commit()
    if shard is None:
        _remove_shards(folder)


def record_run(record: Record, lines: Iterable[Line], seconds: float, workers: int, device: str) -> Record:
    """Return the record with the versions that made these lines and the speed, or as it is if none of them is done.

    A short run, which mostly loads weights, does not replace a speed that is known.
    """
    pixels = sum(line["frames"] * line["width"] * line["height"] for line in lines if line["status"] == "done")
    if not pixels:
        return record
    speed = record.speed
    if speed is None or seconds >= _SHORT_RUN:
        speed = Speed(round(pixels / seconds, 1), workers, device)
    return dataclasses.replace(record, made_by=_versions(), speed=speed)


def merge_records(folder: str) -> None:
    """Make one record of those of the shards of a batch, which are alike, and delete theirs."""
    paths = _records(folder)
    if paths and (record := _read(paths[0])) is not None:
        write_record(folder, record, None)


def read_record(folder: str | os.PathLike[str]) -> Record:
    """Return the record of the batch in a folder.

    Raises MovqError if there is none, if the folder is another user's, or if the batch read its list from standard input.
    """
    folder = os.fspath(folder)
    paths = _records(folder)
    try:
        for path in (folder, *paths[:1]):
            if os.lstat(path).st_uid != os.geteuid():
                raise MovqError(
                    "belongs to another user, and its record says which files to open: run the command itself", path
                )
    except OSError as error:
        raise MovqError(os_reason(error), folder) from None
    if not paths:
        raise MovqError(
            f"has no {_NAME}: it is not a folder that batch-encode made, or an earlier movq made it", folder
        )
    record = _read(paths[0])
    if record is None:
        raise MovqError("is not the record of a batch that this movq can read", paths[0])
    if _INPUT in (*record.sources, *record.batch.lists):
        raise MovqError(
            "is of a batch that read a list from standard input, which is not kept: run the command itself", paths[0]
        )
    return record


def known_record(folder: str) -> Record | None:
    """Return the record in a folder, or None if there is none that can be read: only for what it knows of speed."""
    with suppress(MovqError):
        return read_record(folder)
    return None


def _records(folder: str) -> list[str]:
    """Return the paths of the record of a batch, or else of those of its shards."""
    whole = os.path.join(folder, _NAME)
    if os.path.lexists(whole):
        return [whole]
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [os.path.join(folder, name) for name in names if _OF_SHARDS.fullmatch(name)]


def _remove_shards(folder: str) -> None:
    for name in filter(_OF_SHARDS.fullmatch, os.listdir(folder)):
        with suppress(OSError):
            os.unlink(os.path.join(folder, name))


def _bytes(path: str) -> bytes:
    """Return the bytes of a record, or none if it is missing or not a plain file."""
    with (
        suppress(OSError),
        open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file,
    ):
        return file.read()
    return b""


def _read(path: str) -> Record | None:
    folder = os.path.realpath(os.path.dirname(path) or ".")

    def located(path: str) -> str:
        return os.path.normpath(os.path.join(folder, path))

    try:
        values = json.loads(_bytes(path))
        if (values["format"], values["format_version"]) != (_FORMAT, _FORMAT_VERSION):
            return None
        if not isinstance(values["sources"], list):
            return None
        return Record(
            tuple(_from_written(source, located) for source in values["sources"]),
            changed(EncodeOptions(), _turned(values["options"], located)),
            changed(BatchOptions(), _turned(values["batch"], located)),
            {name: str(values["weights"][name]) for name in ("name", "digest")},
            {str(name): str(value) for name, value in values["made_by"].items()},
            None if values["speed"] is None else from_values(Speed, values["speed"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MovqError):
        return None


def _versions() -> dict[str, str]:
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:  # a build without metadata
        torch = ""
    return {"movq": __version__, "torch": torch, **library_versions()}


def _values(options: Any, once: bool = False) -> dict[str, Any]:
    """Return options other than the default, by name, as texts and numbers; with `once`, also those of one run."""
    return dict(_changed(options, once))


def _changed(options: Any, once: bool) -> Iterator[tuple[str, Any]]:
    usual = type(options)()
    for one in fields(options):
        value = getattr(options, one.name)
        if is_dataclass(one.default):
            yield from _changed(value, once)
        elif value != getattr(usual, one.name) and (once or one.name not in _ONCE):
            if not isinstance(options, BatchOptions) and one.name == "short":
                continue  # a batch sets it
            if value == (NO_FIRST_FRAME,) and not once:
                continue  # for one run only
            yield one.name, [_plain(each) for each in value] if isinstance(value, tuple) else _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction):
        return format_fraction(value)
    return value if isinstance(value, bool | int | float | str) else str(value)


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


T = TypeVar("T", EncodeOptions, BatchOptions)


def _located(options: T) -> T:
    """Return options with absolute paths. Weights are a path if they exist as one, or else the name of a model."""
    values = {name: value for name, value in _values(options).items() if name in _PATHS}
    if "weights" in values and os.path.exists(values["weights"]):
        values["weights"] = absolute(values["weights"])
    return changed(options, _turned(values, absolute))


def _turned(values: Mapping[str, Any], turn: Callable[[str], str]) -> dict[str, Any]:
    """Return options by name with other paths. Weights are a path if they begin with `/`, `./` or `../`."""
    turned = dict(values)
    for name in _PATHS & values.keys():
        value = values[name]
        if name != "weights" or value.startswith(("/", "./", "../")):
            turned[name] = list(map(_but_input(turn), value)) if isinstance(value, list) else turn(value)
    return turned


def _source(path: str) -> str:
    """Return a source with an absolute path. Of a glob, the folder in front of it is escaped."""
    folder, pattern = split_glob(path)
    return os.path.join(glob.escape(absolute(folder or ".")), pattern) if pattern else absolute(path)


def _written(source: str, relative: Callable[[str], str]) -> Any:
    """Return a source as the file has it: a path, or the folder and the pattern of a glob."""
    folder, pattern = split_glob(source)
    if pattern and source != _INPUT:
        return {"folder": relative(folder), "glob": pattern}
    return _but_input(relative)(source)


def _from_written(source: Any, located: Callable[[str], str]) -> str:
    """Return a source that a file has. Raises TypeError or KeyError if it is none."""
    if isinstance(source, str):
        path = _but_input(located)(source)
        return path if os.path.lexists(path) else glob.escape(path)  # or it would be taken for a glob
    return os.path.join(glob.escape(located(source["folder"])), source["glob"])


def _but_input(turn: Callable[[str], str]) -> Callable[[str], str]:
    return lambda path: path if path == _INPUT else turn(path)


def _relative(path: str, folder: str) -> str:
    text = os.path.relpath(path, folder)
    return text if text == ".." or text.startswith("../") else f"./{text}"
