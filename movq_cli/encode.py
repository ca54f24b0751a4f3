"""One video to one latents file: where video, codec, weights and the file format meet. plan.py decides, encoding.py does."""

from __future__ import annotations

import os
import time
import warnings as python_warnings
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .codec import Progress, silent
from .device import choose_device, choose_precision, dtype_of
from .encoding import EncodeResult, Encoding
from .errors import MovqWarning
from .files import FileIdentity, require_file, sha256_file
from .options import EncodeOptions
from .plan import open_weights
from .threads import in_background

if TYPE_CHECKING:
    import torch

    from .model.encoder import Encoder3D

__all__ = ["EncodeResult", "VideoEncoder", "encode_video"]


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
        self._digested: tuple[FileIdentity, Future[str]] | None = None

    @cached_property
    def device(self) -> torch.device:
        """The device that computes."""
        return choose_device(self.options.device)

    @cached_property
    def precision(self) -> str:
        """The precision that is computed in; auto is settled."""
        return choose_precision(self.options.precision, self.device)

    @cached_property
    def network(self) -> Encoder3D:
        """The encoder, loaded when it is first asked for."""
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
        with self.begin(source, output, alive=alive, **overrides) as encoding:
            encoding.compute(progress)
            return encoding.finish()

    def begin(
        self,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str],
        *,
        alive: Callable[[], None] = lambda: None,
        open_at_once: int = 1,
        **overrides: Any,
    ) -> Encoding:
        """The first of the three steps of `encode`, which may be in other threads than the others: decoding begins.

        `open_at_once`: how many videos are, for which there has to be memory.
        """
        return Encoding(self, source, output, replace(self.options, **overrides).beside(output), alive, open_at_once)

    def digest_of(self, source: str | os.PathLike[str], identity: FileIdentity) -> Future[str]:
        """Return a source's sha256, which is read once for several spans of it."""
        if self._digested is not None:
            before, digest = self._digested
            if before == identity and not (digest.done() and digest.exception()):
                return digest
        digest = in_background(lambda: sha256_file(source))
        self._digested = identity, digest
        return digest
