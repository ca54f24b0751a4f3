"""`export_latents`: a batch in the layout that a trainer reads. It can be resumed, and says what became of each item."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

from ..codec import Progress, silent
from ..dataset import LatentDataset
from ..errors import MovqError, MovqUsageError, option
from ..fields import options_of
from ..files import WholeFile, os_reason
from ..options import EXPORTS, ExportOptions, one_of
from ..scaling import scale_of, scaling_of
from ..targets import CHANNELS, TARGETS
from .formats import FORMATS, Content, Format, Item, video_of

if TYPE_CHECKING:
    import torch

    from ..batch.manifest import Line

NAME = "export.jsonl"
"""The manifest of an export: a line for each item."""
_LONGEST_SUFFIX = 5  # of a video, with its dot
_HELP = "examples/embed_prompts.py makes them"


class Exported(TypedDict, total=False):
    """What became of an item: `status` is done, with its `files` and their sizes, or refused, with a `reason`."""

    id: str
    status: str
    reason: str
    files: dict[str, int]
    made_from: dict[str, Any]


@dataclass(frozen=True)
class ExportResult:
    """The result of an export. `lines` are those of all items, `kept` counts those that were there.

    `removed` are files of items that are gone, relative to the folder. `usage` are the options of the trainer that go
    with the files. `warnings` are for the user.
    """

    lines: list[Exported]
    kept: int
    removed: list[str]
    usage: str
    warnings: tuple[str, ...]
    seconds: float


def export_latents(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: ExportOptions | None = None,
    *,
    dry_run: bool = False,
    progress: Progress = silent,
    **overrides: Any,
) -> ExportResult:
    """Write the latents of a batch as a trainer reads them. What is there and up to date is kept.

    Options come as ExportOptions, or by name: `export_latents("latents", "cache", to="npy")`. With `dry_run`, nothing is
    written. `progress` is called with the items done and all of them. Raises MovqError or MovqUsageError if the consumer
    could not read the set as a whole; what is wrong with one item goes into its line.
    """
    started = time.perf_counter()
    options = options_of(ExportOptions, options, overrides)
    if options.to is None:
        raise MovqUsageError(f"name a layout: {', '.join(EXPORTS)}", option="to")
    export = _Export(LatentDataset(folder, scale=1.0), os.fspath(output), options)
    result = export.run(dry_run, progress)
    return replace(result, seconds=time.perf_counter() - started)


class _Export:
    """One export: the items, the layout, and the output folder."""

    def __init__(self, dataset: LatentDataset, folder: str, options: ExportOptions) -> None:
        if not len(dataset):
            raise MovqError("has no finished items", dataset.folder)
        self._dataset, self._folder, self._options = dataset, folder, options
        self._warnings: list[str] = []
        self._metadata = self._one_of_each_weights()
        target = options.target or next(
            (m.preprocessing["prepared_for"] for m in self._metadata.values() if "prepared_for" in m.preprocessing),
            None,
        )
        if target is not None:
            one_of("target", target, tuple(TARGETS))
        self._format = self._layout(target)
        self._owned: set[str] = set()  # files that exports wrote, relative to the folder

    def _one_of_each_weights(self) -> dict[str, Any]:
        """Return the metadata of an item of each weights. Raises MovqError for weights of another family."""
        found: dict[str, Any] = {}
        for index in range(len(self._dataset)):
            digest = self._dataset.row(index)["weights_digest"]
            if digest not in found:
                found[digest] = self._dataset.stored(index).metadata
        for m in found.values():
            if m.semantics != "frame" and m.config["z_channels"] == CHANNELS:
                continue
            text = f"holds latents of {m.model}, which no model of CogVideoX's family reads: it would train without an error"
            if self._options.to != "npy" and not self._options.any_weights:
                raise MovqError(f"{text}; {option('any_weights', True)} exports them", self._dataset.folder)
            if self._options.to != "npy":
                self._warnings.append(text)
        return found

    def _layout(self, target: str | None) -> Format:
        options, kind = self._options, FORMATS[self._options.to or ""]
        if kind.needs_embeds and options.prompt_embeds is None:
            raise MovqUsageError(f"needs text embeddings: {option('prompt_embeds', 'DIR')}; {_HELP}", option="to")
        if options.scale is not None and kind.needs_moments:
            raise MovqUsageError("is not for this format: its trainer scales", option="scale")
        scale = scale_of(options.scale)
        if scale is None and kind.scaled:
            scale = self._scale_of_headers()
        dtype = options.dtype or (TARGETS[target].store_dtype if target and kind.scaled else None)
        return kind(scale, options.seed, dtype, target)

    def _scale_of_headers(self) -> float:
        factors = {}
        for m in self._metadata.values():
            scaling = scaling_of({"scaling_factor": m.scaling_factor})
            factors[None if scaling is None else scaling.factor] = m.model
        if len(factors) == 1 and None not in factors:
            return float(next(iter(factors)) or 0)
        what = "have no scaling factor" if None in factors else f"have several, {', '.join(map(str, factors))}"
        raise MovqUsageError(f"name a factor or a model, like cogvideox-5b: the latents {what}", option="scale")

    def run(self, dry_run: bool, progress: Progress) -> ExportResult:
        """Export all items."""
        found = [self._item(index) for index in range(len(self._dataset))]
        items = [item for _, item, reason in found if not reason]
        self._format.check(items)
        self._refuse_clashes(items)
        if self._format.one_shape:
            self._refuse_shapes(items)
        lines, done, kept = [], list[Item](), 0
        with _Manifest(self._folder, dry_run) as manifest:
            self._owned = {path for line in manifest.before.values() for path in line.get("files", ())}
            for index, item, reason in found:
                item = replace(item, number=len(done))
                before = manifest.before.get(item.id)
                if reason:
                    line = Exported(id=item.id, status="refused", reason=reason)
                elif before is not None and self._is_up_to_date(before, index, item):
                    line, kept = before, kept + 1
                else:
                    line = self._export(index, item, manifest, dry_run)
                if line["status"] == "done":
                    done.append(item)
                lines.append(line)
                manifest.append(line)
                progress(len(lines), len(found))
            removed = self._remove_gone(lines, manifest.before.values(), dry_run)
            if not dry_run:
                self._write_lists(done)
            manifest.finish(lines)
        usage = self._format.usage(done) if done else ""
        return ExportResult(lines, kept, removed, usage, tuple(self._warnings), 0.0)

    def _item(self, index: int) -> tuple[int, Item, str]:
        """Return the index, the item, and why it cannot be exported; "" if it can."""
        row = self._dataset.row(index)
        m, layout = self._metadata[row["weights_digest"]], self._format
        _, _, latents, height, width = row["shape"]
        caption = " ".join(row.get("caption", "").split())
        item = Item(
            id=row["id"],
            name=row["output"].removesuffix(".safetensors") if layout.nested and "member" not in row else _name(row),
            caption=caption,
            video=row["path"],
            latents=latents,
            frames=1 + (latents - 1) * m.temporal_factor,
            height=height * m.spatial_factor,
            width=width * m.spatial_factor,
        )
        reason = ""
        if layout.patched and (height % 2 or width % 2):
            reason = (
                f"has latents of {height}x{width}, of which the transformer would leave the odd row or column out: "
                f"encode with {option('multiple', 2 * m.spatial_factor)}"
            )
        elif layout.needs_captions and not caption:
            reason = "has no caption"
        elif row.get("options", {}).get("save", "moments") != "moments" and (
            layout.needs_moments or (layout.scaled and row["options"]["save"] == "mean")
        ):
            reason = "holds no moments, which are drawn from: encode it without --save"
        elif layout.needs_videos and not os.path.exists(item.video):
            reason = f"its video {item.video} is gone, and the trainer asks that it exists"
        elif layout.needs_embeds and not os.path.exists(self._embeds_of(caption)):
            reason = f"has no text embeddings: {self._embeds_of(caption)} is not there; {_HELP}"
        return index, item, reason

    def _embeds_of(self, caption: str) -> str:
        digest = hashlib.sha256(caption.encode()).hexdigest()
        return os.path.join(self._options.prompt_embeds or "", f"{digest}.safetensors")

    def _refuse_clashes(self, items: list[Item]) -> None:
        """Raise MovqError if two items would have one name for the consumer."""
        seen: dict[str, str] = {}
        for item in items:
            key = self._format.key(item.name)
            if key in seen:
                raise MovqError(
                    f"{seen[key]} and {item.id} would both be called {key}, by which the trainer tells items apart: "
                    "encode them with other names",
                    self._dataset.folder,
                )
            seen[key] = item.id

    def _refuse_shapes(self, items: list[Item]) -> None:
        """Raise MovqError if items have several shapes, which the consumer stacks."""
        shapes = {(item.frames, item.height, item.width): item.id for item in items}
        if len(shapes) > 1:
            (one, first), (other, second) = list(shapes.items())[:2]
            raise MovqError(
                f"its items have {len(shapes)} shapes, and the trainer stacks them: {first} is {_times(one)}, {second} "
                f"{_times(other)}; encode with one {option('buckets')}",
                self._dataset.folder,
            )

    def _made_from(self, index: int, item: Item) -> dict[str, Any]:
        """Return everything that the files of an item depend on."""
        layout, row = self._format, self._dataset.row(index)
        return {
            "latents": row["sha256"],
            "to": self._options.to,
            "name": item.name,
            "caption": item.caption,
            "number": item.number,
            "scale": layout.scale,
            "seed": layout.seed,
            "dtype": layout.dtype,
            "target": layout.target,
            "prompt_embeds": self._options.prompt_embeds,
        }

    def _is_up_to_date(self, before: Exported, index: int, item: Item) -> bool:
        if before.get("status") != "done" or before.get("made_from") != self._made_from(index, item):
            return False
        paths = {os.path.join(self._folder, path): size for path, size in before["files"].items()}
        return all(os.path.isfile(path) and os.path.getsize(path) == size for path, size in paths.items())

    def _export(self, index: int, item: Item, manifest: _Manifest, dry_run: bool) -> Exported:
        """Write the files of an item, and return its line."""
        try:
            content = Content(self._dataset.stored(index), self._embeds(item))
            files = list(self._format.files(item, content)) if not dry_run else []
        except MovqError as error:
            return Exported(id=item.id, status="refused", reason=error.with_flags)
        line = Exported(
            id=item.id,
            status="done",
            files={path: len(data) for path, data in files},
            made_from=self._made_from(index, item),
        )
        if not dry_run:
            manifest.append(Exported(id=item.id, status="begun", files=line["files"]))
            for path, data in files:
                self._write(path, data)
            if self._format.needs_videos:
                self._link(item)
        return line

    def _embeds(self, item: Item) -> torch.Tensor | None:
        """Return the text embeddings (tokens, channels) of an item's caption, if there are any."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._embeds_of(item.caption)
        if self._options.prompt_embeds is None or not os.path.exists(path):
            return None
        try:
            (embeds,) = load_file(path).values()
        except (SafetensorError, OSError, ValueError) as error:
            raise MovqError(f"is not a file of text embeddings ({error})", path) from None
        embeds = embeds.squeeze(0) if embeds.dim() == 3 else embeds
        if embeds.dim() != 2:
            raise MovqError(f"has embeddings of {list(embeds.shape)} where (tokens, channels) are needed", path)
        return embeds

    def _write(self, path: str, data: bytes) -> None:
        whole = os.path.join(self._folder, path)
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        with WholeFile(whole, force=self._options.force or path in self._owned) as file:
            file.write(data)
            file.commit()
        self._owned.add(path)

    def _link(self, item: Item) -> None:
        """Make a link to an item's video where the trainer looks for it."""
        place = os.path.join(self._folder, video_of(item))
        source = os.path.relpath(os.path.abspath(item.video), os.path.dirname(os.path.abspath(place)))
        os.makedirs(os.path.dirname(place), exist_ok=True)
        try:
            if os.path.islink(place):
                os.unlink(place)
            os.symlink(source, place)
        except OSError as error:
            raise MovqError(os_reason(error), place) from None

    def _write_lists(self, done: list[Item]) -> None:
        for path, text in self._format.lists(done):
            self._owned.add(path)  # a list is written anew each time
            self._write(path, text.encode())

    def _remove_gone(self, lines: list[Exported], before: Iterable[Exported], dry_run: bool) -> list[str]:
        """Remove files that an earlier export wrote and no item has now: a trainer would read them."""
        there = {path for line in lines for path in line.get("files", ())}
        gone = sorted({path for line in before for path in line.get("files", ())} - there)
        for path in gone:
            if not dry_run:
                with suppress(OSError):
                    os.unlink(os.path.join(self._folder, path))
        return gone


class _Manifest:
    """The manifest of an export: what was there before, and the lines of this run, each on disk as soon as it is known."""

    def __init__(self, folder: str, dry_run: bool) -> None:
        self._path, self._dry_run = os.path.join(folder, NAME), dry_run
        self.before: dict[str, Exported] = {}
        with suppress(FileNotFoundError, NotADirectoryError), open(self._path, encoding="utf-8") as file:
            for text in file:
                with suppress(ValueError, KeyError, TypeError):  # a line that a kill has cut
                    line: Exported = json.loads(text)
                    self.before[line["id"]] = line
        self._fd = -1

    def append(self, line: Exported) -> None:
        """Write a line, and sync it."""
        if not self._dry_run:
            os.write(self._fd, (json.dumps(line, ensure_ascii=False) + "\n").encode())
            os.fsync(self._fd)

    def finish(self, lines: list[Exported]) -> None:
        """Write the manifest anew, with one line for each item."""
        if self._dry_run:
            return
        with WholeFile(self._path, force=True) as file:
            for line in sorted(lines, key=lambda line: line["id"]):
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            file.commit()

    def __enter__(self) -> _Manifest:
        if not self._dry_run:
            try:
                os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise MovqError(os_reason(error), self._path) from None
        return self

    def __exit__(self, *error: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _name(row: Line) -> str:
    """Return an item's name without folders and suffixes: clip for a/clip.mp4, clip_0-49 for a span of it."""
    video = row.get("of") or row["id"]
    base, suffix = os.path.splitext(os.path.basename(video))
    if len(suffix) > _LONGEST_SUFFIX:
        base += suffix
    return base + row["id"].removeprefix(video) if row["id"].startswith(video) else os.path.basename(row["id"])


def _times(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))
