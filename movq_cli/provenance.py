"""The metadata of a latents file: how it was made, from which weights, picture, frames and source."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from typing import Any

from ._version import __version__
from .checkpoints.checkpoint import Checkpoint
from .codec import Chunker
from .files import file_name
from .metadata import Metadata
from .options import EncodeOptions, Selection
from .plan import Plan, representation
from .video import FrameReader, VideoInfo, is_same_rate


def metadata_of(
    source: str | os.PathLike[str],
    options: EncodeOptions,
    checkpoint: Checkpoint,
    plan: Plan,
    reader: FrameReader,
    chunker: Chunker,
    *,
    source_sha256: str,
    weights_digest: str,
    warnings: tuple[str, ...],
) -> Metadata:
    """Return the metadata of the latents that were made of a video by a plan. All frames have been read."""
    geometry, config, said = plan.geometry, checkpoint.config, checkpoint.metadata
    factor = said.get("scaling_factor", "") if options.scaling_factor is None else f"{options.scaling_factor:.10g}"
    return Metadata(
        representation=representation(options, config),
        seed=options.seed if options.save == "sample" else None,
        semantics=plan.semantics,
        windows=None if plan.windows is None else list(plan.windows),
        model=checkpoint.name,
        config=json.loads(config.to_json()),
        weights_digest=weights_digest,
        weights_licence=said.get("licence", ""),
        scaling_factor=factor,
        shift_factor=said.get("shift_factor", ""),
        invert_scale_latents=said.get("invert_scale_latents", ""),
        latents_mean=checkpoint.numbers("latents_mean"),
        latents_std=checkpoint.numbers("latents_std"),
        temporal_factor=config.temporal_factor,
        spatial_factor=config.spatial_factor,
        precision=plan.precision,
        width=geometry.width,
        height=geometry.height,
        pad_right=geometry.pad_right,
        pad_bottom=geometry.pad_bottom,
        crop=list(geometry.crop) if geometry.crops else None,
        frames=len(chunker.times),
        frames_padded=chunker.padded,
        frames_dropped=chunker.dropped,
        fps=_rate(plan.info, options.selection),
        duration=float(chunker.end - chunker.start),
        preprocessing=_preprocessing(options, plan, reader) | {"warnings": list(warnings)},
        source_name=file_name(source),
        source_sha256=source_sha256,
        movq_version=__version__,
    )


def _preprocessing(options: EncodeOptions, plan: Plan, reader: FrameReader) -> dict[str, Any]:
    info, geometry = plan.info, plan.geometry
    done = {
        "stored": list(geometry.stored),
        "shown": list(geometry.shown),
        "rotation": geometry.orientation.rotation,
        "mirrored": geometry.orientation.mirrored,
        "pixel_aspect": str(info.pixel_aspect),
        "scaled": list(geometry.scaled) if geometry.resamples else None,
        "filter": reader.filter,
        "matrix": info.matrix,
        "range": info.color_range,
        "transfer": info.transfer,
        "values": "x / 127.5 - 1",
        "source_bytes": info.bytes,
    }
    if reader.partial:
        done["partial"] = True
    if options.target is not None:
        done["prepared_for"] = options.target
    return done


def _rate(info: VideoInfo, selection: Selection) -> Fraction | None:
    same = selection.fps is not None and is_same_rate(selection.fps, info.fps)
    rate = info.fps if same else selection.fps or info.fps
    return rate and rate / selection.every
