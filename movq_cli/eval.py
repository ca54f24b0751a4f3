"""How near a video comes back: encoded, decoded and compared with itself, and two settings compared with each other.

The latents go through a file of a temporary folder and the video is read a second time beside the decoder, so memory
grows with length no more than encoding and decoding do; but for tiling by diffusers, which holds the clip.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from .codec import WHOLE_WINDOW, Chunker, Progress, chunk_lengths, encode_windows, silent, to_input
from .decode import DecodeOptions, decoding, find_weights
from .device import choose_device, choose_precision, computing, dtype_of, memory_errors
from .encode import EncodeResult, encode_video
from .errors import MovqError, MovqUsageError, about
from .latents import Latents, open_latents
from .metrics import FrameScores
from .model.checkpoint import Checkpoint, open_checkpoint
from .model.layouts import diffusers_config, to_diffusers
from .plan import EncodeOptions, open_weights, start_reader

if TYPE_CHECKING:
    import torch

TILED = "tiled"
"""What `against` may be besides options: AutoencoderKLCogVideoX of diffusers with tiling on."""

_SLICE = 32  # latents compared at a time

Pair = tuple[np.ndarray, np.ndarray]
"""A frame of the source and what became of it, uint8 (H, W, 3)."""


@dataclass(frozen=True)
class Evaluation:
    """What came back. `scores` are those of `metrics.FrameScores.report`; `pairs` the frames that were asked for.

    `difference`, where there was something to compare with: of the other latents from these, `largest` and `rms`, in
    standard deviations of these. `other` is the other setting's own evaluation, None for TILED.
    """

    source: str
    encoded: EncodeResult
    scores: dict[str, Any]
    decode_seconds: float
    pairs: dict[int, Pair]
    difference: dict[str, float] | None = None
    other: Evaluation | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        e = self.encoded
        values: dict[str, Any] = {
            "source": self.source,
            "width": e.width,
            "height": e.height,
            "semantics": e.semantics,
            "precision": e.precision,
            "device": e.device,
            "chunk_frames": e.chunk_frames,
            "latents_shape": list(e.shape),
            "latents_bytes": e.bytes,
            "encode_seconds": e.seconds,
            "decode_seconds": self.decode_seconds,
            "warnings": list(e.warnings),
            **self.scores,
        }
        if self.difference is not None or self.other is not None:
            values["against"] = {"difference": self.difference} | (self.other.to_dict() if self.other else {})
        return values


def evaluate_video(
    source: str | os.PathLike[str],
    options: EncodeOptions | None = None,
    *,
    against: EncodeOptions | str | None = None,
    frames: Sequence[int] | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Encodes and decodes a video and compares it with itself; with `against`, also what two settings make of it.

    `against`: other options, or TILED. `frames`: whose pairs to keep, by their place among those encoded (default: the
    first, the worst and the last). Raises MovqError as `encode_video` and `decode_video` do, and for TILED where diffusers
    is not installed.
    """
    options = replace(options or EncodeOptions(), save="moments")
    if isinstance(against, str) and against != TILED:
        raise MovqUsageError(f"must be options or {TILED!r}, got {against!r}", "--against")
    for chosen in (options, against):
        if isinstance(chosen, EncodeOptions):
            _check(chosen)
    if against == TILED:
        _require_diffusers(open_checkpoint(options.weights))
    passes = 2 * (1 + isinstance(against, EncodeOptions))
    with tempfile.TemporaryDirectory(prefix="movq-eval-") as folder:
        one, two = os.path.join(folder, "one"), os.path.join(folder, "two")
        parts = iter([_part(progress, i, passes) for i in range(passes)])
        made = _evaluate(source, one, options, frames, next(parts), next(parts))
        if against is None:
            return made
        first = open_latents(one)
        if isinstance(against, EncodeOptions):
            other = _evaluate(source, two, replace(against, save="moments"), frames, *parts)
            return replace(made, difference=_difference(first, open_latents(two).read), other=other)
        with about(os.fspath(source)):
            latents = _tiled(source, options, open_checkpoint(options.weights))
        return replace(made, difference=_difference(first, lambda start, stop: latents[:, :, start:stop]))


def _check(options: EncodeOptions) -> None:
    """Raises, before any work, what the settings would be refused for later."""
    open_weights(options).require_decoder()
    choose_precision(options.precision, choose_device(options.device))


def _require_diffusers(checkpoint: Checkpoint) -> None:
    with about(checkpoint.path):
        diffusers_config(checkpoint.config)
    if find_spec("diffusers") is None:
        raise MovqError("needs diffusers: pip install diffusers", "--against tiled")


def _part(progress: Progress, part: int, parts: int) -> Progress:
    """The progress of one of several passes over the same frames."""

    def of_part(done: int, total: int | None) -> None:
        progress(done if total is None else (part * total + done) // parts, total)

    return of_part


def _evaluate(
    source: str | os.PathLike[str],
    path: str,
    options: EncodeOptions,
    frames: Sequence[int] | None,
    encoding: Progress,
    comparing: Progress,
) -> Evaluation:
    encoded = encode_video(source, path, options, progress=encoding)
    latents = open_latents(path)
    m = latents.metadata
    for frame in frames or ():
        if not 0 <= frame < m.frames:
            raise MovqError(f"has no frame {frame}: {m.frames} were encoded", os.fspath(source))
    checkpoint = find_weights(latents, options)
    lengths = chunk_lengths(
        encode_windows(m.semantics, m.frames + m.frames_padded, encoded.chunk_frames, checkpoint.config),
        m.frames + m.frames_padded,
    )
    borders = [border for border in accumulate(lengths) if border < m.frames]
    compared = _Compared(wanted=frames)
    seconds = _compare(source, latents, checkpoint, options, compared, comparing)
    return Evaluation(
        source=os.fspath(source),
        encoded=encoded,
        scores=compared.scores.report(latents.frame_times.tolist(), borders),
        decode_seconds=seconds,
        pairs=compared.pairs(),
    )


@dataclass
class _Compared:
    """Scores so far, and the pairs to keep: those wanted, or the first, the worst and the last."""

    wanted: Sequence[int] | None
    scores: FrameScores = field(default_factory=FrameScores)
    _kept: dict[int, Pair] = field(default_factory=dict)
    _worst: int = 0

    def add(self, source: np.ndarray, reconstruction: np.ndarray) -> None:
        index = len(self.scores.psnr)
        self.scores.add(source, reconstruction)
        if self.wanted is not None:
            if index in self.wanted:
                self._kept[index] = source, reconstruction.copy()
            return
        if self.scores.psnr[index] < self.scores.psnr[self._worst]:
            self._worst = index
        self._kept = {i: pair for i, pair in self._kept.items() if i in (0, self._worst)}
        self._kept[index] = source, reconstruction.copy()

    def pairs(self) -> dict[int, Pair]:
        return dict(sorted(self._kept.items()))


def _compare(
    source: str | os.PathLike[str],
    latents: Latents,
    checkpoint: Checkpoint,
    options: EncodeOptions,
    compared: _Compared,
    progress: Progress,
) -> float:
    """Decodes and compares frame by frame; returns the seconds it took."""
    started = time.perf_counter()
    m = latents.metadata
    chosen = DecodeOptions(
        weights=options.weights,
        device=options.device,
        precision=options.precision,
        memory_budget=options.memory_budget,
        spill_dir=options.spill_dir,
        threads=options.threads,
    )
    with (
        start_reader(source, options, checkpoint.config) as reader,
        decoding(latents, checkpoint, chosen, progress) as run,
    ):
        for images in run.frames():
            for image in images:
                frame = next(reader, None)
                if frame is None or _changed(frame.index, latents, len(compared.scores.psnr)):
                    raise MovqError("changed while it was read", os.fspath(source))
                compared.add(frame.image[: m.height, : m.width], image)
    return time.perf_counter() - started


def _changed(index: int, latents: Latents, frame: int) -> bool:
    return index != int(latents.frame_indices[frame])


def _difference(first: Latents, second: Callable[[int, int], torch.Tensor]) -> dict[str, float] | None:
    """How far the second latents are from the first, in standard deviations of the first; None if their shapes differ."""
    count = total = squares = error = largest = 0.0
    for start in range(0, first.shape[2], _SLICE):
        stop = min(start + _SLICE, first.shape[2])
        x, y = first.read(start, stop).double(), second(start, stop).double()
        if x.shape != y.shape:
            return None  # other weights; their frames are compared all the same
        count += x.numel()
        total += float(x.sum())
        squares += float(x.square().sum())
        error += float((x - y).square().sum())
        largest = max(largest, float((x - y).abs().max()))
    std = math.sqrt(max(0.0, squares / count - (total / count) ** 2)) or 1.0
    return {"largest": largest / std, "rms": math.sqrt(error / count) / std}


def _tiled(source: str | os.PathLike[str], options: EncodeOptions, checkpoint: Checkpoint) -> torch.Tensor:
    """The moments that diffusers makes of the same frames with tiling on, (1, 2z, T', H', W'): all of them in memory."""
    import torch
    from diffusers import AutoencoderKLCogVideoX

    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    with computing(precision, options.threads), memory_errors(), torch.inference_mode():
        model = AutoencoderKLCogVideoX.from_config(diffusers_config(checkpoint.config))
        names = [name for name in checkpoint.tensors if name.startswith("encoder.")]
        model.encoder.load_state_dict(
            {
                to_diffusers(name, checkpoint.config).removeprefix("encoder."): tensor
                for name, tensor in checkpoint.read(names)
            }
        )
        model.to(device, dtype_of(precision)).eval()
        model.enable_tiling()
        with start_reader(source, options, checkpoint.config) as reader:
            chunker = Chunker(reader, options.tail, checkpoint.config)
            ((frames,),) = chunker.windows(encode_windows("whole", None, WHOLE_WINDOW, checkpoint.config))
        moments: torch.Tensor = model.encode(to_input(frames, device, dtype_of(precision))).latent_dist.parameters
        return moments.cpu()
