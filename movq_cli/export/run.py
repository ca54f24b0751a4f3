"""`export_latents`: a batch in the layout that a trainer reads. It can be resumed, and says what became of each item."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..batch.manifest import NAME as BATCH
from ..codec import Progress, silent
from ..dataset import LatentDataset
from ..errors import MovqError, MovqUsageError, option, show_flags
from ..fields import options_of
from ..first_frame import LATENT, PNG
from ..options import EXPORTS, INT8, ExportOptions
from ..scaling import scale_of, scaling_of
from ..targets import CHANNELS, target_of
from .embeds import HELP, PromptEmbeds
from .format import Content, Format, Item, video_of
from .formats import FORMATS
from .manifest import SHARED, Exported, Manifest

if TYPE_CHECKING:
    from ..batch.manifest import Line

_LONGEST_SUFFIX = 5  # of a video, with its dot


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
    export = _Export(
        LatentDataset(folder, scale=1.0, first_frames=False, codes=None),
        os.fspath(output),
        options,
    )
    result = export.run(dry_run, progress)
    return replace(result, seconds=time.perf_counter() - started)


class _Export:
    """One export: the items, the layout, and the output folder."""

    def __init__(self, dataset: LatentDataset, folder: str, options: ExportOptions) -> None:
        if not len(dataset):
            raise MovqError("has no finished items", dataset.folder)
        if os.path.exists(os.path.join(folder, BATCH)):
            raise MovqError("is the folder of a batch: name another for the export", folder)
        self._dataset, self._folder, self._options = dataset, folder, options
        self._warnings: list[str] = []
        self._embeds = PromptEmbeds(options.prompt_embeds)
        self._metadata = self._one_of_each_weights()
        target = options.target or next(
            (m.preprocessing["prepared_for"] for m in self._metadata.values() if "prepared_for" in m.preprocessing),
            None,
        )
        self._format = self._layout(target)

    def _one_of_each_weights(self) -> dict[str, Any]:
        """Return the metadata of an item of each weights. Raises MovqError for weights of another family."""
        found: dict[str, Any] = {}
        for index in range(len(self._dataset)):
            digest = self._dataset.row(index)["weights_digest"]
            if digest not in found:
                with suppress(MovqError):  # of an item that cannot be read, which is refused when its turn comes
                    found[digest] = self._dataset.files.metadata(self._dataset.row(index))
        if not found:
            self._dataset.files.metadata(self._dataset.row(0))
        for m in found.values():
            if m.semantics != "frame" and m.config["z_channels"] == CHANNELS:
                continue
            text = f"holds latents of {m.model}, which no model of CogVideoX's family reads: one would learn nonsense"
            if self._options.to != "npy" and not self._options.any_weights:
                raise MovqError(f"{text}; {option('any_weights', True)} exports them", self._dataset.folder)
            if self._options.to != "npy":
                self._warnings.append(text)
        return found

    def _layout(self, target: str | None) -> Format:
        options, kind = self._options, FORMATS[self._options.to or ""]
        meant = None if target is None else target_of(target)
        if kind.needs_embeds and options.prompt_embeds is None:
            raise MovqUsageError(f"{options.to} needs text embeddings; {HELP}", option="prompt_embeds")
        if self._dataset.codes:
            self._refuse_for_codes()
        if options.dtype == INT8 and options.to != "npy":
            raise MovqUsageError("int8 is for npy: no trainer reads it", option="dtype")
        if options.scale is not None and kind.needs_moments:
            raise MovqUsageError("is not for this format: its trainer scales", option="scale")
        if target is None and kind.needs_moments:
            self._warnings.append(f"no model is named: {option('target')} checks what it needs")
        scale = scale_of(options.scale)
        if scale is None and kind.scaled:
            scale = self._scale_of_headers(options.target)
        dtype = options.dtype or (meant.store_dtype if meant and kind.scaled else None)
        return kind(scale, options.seed, dtype, target)

    def _refuse_for_codes(self) -> None:
        """Raise MovqError for trainers, and MovqUsageError for what changes numbers: codes are neither."""
        if self._options.to != "npy":
            raise MovqError(
                f"holds codes, which no trainer of CogVideoX reads: encode with {option('save', 'mean')}",
                self._dataset.folder,
            )
        for name in ("scale", "dtype"):
            if getattr(self._options, name) is not None:
                raise MovqUsageError("is not for codes, which are written as they are", option=name)

    def _scale_of_headers(self, named: str | None) -> float:
        """Return the factor of the model that is named, or that of the headers. Raises MovqUsageError without one."""
        said = [scaling_of({"scaling_factor": m.scaling_factor}) for m in self._metadata.values()]
        factors = {scaling.factor for scaling in said if scaling is not None}
        if named is not None:
            factor = target_of(named).scaling_factor
            if factors - {factor}:
                others = ", ".join(f"{other:.10g}" for other in sorted(factors - {factor}))
                self._warnings.append(f"the headers say the scaling factor {others}; {named}'s {factor:.10g} is used")
            return factor
        if len(factors) == 1:
            return factors.pop()
        what = "several scaling factors" if factors else "no scaling factor"
        raise MovqUsageError(f"name a factor, or a model like cogvideox-5b: the latents have {what}", option="scale")

    def run(self, dry_run: bool, progress: Progress) -> ExportResult:
        """Export all items."""
        found = [self._item(index) for index in range(len(self._dataset))]
        items = [item for _, item, status, _ in found if status == "done"]
        if self._options.shape is not None and not any(status != "left out" for _, _, status, _ in found):
            shapes = Counter(_times((item.frames, item.height, item.width)) for _, item, _, _ in found)
            there = ", ".join(f"{shape} ({count:,})" for shape, count in shapes.most_common())
            raise MovqUsageError(f"no item is {self._options.shape}; there are {there}", option="shape")
        self._format.check(items)
        self._refuse_clashes(items)
        if self._format.one_shape:
            self._refuse_shapes(items)
        lines, done, kept = [], list[Item](), 0
        manifest = Manifest(self._folder, dry_run)
        self._refuse_others(manifest, items)
        with manifest:
            manifest.append(self._shared({}))
            for index, item, status, reason in found:
                item = replace(item, number=len(done))
                before = manifest.before.get(item.id)
                if status != "done":
                    line = Exported(id=item.id, status=status, reason=reason)
                elif before is not None and self._is_up_to_date(before, index, item, manifest):
                    line, kept = before, kept + 1
                else:
                    line = self._export(index, item, manifest, dry_run)
                if line["status"] == "done":
                    done.append(item)
                lines.append(line)
                if line is not before:
                    manifest.append(line)
                progress(len(lines), len(found))
            texts = {path: text.encode() for path, text in self._format.lists(done).items()}
            shared = self._shared({path: len(text) for path, text in texts.items()})
            removed = manifest.remove_all_but([*lines, shared])
            for path, text in () if dry_run else texts.items():
                manifest.write(path, text)
            manifest.finish([*lines, shared])
        usage = self._format.usage(done, self._folder) if done else ""
        return ExportResult(lines, kept, removed, usage, tuple(map(show_flags, self._warnings)), 0.0)

    def _shared(self, files: dict[str, int]) -> Exported:
        batch = os.path.relpath(os.path.realpath(self._dataset.folder), os.path.realpath(self._folder))
        return Exported(id=SHARED, status="done", files=files, made_from={"to": self._options.to, "batch": batch})

    def _refuse_others(self, manifest: Manifest, items: list[Item]) -> None:
        """Raise MovqError, before anything is written, for files of others, and for an export of another kind."""
        if self._options.force:
            return
        shared = manifest.before.get(SHARED, {}).get("made_from")
        if shared is not None and shared != self._shared({})["made_from"]:
            raise MovqError(
                f"holds an export of {shared['batch']} to {shared['to']}: name another folder, or {option('force', True)} "
                "replaces it",
                self._folder,
            )
        paths = [path for item in _numbered(items) for path in self._format.paths(item)]
        links = [path for item in items for path in self._links(item)]
        manifest.refuse_foreign(
            [path for path in (*paths, *self._format.lists([]), *links) if not self._format.is_shared(path)]
        )

    def _item(self, index: int) -> tuple[int, Item, str, str]:
        """Return the index, the item, its status so far, and why it is not done."""
        row = self._dataset.row(index)
        m = self._metadata.get(row["weights_digest"]) or next(iter(self._metadata.values()))
        layout = self._format
        _, _, latents, height, width = row["shape"]
        caption = " ".join(row.get("caption", "").split())
        item = Item(
            id=row["id"],
            name=row["id"] if layout.nested else _name(row),
            caption=caption,
            video=row["path"],
            latents=latents,
            frames=1 + (latents - 1) * m.temporal_factor,
            height=height * m.spatial_factor,
            width=width * m.spatial_factor,
            first_frame=tuple(row.get("first_frame", ())),
            has_embeds=self._embeds.has(caption),
        )
        wanted = self._options.shape
        if wanted is not None and (item.frames, item.height, item.width) != (
            wanted.frames,
            wanted.height,
            wanted.width,
        ):
            return index, item, "left out", f"is {_times((item.frames, item.height, item.width))}, not {wanted}"
        reason = self._reason(item, row)
        return index, item, "refused" if reason else "done", show_flags(reason)

    def _reason(self, item: Item, row: Line) -> str:
        """Return why an item cannot be exported; "" if it can."""
        layout, saved = self._format, row.get("options", {}).get("save", "moments")
        _, _, _, height, width = row["shape"]
        if layout.patched and (height % 2 or width % 2):
            return (
                f"has latents of {height}x{width}, of which the transformer would leave the odd row or column out: "
                f"encode with {option('multiple', 2 * item.height // height)}"
            )
        if layout.needs_captions and not item.caption:
            return "has no caption"
        if saved != "moments" and (layout.needs_moments or (layout.scaled and saved == "mean")):
            return "holds no moments, which are drawn from: encode it without --save"
        if "\n" in item.name or "\r" in item.name:
            return "has a line break in its name, which lists cannot hold"
        if layout.needs_videos and not os.path.exists(item.video):
            return f"its video {item.video} is gone, and the trainer asks that it exists"
        if layout.needs_embeds and not item.has_embeds:
            return f"has no text embeddings: {self._embeds.path(item.caption)} is not there; {HELP}"
        return (self._embeds.refusal(item.caption) if item.has_embeds else "") or layout.refusal(item)

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
        paths: dict[str, str] = {}
        for item in _numbered(items):
            for path in self._format.paths(item):
                if paths.setdefault(path, item.id) != item.id and not self._format.is_shared(path):
                    raise MovqError(
                        f"{paths[path]} and {item.id} would both be written to {path}", self._dataset.folder
                    )

    def _refuse_shapes(self, items: list[Item]) -> None:
        """Raise MovqError if items have several shapes, which the consumer stacks."""
        shapes = {(item.frames, item.height, item.width): item.id for item in items}
        if len(shapes) > 1:
            (one, first), (other, second) = list(shapes.items())[:2]
            raise MovqError(
                f"its items have {len(shapes)} shapes, and the trainer stacks them: {first} is {_times(one)}, {second} "
                f"{_times(other)}; {option('shape', _times(other))} exports those",
                self._dataset.folder,
            )

    def _made_from(self, index: int, item: Item) -> dict[str, Any]:
        """Return everything that the files of an item depend on."""
        layout, row = self._format, self._dataset.row(index)
        first_frame = {kind: row["first_frame"][kind]["sha256"] for kind in self._first_frames(item)}
        return {
            "latents": row["sha256"],
            "name": item.name,
            "caption": item.caption,
            "number": item.number,
            "scale": layout.scale,
            "seed": layout.seed,
            "dtype": layout.dtype,
            "target": layout.target,
            "embeds": self._embeds.identity(item.caption) if item.has_embeds else None,
        } | ({"first_frame": first_frame} if first_frame else {})

    def _is_up_to_date(self, before: Exported, index: int, item: Item, manifest: Manifest) -> bool:
        return (
            before.get("status") == "done"
            and before.get("made_from") == self._made_from(index, item)
            and before.get("links", {}) == self._links(item)
            and manifest.is_there(before, self._format.is_shared)
        )

    def _links(self, item: Item) -> dict[str, str]:
        """Return the link to an item's video, where the trainer looks for it; none if the video itself is there."""
        place = os.path.join(self._folder, video_of(item))
        if not self._format.needs_videos or (
            os.path.exists(place) and not os.path.islink(place) and _same(place, item.video)
        ):
            return {}
        parent = os.path.join(os.path.realpath(self._folder), os.path.dirname(video_of(item)))
        return {video_of(item): os.path.relpath(os.path.realpath(item.video), parent)}

    def _export(self, index: int, item: Item, manifest: Manifest, dry_run: bool) -> Exported:
        """Write the files of an item, and return its line."""
        paths = self._format.paths(item)
        line = Exported(
            id=item.id,
            status="done",
            files=dict.fromkeys(paths, 0),
            links=self._links(item),
            made_from=self._made_from(index, item),
        )
        try:
            content = self._content(index, item)
            if dry_run:
                return line
            files = dict(zip(paths, self._format.files(item, content), strict=True))
        except MovqError as error:
            return Exported(id=item.id, status="refused", reason=error.with_flags)
        files = {path: data for path, data in files.items() if not self._is_trainers(path, manifest)}
        line["files"] = {path: len(data) for path, data in files.items()}
        manifest.append(Exported(id=item.id, status="begun", files=line["files"], links=line["links"]))
        for path, data in files.items():
            manifest.write(path, data)
        for path, target in line["links"].items():
            manifest.link(path, target)
        return line

    def _content(self, index: int, item: Item) -> Content:
        files, row, kinds = self._dataset.files, self._dataset.row(index), self._first_frames(item)
        picture = files.picture(row) if PNG in kinds else None
        first = files.stored(row, LATENT) if LATENT in kinds else None
        return Content(files.stored(row), self._embeds.read(item.caption), picture, first)

    def _first_frames(self, item: Item) -> list[str]:
        """Return the kinds of first frame that an item has and that the layout has a use for."""
        return [kind for kind in self._format.first_frames() if kind in item.first_frame]

    def _is_trainers(self, path: str, manifest: Manifest) -> bool:
        """Return True for a file that the trainer itself has made already."""
        return self._format.is_shared(path) and path not in manifest.owners and os.path.lexists(manifest.place(path))


def _name(row: Line) -> str:
    """Return an item's name without folders and suffixes: clip for a/clip.mp4, clip_0-49 for a span of it."""
    video = row.get("of") or row["id"]
    base, suffix = os.path.splitext(os.path.basename(video))
    if len(suffix) > _LONGEST_SUFFIX:
        base += suffix
    return base + row["id"].removeprefix(video) if row["id"].startswith(video) else os.path.basename(row["id"])


def _numbered(items: list[Item]) -> list[Item]:
    return [replace(item, number=number) for number, item in enumerate(items)]


def _same(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


def _times(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))
