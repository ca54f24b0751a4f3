"""Plan the encoding of a video: everything that is decided before the first chunk.

Everything that can be refused without decoding is refused here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from .budget import Budget, check_weights, make_budget
from .checkpoints.checkpoint import Checkpoint, open_checkpoint, require_fit
from .codec import RGB, Chunker, fit_tail
from .device import choose_device, choose_precision, usable_cores
from .errors import MovqError, MovqTooShortError, MovqUsageError, about, option, require_torch
from .fields import options_of
from .headers import ITEM_SIZES
from .latents import CODE_DTYPES, DTYPES, code_dtype
from .memory import AHEAD_FRAMES, EncodeMemory
from .model.config import AutoencoderConfig
from .options import CODES, INT8, EncodeOptions, Selection
from .schedule import WHOLE_WINDOW, ChunkSchedule
from .targets import prepared
from .video import FrameReader, Geometry, VideoInfo, count_frames, read_frames
from .video.geometry import smaller_pictures

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Plan:
    """The plan of an encoding.

    `frames` is the number to encode, without padding. `frames`, `chunks`, `latent_shape` and `output_bytes` are None if
    frames are not counted. `windows` are the lengths of the windows that share norm statistics, in frames, if
    `semantics` is "diffusers"; if not, None.
    """

    info: VideoInfo
    geometry: Geometry
    precision: str
    device: str
    semantics: str
    budget: Budget
    windows: tuple[int, ...] | None
    chunks: int | None
    frames: int | None
    frames_padded: int
    frames_dropped: int
    latent_shape: tuple[int, int, int, int, int] | None
    output_bytes: int | None

    @property
    def padded_frames(self) -> int | None:
        """The number of frames to encode, repeated ones included; None if frames are not counted."""
        return None if self.frames is None else self.frames + self.frames_padded


def plan_encode(source: str | os.PathLike[str], options: EncodeOptions | None = None, **overrides: Any) -> Plan:
    """Return what `encode_video` would do with these options, without doing it.

    Frames are counted from packet times, not decoded.

    Raises MovqError and MovqUsageError as `encode_video` would before its first chunk.
    """
    options = prepared(options_of(EncodeOptions, options, overrides))
    checkpoint = open_weights(options)
    with about(checkpoint.path):
        require_fit(checkpoint.config, {name: entry.shape for name, entry in checkpoint.tensors.items()})
    with about(os.fspath(source)), start_reader(source, options, checkpoint.config) as reader:
        device = choose_device(options.device)
        precision = choose_precision(options.precision, device)
        frames = count_frames(source, options.selection)
        return make_plan(reader, frames, options, checkpoint, device, precision)


def open_weights(options: EncodeOptions) -> Checkpoint:
    """Open the weights of these options. Raises MovqError or MovqUsageError if they cannot encode video with them."""
    require_torch()  # torch itself is imported later, while other work goes on
    checkpoint = open_checkpoint(options.weights)
    check_weights(options, checkpoint)
    if checkpoint.config.in_channels != RGB:
        raise MovqError(f"takes {checkpoint.config.in_channels} channels, not RGB", checkpoint.path)
    options.picture.padding(checkpoint.config.spatial_factor)  # refuses a multiple that latents cannot have
    if not checkpoint.config.double_z and options.save == "sample":
        raise MovqUsageError("these weights give the mean alone, of which nothing can be drawn", option="save")
    if not checkpoint.config.codes and options.save == CODES:
        raise MovqUsageError(
            f"these weights have no quantiser; {option('store_dtype', INT8)} makes latents small", option="save"
        )
    if representation(options, checkpoint.config) == CODES and options.store_dtype != "auto":
        sets = f", which {option('target', options.target)} sets" if options.target else ""
        raise MovqUsageError(
            f"these weights give codes{sets}; it goes with {option('save', 'mean')}", option="store_dtype"
        )
    return checkpoint


def start_reader(
    source: str | os.PathLike[str],
    options: EncodeOptions,
    config: AutoencoderConfig,
    alive: Callable[[], None] = lambda: None,
    threads: int | None = None,
    **more: Any,
) -> FrameReader:
    """Start to decode a video as these options ask, with frames padded or cropped to a size that the network takes.

    Decoding may take `threads` CPU threads (None: those of the options). `more` are other arguments of `read_frames`.
    """
    return read_frames(
        source,
        options.selection,
        options.picture,
        multiple=options.picture.padding(config.spatial_factor),
        ahead=AHEAD_FRAMES,
        threads=threads or options.threads or usable_cores(),
        alive=alive,
        **more,
    )


def too_short(found: int, wanted: int) -> MovqTooShortError:
    """Return the error of a video with too few frames."""
    return MovqTooShortError(f"has {found} of the {wanted} frames asked for")


def least_frames(options: EncodeOptions) -> int:
    """Return the number of frames to which a shorter video is padded; 0 if short videos are not padded."""
    return options.selection.frames or 0 if options.short == "pad" else 0


def must_count(options: EncodeOptions, checkpoint: Checkpoint) -> bool:
    """Return True if a plan needs the number of frames: for windows, the cost of one chunk, or to refuse a tail."""
    return options.tail == "error" or checkpoint.semantics != "frame"


def make_plan(
    reader: FrameReader,
    frames: int | None,
    options: EncodeOptions,
    checkpoint: Checkpoint,
    device: torch.device,
    precision: str,
    open_at_once: int = 1,
) -> Plan:
    """Plan an encoding from what its reader knows of the video. `open_at_once` videos of this size need memory."""
    config, geometry = checkpoint.config, reader.geometry
    semantics = checkpoint.semantics if options.semantics == "auto" else options.semantics
    frames, padded, dropped = _with_tail(frames, options, config)
    total = None if frames is None else frames + padded
    # With norms per frame, only what is known without counting: plan_encode counts, encode_video may not, and both must
    # choose the same chunk.
    most = _most_frames(reader.info, options, config) if semantics == "frame" else total
    whole = ChunkSchedule.of_frames(semantics, most, WHOLE_WINDOW, config)
    picture = options.picture
    boxed = bool(picture.sizes) or picture.width is not None or picture.height is not None
    size = (geometry.padded_width, geometry.padded_height) if boxed else (geometry.width, geometry.height)
    multiple = picture.padding(config.spatial_factor)
    smaller = () if boxed else tuple(smaller_pictures(geometry.whole, multiple, picture.edge))
    memory = EncodeMemory(checkpoint, whole, size, multiple, device, precision, open_at_once, smaller)
    budget = make_budget(memory, options)
    schedule = ChunkSchedule.of_frames(semantics, total, budget.chunk_frames, config)
    shape = None
    if total is not None:
        shape = _saved_shape(config.latent_shape(total, geometry.padded_height, geometry.padded_width), options, config)
    return Plan(
        info=reader.info,
        geometry=geometry,
        precision=precision,
        device=str(device),
        semantics=semantics,
        budget=budget,
        windows=tuple(schedule.window_lengths()) if semantics == "diffusers" else None,
        chunks=None if total is None else schedule.chunks,
        frames=frames,
        frames_padded=padded,
        frames_dropped=dropped,
        latent_shape=shape,
        output_bytes=shape and math.prod(shape) * stored_bytes(options, precision, config)[1],
    )


def _with_tail(frames: int | None, options: EncodeOptions, config: AutoencoderConfig) -> tuple[int | None, int, int]:
    """Return how many frames are encoded, repeated at the end, and dropped; (None, 0, 0) if they are not counted."""
    if frames is None:
        return None, 0, 0
    if frames == 0:
        raise MovqError("has no frame in the range asked for")
    padded, dropped = fit_tail(frames, options.tail, config.temporal_factor, least_frames(options))
    return frames - dropped, padded, dropped


def _most_frames(info: VideoInfo, options: EncodeOptions, config: AutoencoderConfig) -> int | None:
    """Return the largest possible number of frames, with padding; None if it is not known without counting."""
    most = 1 if info.is_picture and options.short != "pad" else options.selection.frames
    return most and most + fit_tail(most, "pad", config.temporal_factor)[0]


def representation(options: EncodeOptions, config: AutoencoderConfig) -> str:
    """Return what is stored of what these weights give: moments, mean, sample or codes."""
    if config.codes and options.save in ("moments", CODES):
        return CODES
    return options.save if config.double_z else "mean"


def _saved_shape(
    shape: tuple[int, int, int, int, int], options: EncodeOptions, config: AutoencoderConfig
) -> tuple[int, int, int, int, int]:
    kind = representation(options, config)
    channels = {"moments": shape[1], CODES: config.codebooks}.get(kind, config.z_channels)
    return shape[0], channels, *shape[2:]


def stored_bytes(options: EncodeOptions, precision: str, config: AutoencoderConfig) -> tuple[str, int]:
    """Return the dtype that latents are stored in, by its name in --store-dtype or in torch, and the bytes of one number."""
    if representation(options, config) == CODES:
        name = code_dtype(config.codes)
        return name, ITEM_SIZES[CODE_DTYPES[name]]
    name = {"tf32": "fp32"}.get(precision, precision) if options.store_dtype == "auto" else options.store_dtype
    return name, ITEM_SIZES[DTYPES[name]]


def expected_frames(info: VideoInfo, selection: Selection) -> int | None:
    """Return the number of frames that the file's header promises of a selection, for a progress bar.

    Without such a number, return `selection.frames`.
    """
    count, fps = info.frames_from_header, info.fps
    if count is None and fps and info.duration:
        count = round(fps * info.duration)
    if count is None:
        return selection.frames
    if fps and not info.is_picture:
        seconds = max(Fraction(0), Fraction(count) / fps - selection.start)
        if selection.duration is not None:
            seconds = min(seconds, selection.duration)
        count = round(seconds * (selection.fps or fps))
    count = max(0, -(-count // selection.every) - selection.skip)
    return count if selection.frames is None else min(count, selection.frames)


def shortfall(chunker: Chunker, options: EncodeOptions) -> Iterator[str]:
    """Yield warnings of missing and dropped frames. Raises MovqTooShortError if the options refuse a short video."""
    wanted, found = options.selection.frames, len(chunker.times) + chunker.dropped
    if wanted is not None and found < wanted:
        if options.short == "refuse":
            raise too_short(found, wanted)
        repeated = options.short == "pad" and chunker.padded
        yield too_short(found, wanted).reason + (": its last one is repeated" if repeated else "")
    if chunker.dropped:
        frames = "frame was" if chunker.dropped == 1 else f"{chunker.dropped} frames were"
        yield f"the last {frames} dropped (--tail drop)"
