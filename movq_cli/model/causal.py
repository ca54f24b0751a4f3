"""Streaming: `StreamCache`, one per stream, and `CausalConv3d`, which needs it.

A whole clip is a stream of one chunk, so one code path serves both. Norms are in norms.py: they are the only layers
that may need frames which the cache does not keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from .config import PAD_MODES
from .convolution import LAYOUT, Conv3d
from .store import Store
from .strips import Band, Halo, Picture, StripQueue


class StreamCache:
    """The state of one stream between its chunks. The caller creates it and passes it down; modules keep no state.

    `past` has the last inputs of every causal convolution; a last chunk leaves none. `first` and `last` say whether the
    chunk being computed is the stream's first or last. `spans` are the strips of a picture, in rows of the stream's input,
    `strip` is the number of the one being computed, and `halo` says which rows come with it; the loop in stages.py sets them.
    The past and what waits between two stages lie in the `store`. The cache also lends one layer after another the same
    memory to prepare its input in, as getting fresh memory costs more than filling it.

    Pictures are cut into strips of `strip_rows` rows, in a decoder those of its result (0: they are not cut).
    """

    def __init__(self, ends: bool = False, store: Store | None = None, strip_rows: int = 0) -> None:
        self.first, self.last = True, False
        self.ends = ends
        """True if the chunk given next, or the one taken last, is known to be the stream's last."""
        self.spans, self.strip, self.halo = [slice(0, 1)], 0, Halo(1, 1)
        self.past: dict[nn.Module, StripQueue] = {}
        self.store = store or Store()
        self._strip_rows = strip_rows
        self._step: int | None = None
        self._frames = 0
        self._room: Tensor | None = None
        self._over = ""

    @property
    def frames(self) -> int:
        """The number of frames taken so far."""
        return self._frames

    def end(self) -> None:
        """Announce that the next chunk is the stream's last, so that it keeps no past."""
        self.ends = True

    def take(self, frames: int, *, factor: int, first_chunk_frames: int = 1) -> int:
        """Count a chunk as taken and return how many outputs it gives.

        The first chunk has 1 + n * factor frames, later ones n * factor. A chunk of any other length is rounded down as
        a whole clip would be, and ends the stream. Raises ValueError for a chunk that cannot follow.
        """
        if self._over:
            raise ValueError(self._over)
        if frames < 1:
            raise ValueError("a chunk needs at least one frame")
        if 0 < self._frames < first_chunk_frames:
            raise ValueError(
                f"pad_mode 'reflect' needs a first chunk of {first_chunk_frames} frames, got {self._frames}"
            )
        before, self._frames = self._frames, self._frames + frames
        if self.ends:
            self._over = "the stream has ended: its last chunk was said to be that"
        elif (self._frames - 1) % factor:
            self._over = f"the stream ended with a chunk of {frames} frames: only its last chunk may have such a length"
        return (self._frames - 1) // factor - (before - 1) // factor

    def lend(self, shape: tuple[int, int, int, int, int], like: Tensor) -> Tensor:
        """Return an unfilled tensor of this shape in `LAYOUT`. The next call reuses its memory."""
        size = math.prod(shape)
        if (
            self._room is None
            or self._room.numel() < size
            or (self._room.dtype, self._room.device)
            != (
                like.dtype,
                like.device,
            )
        ):
            self._room = None
            with torch.inference_mode(False):  # an inference tensor could not be written to outside of that mode
                self._room = torch.empty(size, dtype=like.dtype, device=like.device)
        b, c, t, h, w = shape
        return rearrange(self._room[:size].view(b, t, h, w, c), "b t h w c -> b c t h w")

    def cuts(self, height: int) -> bool:
        """Return True if pictures of so many rows would be cut into strips."""
        return 0 < self._strip_rows < height

    def cut(self, x: Tensor, step: int | None, scale: int = 1) -> list[Tensor]:
        """Cut a chunk (B, C, T, H, W) of the stream's input into strips, from top to bottom.

        A row of it stands for `scale` rows of the picture. Raises ValueError if the strips' height is no multiple of
        `step`, in rows of the picture; if that is None, if a picture would be cut at all.
        """
        height, self._step = x.shape[3], step and step // scale
        rows = (self._strip_rows or height * scale) // scale
        if rows < height and (step is None or self._strip_rows % step):
            takes = "whole pictures" if step is None else f"multiples of {step} rows"
            raise ValueError(f"strips of {self._strip_rows} rows for a network that takes {takes}")
        self.spans = [slice(at, min(at + rows, height)) for at in range(0, height, rows)]
        return [x[:, :, :, span] for span in self.spans]

    @property
    def top(self) -> bool:
        """True for the first strip of a picture."""
        return self.strip == 0

    @property
    def bottom(self) -> bool:
        """True for the last strip of a picture."""
        return self.strip == len(self.spans) - 1

    @property
    def is_whole(self) -> bool:
        """True if a picture is one strip, which a convolution pads by itself."""
        return len(self.spans) == 1

    @property
    def share(self) -> float:
        """The part of the picture that the strip is."""
        span = self.spans[self.strip]
        return (span.stop - span.start) / self.spans[-1].stop

    def rows(self, strip: Tensor) -> slice:
        """Return the rows of its picture that an activation (B, C, T, rows, W) has, as rows of that size."""
        start = self._scaled(self.spans[self.strip].start, strip)
        return slice(start, start + strip.shape[3])

    def unfilled_picture(self, strip: Tensor) -> Tensor:
        """Return an unfilled tensor in `LAYOUT` for the whole picture that an activation (B, C, T, rows, W) is a strip of."""
        b, c, t, _, w = strip.shape
        shape = b, c, t, self._scaled(self.spans[-1].stop, strip), w
        return torch.empty(shape, dtype=strip.dtype, device=strip.device, memory_format=LAYOUT)

    def picture(self, strip: Tensor) -> Picture | None:
        """Return the picture that an activation (B, C, T, rows, W) is a strip of, in its own rows; None if it is not cut."""
        if self._step is None:
            return None
        step = max(1, self._scaled(self._step, strip))  # an odd picture may have fewer rows than its share
        return Picture(self._scaled(self.spans[-1].stop, strip), step)

    def _scaled(self, rows: int, strip: Tensor) -> int:
        """Return how many rows of an activation, of which `strip` is a strip, stand for `rows` of the stream's input."""
        span = self.spans[self.strip]
        return rows * strip.shape[3] // (span.stop - span.start)

    @property
    def zero_rows(self) -> tuple[int, int]:
        """The rows of zeros that a 3x3 convolution needs above and below the strip."""
        return (0, 0) if self.is_whole else (int(self.top), int(self.bottom))

    def recall(self, layer: nn.Module) -> Band:
        """Return what the chunk before left of a layer's inputs, for the strip being computed."""
        past = self.past[layer].take(self.halo, self.bottom)
        if self.last and self.bottom:
            del self.past[layer]
        return past

    def remember(self, layer: nn.Module, strip: Tensor) -> None:
        """Keep a strip of a layer's last inputs for the next chunk."""
        if layer not in self.past:
            self.past[layer] = StripQueue(self.store)
        self.past[layer].put(strip)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """End the stream if an exception is raised inside, as some layers are then a chunk ahead of others."""
        try:
            yield
        except BaseException as error:
            self._over = f"the stream was spoiled by an earlier error: {error}"
            raise


class CausalConv3d(nn.Module):
    """3-D convolution that sees no later frame: (B, chan_in, T, H, W) to (B, chan_out, T / stride, H, W).

    Published as `CausalConv3d` (CogVideo, movq_enc_3d.py, after MAGVIT-v2). `kernel_size` is an int or (time, height,
    width). `stride` and `dilation` apply to time only. Height and width are padded with zeros to keep their size.

    `pad_mode` names the padding before the first frame:
    - `first`: the first frame, repeated.
    - `constant`: zeros. (The published code passes F.pad its tuple in the wrong order here: it pads width instead of
      time and sees a frame of the future. This class does what the name says.)
    - `reflect`: frames k .. 1, mirrored, so the first outputs do see k frames ahead. If the chunk has fewer frames,
      zeros come before them.

    Raises ValueError for a kernel that is even in height or width, an unknown pad mode, or a stride that would skip
    frames.
    """

    def __init__(
        self,
        chan_in: int,
        chan_out: int,
        kernel_size: int | tuple[int, int, int],
        pad_mode: str = "constant",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if pad_mode not in PAD_MODES:
            raise ValueError(f"pad_mode must be one of {', '.join(PAD_MODES)}, got {pad_mode!r}")
        kernel = (kernel_size,) * 3 if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(kernel) != 3 or kernel[1] % 2 == 0 or kernel[2] % 2 == 0:
            raise ValueError(f"kernel_size must be odd in height and width, got {kernel_size!r}")
        dilation, self.stride = kwargs.pop("dilation", 1), kwargs.pop("stride", 1)
        self.time_pad = dilation * (kernel[0] - 1) + 1 - self.stride
        if self.time_pad < 0:
            raise ValueError(f"a stride of {self.stride} skips frames of a kernel of {kernel[0]} in time")
        self.pad_mode = pad_mode
        self.conv = Conv3d(
            chan_in,
            chan_out,
            kernel,
            stride=(self.stride, 1, 1),
            dilation=(dilation, 1, 1),
            padding=(0, kernel[1] // 2, kernel[2] // 2),
            **kwargs,
        )

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        """Convolve x (B, chan_in, T, H, W). With a cache, T is a multiple of the stride."""
        if cache is not None and x.shape[2] % self.stride:
            raise ValueError(f"a chunk of {x.shape[2]} frames is not a multiple of the stride {self.stride}")
        if self.time_pad == 0:
            out: Tensor = self.conv(x)
            return out
        return self.run(Band(None, x, None), cache, lambda x, body: body.copy_(x))

    def run(self, band: Band, cache: StreamCache | None, write: Callable[[Tensor, Tensor], object]) -> Tensor:
        """Convolve what `write(piece, body)` makes of the pieces of a band, and return the rows of `band.inner()`.

        The layer before writes its result straight into the padded input; causal padding then needs no copy of the
        whole chunk. Takes the past from the cache and leaves the next chunk's there. The band is emptied.
        """
        b, c, t, rows, w = band.shape
        above, below = (0, 0) if cache is None else cache.zero_rows
        padded = unfilled((b, c, self.time_pad + t, above + rows + below, w), band.own, cache)
        inside, pad, own_rows = padded[:, :, :, above : above + rows], self.time_pad, band.own_rows
        body = inside[:, :, pad:]
        band.move(write, body)
        past = inside[:, :, :pad]
        if cache is not None and not cache.first:
            cache.recall(self).move(lambda before, out: out.copy_(before), past)
        else:
            self._fill_before_first(past, body)
        if cache is not None and not cache.last:
            kept = inside[:, :, t:, own_rows]
            cache.remember(self, torch.empty_like(kept, memory_format=LAYOUT).copy_(kept))
        if cache is None or cache.is_whole:
            whole: Tensor = self.conv(padded)
            return whole
        padded[:, :, :, :above].zero_()
        padded[:, :, :, above + rows :].zero_()
        return self.conv.of_rows(padded)

    def _fill_before_first(self, past: Tensor, x: Tensor) -> None:
        if self.pad_mode == "first":
            past.copy_(x[:, :, :1].expand_as(past))
            return
        past.zero_()
        if self.pad_mode == "reflect":
            mirrored = x[:, :, 1 : self.time_pad + 1].flip(2)
            past[:, :, past.shape[2] - mirrored.shape[2] :] = mirrored


def unfilled(shape: tuple[int, int, int, int, int], like: Tensor, cache: StreamCache | None) -> Tensor:
    """Return an unfilled tensor of this shape in `LAYOUT`.

    The cache lends it, if one is given and gradients are off; a gradient would need the tensor later.
    """
    if cache is None or torch.is_grad_enabled():
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=LAYOUT)
    return cache.lend(shape, like)


def fold_frames(x: Tensor) -> Tensor:
    """Return (B, C, T, H, W) as (B * T, C, H, W); a view if x is in `LAYOUT`."""
    return rearrange(x, "b c t h w -> (b t) c h w")


def unfold_frames(x: Tensor, batch: int) -> Tensor:
    """Return (B * T, C, H, W) as (B, C, T, H, W), a view."""
    return rearrange(x, "(b t) c h w -> b c t h w", b=batch)
