"""What encoding a chunk costs, from the config and the picture alone. No torch.

Counts follow stages.py and blocks.py: of a residual block's tensors, three are alive at once, one of them with its past.
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


@dataclass(frozen=True)
class ChunkCost:
    """Elements, for one chunk: `activations` alive at the worst moment, `caches` kept between chunks, `largest` tensor."""

    activations: int
    caches: int
    largest: int

    def bytes(self, item_size: int) -> int:
        return (self.activations + self.caches) * item_size


def chunk_cost(config: AutoencoderConfig, frames: int, height: int, width: int) -> ChunkCost:
    """Of a chunk of so many frames (the first one has one more than the rest) of height x width pixels."""
    live, largest, caches = 0, 0, 0
    past = 2  # a kernel of 3 in time, which every causal convolution here has

    def conv(inputs: int, outputs: int, t: int, area: int, beside: int = 0) -> None:
        nonlocal live, largest, caches
        padded = inputs * (t + past) * area
        live = max(live, beside + padded + outputs * t * area)
        largest = max(largest, padded, outputs * t * area)
        caches += inputs * past * area

    def block(inputs: int, outputs: int, t: int, area: int) -> None:
        nonlocal live
        x = inputs * t * area
        conv(inputs, outputs, t, area, beside=x)
        conv(outputs, outputs, t, area, beside=x)
        if inputs != outputs:
            live = max(live, x + 2 * outputs * t * area)

    channels = config.ch
    conv(config.in_channels, channels, frames, height * width)
    for level in range(config.levels):
        t = _level_frames(config, level, frames)
        area = (height >> level) * (width >> level)
        for _ in range(config.num_res_blocks):
            block(channels, config.level_channels(level), t, area)
            channels = config.level_channels(level)
            if config.resolution >> level in config.attn_resolutions:
                live = max(live, 6 * channels * t * area)
    for _ in range(2):
        block(channels, channels, t, area)
    conv(channels, config.moment_channels, t, area)
    return ChunkCost(live, caches, largest)


def default_chunk_frames(config: AutoencoderConfig, height: int, width: int) -> int:
    """The smallest chunk that is not slower than longer ones; a multiple of the temporal factor."""
    factor = config.temporal_factor
    least = factor * (2 if config.pad_mode == "reflect" else 1)
    wanted = -(-_CHUNK_ELEMENTS // (config.ch * height * width))
    return max(least, min(_CHUNK_LIMIT, -(-wanted // factor) * factor))


def _level_frames(config: AutoencoderConfig, level: int, frames: int) -> int:
    return 1 + (frames - 1) // config.level_time(level)
