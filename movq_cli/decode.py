"""Decode one latents file to frames, or to one video.

Latents, codec, weights and the video writer meet here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .budget import Budget, check_weights, in_words, make_budget
from .checkpoints.checkpoint import FORMER, Checkpoint, open_checkpoint, open_located
from .checkpoints.locate import fetching, locate_cached
from .codec import RGB, Progress, WorkDone, decode, silent
from .device import choose_device, choose_precision, computing, dtype_of, free_memory, memory_errors
from .errors import MovqError, MovqOutOfMemoryError, about, option
from .fields import changed, options_of
from .files import refuse_inputs, short
from .latents import Latents, open_latents
from .memory import DecodeMemory
from .options import CODES, DecodeOptions, ModelOptions
from .posterior import draw_latents
from .schedule import WHOLE_WINDOW, ChunkSchedule
from .video import open_writer

if TYPE_CHECKING:
    import torch

    from .model.decoder import Decoder3D
    from .model.quantizers import Quantizer


@dataclass(frozen=True)
class DecodeResult:
    """The video that was written. `seconds` is the wall time from the call until the file is in its place.

    A picture was cut into `strips`, and up to `spilled_bytes` of activations waited on disk; `remarks` say why.
    """

    output_path: str
    output_bytes: int
    description: str
    frames: int
    width: int
    height: int
    semantics: str
    precision: str
    device: str
    strips: int
    spilled_bytes: int
    remarks: tuple[str, ...]
    seconds: float
    warnings: tuple[str, ...]


def decode_video(
    latents: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: DecodeOptions | None = None,
    *,
    progress: Progress = silent,
    **overrides: Any,
) -> DecodeResult:
    """Decode a latents file to a video of its frames, size and times: .mp4, .mov, .mkv, .npy or a folder of .png.

    Options come as a DecodeOptions, or by name: `decode_video("a.safetensors", "a.mp4", crf=12)`. Raises MovqError if
    latents, weights or output are refused, before any work if possible.
    """
    started = time.perf_counter()
    options = options_of(DecodeOptions, options, overrides).beside(output)
    opened = open_latents(latents)
    m = opened.metadata
    refuse_inputs(output, latents)
    with open_writer(  # before anything slow, to refuse a bad output at once
        output,
        width=m.width,
        height=m.height,
        times=opened.seconds(),
        duration=m.duration,
        fps=m.fps,
        crf=options.crf,
        threads=min(2, options.threads or 2),
        force=options.force,
    ) as writer:
        checkpoint = find_weights(opened, options)
        refuse_inputs(output, *checkpoint.files)
        with decoding(opened, checkpoint, options, progress, consumer_bytes=writer.memory_bytes) as run:
            for images in run.frames():
                writer.write(images)
        size = writer.finish()
    return DecodeResult(
        output_path=os.fspath(output),
        output_bytes=size,
        description=writer.description,
        frames=m.frames,
        width=m.width,
        height=m.height,
        semantics=run.semantics,
        precision=run.precision,
        device=str(run.device),
        strips=run.budget.strips,
        spilled_bytes=run.budget.spill_bytes,
        remarks=run.budget.remarks,
        seconds=time.perf_counter() - started,
        warnings=(*run.warnings, *run.budget.warnings, *writer.notes),
    )


def find_weights(latents: Latents, options: ModelOptions) -> Checkpoint:
    """Return the weights that made the latents: those of the options, the embedded ones, or cached ones by their name.

    Raises MovqError if these are not the weights that made the latents, and says which to name.
    """
    checkpoint = open_checkpoint(options.weights)
    m = latents.metadata
    made = f"{m.model} (digest {short(m.weights_digest)})"
    if checkpoint.digest != m.weights_digest:
        if options.weights is not None:
            embedded = m.weights_digest == open_checkpoint().digest
            way_out = f": leave {option('weights')} out" if embedded else ""
            raise MovqError(
                f"was made with {made}, and {checkpoint.path} are others (digest {short(checkpoint.digest)}){way_out}",
                latents.path,
            )
        if m.weights_digest in FORMER:
            file, commit = FORMER[m.weights_digest]
            raise MovqError(
                f"was made with {made}, the weights of an earlier movq; `git show {commit}:{file} > old.safetensors` in a clone "
                f"of movq gets them, {option('weights', 'old.safetensors')} takes them",
                latents.path,
            )
        checkpoint = _cached_weights(latents, made)
    check_weights(options, checkpoint)
    return checkpoint


def _cached_weights(latents: Latents, made: str) -> Checkpoint:
    """Return the weights of the model that the header names, from the Hugging Face cache.

    Headers come from strangers: a name leads to no other place, and the digest must be right.
    """
    m = latents.metadata
    located = locate_cached(m.model)
    if located is None:
        fetch = f"`{command}` fetches them, or " if (command := fetching(m.model)) else ""
        raise MovqError(f"was made with {made}: {fetch}pass them as {option('weights')}", latents.path)
    checkpoint = open_located(located)
    if checkpoint.digest != m.weights_digest:
        raise MovqError(
            f"was made with {made}, and the Hugging Face cache has others by this name (digest "
            f"{short(checkpoint.digest)}): pass the right ones as {option('weights')}",
            latents.path,
        )
    return checkpoint


@dataclass
class Decoding:
    """A decoding in progress, made by `decoding`. Its `budget` may become smaller; `warnings` say so."""

    latents: Latents
    checkpoint: Checkpoint
    options: DecodeOptions
    device: torch.device
    precision: str
    semantics: str
    budget: Budget
    decoder: Decoder3D
    quantizer: Quantizer | None
    progress: Progress
    consumer_bytes: int
    warnings: tuple[str, ...] = ()

    def frames(self) -> Iterator[np.ndarray]:
        """Yield the frames that were encoded, chunk by chunk, uint8 (n, H, W, 3), without padding in time or space.

        If memory runs out, what follows is computed in smaller chunks or strips.
        """
        given = 0
        while given < self.latents.metadata.frames:
            try:
                with memory_errors():
                    for images in self._computed(given):
                        yield images
                        given += len(images)
            except MovqOutOfMemoryError:
                smaller = self._smaller()
            else:
                return
            # Outside the except block: the traceback would keep the failed run's tensors alive.
            free_memory(self.device)
            self.options = changed(self.options, smaller)
            _, self.budget = decode_budget(self.latents.shape, self.checkpoint, self.options, self.consumer_bytes)
            self.warnings = (f"ran out of memory, and went on in {in_words(smaller)}",)

    def _computed(self, start: int) -> Iterator[np.ndarray]:
        """Yield frames from number `start` on; earlier ones are computed, as later ones depend on them."""
        m, config = self.latents.metadata, self.checkpoint.config
        worked = WorkDone(self.progress, m.frames, most=lambda: m.frames)
        count = self.latents.shape[2]
        schedule = ChunkSchedule.of_latents(self.semantics, count, self.budget.chunk_frames, config)
        at = 0
        with self.budget.stream() as cache:
            windows = self._windows(schedule.windows(), count, cache.end)
            for images in decode(self.decoder, windows, self.device, dtype_of(self.precision), cache, worked):
                yield images[max(0, start - at) : max(0, m.frames - at), : m.height, : m.width]
                at += len(images)

    def _smaller(self) -> dict[str, int]:
        """Return options that take less memory, after it ran out. Raises MovqOutOfMemoryError if there are none."""
        config, (_, _, count, height, _) = self.checkpoint.config, self.latents.shape
        longest = ChunkSchedule.of_latents(self.semantics, count, self.budget.chunk_frames, config).longest
        smaller = self.budget.smaller(config.latents_to_frames(longest), height * config.spatial_factor, config)
        if not smaller:
            raise MovqOutOfMemoryError("ran out of memory even in the smallest chunks and strips") from None
        return smaller

    def _windows(
        self, schedule: Iterator[Iterator[int]], count: int, ending: Callable[[], None]
    ) -> Iterator[Iterator[torch.Tensor]]:
        at = 0

        def read(lengths: Iterator[int]) -> Iterator[torch.Tensor]:
            nonlocal at
            for length in lengths:
                start, at = at, count if length == WHOLE_WINDOW else min(count, at + length)
                if at == count:
                    ending()
                if start < at:
                    yield self._read(start, at)
                if at == count:
                    return

        for lengths in schedule:
            if at == count:
                return
            yield read(lengths)

    def _read(self, start: int, stop: int) -> torch.Tensor:
        m, stored = self.latents.metadata, self.latents.read(start, stop)
        if self.quantizer is not None:
            with about(self.latents.path):
                return self.quantizer.restore(stored)
        if m.representation != "moments":
            return stored
        if not self.options.draw:
            return stored[:, : stored.shape[1] // 2]
        first = int(self.latents.frame_indices[0])
        return draw_latents(stored, start, seed=self.options.seed, source_sha256=m.source_sha256, first_index=first)


@contextmanager
def decoding(
    latents: Latents,
    checkpoint: Checkpoint,
    options: DecodeOptions,
    progress: Progress = silent,
    consumer_bytes: int = 0,
) -> Iterator[Decoding]:
    """Load the decoder, plan its chunks, and yield the Decoding. torch is set up for it inside the `with`.

    `consumer_bytes` are what the caller takes for the frames. Raises MovqError if latents and weights do not belong
    together, or do not fit into memory.
    """
    _check(latents, checkpoint, options)
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    with about(latents.path), computing(precision, options.threads), memory_errors():
        semantics, budget = decode_budget(latents.shape, checkpoint, options, consumer_bytes)
        decoder = checkpoint.load_decoder(device, dtype_of(precision))
        quantizer = checkpoint.load_quantizer() if latents.metadata.representation == CODES else None
        yield Decoding(
            latents,
            checkpoint,
            options,
            device,
            precision,
            semantics,
            budget,
            decoder,
            quantizer,
            progress,
            consumer_bytes,
        )


def decode_budget(
    shape: Sequence[int], checkpoint: Checkpoint, options: ModelOptions, consumer_bytes: int
) -> tuple[str, Budget]:
    """Return the semantics and the budget for decoding latents of this shape, (1, C, T', H', W').

    `consumer_bytes` are what the user of the frames takes. Raises MovqError if they cannot be decoded so, or do not
    fit into memory.
    """
    config, (count, height, width) = checkpoint.config, shape[2:]
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    semantics = checkpoint.semantics
    if semantics != "frame":
        semantics = "diffusers" if options.semantics == "auto" else options.semantics
    whole = ChunkSchedule.of_latents(semantics, count, WHOLE_WINDOW, config)
    windows = whole.window_lengths()
    if len(windows) > 1 and windows[0] < config.latent_frames(config.first_chunk_frames):
        raise MovqError(
            "its weights pad by reflection, which windows of 2 latents are too short for: "
            f"{option('semantics', 'whole')}"
        )
    size = width * config.spatial_factor, height * config.spatial_factor
    memory = DecodeMemory(checkpoint, whole, size, config.spatial_factor, device, precision, consumer_bytes)
    return semantics, make_budget(memory, options)


def _check(latents: Latents, checkpoint: Checkpoint, options: DecodeOptions) -> None:
    m, config = latents.metadata, checkpoint.config
    checkpoint.require_decoder()
    if config.out_ch != RGB or config.give_pre_end:
        raise MovqError("its decoder does not give RGB", checkpoint.path)
    channels = {"moments": config.moment_channels, CODES: config.codebooks}.get(m.representation, config.z_channels)
    factors = m.temporal_factor, m.spatial_factor
    if latents.shape[1] != channels or factors != (config.temporal_factor, config.spatial_factor):
        raise MovqError(
            f"says what its weights cannot have made: {latents.shape[1]} channels, factors {factors}", latents.path
        )
    if config.latents_to_frames(latents.shape[2]) < m.frames:
        raise MovqError(f"says {m.frames} frames, for which it has too few latents", latents.path)
    if options.draw and m.representation != "moments":
        raise MovqError(
            f"holds the {m.representation}, of which nothing can be drawn: leave {option('draw')} out", latents.path
        )
