"""Streaming, and the convolution that needs it: one explicit cache per stream, and `CausalConv3d`.

A whole clip is a stream of one chunk, so there is one code path. What is not here: norms (norms.py), which are the only
layers that may look further than the cache remembers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import PAD_MODES
from .convolution import LAYOUT, Conv3d


class StreamCache:
    """What one stream leaves behind between its chunks, made by the caller and passed down; modules hold nothing.

    `past` maps each causal convolution to its last inputs; `first` and `last` say whether the chunk now being computed is
    the stream's first or last, as told by whoever feeds the chunks. A last chunk leaves nothing behind. Besides, it lends
    the memory that one layer's input is prepared in to the next: fresh memory costs more to get than to fill.
    """

    def __init__(self, ends: bool = False) -> None:
        self.first, self.last = True, False
        self.ends = ends
        """Whether the chunk given next, or taken last, is known to be the stream's last."""
        self.past: dict[nn.Module, Tensor] = {}
        self._frames = 0
        self._room: Tensor | None = None
        self._over = ""

    @property
    def frames(self) -> int:
        """Frames taken so far."""
        return self._frames

    def end(self) -> None:
        """To be called before the stream's last chunk is given, where that is known: it then keeps no past for another."""
        self.ends = True

    def take(self, frames: int, *, factor: int, first_chunk_frames: int = 1) -> int:
        """Books a chunk of the stream and returns how many outputs it gives.

        The first chunk has 1 + n * factor frames, later ones n * factor. A chunk of any other length is floored as a
        whole clip would be, and ends the stream. Raises ValueError for a chunk that cannot follow.
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
        """An unfilled tensor of this shape, in this project's layout, which the next one lent overwrites."""
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
            with torch.inference_mode(False):  # or it could not be written to outside of that mode
                self._room = torch.empty(size, dtype=like.dtype, device=like.device)
        b, c, t, h, w = shape
        return rearrange(self._room[:size].view(b, t, h, w, c), "b t h w c -> b c t h w")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """An exception inside leaves some layers a chunk ahead of others: the stream cannot go on."""
        try:
            yield
        except BaseException as error:
            self._over = f"the stream was spoiled by an earlier error: {error}"
            raise


class CausalConv3d(nn.Module):
    """3-D convolution that sees no later frame: (B, chan_in, T, H, W) to (B, chan_out, T / stride, H, W).

    Published as `CausalConv3d` (CogVideo, movq_enc_3d.py, after MAGVIT-v2). `kernel_size` is an int or (time, height,
    width); `stride` and `dilation` act on time alone; height and width are padded with zeros to keep their size.

    pad_mode names what stands before the first frame:
    - `first`: the first frame, repeated;
    - `constant`: zeros. (The published code hands F.pad its tuple in the wrong order here: it pads width instead of
      time and sees a frame of the future. This does what the name says.)
    - `reflect`: frames k .. 1 mirrored, so the first outputs do see that far ahead; with fewer frames, zeros in front.

    Raises ValueError for a kernel that is even in space, an unknown pad mode, or a stride that would skip frames.
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
            return self._conv(x)
        padded = self.buffer(x, cache)
        self.body(padded).copy_(x)
        return self.run(padded, cache)

    # The three steps of forward, apart, so that the layer in front can write its result where it is needed: causal
    # padding then costs no copy of the whole chunk.

    def buffer(self, x: Tensor, cache: StreamCache | None) -> Tensor:
        """An unfilled input for `run`, with room for the past in front of the frames of x."""
        b, c, t, h, w = x.shape
        return unfilled((b, c, self.time_pad + t, h, w), x, cache)

    def body(self, padded: Tensor) -> Tensor:
        """Where in a buffer the frames of the chunk belong."""
        return padded[:, :, self.time_pad :]

    def run(self, padded: Tensor, cache: StreamCache | None) -> Tensor:
        """The convolution of a buffer whose body is filled."""
        pad = self.time_pad
        if pad:
            if cache is not None and not cache.first:
                padded[:, :, :pad] = cache.past.pop(self)
            else:
                self._fill_before_first(padded[:, :, :pad], self.body(padded))
            if cache is not None and not cache.last:
                cache.past[self] = padded[:, :, -pad:].clone()
        return self._conv(padded)

    def _conv(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out

    def _fill_before_first(self, past: Tensor, x: Tensor) -> None:
        if self.pad_mode == "first":
            past.copy_(x[:, :, :1].expand_as(past))
            return
        past.zero_()
        if self.pad_mode == "reflect":
            mirrored = x[:, :, 1 : self.time_pad + 1].flip(2)
            past[:, :, past.shape[2] - mirrored.shape[2] :] = mirrored


def unfilled(shape: tuple[int, int, int, int, int], like: Tensor, cache: StreamCache | None) -> Tensor:
    """A tensor of this shape in this project's layout: lent by the cache, if there is one and no gradient needs it later."""
    if cache is None or torch.is_grad_enabled():
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=LAYOUT)
    return cache.lend(shape, like)


def fold_frames(x: Tensor) -> Tensor:
    """Return (B, C, T, H, W) as (B * T, C, H, W): a view, in this project's layout."""
    return rearrange(x, "b c t h w -> (b t) c h w")


def unfold_frames(x: Tensor, batch: int) -> Tensor:
    """Return (B * T, C, H, W) as (B, C, T, H, W), a view."""
    return rearrange(x, "(b t) c h w -> b c t h w", b=batch)


def upsample_space(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, 2H, 2W), nearest."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
