"""Encode one video to one latents file. plan.py makes the plan; encoding.py carries it out.

Video, codec, weights and the file format meet here.
"""

from __future__ import annotations

import os
import time
import warnings as python_warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .codec import Progress, silent
from .device import choose_device, choose_precision, dtype_of
from .encoding import EncodeResult, Encoding
from .errors import MovqWarning
from .fields import changed, options_of
from .files import FileIdentity, require_file
from .options import EncodeOptions
from .plan import open_weights
from .shared import KnownSource, SharedSource
from .targets import prepared
from .threads import in_background

if TYPE_CHECKING:
    import torch

    from .model.encoder import Encoder3D
    from .model.quantizers import Quantizer

__all__ = ["EncodeResult", "VideoEncoder", "encode_video"]


def encode_video(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: EncodeOptions | None = None,
    *,
    progress: Progress = silent,
    **overrides: Any,
) -> EncodeResult:
    """Encode a video file to a latents file, which appears whole or not at all.

    Options come as an EncodeOptions, or by name: `encode_video("a.mp4", "a.safetensors", chunk_frames=8, save="mean")`.
    Raises MovqError if the input, the weights or the output is refused, before any work if possible, and MovqUsageError
    if options are invalid.
    """
    started = time.perf_counter()
    require_file(source)
    encoder = VideoEncoder(options_of(EncodeOptions, options, overrides))
    result = encoder.encode(source, output, progress=progress)
    return replace(result, seconds=time.perf_counter() - started)


class VideoEncoder:
    """Encodes one video after another. The weights are opened once, and loaded when the first video needs them.

    `decoder_threads` are the CPU threads that decoding a video may take (None: those of the options). Raises MovqError
    if the weights are refused, and MovqUsageError if options are invalid.
    """

    decoder_threads: int | None = None

    def __init__(self, options: EncodeOptions) -> None:
        self.options = options = prepared(options)
        with python_warnings.catch_warnings(record=True) as caught:
            python_warnings.simplefilter("always", MovqWarning)
            self.checkpoint = open_weights(options)
        self.notes = [str(w.message) for w in caught if issubclass(w.category, MovqWarning)]
        self.weights_digest = in_background(lambda: self.checkpoint.digest)
        self._shared: SharedSource | None = None

    @cached_property
    def device(self) -> torch.device:
        """The device that computes."""
        return choose_device(self.options.device)

    @cached_property
    def precision(self) -> str:
        """The precision of the computation, never "auto"."""
        return choose_precision(self.options.precision, self.device)

    @cached_property
    def network(self) -> Encoder3D:
        """The encoder, loaded on first use."""
        return self.checkpoint.load_encoder(self.device, dtype_of(self.precision))

    @cached_property
    def quantizer(self) -> Quantizer:
        """The quantiser of weights that have one, loaded on first use."""
        return self.checkpoint.load_quantizer()

    def encode(
        self,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str],
        *,
        progress: Progress = silent,
        alive: Callable[[], None] = lambda: None,
        **overrides: Any,
    ) -> EncodeResult:
        """Encode one video, as `encode_video` does.

        `overrides` are options for this video only; weights, device and precision cannot be among them. `alive` is
        called while the decoder is at work but has no frame to encode yet, for example on the way to a late start.
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
        latents: bool = True,
        known: KnownSource | None = None,
        more: bool = False,
        **overrides: Any,
    ) -> Encoding:
        """Start to decode a video: the first of the three steps of `encode`, each of which may be in its own thread.

        `open_at_once` is the number of videos that are open at the same time, which all need memory. Without `latents`,
        only the files of the first frame are made. Facts that are `known` are not read from the source again; `more` says
        that another span of it is next.
        """
        options = changed(self.options, overrides).beside(output)
        return Encoding(self, source, output, options, alive, open_at_once, latents, known, more)

    def shared(
        self, source: str | os.PathLike[str], identity: FileIdentity, known: KnownSource | None, more: bool
    ) -> SharedSource:
        """Return the digest, times and decoder that consecutive spans of a source share."""
        before, path = self._shared, os.path.abspath(source)
        if before is None or not before.is_of(path, identity):
            self.close()
            self._shared = SharedSource(path, identity, known if known and known.identity == identity else None)
        assert self._shared is not None
        self._shared.more = more
        return self._shared

    def close(self) -> None:
        """End a decoding process that waits for another span."""
        if self._shared is not None:
            self._shared.close()
        self._shared = None
