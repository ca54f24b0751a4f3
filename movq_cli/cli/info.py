"""`movq info PATH...`: describe latents, videos, weights, and folders of latents or batches.

Without --stats, only the headers of latents are read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import MovqError
from ..fields import changed
from ..files import short
from ..options import Selection
from ..targets import CHANNELS
from ..values import format_bytes
from . import options as o
from .show import codes_of, compared, complain, duration, name_of, odd_rows, per_channel, plural, shape, tail

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint
    from ..describe import BatchDescription, ExportDescription, VideoDescription
    from ..latents import Latents


EXAMPLES = o.examples(
    ("movq info clip.safetensors clip.mp4", "what latents are; what a video would become"),
    ("movq info latents --json", "a batch, for programs"),
)


def info(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Latents, videos, weights, folders of latents.")],
    stats: Annotated[bool, typer.Option("--stats", help="Read the latents: mean, std, min, max per channel.")] = False,
    weights: o.Weights = None,
    max_pixels: o.MaxPixels = None,
    as_json: o.Json = False,
) -> None:
    """Say what a file is: latents, a video (and the latents it would become), weights, or a folder of latents or of a batch.

    Weights may also be diffusers' or CogVideo's, a folder of them, or a model id in the Hugging Face cache.
    """
    described, failed = [], False
    most = changed(Selection(), {"max_pixels": max_pixels} if max_pixels else {}).max_pixels
    for path in paths:
        try:
            values, show = _describe(path, stats, weights, most)
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


def _describe(path: str, stats: bool, weights: str | None, max_pixels: int | None) -> _Described:
    """Return the values that --json prints for a path, and a function that prints them for people."""
    from ..describe import kind_of

    kind = kind_of(path)
    if kind == "latents":
        return _latents(path, stats)
    if kind == "video":
        return _video(path, weights, max_pixels)
    return {"weights": _weights, "batch": _batch, "folder": _folder, "exported": _exported, "export": _export}[kind](
        path
    )


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
    against = f", {compared(values['bytes'], m.source_bytes, 'the source')}" if m.source_bytes else ""
    frames = plural(m.frames, "frame") + tail(m.frames_padded, m.frames_dropped)
    rate = f" at {float(m.fps):g} fps" if m.fps else ""
    padding = f", padded by {m.pad_right} right and {m.pad_bottom} below" if m.pad_right or m.pad_bottom else ""
    seed = f", seed {m.seed}" if m.seed is not None else ""
    scaling = f"{m.scaling_factor} (not applied)" if m.scaling_factor else "unknown"
    print_pairs(
        {
            "kind": f"latents: {m.representation}{codes_of(m)}{seed}",
            "shape": f"{shape(latents.shape)} {latents.dtype}",
            "size": f"{format_bytes(values['bytes'])}, {compared(values['bytes'], m.raw_bytes, 'raw RGB')}{against}",
            "source": f"{m.source_name}, sha256 {short(m.source_sha256)}…",
            "picture": f"{m.width}x{m.height}{padding}" + (f", cropped at {m.crop[:2]}" if m.crop else ""),
            "frames": f"{frames}; {duration(m.duration)}{rate}",
            "model": f"{m.model}, weights {short(m.weights_digest)}…, {m.weights_licence or 'licence unknown'}",
            "computed": f"in {m.precision}, semantics {m.semantics}, movq {m.movq_version}",
            "scaling": scaling,
            "per channel": per_channel(values),
            "colour": " / ".join(str(m.preprocessing.get(k, "?")) for k in ("matrix", "range", "transfer")),
            "warnings": m.warnings,
        },
        title=latents.path,
    )


def _batch(path: str) -> _Described:
    from ..describe import describe_batch

    batch = describe_batch(path)
    values = {
        "kind": "batch",
        "path": path,
        **asdict(batch.summary),
        "orphaned_outputs": batch.orphans,
        "missing_outputs": batch.missing,
    }
    return values, lambda: _show_batch(path, batch)


def _show_batch(path: str, batch: BatchDescription) -> None:
    from .items import counts_of, show_failures
    from .tables import print_pairs

    whole = batch.summary
    weights = ", ".join(f"{short(digest)}…" for digest in whole.weights)
    print_pairs(
        {
            "kind": f"batch of {plural(whole.items, 'item')}: {counts_of(whole)}",
            "video": f"{duration(whole.video_seconds)}, {plural(whole.frames, 'frame')}",
            "size": f"{format_bytes(whole.bytes)}, {compared(whole.bytes, whole.raw_bytes, 'raw RGB')}, "
            f"{compared(whole.bytes, whole.source_bytes, 'the sources')}",
            "speed": f"{whole.frames_per_second:.1f} frames/s of each worker",
            "padded": f"{plural(whole.padded, 'clip')}, by repeating the last frame" if whole.padded else "",
            "dropped": f"frames of {plural(whole.dropped, 'clip')}" if whole.dropped else "",
            "shapes": _shapes(whole.shapes),
            "captions": f"{whole.captions:,} of {plural(whole.counts['done'], 'item')}",
            "first frames": ", ".join(
                f"{plural(count, 'item')} ({kind})" for kind, count in whole.first_frames.items()
            ),
            "tars": f"{whole.tars:,}" if whole.tars else "",
            "shards": "{} of {} finished; not merged".format(*batch.shards) if batch.shards else "",
            "computed": f"by weights {weights} in {', '.join(whole.precisions)}" if weights else "",
            "orphans": _named(batch.orphans, "left over, whose video is gone, changed or cut differently"),
            "missing": _named(batch.missing, "missing that the manifest has"),
        },
        title=path,
    )
    show_failures(whole)


_NAMED = 20


def _shapes(shapes: list[tuple[list[int], int]]) -> list[str]:
    more = [f"... and {len(shapes) - _NAMED:,} more"] if len(shapes) > _NAMED else []
    return [f"{shape(size)}: {plural(count, 'item')}" for size, count in shapes[:_NAMED]] + more


def _named(outputs: list[str], what: str) -> list[str]:
    more = [f"... and {len(outputs) - _NAMED:,} more"] if len(outputs) > _NAMED else []
    return [f"{plural(len(outputs), 'output')} {what}:", *outputs[:_NAMED], *more] if outputs else []


def _export(path: str) -> _Described:
    from ..describe import describe_export_folder
    from .tables import print_pairs, print_rows

    export = describe_export_folder(path)

    def show() -> None:
        counts = ", ".join(f"{count:,} {status}" for status, count in export.counts.items())
        print_pairs(
            {
                "kind": f"export of {plural(sum(export.counts.values()), 'item')} to {export.layout}: {counts}",
                "batch": name_of(export.batch),
                "size": format_bytes(export.bytes),
                "missing": _named(export.missing, "missing that the manifest has"),
            },
            title=path,
        )
        if export.reasons:
            print_rows(
                ["why items are not in it", "items"], [[text, f"{count:,}"] for text, count in export.reasons[:_NAMED]]
            )

    return {"kind": "export", "path": path, **export._asdict()}, show


def _folder(path: str) -> _Described:
    from ..describe import latents_below

    opened, refused = latents_below(path)
    items = [_latents_json(latents) for latents in opened]
    values = {
        "kind": "folder",
        "path": path,
        "frames": sum(item["frames"] for item in items),
        "bytes": sum(item["bytes"] for item in items),
        "latents": items,
        "refused": [error.with_flags for error in refused],
    }
    return values, lambda: _show_folder(opened, values)


def _show_folder(opened: list[Latents], values: dict[str, Any]) -> None:
    from .tables import print_rows

    rows = [
        [
            os.path.relpath(latents.path, values["path"]),
            shape(latents.shape[1:]),
            latents.dtype,
            str(latents.metadata.frames),
            f"{latents.metadata.width}x{latents.metadata.height}",
            latents.metadata.representation,
            format_bytes(item["bytes"]),
        ]
        for latents, item in zip(opened, values["latents"], strict=True)
    ]
    print_rows(["latents", "shape", "dtype", "frames", "picture", "saved", "size"], rows)
    print(f"{plural(len(rows), 'file')}, {plural(values['frames'], 'frame')}, {format_bytes(values['bytes'])}")


def _video(path: str, weights: str | None, max_pixels: int | None) -> _Described:
    from ..describe import describe_video

    video = describe_video(path, weights, max_pixels)
    values = {
        "kind": "picture" if video.info.is_picture else "video",
        "path": path,
        **asdict(video.info),
        "frames": video.frames,
        "latents": {
            "model": video.model,
            "shape": list(video.latents_shape),
            "frames_padded": video.frames_padded,
        },
    }
    return values, lambda: _show_video(values["kind"], path, video)


def _show_video(kind: str, path: str, video: VideoDescription) -> None:
    from .tables import print_pairs

    v, raw, latents = video.info, video.raw_bytes, 2 * math.prod(video.latents_shape)
    turned = (
        f", rotation {-v.rotation if v.rotation <= 180 else 360 - v.rotation}" if v.rotation else ""
    )  # as by ffprobe
    turned += ", mirrored" if v.mirrored else ""
    turned += f", pixels of {v.pixel_aspect}" if v.pixel_aspect != 1 else ""
    stored = f", stored as {v.width}x{v.height}{turned}" if turned else ""
    rate = f" at {float(v.fps):.6g} fps{', variable' if v.variable_rate else ''}" if v.fps else ""
    container = "" if v.is_picture else f" in {v.container.split(',')[0]}"
    length = f"; {duration(float(v.duration))}" if v.duration else ""
    print_pairs(
        {
            "kind": f"{kind}: {v.codec}{container}, {v.pixel_format}",
            "size": f"{format_bytes(v.bytes)}, {compared(v.bytes, raw, 'raw RGB')}",
            "picture": f"{v.shown_width}x{v.shown_height}{stored}",
            "frames": f"{video.frames:,}{rate}{length}",
            "colour": f"{v.matrix} / {v.color_range} / {v.transfer}",
            "latents": f"{shape(video.latents_shape)} by {video.model}",
            "": f"{format_bytes(latents)} in fp16 or bf16, twice that in fp32: {compared(latents, raw, 'raw RGB')}, "
            f"{compared(latents, v.bytes, 'the file')}",
            "remark": odd_rows([video.latents_shape[3:]], video.semantics),
            "warnings": v.warnings,
        },
        title=path,
    )


def _exported(path: str) -> _Described:
    from ..describe import describe_export

    export = describe_export(path)
    values = {"kind": "exported", "path": path, "bytes": os.path.getsize(path), **export._asdict()}
    return values, lambda: _show_exported(path, export)


_SCALED = 1.2  # standard deviations of scaled latents are about 1, of CogVideoX's unscaled ones 1.4


def _show_exported(path: str, export: ExportDescription) -> None:
    from .tables import print_pairs

    channels = export.shape[0] if export.shape else 0
    kinds = {CHANNELS: "means or draws", 2 * CHANNELS: "moments"}
    seems = (
        f"{kinds[channels]} of CogVideoX's shape"
        if channels in kinds
        else "not latents of CogVideoX: 16 or 32 come first"
    )
    if channels == CHANNELS:
        seems += f", {'scaled' if export.std < _SCALED else 'not scaled'} by their deviation"
    names = {
        "cogvideo-finetune": "latents that CogVideo's finetuning reads (encoded_video)",
        "npy": "an array of NumPy",
    }
    print_pairs(
        {
            "kind": names[export.layout],
            "shape": f"{shape(export.shape)} {export.dtype}",
            "numbers": f"mean {export.mean:.3g}, standard deviation {export.std:.3g}",
            "seems": seems,
            "to see them": f"movq decode {name_of(path)} --from {export.layout} --weights WEIGHTS",
        },
        title=path,
    )


def _weights(path: str) -> _Described:
    from ..checkpoints.checkpoint import SAID, open_checkpoint
    from ..checkpoints.configs import LISTS

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
        **{key: numbers for key in LISTS if (numbers := checkpoint.numbers(key)) is not None},
        "semantics": checkpoint.semantics,
    }
    return values, lambda: _show_weights(checkpoint, values)


def _show_weights(checkpoint: Checkpoint, values: dict[str, Any]) -> None:
    from ..checkpoints.layouts import LAYOUTS
    from .tables import print_pairs
    from .weights import scaling

    config, said = checkpoint.config, checkpoint.metadata
    print_pairs(
        {
            "kind": f"weights: {checkpoint.name}",
            "format": LAYOUTS[checkpoint.layout][0],
            "size": f"{format_bytes(values['bytes'])}, {values['tensors']} tensors, {', '.join(checkpoint.dtypes)}",
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
            "per channel": per_channel(values),
            "invert scale": said["invert_scale_latents"],
            "source": said["source"],
        },
        title=name_of(values["path"]),
    )
