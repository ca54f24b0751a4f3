"""What encoding a video will take: its options, declared once, and the plan made of them before the work.

Everything that can be refused without decoding is refused here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .codec import TAILS, WHOLE_CLIP, check_chunk_frames, count_chunks, first_chunk, fit_tail
from .device import ITEM_SIZE, available_memory, choose_device, choose_precision
from .errors import MovqError, MovqUsageError, about
from .files import ITEM_SIZES
from .latents import DTYPES, REPRESENTATIONS
from .model.checkpoint import Checkpoint, open_checkpoint
from .model.config import AutoencoderConfig
from .model.cost import MAX_ELEMENTS, chunk_cost, default_chunk_frames
from .video import AHEAD_BYTES, FrameReader, Geometry, Picture, Selection, VideoInfo, count_frames, read_frames

if TYPE_CHECKING:
    import torch

PROCESS_BYTES = 330 << 20
"""Resident memory of a process with torch loaded, before it has computed anything (measured: benchmarks/memory.py)."""

AHEAD_FRAMES = 32
"""How far decoding may run ahead of encoding, within AHEAD_BYTES of shared memory."""


@dataclass(frozen=True)
class EncodeOptions:
    """How to encode. The defaults are those of `movq encode`. Raises MovqUsageError for values that cannot be."""

    weights: str | None = None
    device: str = "auto"
    precision: str = "auto"
    chunk_frames: int | None = None
    memory_budget: int | None = None
    threads: int | None = None
    selection: Selection = Selection()
    tail: str = "pad"
    picture: Picture = Picture()
    save: str = "moments"
    seed: int = 0
    store_dtype: str = "auto"
    force: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("tail", TAILS),
            ("save", REPRESENTATIONS),
            ("store_dtype", ("auto", *DTYPES)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise MovqUsageError(
                    f"must be one of {', '.join(allowed)}, got {value!r}", "--" + name.replace("_", "-")
                )
        if self.threads is not None and self.threads < 1:
            raise MovqUsageError(f"must be above 0, got {self.threads}", "--threads")


@dataclass(frozen=True)
class Plan:
    """What a run will do. `frames` is how many will be encoded before padding; None, and `chunks` too, if not counted.

    `chunk_frames` is 0 for all in one chunk. Bytes are predicted: `memory_bytes` of the encoding process at its peak,
    `output_bytes` of the file.
    """

    info: VideoInfo
    geometry: Geometry
    precision: str
    device: str
    chunk_frames: int
    chunks: int | None
    frames: int | None
    frames_padded: int
    frames_dropped: int
    latent_shape: tuple[int, int, int, int, int] | None
    memory_bytes: int
    output_bytes: int | None
    warnings: tuple[str, ...]


def plan_encode(source: str | os.PathLike[str], options: EncodeOptions | None = None) -> Plan:
    """What `encode_video` would do, without doing it: frames are counted from packet times, not decoded.

    Raises MovqError and MovqUsageError as `encode_video` would before its first chunk.
    """
    options = options or EncodeOptions()
    checkpoint = open_weights(options)
    with about(os.fspath(source)), start_reader(source, options, checkpoint.config) as reader:
        device = choose_device(options.device)
        precision = choose_precision(options.precision, device)
        frames = count_frames(source, options.selection)
        return make_plan(reader, frames, options, checkpoint, device, precision)


def open_weights(options: EncodeOptions) -> Checkpoint:
    checkpoint = open_checkpoint(options.weights)
    config = checkpoint.config
    if options.chunk_frames is not None:
        if config.norm_scope == "whole":
            raise MovqError(
                "its norms span the whole clip, which is encoded as one chunk: leave --chunk-frames out",
                checkpoint.path,
            )
        check_chunk_frames(options.chunk_frames, config)
    if not config.double_z and options.save != "moments":
        raise MovqUsageError(f"these weights give the mean alone: --save {options.save} needs moments", "--save")
    return checkpoint


def start_reader(source: str | os.PathLike[str], options: EncodeOptions, config: AutoencoderConfig) -> FrameReader:
    return read_frames(
        source,
        options.selection,
        options.picture,
        multiple=config.spatial_factor,
        ahead=AHEAD_FRAMES,
        threads=min(2, options.threads or 2),
    )


def make_plan(
    reader: FrameReader,
    frames: int | None,
    options: EncodeOptions,
    checkpoint: Checkpoint,
    device: torch.device,
    precision: str,
) -> Plan:
    config, geometry = checkpoint.config, reader.geometry
    height, width = geometry.padded_height, geometry.padded_width
    padded = dropped = 0
    if frames is not None:
        if frames == 0:
            raise MovqError("has no frame in the range asked for")
        padded, dropped = fit_tail(frames, options.tail, config.temporal_factor)
        frames -= dropped
    budget = options.memory_budget or available_memory(device)
    if config.norm_scope == "whole":
        assert frames is not None  # one chunk of all frames: they were counted
        most: int | None = frames + padded
    else:  # as much as is known without counting, so that a plan and a run choose alike
        most = 1 if reader.info.is_picture else options.selection.frames
        most = most and most + fit_tail(most, "pad", config.temporal_factor)[0]

    def longest(chunk: int) -> int:
        """Frames of the longest chunk."""
        if chunk == WHOLE_CLIP:
            return most or 0
        return first_chunk(chunk, config) if most is None else min(most, first_chunk(chunk, config))

    def memory(chunk: int) -> int:
        """Bytes at the peak, with chunks of this many frames: of the process, or of a CUDA device's own memory."""
        item, pixels = ITEM_SIZE[precision], height * width * config.in_channels
        computed = checkpoint.parameters["encoder"] * item + chunk_cost(config, longest(chunk), height, width).bytes(
            item
        )
        if device.type == "cuda":
            return computed + longest(chunk) * pixels * (
                1 + ITEM_SIZE["fp32"]
            )  # frames arrive as bytes and become fp32
        return PROCESS_BYTES + computed + 2 * longest(chunk) * pixels + min(AHEAD_FRAMES * pixels, AHEAD_BYTES)

    def indexable(chunk: int) -> bool:
        return chunk_cost(config, longest(chunk), height, width).largest <= MAX_ELEMENTS

    def fits(chunk: int) -> bool:
        return memory(chunk) <= budget and indexable(chunk)

    def refuse(chunk: int, what: str, advice: str) -> MovqError:
        if indexable(chunk):
            why = f"needs about {memory(chunk) / 1e9:.1f} GB where {budget / 1e9:.1f} GB may be used"
        else:
            why = f"has a tensor of more than {MAX_ELEMENTS:,} numbers"
        return MovqError(f"{what} of {width}x{height} {why}; {advice}")

    chunk, warnings = _choose_chunk(options, config, default_chunk_frames(config, height, width), fits, refuse)
    shape = None if frames is None else config.latent_shape(frames + padded, height, width)
    return Plan(
        info=reader.info,
        geometry=geometry,
        precision=precision,
        device=str(device),
        chunk_frames=chunk,
        chunks=None if frames is None else count_chunks(frames + padded, chunk, config),
        frames=frames,
        frames_padded=padded,
        frames_dropped=dropped,
        latent_shape=shape and _saved_shape(shape, options, config),
        memory_bytes=memory(chunk),
        output_bytes=shape and _output_bytes(_saved_shape(shape, options, config), options, precision),
        warnings=warnings,
    )


def _choose_chunk(
    options: EncodeOptions,
    config: AutoencoderConfig,
    default: int,
    fits: Callable[[int], bool],
    refuse: Callable[[int, str, str], MovqError],
) -> tuple[int, tuple[str, ...]]:
    """Frames per chunk, and what to say about it. Raises MovqError with the estimate where nothing fits."""
    if config.norm_scope == "whole":
        if not fits(WHOLE_CLIP):
            raise refuse(
                WHOLE_CLIP,
                "these weights norm over the whole clip, and one chunk",
                "take --frames or a smaller picture",
            )
        return WHOLE_CLIP, ()
    wanted = options.chunk_frames or default
    smaller = [n for n in range(wanted, 0, -config.temporal_factor) if fits(n)]
    if not smaller:
        raise refuse(
            config.temporal_factor,
            f"a chunk of {config.temporal_factor} frames",
            "take a smaller picture: --short-side",
        )
    if smaller[0] == wanted:
        return wanted, ()
    if options.chunk_frames is not None:
        raise refuse(wanted, f"a chunk of {wanted} frames", f"--chunk-frames {smaller[0]} fits")
    return smaller[0], (f"chunks of {smaller[0]} frames instead of {wanted}: more do not fit",)


def _saved_shape(
    shape: tuple[int, int, int, int, int], options: EncodeOptions, config: AutoencoderConfig
) -> tuple[int, int, int, int, int]:
    return shape if options.save == "moments" else (shape[0], config.z_channels, *shape[2:])


def _output_bytes(shape: tuple[int, int, int, int, int], options: EncodeOptions, precision: str) -> int:
    b, c, t, h, w = shape
    name = {"tf32": "fp32"}.get(precision, precision) if options.store_dtype == "auto" else options.store_dtype
    return b * c * t * h * w * ITEM_SIZES[DTYPES[name]]
