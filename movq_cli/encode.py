"""One video to one latents file: where video, codec, weights and the file format meet. plan.py decides, this does."""

from __future__ import annotations

import json
import os
import time
import warnings as python_warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

from . import __version__
from .codec import Chunker, Progress, WorkDone, WrongCount, encode, encode_windows, silent
from .device import choose_device, choose_precision, computing, dtype_of, free_memory, memory_errors
from .errors import MovqError, MovqOutOfMemory, MovqWarning, about
from .files import changed, file_name, refuse_inputs, require_file, sha256_file
from .latents import LatentsWriter, Metadata
from .model.checkpoint import Checkpoint
from .plan import (
    EncodeOptions,
    Plan,
    expected_frames,
    least_frames,
    make_plan,
    must_count,
    open_weights,
    shortfall,
    start_reader,
)
from .posterior import Draw
from .processes import in_background
from .video import FrameReader, Selection, VideoInfo, count_frames

if TYPE_CHECKING:
    import torch

    from .model.encoder import Encoder3D


_WAY_OUT = {
    "fp16": "fp16 ends at 65504, which activations of these weights exceed: --precision bf16, or fp32",
    "bf16": "the weights make numbers that grow without bound: try --precision fp32, or other weights",
    "fp32": "the weights make numbers that grow without bound: are they what they should be?",
}
_WAY_OUT["tf32"] = _WAY_OUT["fp32"]


@dataclass(frozen=True)
class EncodeResult:
    """What was written. `seconds` of wall time from the call to the file in its place; `warnings` are also in the file.

    `sha256` of the file written, `duration` in seconds of the frames kept; `chunk_frames` 0 is a whole window at a time;
    `partial` is a video that was cut off or damaged, of which what comes before was taken.
    """

    path: str
    shape: tuple[int, int, int, int, int]
    dtype: str
    bytes: int
    sha256: str
    width: int
    height: int
    frames: int
    frames_padded: int
    frames_dropped: int
    duration: float
    source_bytes: int
    source_sha256: str
    weights_digest: str
    semantics: str
    precision: str
    device: str
    chunk_frames: int
    partial: bool
    seconds: float
    warnings: tuple[str, ...]

    @property
    def raw_bytes(self) -> int:
        """Of the encoded frames as RGB, one byte per value."""
        return self.frames * self.width * self.height * 3


def encode_video(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: EncodeOptions | None = None,
    *,
    progress: Progress = silent,
    **overrides: Any,
) -> EncodeResult:
    """Encodes a video file to a latents file, which appears whole or not at all.

    Options come as an EncodeOptions, or by name: `encode_video("a.mp4", "a.safetensors", chunk_frames=8, save="mean")`.
    Raises MovqError for an input, weights or output that is refused, before any work where that can be known, and
    MovqUsageError for options that cannot be.
    """
    started = time.perf_counter()
    require_file(source)
    encoder = VideoEncoder(replace(options or EncodeOptions(), **overrides))
    result = encoder.encode(source, output, progress=progress)
    return replace(result, seconds=time.perf_counter() - started)


class VideoEncoder:
    """Encodes one video after another with weights that are opened once, and loaded when the first needs them.

    Raises MovqError for weights that are refused and MovqUsageError for options that cannot be.
    """

    def __init__(self, options: EncodeOptions) -> None:
        self.options = options
        with python_warnings.catch_warnings(record=True) as caught:
            python_warnings.simplefilter("always", MovqWarning)
            self.checkpoint = open_weights(options)
        self.notes = [str(w.message) for w in caught if issubclass(w.category, MovqWarning)]
        self.weights_digest = in_background(lambda: self.checkpoint.digest)
        self._digested: tuple[os.stat_result, Future[str]] | None = None

    @cached_property
    def device(self) -> torch.device:
        return choose_device(self.options.device)

    @cached_property
    def precision(self) -> str:
        return choose_precision(self.options.precision, self.device)

    @cached_property
    def network(self) -> Encoder3D:
        return self.checkpoint.load_encoder(self.device, dtype_of(self.precision))

    def encode(
        self,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str],
        *,
        progress: Progress = silent,
        alive: Callable[[], None] = lambda: None,
        **overrides: Any,
    ) -> EncodeResult:
        """As `encode_video`; `overrides` are of this video alone, and not of its weights, device or precision.

        `alive` is called while decoding goes on and gives nothing to encode, as on the way to a far start.
        """
        started = time.perf_counter()
        options = replace(self.options, **overrides).beside(output)
        before = require_file(source)
        refuse_inputs(output, source, *self.checkpoint.files)
        run = _Run(self, source, output, options, progress, alive, started, before, self._digest(source, before))
        frames: int | None = None
        with about(os.fspath(source)):
            while True:
                smaller: int | None = None
                try:
                    return run.encode(frames)
                except WrongCount as wrong:
                    # Packets promised other frames than decoding gave, and windows depend on them.
                    if frames is not None:
                        raise MovqError(f"gave {frames} frames at first, then {wrong.found}") from None
                    frames = wrong.found
                except _NotFinite:
                    run = replace(run, check=True)
                except _TooLarge as large:
                    smaller = large.smaller(self.checkpoint.config.temporal_factor)
                    if smaller is None:
                        raise MovqOutOfMemory(
                            "ran out of memory even in the smallest chunks; take a smaller picture"
                        ) from None
                # Here, where the error holds on to nothing any more.
                if smaller is not None:
                    run = run.in_chunks(smaller)
                    free_memory(self.device)

    def _digest(self, source: str | os.PathLike[str], now: os.stat_result) -> Future[str]:
        """The source's sha256, read once for several spans of it."""
        if self._digested is not None:
            before, digest = self._digested
            if not changed(before, now) and not (digest.done() and digest.exception()):
                return digest
        digest = in_background(lambda: sha256_file(source))
        self._digested = now, digest
        return digest


class _TooLarge(Exception):
    """Memory ran out, though the plan was that it would not. The longest chunk there was, in frames."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.budget.chunk_frames)
        self.frames = plan.budget.chunk_frames or max(plan.windows or (plan.padded_frames or 0,)) - 1

    def smaller(self, factor: int) -> int | None:
        """A chunk of half as many frames; None if there is no smaller one."""
        return None if self.frames <= factor else max(factor, self.frames // 2 // factor * factor)


class _NotFinite(Exception):
    """Latents have numbers that are not finite. The same again, checked, finds out where they come from."""


@dataclass(frozen=True)
class _Run:
    """One encoding, begun again where it turns out that its plan was wrong."""

    by: VideoEncoder
    source: str | os.PathLike[str]
    output: str | os.PathLike[str]
    options: EncodeOptions
    progress: Progress
    alive: Callable[[], None]
    started: float
    before: os.stat_result
    source_sha256: Future[str]
    notes: tuple[str, ...] = ()
    check: bool = False

    def in_chunks(self, frames: int) -> _Run:
        """The same in chunks of so many frames, because memory ran out."""
        note = f"ran out of memory, and was begun again in chunks of {frames} frames"
        return replace(self, options=replace(self.options, chunk_frames=frames), notes=(note,))

    @property
    def checkpoint(self) -> Checkpoint:
        return self.by.checkpoint

    def encode(self, frames: int | None) -> EncodeResult:
        """`frames`: how many the selection has, if that is known.

        Raises WrongCount if windows depend on a wrong number, _TooLarge where memory runs out while it computes,
        _NotFinite unless it checks every stage.
        """
        source, options, checkpoint = self.source, self.options, self.checkpoint
        with (
            LatentsWriter(self.output, force=options.force) as writer,
            start_reader(
                source, options, checkpoint.config, self.alive
            ) as reader,  # its process starts while torch is imported
        ):
            device, precision = self.by.device, self.by.precision
            with computing(precision, options.threads), memory_errors():
                encoder = self.by.network
                if frames is None and must_count(options, checkpoint):
                    frames = count_frames(source, options.selection, self.alive)
                plan = make_plan(reader, frames, options, checkpoint, device, precision)
                chunker = Chunker(reader, options.tail, checkpoint.config, least_frames(options))
                try:
                    with memory_errors():
                        self._append(encoder, plan, chunker, writer, device)
                except MovqOutOfMemory:
                    raise _TooLarge(plan) from None
            if changed(self.before, os.stat(source)):
                raise MovqError("changed while it was read")
            noted = [
                *self.by.notes,
                *self.notes,
                *plan.budget.warnings,
                *reader.warnings,
                *shortfall(chunker, options),
            ]
            warnings = tuple(dict.fromkeys(noted))
            metadata = self._metadata(reader, plan, chunker, warnings)
            size = writer.finish(metadata, chunker.times, chunker.indices)
        return EncodeResult(
            path=os.fspath(self.output),
            shape=writer.shape,
            dtype=writer.dtype,
            bytes=size,
            sha256=writer.sha256,
            width=metadata.width,
            height=metadata.height,
            frames=metadata.frames,
            frames_padded=chunker.padded,
            frames_dropped=chunker.dropped,
            duration=metadata.duration,
            source_bytes=self.before.st_size,
            source_sha256=metadata.source_sha256,
            weights_digest=metadata.weights_digest,
            semantics=plan.semantics,
            precision=precision,
            device=str(device),
            chunk_frames=plan.budget.chunk_frames,
            partial=reader.partial,
            seconds=time.perf_counter() - self.started,
            warnings=warnings,
        )

    def _append(
        self, encoder: Encoder3D, plan: Plan, chunker: Chunker, writer: LatentsWriter, device: torch.device
    ) -> None:
        from .model.causal import StreamCache

        options, config = self.options, self.checkpoint.config
        dtype, store_dtype = dtype_of(plan.precision), _store_dtype(options, plan.precision)
        expected = plan.frames or expected_frames(plan.info, options.selection)
        worked = WorkDone(self.progress, expected, most=lambda: len(chunker.times))
        lengths = encode_windows(plan.semantics, plan.padded_frames, plan.budget.chunk_frames, config)
        cache = StreamCache()
        windows = chunker.windows(lengths, plan.padded_frames if plan.windows else None, cache.end)
        with plan.budget.store() as store:
            chunks = encode(encoder, windows, device, dtype, store, worked, self.check, cache)
            for latents in self._finite(chunks, plan, chunker):
                if options.save == "sample":
                    draw = Draw(options.seed, self.source_sha256.result(), chunker.indices[0])
                    latents = draw(latents, writer.shape[2])
                elif options.save == "mean":
                    latents = latents[:, : config.z_channels]
                writer.append(latents.to(store_dtype))

    def _finite(self, chunks: Iterator[torch.Tensor], plan: Plan, chunker: Chunker) -> Iterator[torch.Tensor]:
        """The same latents. Raises _NotFinite, or MovqError naming stage and frame where every stage is checked."""
        import torch

        from .model.stages import NotFinite

        try:
            for latents in chunks:
                if not bool(torch.isfinite(latents).all()):
                    raise _NotFinite
                yield latents
        except NotFinite as found:
            frame = min(found.frame, len(chunker.times) - 1)  # where the tail is repeated, its last one
            raise MovqError(
                f"gives numbers that are not finite in {plan.precision}, first in {found.stage} at frame "
                f"{chunker.indices[frame]} ({chunker.times[frame]:.3f} s): nothing was written; {_WAY_OUT[plan.precision]}"
            ) from None
        if self.check:
            raise MovqError(
                "gave numbers that are not finite once and not the second time: is this machine's memory sound?"
            )

    def _metadata(self, reader: FrameReader, plan: Plan, chunker: Chunker, warnings: tuple[str, ...]) -> Metadata:
        info, geometry, config = plan.info, plan.geometry, self.checkpoint.config
        said, options = self.checkpoint.metadata, self.options
        preprocessing = {
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
            "warnings": list(warnings),
        } | ({"partial": True} if reader.partial else {})
        return Metadata(
            representation=options.save if config.double_z else "mean",
            seed=options.seed if options.save == "sample" else None,
            semantics=plan.semantics,
            windows=None if plan.windows is None else list(plan.windows),
            model=self.checkpoint.name,
            config=json.loads(config.to_json()),
            weights_digest=self.by.weights_digest.result(),
            weights_licence=said.get("licence", ""),
            scaling_factor=said.get("scaling_factor", ""),
            shift_factor=said.get("shift_factor", ""),
            invert_scale_latents=said.get("invert_scale_latents", ""),
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
            fps=_rate(info, options.selection),
            duration=float(chunker.end - chunker.start),
            preprocessing=preprocessing,
            source_name=file_name(self.source),
            source_sha256=self.source_sha256.result(),
            movq_version=__version__,
        )


def _store_dtype(options: EncodeOptions, precision: str) -> torch.dtype:
    return dtype_of(precision if options.store_dtype == "auto" else options.store_dtype)


def _rate(info: VideoInfo, selection: Selection) -> Fraction | None:
    rate = selection.fps or info.fps
    return rate and rate / selection.every
