"""`movq info PATH...`: latents, videos, weights, or a folder of latents: what each is.

Of latents the header alone is read, unless --stats.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import MovqError
from ..files import short
from . import options as o
from .show import complain, duration, name_of, plural, ratio, shape, size

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint
    from ..latents import Latents


def info(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Latents, videos, weights, folders of latents.")
    ],
    stats: Annotated[bool, typer.Option("--stats", help="Read the latents: mean, std, min, max per channel.")] = False,
    weights: o.Weights = None,
    as_json: o.Json = False,
) -> None:
    """Say what a file is: latents, a video (and the latents it would become), weights, or a folder of latents or of a batch.

    Weights may also be diffusers' or CogVideo's, a folder of them, or a model id in the Hugging Face cache.
    """
    described, failed = [], False
    for path in paths:
        try:
            values, show = _describe(path, stats, weights)
        except MovqError as error:
            complain(error)
            failed = True
            continue
        described.append(values)
        for reason in values.get("refused", []):
            complain(reason)
            failed = True
        if not as_json:
            show()
    if as_json:
        print(json.dumps(described[0] if len(paths) == 1 and described else described, indent=2, default=str))
    if failed:
        raise typer.Exit(1)


_Described = tuple[dict[str, Any], Callable[[], None]]


def _describe(path: str, stats: bool, weights: str | None) -> _Described:
    """What JSON says of a path, and what prints it for people."""
    from ..checkpoints.locate import is_model_id, refuse_pytorch
    from ..files import require_file
    from ..headers import looks_like_safetensors, read_header
    from ..metadata import FORMAT

    if os.path.isdir(path):
        return _folder(path)
    if is_model_id(path):
        return _weights(path)
    require_file(path)
    refuse_pytorch(path)
    if not looks_like_safetensors(path):
        return _video(path, weights)
    return _latents(path, stats) if read_header(path).metadata.get("format") == FORMAT else _weights(path)


def _latents(path: str, stats: bool) -> _Described:
    from ..latents import open_latents
    from .tables import print_rows

    latents = open_latents(path)
    values: dict[str, Any] = _latents_json(latents)
    columns = ("mean", "std", "min", "max")
    if stats:
        values["stats"] = [dict(zip(columns, row, strict=True)) for row in latents.channel_stats()]

    def show() -> None:
        _show_latents(latents, values)
        if stats:
            rows = [[str(i), *(f"{row[name]:.4f}" for name in columns)] for i, row in enumerate(values["stats"])]
            print_rows(["channel", *columns], rows)

    return values, show


def _latents_json(latents: Latents) -> dict[str, Any]:
    return {
        "kind": "latents",
        "path": latents.path,
        "bytes": os.path.getsize(latents.path),
        "shape": list(latents.shape),
        "dtype": latents.dtype,
        **asdict(latents.metadata),
    }


def _show_latents(latents: Latents, values: dict[str, Any]) -> None:
    from .tables import print_pairs

    m = latents.metadata
    against = f", {ratio(m.source_bytes, values['bytes'])} of the source file" if m.source_bytes else ""
    counts = [plural(m.frames, "frame")]
    counts += [f"{m.frames_padded} repeated at the end"] if m.frames_padded else []
    counts += [f"{m.frames_dropped} dropped"] if m.frames_dropped else []
    rate = f" at {float(m.fps):g} fps" if m.fps else ""
    padding = f", padded by {m.pad_right} right and {m.pad_bottom} below" if m.pad_right or m.pad_bottom else ""
    seed = f", seed {m.seed}" if m.seed is not None else ""
    scaling = f"{m.scaling_factor} (not applied)" if m.scaling_factor else "unknown"
    print_pairs(
        {
            "kind": f"latents: {m.representation}{seed}",
            "shape": f"{shape(latents.shape)} {latents.dtype}",
            "size": f"{size(values['bytes'])}, {ratio(m.raw_bytes, values['bytes'])} of RGB{against}",
            "source": f"{m.source_name}, sha256 {short(m.source_sha256)}…",
            "picture": f"{m.width}x{m.height}{padding}" + (f", cropped at {m.crop[:2]}" if m.crop else ""),
            "frames": f"{', '.join(counts)}; {duration(m.duration)}{rate}",
            "model": f"{m.model}, weights {short(m.weights_digest)}…, {m.weights_licence or 'licence unknown'}",
            "computed": f"in {m.precision}, semantics {m.semantics}, movq {m.movq_version}",
            "scaling": scaling,
            "colour": " / ".join(str(m.preprocessing.get(k, "?")) for k in ("matrix", "range", "transfer")),
            "warnings": m.warnings,
        },
        title=latents.path,
    )


def _batch(path: str) -> _Described:
    from ..batch import compare_outputs, note_places, read_batch, summarise

    places: dict[str, bool] = {}
    summary = summarise(note_places(read_batch(path), places))
    orphans, missing = compare_outputs(places, path)
    values = {"kind": "batch", "path": path, **asdict(summary), "orphaned_outputs": orphans, "missing_outputs": missing}

    def show() -> None:
        from .batch import show_failures
        from .tables import print_pairs

        counts = ", ".join(f"{count:,} {status}" for status, count in summary.counts.items() if count)
        weights = ", ".join(f"{short(digest)}…" for digest in summary.weights)
        print_pairs(
            {
                "kind": f"batch of {plural(summary.items, 'item')}: {counts}",
                "video": f"{duration(summary.video_seconds)}, {plural(summary.frames, 'frame')}",
                "size": f"{size(summary.bytes)}, {ratio(summary.raw_bytes, summary.bytes)} of RGB, "
                f"{ratio(summary.source_bytes, summary.bytes)} of the source files",
                "speed": f"{summary.frames_per_second:.1f} frames/s of each worker",
                "padded": f"{plural(summary.padded, 'clip')}, by repeating the last frame" if summary.padded else "",
                "dropped": f"frames of {plural(summary.dropped, 'clip')}" if summary.dropped else "",
                "shapes": _shapes(summary.shapes),
                "captions": f"{summary.captions:,} of {plural(summary.counts['done'], 'item')}",
                "tars": f"{summary.tars:,}" if summary.tars else "",
                "shards": _shards(path),
                "computed": f"by weights {weights} in {', '.join(summary.precisions)}" if weights else "",
                "orphans": _named(orphans, "of no such video, an older state of one, or cut otherwise"),
                "missing": _named(missing, "that the manifest has"),
            },
            title=path,
        )
        show_failures(summary)

    return values, show


_NAMED = 20


def _shards(path: str) -> str:
    """Which shards there are, where they are not merged yet."""
    from ..batch.manifest import shard_manifests, unfinished_shards

    there, unfinished = shard_manifests(path), unfinished_shards(path)
    if not there:
        return ""
    finished = len(there.keys() - unfinished.keys())
    return f"{finished} of {max(count for _, count in there)} finished; not merged"


def _shapes(shapes: list[tuple[list[int], int]]) -> list[str]:
    more = [f"... and {len(shapes) - _NAMED:,} more"] if len(shapes) > _NAMED else []
    return [f"{shape(size)}: {plural(count, 'item')}" for size, count in shapes[:_NAMED]] + more


def _named(outputs: list[str], what: str) -> list[str]:
    more = [f"... and {len(outputs) - _NAMED:,} more"] if len(outputs) > _NAMED else []
    return [f"{plural(len(outputs), 'output')} {what}:", *outputs[:_NAMED], *more] if outputs else []


def _folder(path: str) -> _Described:
    """All latents below a folder, hidden folders apart; other safetensors files are passed over.

    Without any, a folder of weights is described as such; a batch's, by its manifest.
    """
    from ..batch.manifest import NAME, shard_manifests
    from ..checkpoints.locate import holds_weights
    from ..headers import read_header
    from ..latents import open_latents
    from ..metadata import FORMAT
    from .tables import print_rows

    if os.path.isfile(os.path.join(path, NAME)) or shard_manifests(path):
        return _batch(path)
    opened, refused = [], []
    for file in _candidates_below(path):
        try:
            if read_header(file).metadata.get("format") == FORMAT:
                opened.append(open_latents(file))
        except MovqError as error:
            refused.append(error)
    if not opened and holds_weights(path):
        return _weights(path)
    if not opened and not refused:
        raise MovqError("has no latents in it, nor weights", path)
    items = [_latents_json(latents) for latents in opened]
    frames = sum(item["frames"] for item in items)
    total = sum(item["bytes"] for item in items)
    errors = [error.with_flags for error in refused]
    values = {"kind": "folder", "path": path, "frames": frames, "bytes": total, "latents": items, "refused": errors}

    def show() -> None:
        rows = [
            [
                os.path.relpath(latents.path, path),
                shape(latents.shape[1:]),
                latents.dtype,
                str(latents.metadata.frames),
                f"{latents.metadata.width}x{latents.metadata.height}",
                latents.metadata.representation,
                size(item["bytes"]),
            ]
            for latents, item in zip(opened, items, strict=True)
        ]
        print_rows(["latents", "shape", "dtype", "frames", "picture", "saved", "size"], rows)
        print(f"{plural(len(items), 'file')}, {plural(frames, 'frame')}, {size(total)}")

    return values, show


def _candidates_below(path: str) -> Iterator[str]:
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (os.path.join(folder, name) for name in sorted(names) if name.endswith(".safetensors"))


def _video(path: str, weights: str | None) -> _Described:
    from ..checkpoints.checkpoint import open_checkpoint
    from ..codec import fit_tail
    from ..options import Picture
    from ..video import count_frames, plan_geometry, probe
    from ..video.geometry import Orientation
    from .tables import print_pairs

    video = probe(path)
    frames = video.frames_from_header or count_frames(path)
    checkpoint = open_checkpoint(weights)
    config = checkpoint.config
    shown = video.shown_width, video.shown_height
    geometry = plan_geometry(*shown, Fraction(1), Orientation(), Picture(), config.spatial_factor)
    padded, _ = fit_tail(frames, "pad", config.temporal_factor)
    latents = config.latent_shape(frames + padded, geometry.padded_height, geometry.padded_width)
    values = {
        "kind": "picture" if video.is_picture else "video",
        "path": path,
        **asdict(video),
        "frames": frames,
        "latents": {"model": checkpoint.name, "shape": list(latents), "frames_padded": padded},
    }

    def show() -> None:
        numbers = math.prod(latents)
        turned = f", turned by {video.rotation} degrees" if video.rotation else ""
        turned += ", mirrored" if video.mirrored else ""
        turned += f", pixels of {video.pixel_aspect}" if video.pixel_aspect != 1 else ""
        stored = f", stored as {video.width}x{video.height}{turned}" if turned else ""
        rate = f" at {float(video.fps):.6g} fps" if video.fps else ""
        length = f"; {duration(float(video.duration))}" if video.duration else ""
        raw = frames * shown[0] * shown[1] * 3
        print_pairs(
            {
                "kind": f"{values['kind']}: {video.codec} in {video.container.split(',')[0]}, {video.pixel_format}",
                "size": f"{size(video.bytes)}, {ratio(raw, video.bytes)} of RGB",
                "picture": f"{shown[0]}x{shown[1]}{stored}",
                "frames": f"{frames:,}{rate}{length}",
                "colour": f"{video.matrix} / {video.color_range} / {video.transfer}",
                "latents": f"{shape(latents)} by {checkpoint.name}",
                "": f"{size(2 * numbers)} in 2 bytes each: {ratio(raw, 2 * numbers)} of RGB, "
                f"{ratio(video.bytes, 2 * numbers)} of the file",
                "warnings": video.warnings,
            },
            title=path,
        )

    return values, show


_LAYOUTS = {"movq": "movq weights", "diffusers": "diffusers", "sat": "CogVideo names"}


def _weights(path: str) -> _Described:
    from ..checkpoints.checkpoint import SAID, open_checkpoint

    checkpoint = open_checkpoint(path)
    values = {
        "kind": "weights",
        "path": path,
        "bytes": sum(map(os.path.getsize, checkpoint.files)),
        "layout": checkpoint.layout,
        "digest": checkpoint.digest,
        "parameters": checkpoint.parameters,
        "tensors": len(checkpoint.tensors),
        "dtypes": checkpoint.dtypes,
        "config": asdict(checkpoint.config),
        **{key: checkpoint.metadata[key] for key in SAID},
        "semantics": checkpoint.semantics,
    }
    return values, lambda: _show_weights(checkpoint, values)


def _show_weights(checkpoint: Checkpoint, values: dict[str, Any]) -> None:
    from .tables import print_pairs
    from .weights import scaling

    config, said = checkpoint.config, checkpoint.metadata
    print_pairs(
        {
            "kind": f"weights: {checkpoint.name}",
            "format": _LAYOUTS[checkpoint.layout],
            "size": f"{size(values['bytes'])}, {values['tensors']} tensors, {', '.join(checkpoint.dtypes)}",
            "parameters": ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in checkpoint.parameters.items()),
            "factors": f"{config.temporal_factor} in time, {config.spatial_factor} in height and width; "
            f"{config.z_channels} channels",
            "norms": f"over the {'frame' if config.norm_scope == 'frame' else 'whole clip'}, "
            f"semantics {checkpoint.semantics}",
            "config": config.to_json(),
            "digest": values["digest"],
            "licence": said["licence"] or "unknown",
            "scaling": scaling(checkpoint),
            "shift": said["shift_factor"],
            "invert scale": said["invert_scale_latents"],
            "source": said["source"],
        },
        title=name_of(values["path"]),
    )
