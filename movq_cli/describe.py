"""Describe what a path is: latents, a video, weights, a batch or a folder of latents. `movq info` prints it.

No torch. Modules for one kind of path are imported only for that kind, so that `info` of latents is quick.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, NamedTuple

from .checkpoints.checkpoint import is_embedded_name
from .checkpoints.locate import holds_weights, is_model_id, refuse_pytorch
from .errors import MovqError
from .files import require_file
from .headers import looks_like_safetensors, read_header
from .latents import Latents, is_latents, open_latents
from .metadata import FORMAT

if TYPE_CHECKING:
    from .batch import Summary
    from .video import VideoInfo

Kind = Literal["latents", "video", "weights", "batch", "folder", "exported", "export"]


def kind_of(path: str) -> Kind:
    """Return the kind of a path or model id.

    A folder that is not a batch is one of latents if it holds any, or if it holds no weights. Raises MovqError for a
    path that does not exist, and for a PyTorch file.
    """
    if os.path.isdir(path):
        from .batch.manifest import NAME, shard_manifests
        from .export.manifest import NAME as EXPORT

        if os.path.isfile(os.path.join(path, NAME)) or shard_manifests(path):
            return "batch"
        if os.path.isfile(os.path.join(path, EXPORT)):
            return "export"
        return "weights" if holds_weights(path) and not any(map(is_latents, _candidates_below(path))) else "folder"
    if is_model_id(path) or is_embedded_name(path):
        return "weights"
    require_file(path)
    refuse_pytorch(path)
    if not looks_like_safetensors(path):
        return "exported" if is_array(path) else "video"
    header = read_header(path)
    if header.metadata.get("format") == FORMAT:
        return "latents"
    return "exported" if _OF_COGVIDEO in header.tensors else "weights"


_OF_COGVIDEO = "encoded_video"
"""The tensor of the files that CogVideo's finetuning caches."""
_NUMPY = b"\x93NUMPY"


def is_array(path: str) -> bool:
    """Return True if a file begins like one of NumPy's arrays."""
    with open(path, "rb") as file:
        return file.read(len(_NUMPY)) == _NUMPY


class ExportDescription(NamedTuple):
    """Latents in the layout of a trainer: their shape, (C, T, H, W) if it is right, dtype, mean and deviation."""

    layout: str
    shape: list[int]
    dtype: str
    mean: float
    std: float


def describe_export(path: str) -> ExportDescription:
    """Return what an exported file holds. Raises MovqError if it cannot be read."""
    from .export.formats import FORMATS

    layout = "npy" if is_array(path) else "cogvideo-finetune"
    latents = FORMATS[layout].read(path)
    numbers = latents.double()
    return ExportDescription(
        layout,
        list(latents.shape),
        str(latents.dtype).removeprefix("torch."),
        float(numbers.mean()),
        float(numbers.std(correction=0)),
    )


class ExportFolder(NamedTuple):
    """The contents of a folder that `movq export` wrote: the layout, the batch (relative to the folder), and items by status.

    `bytes` are those of all its files, `missing` the files that are gone or of another size, and `reasons` why items were
    refused or left out, the most frequent first.
    """

    layout: str
    batch: str
    counts: dict[str, int]
    bytes: int
    missing: list[str]
    reasons: list[tuple[str, int]]


def describe_export_folder(folder: str) -> ExportFolder:
    """Return what is in the folder of an export, by its manifest. Raises MovqError if that is of something else."""
    from .export.manifest import NAME, SHARED, Manifest

    manifest = Manifest(folder, dry_run=True)
    everything = [*manifest.before.values()]
    shared = manifest.before.pop(SHARED, {}).get("made_from")
    if shared is None:
        raise MovqError("is not of an export of movq", manifest.place(NAME))
    lines = manifest.before.values()
    missing = [
        path for line in everything for path, size in line.get("files", {}).items() if manifest.size(path) != size
    ]
    missing += [path for line in lines for path in line.get("links", ()) if not os.path.exists(manifest.place(path))]
    return ExportFolder(
        layout=shared["to"],
        batch=shared["batch"],
        counts=dict(Counter(line["status"] for line in lines)),
        bytes=sum(sum(line.get("files", {}).values()) for line in everything),
        missing=sorted(set(missing)),
        reasons=Counter(line["reason"] for line in lines if "reason" in line).most_common(),
    )


@dataclass(frozen=True)
class VideoDescription:
    """A video, and the latents that `encode_video` would make of all of it by default.

    `latents_shape` is (1, C, T', H', W') of moments by the weights called `model`; it includes `frames_padded` repeats
    of the last frame.
    """

    info: VideoInfo
    frames: int
    model: str
    semantics: str
    latents_shape: tuple[int, int, int, int, int]
    frames_padded: int

    @property
    def raw_bytes(self) -> int:
        """The size of the frames as RGB, in bytes."""
        return self.frames * self.info.shown_width * self.info.shown_height * 3


def describe_video(
    path: str | os.PathLike[str], weights: str | None = None, max_pixels: int | None = None
) -> VideoDescription:
    """Return what a video is, and the latents that these weights would make of it (default: the embedded ones).

    `max_pixels` is as in a Selection. The first frame is decoded; the others are counted if the header does not say how
    many there are. Raises MovqError if the file is not a video or the weights are refused.
    """
    from .checkpoints.checkpoint import open_checkpoint
    from .codec import fit_tail
    from .options import Picture, Selection
    from .video import count_frames, plan_geometry, probe
    from .video.geometry import Orientation

    info = probe(path, max_pixels)
    frames = info.frames_from_header or count_frames(path, Selection(max_pixels=max_pixels))
    checkpoint = open_checkpoint(weights)
    config = checkpoint.config
    shown = info.shown_width, info.shown_height
    geometry = plan_geometry(*shown, Fraction(1), Orientation(), Picture(), config.spatial_factor)
    padded, _ = fit_tail(frames, "pad", config.temporal_factor)
    shape = config.latent_shape(frames + padded, geometry.padded_height, geometry.padded_width)
    return VideoDescription(info, frames, checkpoint.name, checkpoint.semantics, shape, padded)


class BatchDescription(NamedTuple):
    """A batch by its manifest. `orphans` and `missing` are outputs, as `compare_outputs` returns them.

    If its shards are not merged, `shards` is the number of those finished and the number of all; else None.
    """

    summary: Summary
    orphans: list[str]
    missing: list[str]
    shards: tuple[int, int] | None


def describe_batch(folder: str) -> BatchDescription:
    """Return the summary of a batch's manifest, and where the folder differs from it. Raises MovqError."""
    from .batch import compare_outputs, note_places, read_batch, summarise
    from .batch.manifest import shard_manifests, unfinished_shards

    places: dict[str, bool] = {}
    summary = summarise(note_places(read_batch(folder), places))
    there = shard_manifests(folder)
    finished = len(there.keys() - unfinished_shards(folder).keys())
    shards = (finished, max(count for _, count in there)) if there else None
    return BatchDescription(summary, *compare_outputs(places, folder), shards)


def latents_below(folder: str) -> tuple[list[Latents], list[MovqError]]:
    """Open all latents files below a folder, except in hidden folders. Return them, and the errors of the others.

    Raises MovqError if there are neither.
    """
    opened, refused = [], []
    for path in _candidates_below(folder):
        try:
            if read_header(path).metadata.get("format") == FORMAT:
                opened.append(open_latents(path))
        except MovqError as error:
            refused.append(error)
    if not opened and not refused:
        raise MovqError("has no latents in it, nor weights", folder)
    return opened, refused


def _candidates_below(folder: str) -> Iterator[str]:
    for below, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (os.path.join(below, name) for name in sorted(names) if name.endswith(".safetensors"))
