"""The three steps of encoding one video: start its decoder, compute its latents, and give their file its name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .budget import in_words
from .checkpoints.checkpoint import Checkpoint
from .codec import Chunker, Progress, WorkDone, WrongCountError, encode, silent
from .device import computing, dtype_of, free_memory, memory_errors
from .errors import MovqError, MovqOutOfMemoryError, about, option
from .fields import changed
from .files import FileIdentity, refuse_inputs, require_file
from .first_frame import FirstFrame, FirstFrameFile, first_frame_path, remove_first_frames
from .latents import LatentsWriter, code_dtype
from .metadata import Metadata
from .model.config import AutoencoderConfig
from .options import CODES, INT8, EncodeOptions
from .plan import Plan, expected_frames, least_frames, make_plan, must_count, representation, shortfall, start_reader
from .posterior import draw_latents
from .provenance import metadata_of
from .schedule import ChunkSchedule
from .shared import KnownSource, SharedSource
from .values import format_time
from .video import FrameReader, count_frames

if TYPE_CHECKING:
    import torch

    from .model.encoder import Encoder3D
    from .model.quantizers import Quantizer

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
    whole file, `chunk_frames` is 0 if each window was one chunk, and `seconds` is wall time. A picture was
    cut into `strips`, and up to `spilled_bytes` of activations waited on disk; `remarks` say why. `first_frame` are the files of
    the first frame, by kind.
    """

    metadata: Metadata
    output_path: str
    output_bytes: int
    sha256: str
    shape: tuple[int, int, int, int, int]
    dtype: str
    device: str
    chunk_frames: int
    strips: int
    spilled_bytes: int
    remarks: tuple[str, ...]
    seconds: float
    first_frame: dict[str, FirstFrameFile]


class _TooLargeError(Exception):
    """Memory ran out although the plan should have fitted. `smaller` are options that take less; {} if there are none."""

    def __init__(self, plan: Plan, config: AutoencoderConfig) -> None:
        super().__init__()
        longest = max(plan.windows or (plan.padded_frames or 0,))
        self.smaller = plan.budget.smaller(longest, plan.geometry.padded_height, config)


class _Computed(NamedTuple):
    """The results of `compute` that `finish` needs: the latents, in a file without a name, and data for its header.

    Without a writer, only the first frame was computed.
    """

    writer: LatentsWriter | None
    first: FirstFrame
    files: ExitStack
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

    @property
    def quantizer(self) -> Quantizer:
        """The quantiser, loaded, of weights that have one."""

    def shared(
        self, source: str | os.PathLike[str], identity: FileIdentity, known: KnownSource | None, more: bool
    ) -> SharedSource:
        """Return the digest, times and decoder that consecutive spans of a source share."""


class Encoding:
    """One video on its way to its file, made by VideoEncoder.begin. Call `compute`, then `finish`, then close it.

    Computing starts again if its plan turns out to be wrong. Without `latents`, only the files of the first frame are
    made, and `finish_first_frame` ends it. Raises MovqError if something is refused.
    """

    def __init__(
        self,
        by: Encoder,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str],
        options: EncodeOptions,
        alive: Callable[[], None],
        open_at_once: int,
        latents: bool,
        known: KnownSource | None = None,
        more: bool = False,
    ) -> None:
        self.by, self.source, self.output, self.options = by, source, output, options
        self._latents = latents
        if not latents:
            self.options = replace(options, selection=replace(options.selection, frames=1), tail="pad", short="encode")
        self._alive, self._open_at_once = alive, open_at_once
        self._identity = FileIdentity.of(require_file(source))
        for path in (output, *(first_frame_path(output, kind) for kind in options.first_frames)):
            refuse_inputs(path, source, *by.checkpoint.files)
        self.shared = by.shared(source, self._identity, known, more)
        self._source_sha256 = self.shared.sha256
        self.shared.look(self.options.selection, alive)
        self._notes: list[str] = []
        self._remarks: list[str] = []
        self._check = False
        self._frames: int | None = None if latents else 1
        self._recounted = False
        self._computed: _Computed | None = None
        # The decoding process starts while torch is imported.
        self._reader: FrameReader | None = self.shared.read(self._start_reader)

    @property
    def checkpoint(self) -> Checkpoint:
        """The weights that the video is encoded with."""
        return self.by.checkpoint

    def _start_reader(self, **more: Any) -> FrameReader:
        config, threads = self.checkpoint.config, self.by.decoder_threads
        return start_reader(self.source, self.options, config, self._alive, threads, **more)

    def count(self) -> None:
        """Count the frames, if the plan will need their number. `compute` does so if they are not counted yet."""
        if self._frames is None and must_count(self.options, self.checkpoint):
            with about(os.fspath(self.source)):
                selection = self.options.selection
                counted = self.shared.count(selection)
                self._frames = count_frames(self.source, selection, self._alive) if counted is None else counted

    def compute(self, progress: Progress = silent) -> None:
        """Encode all frames. The latents are then on disk, in a file without a name."""
        self._started = time.perf_counter()
        with about(os.fspath(self.source)):
            while True:
                smaller: dict[str, int] = {}
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
                    smaller = large.smaller
                    if not smaller:
                        raise MovqOutOfMemoryError(
                            "ran out of memory even in the smallest chunks and strips; take a smaller picture"
                        ) from None
                # Outside the except block: the traceback would keep the failed run's tensors alive.
                if smaller:
                    self.options = changed(self.options, smaller)
                    noted = self._notes if "chunk_frames" in smaller else self._remarks
                    noted[:] = [f"ran out of memory, and was begun again in {in_words(smaller)}"]
                    free_memory(self.by.device)

    def _compute(self, progress: Progress) -> None:
        """Compute all latents by one plan.

        Raises WrongCountError if windows were planned for a wrong number of frames, _TooLargeError if memory runs out,
        and _NotFiniteError if latents are not finite, or, if every stage is checked, MovqError.
        """
        options, checkpoint = self.options, self.checkpoint
        with ExitStack() as stack:
            how: dict[str, Any] = {"force": options.force, "int8": options.store_dtype == INT8}
            first = stack.enter_context(FirstFrame(self.output, options.first_frames, **how))
            writer = stack.enter_context(LatentsWriter(self.output, **how)) if self._latents else None
            reader, self._reader = self._reader or self._start_reader(), None
            with reader:
                device, precision = self.by.device, self.by.precision
                with computing(precision, options.threads), memory_errors():
                    encoder = self.by.network
                    self.count()
                    plan = make_plan(reader, self._frames, options, checkpoint, device, precision, self._open_at_once)
                    chunker = Chunker(first.noted(reader), options.tail, checkpoint.config, least_frames(options))
                    try:
                        with memory_errors():
                            if writer is not None:
                                self._append(encoder, plan, chunker, writer, progress)
                            self._append_first(encoder, plan, chunker, first)
                    except MovqOutOfMemoryError:
                        raise _TooLargeError(plan, checkpoint.config) from None
            noted = [
                *self.by.notes,
                *self._notes,
                *plan.budget.warnings,
                *reader.warnings,
                *shortfall(chunker, options),
            ]
            warnings = tuple(dict.fromkeys(noted))
            self._computed = _Computed(writer, first, stack.pop_all(), reader, plan, chunker, warnings)

    def finish(self) -> EncodeResult:
        """Write the header, sync the file, and give it its name. Raises MovqError if the source has changed."""
        assert self._computed is not None
        assert self._computed.writer is not None
        writer, plan, chunker = self._computed.writer, self._computed.plan, self._computed.chunker
        with about(os.fspath(self.source)):
            metadata, first_frame = self._finish_first()
            size = writer.finish(metadata, chunker.times, chunker.indices)
            self._computed.first.commit()
            writer.commit()
            remove_first_frames(self.output, first_frame, self.source)
        return EncodeResult(
            metadata=metadata,
            output_path=os.fspath(self.output),
            output_bytes=size,
            sha256=writer.sha256,
            shape=writer.shape,
            dtype=writer.dtype,
            device=plan.device,
            chunk_frames=plan.budget.chunk_frames,
            strips=plan.budget.strips,
            spilled_bytes=plan.budget.spill_bytes,
            remarks=(*self._remarks, *plan.budget.remarks),
            seconds=time.perf_counter() - self._started,
            first_frame=first_frame,
        )

    def finish_first_frame(self) -> tuple[str, dict[str, FirstFrameFile]]:
        """Give the files of the first frame their names. Return the digest of the source, and these files by kind.

        Raises MovqError if the source has changed.
        """
        assert self._computed is not None
        with about(os.fspath(self.source)):
            metadata, first_frame = self._finish_first()
            self._computed.first.commit()
        return metadata.source_sha256, first_frame

    def _finish_first(self) -> tuple[Metadata, dict[str, FirstFrameFile]]:
        """Return the metadata of the clip, and write the files of its first frame, which have no names yet."""
        assert self._computed is not None
        _, first, _, reader, plan, chunker, warnings = self._computed
        metadata = metadata_of(
            self.source,
            self.options,
            self.checkpoint,
            plan,
            reader,
            chunker,
            source_sha256=self._source_sha256.result(),
            weights_digest=self.by.weights_digest.result(),
            warnings=warnings,
        )
        if FileIdentity.of(require_file(self.source)) != self._identity:
            raise MovqError("changed while it was read")
        early = dict.fromkeys((*self.by.notes, *plan.info.warnings))
        return metadata, first.finish(metadata, tuple(early))

    def close(self) -> None:
        """Stop the decoder and close the output. Without `finish`, nothing is left of it."""
        reader, self._reader = self._reader, None
        computed, self._computed = self._computed, None
        if reader is not None:
            reader.close()
        if computed is not None:
            computed.files.close()

    def __enter__(self) -> Encoding:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _append(
        self, encoder: Encoder3D, plan: Plan, chunker: Chunker, writer: LatentsWriter, progress: Progress
    ) -> None:
        options, config = self.options, self.checkpoint.config
        dtype = dtype_of(plan.precision)
        expected = plan.frames or expected_frames(plan.info, options.selection)
        worked = WorkDone(progress, expected, most=lambda: len(chunker.times))
        schedule = ChunkSchedule.of_frames(plan.semantics, plan.padded_frames, plan.budget.chunk_frames, config)
        with plan.budget.stream() as cache:
            windows = chunker.windows(schedule.windows(), plan.padded_frames if plan.windows else None, cache.end)
            chunks = encode(encoder, windows, self.by.device, dtype, cache, worked, self._check)
            for latents in self._finite(chunks, plan, chunker):
                writer.append(self._saved(latents, writer.shape[2], chunker.indices[0], plan))

    def _append_first(self, encoder: Encoder3D, plan: Plan, chunker: Chunker, first: FirstFrame) -> None:
        """Encode the first frame alone, if its latents are wanted. It is read, unless a clip was."""
        if first.frame is None:
            for window in chunker.windows(iter([[1]])):
                for _ in window:
                    pass
        assert first.frame is not None
        if not first.wants_latents:
            return
        with plan.budget.stream() as cache:
            cache.end()
            window, dtype = iter([first.frame.image[None]]), dtype_of(plan.precision)
            chunks = encode(encoder, iter([window]), self.by.device, dtype, cache, check=self._check)
            for latents in self._finite(chunks, plan, chunker):
                first.append(self._saved(latents, 0, first.frame.index, plan))

    def _saved(self, latents: torch.Tensor, at: int, first_index: int, plan: Plan) -> torch.Tensor:
        """Return what is stored of moments (1, 2z, n, H', W'), the first of which is the clip's latent `at`."""
        import torch

        options, config = self.options, self.checkpoint.config
        kind = representation(options, config)
        if kind == "sample":
            sha256 = self._source_sha256.result()
            latents = draw_latents(latents, at, seed=options.seed, source_sha256=sha256, first_index=first_index)
        elif kind != "moments":
            latents = latents[:, : config.z_channels]
        if kind == CODES:
            return self.by.quantizer.store(latents).to(getattr(torch, code_dtype(config.codes)))
        return latents.to(_store_dtype(options, plan.precision))

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
            place = f"frame {chunker.indices[frame]} ({format_time(chunker.times[frame])}){found.rows}"
            raise MovqError(
                f"gives numbers that are not finite in {plan.precision}, first in {found.stage} at {place}: nothing was "
                f"written; {_WAY_OUT[plan.precision]}"
            ) from None
        if self._check:
            raise MovqError(
                "gave numbers that are not finite once and not the second time: is this machine's memory sound?"
            )


def _store_dtype(options: EncodeOptions, precision: str) -> torch.dtype:
    """Return the dtype that latents are written in; those that are stored as int8 are made of fp32."""
    return dtype_of({"auto": precision, INT8: "fp32"}.get(options.store_dtype, options.store_dtype))
