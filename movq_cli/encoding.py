"""The three steps of encoding one video: start its decoder, compute its latents, and give their file its name."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ._version import __version__
from .checkpoints.checkpoint import Checkpoint
from .codec import Chunker, Progress, WorkDone, WrongCountError, encode, silent
from .device import computing, dtype_of, free_memory, memory_errors
from .errors import MovqError, MovqOutOfMemoryError, about, option
from .files import FileIdentity, file_name, refuse_inputs, require_file
from .latents import LatentsWriter
from .metadata import Metadata
from .options import EncodeOptions, Selection
from .plan import Plan, expected_frames, least_frames, make_plan, must_count, shortfall, start_reader
from .posterior import draw_latents
from .schedule import ChunkSchedule
from .values import format_time
from .video import FrameReader, VideoInfo, count_frames, is_same_rate

if TYPE_CHECKING:
    import torch

    from .model.encoder import Encoder3D

_WAY_OUT = {
    "fp16": "fp16 ends at 65504, which activations of these weights exceed: "
    + option("precision", "bf16")
    + ", or fp32",
    "bf16": "the weights make numbers that grow without bound: try "
    + option("precision", "fp32")
    + ", or other weights",
    "fp32": "the weights make numbers that grow without bound: are they what they should be?",
}
_WAY_OUT["tf32"] = _WAY_OUT["fp32"]


@dataclass(frozen=True)
class EncodeResult:
    """The latents file that was written, and its `metadata`.

    `shape` (1, C, T', H', W') and `dtype` (F32, F16 or BF16) are those of the latents, `sha256` is the digest of the
    whole file, `chunk_frames` is 0 if each window was one chunk, and `seconds` is wall time.
    """

    metadata: Metadata
    output_path: str
    output_bytes: int
    sha256: str
    shape: tuple[int, int, int, int, int]
    dtype: str
    device: str
    chunk_frames: int
    seconds: float


class _TooLargeError(Exception):
    """Memory ran out although the plan should have fitted.

    `frames` is the plan's `chunk_frames`, or, if each window was one chunk, the length of the longest window less 1.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.budget.chunk_frames)
        self.frames = plan.budget.chunk_frames or max(plan.windows or (plan.padded_frames or 0,)) - 1

    def smaller(self, factor: int) -> int | None:
        """Return about half as many frames, as a multiple of `factor`; None if no smaller chunk exists."""
        return None if self.frames <= factor else max(factor, self.frames // 2 // factor * factor)


class _Computed(NamedTuple):
    """The results of `compute` that `finish` needs: the latents, in a file without a name, and data for its header."""

    writer: LatentsWriter
    reader: FrameReader
    plan: Plan
    chunker: Chunker
    warnings: tuple[str, ...]


class _NotFiniteError(Exception):
    """Latents have values that are not finite. A second run, which checks every stage, finds out where they arise."""


class Encoder(Protocol):
    """The parts of encode.VideoEncoder that an Encoding uses."""

    checkpoint: Checkpoint
    notes: list[str]
    weights_digest: Future[str]
    decoder_threads: int | None

    @property
    def device(self) -> torch.device:
        """The device that computes."""

    @property
    def precision(self) -> str:
        """The precision of the computation."""

    @property
    def network(self) -> Encoder3D:
        """The encoder, loaded."""

    def digest_of(self, source: str | os.PathLike[str], identity: FileIdentity) -> Future[str]:
        """Return the sha256 of a source."""


class Encoding:
    """One video on its way to its file, made by VideoEncoder.begin. Call `compute`, then `finish`, then close it.

    Computing starts again if its plan turns out to be wrong. Raises MovqError if something is refused.
    """

    def __init__(
        self,
        by: Encoder,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str],
        options: EncodeOptions,
        alive: Callable[[], None],
        open_at_once: int,
    ) -> None:
        self.by, self.source, self.output, self.options = by, source, output, options
        self._alive, self._open_at_once = alive, open_at_once
        self._identity = FileIdentity.of(require_file(source))
        refuse_inputs(output, source, *by.checkpoint.files)
        self._source_sha256 = by.digest_of(source, self._identity)
        self._notes: tuple[str, ...] = ()
        self._check = False
        self._frames: int | None = None
        self._recounted = False
        self._computed: _Computed | None = None
        self._reader: FrameReader | None = self._start_reader()  # the decoding process starts while torch is imported

    @property
    def checkpoint(self) -> Checkpoint:
        """The weights that the video is encoded with."""
        return self.by.checkpoint

    def _start_reader(self) -> FrameReader:
        return start_reader(self.source, self.options, self.checkpoint.config, self._alive, self.by.decoder_threads)

    def count(self) -> None:
        """Count the frames, if the plan will need their number. `compute` does so if they are not counted yet."""
        if self._frames is None and must_count(self.options, self.checkpoint):
            with about(os.fspath(self.source)):
                self._frames = count_frames(self.source, self.options.selection, self._alive)

    def compute(self, progress: Progress = silent) -> None:
        """Encode all frames. The latents are then on disk, in a file without a name."""
        self._started = time.perf_counter()
        with about(os.fspath(self.source)):
            while True:
                smaller: int | None = None
                try:
                    return self._compute(progress)
                except WrongCountError as wrong:
                    # The packets promised another number of frames than decoding gave, and the windows depend on it.
                    if self._recounted:
                        raise MovqError(f"gave {self._frames} frames at first, then {wrong.found}") from None
                    self._frames, self._recounted = wrong.found, True
                except _NotFiniteError:
                    self._check = True
                except _TooLargeError as large:
                    smaller = large.smaller(self.checkpoint.config.temporal_factor)
                    if smaller is None:
                        raise MovqOutOfMemoryError(
                            "ran out of memory even in the smallest chunks; take a smaller picture"
                        ) from None
                # Outside the except block: the traceback would keep the failed run's tensors alive.
                if smaller is not None:
                    self.options = replace(self.options, chunk_frames=smaller)
                    self._notes = (f"ran out of memory, and was begun again in chunks of {smaller} frames",)
                    free_memory(self.by.device)

    def _compute(self, progress: Progress) -> None:
        """Compute all latents by one plan.

        Raises WrongCountError if windows were planned for a wrong number of frames, _TooLargeError if memory runs out,
        and _NotFiniteError if latents are not finite, or, if every stage is checked, MovqError.
        """
        options, checkpoint = self.options, self.checkpoint
        with ExitStack() as stack:
            writer = stack.enter_context(LatentsWriter(self.output, force=options.force))
            reader, self._reader = self._reader or self._start_reader(), None
            with reader:
                device, precision = self.by.device, self.by.precision
                with computing(precision, options.threads), memory_errors():
                    encoder = self.by.network
                    self.count()
                    plan = make_plan(reader, self._frames, options, checkpoint, device, precision, self._open_at_once)
                    chunker = Chunker(reader, options.tail, checkpoint.config, least_frames(options))
                    try:
                        with memory_errors():
                            self._append(encoder, plan, chunker, writer, progress)
                    except MovqOutOfMemoryError:
                        raise _TooLargeError(plan) from None
            noted = [
                *self.by.notes,
                *self._notes,
                *plan.budget.warnings,
                *reader.warnings,
                *shortfall(chunker, options),
            ]
            self._computed = _Computed(writer, reader, plan, chunker, tuple(dict.fromkeys(noted)))
            stack.pop_all()

    def finish(self) -> EncodeResult:
        """Write the header, sync the file, and give it its name. Raises MovqError if the source has changed."""
        assert self._computed is not None
        writer, reader, plan, chunker, warnings = self._computed
        with about(os.fspath(self.source)):
            metadata = self._metadata(reader, plan, chunker, warnings)
            if FileIdentity.of(require_file(self.source)) != self._identity:
                raise MovqError("changed while it was read")
            size = writer.finish(metadata, chunker.times, chunker.indices)
        return EncodeResult(
            metadata=metadata,
            output_path=os.fspath(self.output),
            output_bytes=size,
            sha256=writer.sha256,
            shape=writer.shape,
            dtype=writer.dtype,
            device=plan.device,
            chunk_frames=plan.budget.chunk_frames,
            seconds=time.perf_counter() - self._started,
        )

    def close(self) -> None:
        """Stop the decoder and close the output. Without `finish`, nothing is left of it."""
        reader, self._reader = self._reader, None
        computed, self._computed = self._computed, None
        if reader is not None:
            reader.close()
        if computed is not None:
            computed.writer.__exit__(None, None, None)

    def __enter__(self) -> Encoding:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _append(
        self, encoder: Encoder3D, plan: Plan, chunker: Chunker, writer: LatentsWriter, progress: Progress
    ) -> None:
        from .model.causal import StreamCache

        options, config = self.options, self.checkpoint.config
        dtype, store_dtype = dtype_of(plan.precision), _store_dtype(options, plan.precision)
        expected = plan.frames or expected_frames(plan.info, options.selection)
        worked = WorkDone(progress, expected, most=lambda: len(chunker.times))
        schedule = ChunkSchedule.of_frames(plan.semantics, plan.padded_frames, plan.budget.chunk_frames, config)
        cache = StreamCache()
        windows = chunker.windows(schedule.windows(), plan.padded_frames if plan.windows else None, cache.end)
        with plan.budget.store() as store:
            chunks = encode(encoder, windows, self.by.device, dtype, store, worked, self._check, cache)
            for latents in self._finite(chunks, plan, chunker):
                if options.save == "sample":
                    sha256, first_index = self._source_sha256.result(), chunker.indices[0]
                    latents = draw_latents(
                        latents, writer.shape[2], seed=options.seed, source_sha256=sha256, first_index=first_index
                    )
                elif options.save == "mean":
                    latents = latents[:, : config.z_channels]
                writer.append(latents.to(store_dtype))

    def _finite(self, chunks: Iterator[torch.Tensor], plan: Plan, chunker: Chunker) -> Iterator[torch.Tensor]:
        """Yield the same latents. Raises _NotFiniteError, or, if stages are checked, MovqError with stage and frame."""
        import torch

        from .model.stages import NotFiniteError

        try:
            for latents in chunks:
                if not bool(torch.isfinite(latents).all()):
                    raise _NotFiniteError
                yield latents
        except NotFiniteError as found:
            frame = min(found.frame, len(chunker.times) - 1)  # a repeated frame counts as the last one
            raise MovqError(
                f"gives numbers that are not finite in {plan.precision}, first in {found.stage} at frame "
                f"{chunker.indices[frame]} ({format_time(chunker.times[frame])}): nothing was written; {_WAY_OUT[plan.precision]}"
            ) from None
        if self._check:
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
        }
        if reader.partial:
            preprocessing["partial"] = True
        if options.target is not None:
            preprocessing["prepared_for"] = options.target
        return Metadata(
            representation=options.save if config.double_z else "mean",
            seed=options.seed if options.save == "sample" else None,
            semantics=plan.semantics,
            windows=None if plan.windows is None else list(plan.windows),
            model=self.checkpoint.name,
            config=json.loads(config.to_json()),
            weights_digest=self.by.weights_digest.result(),
            weights_licence=said.get("licence", ""),
            scaling_factor=said.get("scaling_factor", "")
            if options.scaling_factor is None
            else f"{options.scaling_factor:.10g}",
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
            source_sha256=self._source_sha256.result(),
            movq_version=__version__,
        )


def _store_dtype(options: EncodeOptions, precision: str) -> torch.dtype:
    return dtype_of(precision if options.store_dtype == "auto" else options.store_dtype)


def _rate(info: VideoInfo, selection: Selection) -> Fraction | None:
    same = selection.fps is not None and is_same_rate(selection.fps, info.fps)
    rate = info.fps if same else selection.fps or info.fps
    return rate and rate / selection.every
