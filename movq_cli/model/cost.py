"""What a chunk costs to encode or to decode, from the config and the picture alone. No torch.

Counts follow stages.py and blocks.py: of a residual block's tensors, three are alive at once, one of them with its past,
whose memory is kept from layer to layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import AutoencoderConfig

MAX_ELEMENTS = 2**30
"""No tensor may have more: kernels that index by 32 bits are near."""

_CHUNK_ELEMENTS = 32 * 128 * 128 * 8
"""Activations of the first level from which longer chunks gain less than a tenth (movq-tiny, CPU: at 128x128, 8 frames give
100 frames per second, 16 give 104, 32 give 92; at 256x256 and above 4 are as fast as 16)."""
_CHUNK_LIMIT = 64
_PAST = 2
"""Frames of padding of a kernel of 3 in time, which every causal convolution here has."""


@dataclass(frozen=True)
class ChunkCost:
    """What one chunk costs, in elements.

    `activations` are alive at the worst moment, `caches` are kept for the next chunk, `largest` is the largest tensor, and
    `waiting` are kept between two stages at the worst barrier by a window of several chunks.
    """

    activations: int
    caches: int
    largest: int
    waiting: int

    def bytes(self, item_size: int, alone: bool = False) -> int:
        """Of memory that computing takes. `alone`: the chunk is all there is, and keeps nothing for a next one."""
        return (self.activations + (0 if alone else self.caches)) * item_size


def encode_cost(config: AutoencoderConfig, frames: int, height: int, width: int) -> ChunkCost:
    """Of a chunk of so many frames (the first one has one more than the rest) of height x width pixels."""
    tally = _Tally()
    channels, t, area = config.ch, frames, height * width
    tally.conv(config.in_channels, channels, frames, area)
    for level in range(config.levels):
        t = 1 + (frames - 1) // config.level_time(level)
        area = (height >> level) * (width >> level)
        for _ in range(config.num_res_blocks):
            tally.block(channels, config.level_channels(level), t, area)
            channels = config.level_channels(level)
            if config.resolution >> level in config.attn_resolutions:
                tally.attention(channels, t, area)
    for _ in range(2):
        tally.block(channels, channels, t, area)
    tally.conv(channels, config.moment_channels, t, area)
    return tally.cost()


def decode_cost(config: AutoencoderConfig, frames: int, height: int, width: int) -> ChunkCost:
    """Of a chunk that becomes so many frames, 1 + a multiple of the factor for the first one, of height x width pixels."""
    s = config.spatial_factor
    latents = -(-frames // config.temporal_factor)
    tally = _Tally(zq=(config.zq_ch or 0) * latents * (height // s) * (width // s))
    channels = config.level_channels(config.levels - 1)
    t, area = latents, (height // s) * (width // s)
    tally.conv(config.z_channels, channels, t, area)
    for _ in range(2):
        tally.block(channels, channels, t, area)
    for level in reversed(range(config.levels)):
        t = -(-frames // config.decoder_level_time(level))
        area = (height >> level) * (width >> level)
        for _ in range(config.num_res_blocks + 1):
            tally.block(channels, config.level_channels(level), t, area)
            channels = config.level_channels(level)
            if config.resolution >> level in config.attn_resolutions:
                tally.attention(channels, t, area)
        if level > 0:
            tally.upsample(channels, t, area, twice=config.doubles_time(level))
    tally.conv(channels, config.out_ch, t, area)
    return tally.cost()


class _Tally:
    """Layers in order, counted."""

    def __init__(self, zq: int = 0) -> None:
        self._zq = zq
        self._live = self._room = self._caches = self._largest = self._waiting = 0

    def cost(self) -> ChunkCost:
        return ChunkCost(self._live + self._zq, self._caches, self._largest, self._waiting + self._zq)

    def conv(self, inputs: int, outputs: int, t: int, area: int, beside: int = 0) -> None:
        padded = inputs * (t + _PAST) * area
        self._room = max(self._room, padded)
        self._alive(beside + outputs * t * area)
        self._largest = max(self._largest, padded, outputs * t * area)
        self._waiting = max(self._waiting, outputs * t * area)
        self._caches += inputs * _PAST * area

    def block(self, inputs: int, outputs: int, t: int, area: int) -> None:
        x = inputs * t * area
        self.conv(inputs, outputs, t, area, beside=x)
        self.conv(outputs, outputs, t, area, beside=x)
        if inputs != outputs:
            self._alive(x + 2 * outputs * t * area)
        self._waiting = max(self._waiting, (inputs + outputs) * t * area)

    def attention(self, channels: int, t: int, area: int) -> None:
        self._alive(6 * channels * t * area)

    def upsample(self, channels: int, t: int, area: int, twice: bool) -> None:
        """The frame enlarged, convolved, and where time doubles shown twice: 4 times the area each."""
        frame = channels * 4 * area * t
        self._alive(max(channels * t * area + 2 * frame, 3 * frame if twice else 0))
        self._largest = max(self._largest, frame * (2 if twice else 1))
        self._waiting = max(self._waiting, frame * (2 if twice else 1))

    def _alive(self, elements: int) -> None:
        """Beside what padded inputs are prepared in."""
        self._live = max(self._live, elements + self._room)


def default_chunk_frames(config: AutoencoderConfig, height: int, width: int) -> int:
    """The smallest chunk that is not slower than longer ones; a multiple of the temporal factor."""
    factor = config.temporal_factor
    least = factor * (2 if config.pad_mode == "reflect" else 1)
    wanted = -(-_CHUNK_ELEMENTS // (config.ch * height * width))
    return max(least, min(_CHUNK_LIMIT, -(-wanted // factor) * factor))
