"""Encode a video, decode it, and measure how near it is to the source; and compare two settings with each other.

Latents go through a file in a temporary folder, and the video is read a second time while they are decoded; so do the
frames of one setting that are compared with those of another. So memory grows with length no more than in encoding and
decoding. Only diffusers' tiling holds the whole clip.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoints.checkpoint import Checkpoint, open_checkpoint
from .checkpoints.configs import diffusers_config
from .checkpoints.layouts import to_diffusers
from .codec import RGB, Chunker, Progress, silent, to_input, to_planes
from .decode import decode_budget, decoding, find_weights
from .device import choose_device, choose_precision, computing, dtype_of, memory_errors
from .difference import Comparison, Difference
from .encode import EncodeResult, encode_video
from .errors import MovqError, MovqUsageError, about
from .fields import options_of
from .latents import Latents, open_latents
from .memory import ahead_bytes
from .metrics import FrameScores, psnr
from .options import CODES, DecodeOptions, EncodeOptions
from .plan import open_weights, plan_encode, start_reader
from .schedule import WHOLE_WINDOW, ChunkSchedule

if TYPE_CHECKING:
    import torch

TILED = "tiled"
"""The value of `against` for AutoencoderKLCogVideoX of diffusers with tiling on."""

_SLICE = 32  # latents compared at a time
_SCORING = 24  # bytes per pixel: a picture, its reconstruction, and their differences in two frames
_PAIR = 6  # bytes per pixel of a picture and its reconstruction that are kept
_USUAL_PAIRS = 3  # the first, the worst and the last

Pair = tuple[np.ndarray, np.ndarray]
"""A frame of the source and its reconstruction, uint8 (H, W, 3)."""


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    `scores` are those of `metrics.FrameScores.report`; `pairs` are the frames that were kept, by index. To decode, a
    picture was cut into `decode_strips`, and up to `decode_spilled_bytes` waited on disk. `remarks` say how it was encoded
    and decoded where that is worth a word.

    If two settings were compared: `difference` is how far the other latents are from these, None if their shapes
    differ; `picture_psnr` is the PSNR of the other reconstruction against this one, in dB, the mean over frames;
    `other` is the evaluation of the other setting. With TILED, only latents are compared.
    """

    source: str
    encoded: EncodeResult
    scores: dict[str, Any]
    decode_seconds: float
    decode_strips: int
    decode_spilled_bytes: int
    remarks: tuple[str, ...]
    pairs: dict[int, Pair]
    difference: Difference | None = None
    picture_psnr: float | None = None
    other: Evaluation | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all but the `pairs`, ready for JSON."""
        encoded, m = self.encoded, self.encoded.metadata
        values: dict[str, Any] = {
            "source": self.source,
            "width": m.width,
            "height": m.height,
            "semantics": m.semantics,
            "precision": m.precision,
            "device": encoded.device,
            "chunk_frames": encoded.chunk_frames,
            "strips": encoded.strips,
            "spilled_bytes": encoded.spilled_bytes,
            "latents_shape": list(encoded.shape),
            "latents_bytes": encoded.output_bytes,
            "encode_seconds": encoded.seconds,
            "decode_seconds": self.decode_seconds,
            "decode_strips": self.decode_strips,
            "decode_spilled_bytes": self.decode_spilled_bytes,
            "warnings": list(m.warnings),
            **self.scores,
        }
        if self.difference is not None or self.other is not None:
            values["against"] = {
                "difference": self.difference and self.difference.to_dict(),
                "picture_psnr": self.picture_psnr,
                **(self.other.to_dict() if self.other else {}),
            }
        return values


def evaluate_video(
    source: str | os.PathLike[str],
    options: EncodeOptions | None = None,
    *,
    against: EncodeOptions | str | None = None,
    pairs: Sequence[int] | None = None,
    progress: Progress = silent,
    **overrides: Any,
) -> Evaluation:
    """Encode and decode a video, and compare it with the source; with `against`, also compare two settings.

    Options come as an EncodeOptions, or by name: `evaluate_video("a.mp4", frames=17)`. `against`: other options, or
    TILED. `pairs`: the frames to keep with their reconstructions, by their index among those encoded (default: the
    first, the worst and the last). Raises MovqError as `encode_video` and `decode_video` do, and for
    TILED if diffusers is not installed.
    """
    options = options_of(EncodeOptions, options, overrides | {"save": "moments"})
    if isinstance(against, str) and against != TILED:
        raise MovqUsageError(f"must be options or {TILED!r}, got {against!r}", option="against")
    for chosen in (options, against):
        if isinstance(chosen, EncodeOptions):
            _check(chosen)
    if against == TILED:
        _require_diffusers(open_checkpoint(options.weights))
    settings = [options, replace(against, save="moments")] if isinstance(against, EncodeOptions) else [options]
    passes = iter([_part(progress, i, 2 * len(settings)) for i in range(2 * len(settings))])
    with tempfile.TemporaryDirectory(prefix="movq-eval-") as folder:
        sides: list[_Side] = []
        for i, chosen in enumerate(settings):
            side = _Side(os.fspath(source), os.path.join(folder, str(i)), chosen, pairs, next(passes), i + 1)
            side.compare(sides, next(passes), keep=i + 1 < len(settings))
            sides.append(side)
        first = sides[0].latents
        made = sides[0].evaluation()
        if against is None:
            return made
        if len(sides) > 1:
            other = sides[1]
            difference = _difference(first, other.latents.shape, other.latents.read)
            return replace(made, difference=difference, picture_psnr=other.picture_psnr, other=other.evaluation())
        with about(os.fspath(source)):
            latents = _tiled(source, options, open_checkpoint(options.weights))
        return replace(made, difference=_difference(first, latents.shape, lambda i, j: latents[:, :, i:j]))


def _check(options: EncodeOptions) -> None:
    """Raise, before any work, the errors of these weights, device or precision that would come up later."""
    open_weights(options).require_decoder()
    choose_precision(options.precision, choose_device(options.device))


def _require_diffusers(checkpoint: Checkpoint) -> None:
    with about(checkpoint.path):
        diffusers_config(checkpoint.config)
    if find_spec("diffusers") is None:
        raise MovqError("tiled needs diffusers: pip install diffusers", option="against")


def _part(progress: Progress, part: int, parts: int) -> Progress:
    """Return the progress of one of several passes over the same frames."""

    def of_part(done: int, total: int | None) -> None:
        progress(done if total is None else (part * total + done) // parts, total)

    return of_part


class _Compared:
    """The scores so far, and the pairs to keep: those `wanted`, or else the first, the worst and the last."""

    def __init__(self, wanted: Sequence[int] | None) -> None:
        self._wanted = wanted
        self.scores = FrameScores()
        self._kept: dict[int, Pair] = {}
        self._worst = 0

    def add(self, source: np.ndarray, reconstruction: np.ndarray) -> None:
        index = len(self.scores.psnr)
        self.scores.add(source, reconstruction)
        if self._wanted is not None:
            if index in self._wanted:
                self._kept[index] = source, reconstruction.copy()
            return
        if self.scores.psnr[index] < self.scores.psnr[self._worst]:
            self._worst = index
        self._kept = {i: pair for i, pair in self._kept.items() if i in (0, self._worst)}
        self._kept[index] = source, reconstruction.copy()

    def pairs(self) -> dict[int, Pair]:
        return dict(sorted(self._kept.items()))


class _Side:
    """One setting, with its latents and its scores. The constructor encodes the video to a file at `path`.

    `sides` is the number of sides in memory, with this one. Raises MovqError as `encode_video` does, and if one of
    `frames` was not encoded.
    """

    def __init__(
        self,
        source: str,
        path: str,
        options: EncodeOptions,
        frames: Sequence[int] | None,
        progress: Progress,
        sides: int,
    ) -> None:
        self._source, self._options = source, options
        self._decode_options = DecodeOptions(
            weights=options.weights,
            device=options.device,
            precision=options.precision,
            strip_rows=options.strip_rows,
            memory_budget=options.memory_budget,
            spill_dir=options.spill_dir,
            threads=options.threads,
        )
        with about(source):  # what cannot be decoded is not encoded first
            plan = plan_encode(source, options)
            assert plan.latent_shape is not None
            pixels = plan.geometry.padded_width * plan.geometry.padded_height
            pairs = 1 + (_USUAL_PAIRS if frames is None else len(frames))
            self._consumer_bytes = pixels * (_SCORING + _PAIR * pairs * sides) + ahead_bytes(pixels * RGB, plan.frames)
            decode_budget(plan.latent_shape, open_weights(options), self._decode_options, self._consumer_bytes)
        self.encoded = encode_video(source, path, options, progress=progress)
        self.latents = open_latents(path)
        for frame in frames or ():
            if not 0 <= frame < self.latents.metadata.frames:
                raise MovqError(f"has no frame {frame}: {self.latents.metadata.frames} were encoded", source)
        self._checkpoint = find_weights(self.latents, options)
        self._compared = _Compared(frames)
        self._decode_seconds = 0.0
        self.picture_psnr: float | None = None

    def compare(self, others: Sequence[_Side], progress: Progress, keep: bool) -> None:
        """Decode, and compare each frame with the source, and with that of another side if there is one.

        With `keep`, decoded frames go to a file for the next side, so that memory does not grow with their number.
        """
        started, m = time.perf_counter(), self.latents.metadata
        between: list[float] = []
        with (
            start_reader(self._source, self._options, self._checkpoint.config) as reader,
            decoding(self.latents, self._checkpoint, self._decode_options, progress, self._consumer_bytes) as run,
            open(self._frames if keep else os.devnull, "wb") as kept,
            open(others[0]._frames if others else os.devnull, "rb") as other,
        ):
            for image in chain.from_iterable(run.frames()):
                frame = next(reader, None)
                if frame is None or _changed(frame.index, self.latents, len(self._compared.scores.psnr)):
                    raise MovqError("changed while it was read", self._source)
                self._compared.add(frame.image[: m.height, : m.width], image)
                if keep:
                    kept.write(image.tobytes())
                if others:
                    between.append(psnr(np.frombuffer(other.read(image.nbytes), np.uint8).reshape(image.shape), image))
        self.picture_psnr = float(np.mean(between)) if between else None
        self._decoded, self._decode_warnings = run.budget, (*run.warnings, *run.budget.warnings)
        self._decode_seconds = time.perf_counter() - started

    @property
    def _frames(self) -> str:
        return f"{self.latents.path}.frames"

    def evaluation(self) -> Evaluation:
        m = self.latents.metadata
        count = m.frames + m.frames_padded
        schedule = ChunkSchedule.of_frames(m.semantics, count, self.encoded.chunk_frames, self._checkpoint.config)
        borders = [border for border in accumulate(schedule.lengths()) if border < m.frames]
        return Evaluation(
            source=self._source,
            encoded=self.encoded,
            scores=self._compared.scores.report(self.latents.frame_times.tolist(), borders),
            decode_seconds=self._decode_seconds,
            decode_strips=self._decoded.strips,
            decode_spilled_bytes=self._decoded.spill_bytes,
            remarks=(
                *(f"encoding: {remark}" for remark in self.encoded.remarks),
                *(f"decoding: {remark}" for remark in (*self._decode_warnings, *self._decoded.remarks)),
            ),
            pairs=self._compared.pairs(),
        )


def _changed(index: int, latents: Latents, frame: int) -> bool:
    return index != int(latents.frame_indices[frame])


def _difference(first: Latents, shape: Sequence[int], second: Callable[[int, int], torch.Tensor]) -> Difference | None:
    """Return the difference from other latents; None for codes, or for another shape, as they may have by other weights."""
    if tuple(shape) != tuple(first.shape) or first.metadata.representation == CODES:
        return None
    comparison = Comparison()
    for start in range(0, shape[2], _SLICE):
        stop = min(start + _SLICE, shape[2])
        comparison.add(first.read(start, stop), second(start, stop), first.metadata.representation == "moments")
    return comparison.difference


def _tiled(source: str | os.PathLike[str], options: EncodeOptions, checkpoint: Checkpoint) -> torch.Tensor:
    """Return the moments (1, 2z, T', H', W') by diffusers with tiling on, from the same frames, all in memory."""
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
            ((frames,),) = chunker.windows([[WHOLE_WINDOW]])
        moments: torch.Tensor = model.encode(
            to_input(to_planes(torch.from_numpy(frames).to(device)), dtype_of(precision))
        ).latent_dist.parameters
        return moments.cpu()
