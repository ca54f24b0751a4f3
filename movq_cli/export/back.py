"""Decode an exported file, or a trainer's own, to a video, which shows whether these are the latents that were meant."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..codec import Progress, silent
from ..decode import DecodeResult, decode_video
from ..errors import MovqError, MovqUsageError, about
from ..fields import options_of
from ..files import require_file
from ..latents import LatentsWriter
from ..metadata import Metadata
from ..options import EXPORTS, DecodeOptions, one_of
from ..scaling import scale_of, scaling_of
from ..targets import USUAL_FPS, target_of
from .formats import FORMATS

if TYPE_CHECKING:
    import torch

_FAR = 2.0
"""A standard deviation this many times the usual one, or as many times smaller, is warned of."""


def decode_exported(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    layout: str,
    *,
    target: str | None = None,
    scale: float | str | None = None,
    options: DecodeOptions | None = None,
    progress: Progress = silent,
    warn: Callable[[str], None] = lambda text: None,
    **overrides: Any,
) -> DecodeResult:
    """Decode a file in the layout of a trainer to a video. Such files do not say which weights made them.

    `target` is the diffusion model that it is for: its weights, scale and frames per second are taken where nothing else
    is said. `warn` is called with what seems wrong. Raises MovqError for a file that is not of this layout, or not of
    these weights.
    """
    name = os.fspath(path)
    options = options_of(DecodeOptions, options, overrides)
    one_of("from_layout", layout, EXPORTS)
    meant = None if target is None else target_of(target)
    require_file(name)
    weights = options.weights or (meant.weights if meant else None)
    checkpoint = open_checkpoint(weights)
    with about(name):
        latents = FORMATS[layout].read(name)
        _check(latents, checkpoint)
        factor = _factor(layout, scale, meant.scaling_factor if meant else None, checkpoint, latents)
        latents = latents.float() / factor
        _compare(latents, checkpoint, warn)
        with tempfile.TemporaryDirectory(prefix="movq-") as folder:
            copy = os.path.join(folder, "latents.safetensors")
            _write(copy, latents, checkpoint, Fraction(meant.fps if meant else USUAL_FPS), os.path.basename(name))
            return decode_video(copy, output, options, progress=progress, weights=weights)


def _check(latents: torch.Tensor, checkpoint: Checkpoint) -> None:
    """Raise MovqError if these are not latents, or moments, of these weights."""
    z = checkpoint.config.z_channels
    shape = list(latents.shape)
    if latents.dim() == len("CTHW") and shape[0] in (z, 2 * z) and min(shape) > 0 and latents.is_floating_point():
        return
    swapped = (
        f": {z if z in shape else 2 * z} channels come first; are its axes swapped?" if {z, 2 * z} & set(shape) else ""
    )
    raise MovqError(f"has an array of {shape} {latents.dtype}, where ({z} or {2 * z}, T, H, W) is expected{swapped}")


def _factor(
    layout: str, scale: float | str | None, meant: float | None, checkpoint: Checkpoint, latents: torch.Tensor
) -> float:
    """Return the factor that the file's latents are multiplied by: 1 for layouts without."""
    given = scale_of(scale)
    if not FORMATS[layout].scaled or latents.shape[0] == 2 * checkpoint.config.z_channels:
        return given or 1.0
    found = scaling_of(checkpoint.metadata)
    factor = given or meant or (found and found.factor)
    if not factor:
        raise MovqUsageError("name the factor that these latents are multiplied by, or a model", option="scale")
    return factor


def _compare(latents: torch.Tensor, checkpoint: Checkpoint, warn: Callable[[str], None]) -> None:
    """Warn if the latents are much larger or smaller than those that these weights make."""
    scaling = scaling_of(checkpoint.metadata)
    mean = latents[: checkpoint.config.z_channels]
    deviation = float(mean.std())
    if scaling is not None and not 1 / _FAR < deviation * scaling.factor < _FAR:
        warn(
            f"unscaled, its latents have a standard deviation of {deviation:.3g}, where those of {checkpoint.name} have about "
            f"{1 / scaling.factor:.3g}: is the scale right, and are these the weights?"
        )


def _write(path: str, latents: torch.Tensor, checkpoint: Checkpoint, fps: Fraction, name: str) -> None:
    """Write latents (C, T, H, W) as a latents file of these weights, at a constant rate."""
    config = checkpoint.config
    channels, count, height, width = latents.shape
    frames = config.latents_to_frames(count)
    moments = channels == 2 * config.z_channels
    metadata = Metadata(
        representation="moments" if moments else "mean",
        semantics=checkpoint.semantics,
        model=checkpoint.name,
        config=json.loads(config.to_json()),
        weights_digest=checkpoint.digest,
        weights_licence="",
        scaling_factor="",
        shift_factor="",
        invert_scale_latents="",
        temporal_factor=config.temporal_factor,
        spatial_factor=config.spatial_factor,
        precision="fp32",
        width=width * config.spatial_factor,
        height=height * config.spatial_factor,
        pad_right=0,
        pad_bottom=0,
        crop=None,
        frames=frames,
        frames_padded=0,
        frames_dropped=0,
        fps=fps,
        duration=float(frames / fps),
        preprocessing={},
        source_name=name,
        source_sha256="",
        movq_version=__version__,
    )
    with LatentsWriter(path) as writer:
        writer.append(latents[None].contiguous())
        writer.finish(metadata, array("d", (float(i / fps) for i in range(frames))), array("q", range(frames)))
        writer.commit()
