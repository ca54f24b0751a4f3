"""The cost of encoding or decoding a chunk, computed from the config and the size of the picture. No torch.

Counts follow stages.py and blocks.py. Three tensors of a residual block are alive at once; one of them is a padded
input, with its past, whose memory is reused from layer to layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import AutoencoderConfig

MAX_ELEMENTS = 2**30
"""The most elements a tensor may have. The limit of kernels that index with 32 bits is not far above it."""

_CHUNK_ELEMENTS = {"cpu": 32 * 128 * 128 * 8, "cuda": 2**28}
"""Activations of the first level above which longer chunks gain less than a tenth, by the kind of device (movq-tiny,
CPU: at 128x128, chunks of 8 frames give 100 frames per second, 16 give 104, 32 give 92; at 256x256 and above, 4 are as
fast as 16). On a CUDA device a short chunk does not pay for its kernel launches (docs/performance.md)."""
_CHUNK_LIMIT = 64
_PAST = 2
"""Frames of padding of a kernel with 3 taps in time, as every causal convolution counted here has."""


_HALO = 3
"""Rows that a strip has beside its own at the most: one above, and two below if a downsample follows the convolution."""


@dataclass(frozen=True)
class ChunkCost:
    """The memory of one chunk, in elements.

    `activations` are alive at the worst moment. `caches` are kept for the next window, and at most `largest_cache` for
    the next chunk of a window, whose layers take turns. `largest` is the size of the largest tensor that is computed.
    `waiting` is what the chunk keeps between two stages at the worst barrier, if it has several strips or its window
    several chunks; `growing` is the same in a first window, with the caches that its stages have left by then.
    """

    activations: int
    caches: int
    largest_cache: int
    largest: int
    waiting: int
    growing: int


def encode_cost(config: AutoencoderConfig, frames: int, height: int, width: int, strip_rows: int = 0) -> ChunkCost:
    """Return the cost of encoding a chunk of `frames` frames of height x width pixels, in strips (0: in one piece).

    The first chunk of a stream has one frame more than the others.
    """
    tally = _Tally(height, width, strip_rows)
    channels, t = config.ch, frames
    tally.conv(config.in_channels, channels, frames)
    for level in range(config.levels):
        t = 1 + (frames - 1) // config.level_time(level)
        tally.level = level
        for _ in range(config.num_res_blocks):
            tally.block(channels, config.level_channels(level), t)
            channels = config.level_channels(level)
            if config.attends_at(level):
                tally.attention(channels, t)
    for _ in range(2):
        tally.block(channels, channels, t)
    tally.conv(channels, config.moment_channels, t)
    return tally.cost()


def decode_cost(config: AutoencoderConfig, frames: int, height: int, width: int, strip_rows: int = 0) -> ChunkCost:
    """Return the cost of decoding a chunk to `frames` frames of height x width pixels, in strips (0: in one piece).

    The first chunk of a stream has 1 + a multiple of the temporal factor.
    """
    s = config.spatial_factor
    latents = -(-frames // config.temporal_factor)
    tally = _Tally(height, width, strip_rows, zq=(config.zq_ch or 0) * latents * (height // s) * (width // s))
    tally.level = config.levels - 1
    channels, t = config.level_channels(tally.level), latents
    tally.conv(config.z_channels, channels, t)
    for _ in range(2):
        tally.block(channels, channels, t)
    for level in reversed(range(config.levels)):
        t = -(-frames // config.decoder_level_time(level))
        tally.level = level
        for _ in range(config.num_res_blocks + 1):
            tally.block(channels, config.level_channels(level), t)
            channels = config.level_channels(level)
            if config.attends_at(level):
                tally.attention(channels, t)
        if level > 0:
            tally.upsample(channels, t, twice=config.doubles_time(level))
    tally.conv(channels, config.out_ch, t)
    return tally.cost()


class _Tally:
    """Counts the memory of layers, which are given in order; `level` is that of the next ones."""

    def __init__(self, height: int, width: int, strip_rows: int = 0, zq: int = 0) -> None:
        self._height, self._width, self._strip_rows, self._zq = height, width, strip_rows, zq
        self.level = 0
        self._live = self._room = self._caches = self._largest_cache = self._largest = self._waiting = 0
        self._growing = 0

    def cost(self) -> ChunkCost:
        live, waiting = self._live + self._zq, self._waiting + self._zq
        return ChunkCost(live, self._caches, self._largest_cache, self._largest, waiting, self._growing + self._zq)

    @property
    def _picture(self) -> int:
        """The size of a picture at this level."""
        return (self._height >> self.level) * (self._width >> self.level)

    @property
    def _piece(self) -> int:
        """The size of what is computed at once: a picture, or a strip of it with its neighbours' rows."""
        if not self._strip_rows:
            return self._picture
        return ((self._strip_rows >> self.level) + _HALO) * (self._width >> self.level)

    def conv(self, inputs: int, outputs: int, t: int, beside: int = 0) -> None:
        padded = inputs * (t + _PAST) * self._piece
        self._room = max(self._room, padded)
        self._alive(beside + outputs * t * self._piece)
        self._largest = max(self._largest, padded, outputs * t * self._piece)
        cache = inputs * _PAST * self._picture
        self._caches += cache
        self._largest_cache = max(self._largest_cache, cache)
        self._waits(outputs * t * self._picture)

    def block(self, inputs: int, outputs: int, t: int) -> None:
        x, h = inputs * t * self._piece, outputs * t * self._piece
        # With strips, those below the one that is computed are in memory too.
        self.conv(inputs, outputs, t, beside=2 * x if self._strip_rows else x)
        self.conv(outputs, outputs, t, beside=2 * x + h if self._strip_rows else x)
        if inputs != outputs:
            self._alive(2 * x + 3 * h if self._strip_rows else x + 2 * h)
        self._waits((inputs + outputs) * t * self._picture)

    def attention(self, channels: int, t: int) -> None:
        self._alive(6 * channels * t * self._picture)

    def upsample(self, channels: int, t: int, twice: bool) -> None:
        """Count the enlarged, the convolved and, if time doubles, the repeated frames, each of 4 times the area."""
        times = 2 if twice else 1
        self._waits(channels * t * self._picture)
        x = channels * t * self._piece * (2 if self._strip_rows else 1)
        self.level -= 1
        frames = channels * t * self._piece
        self._room = max(self._room, frames)
        self._alive(max(x + frames, 3 * frames if twice else 0))
        self._largest = max(self._largest, frames * times)
        self._waits(channels * t * times * self._picture)

    def _waits(self, elements: int) -> None:
        """Count elements that wait behind the layers so far, beside the caches of these."""
        self._waiting = max(self._waiting, elements)
        self._growing = max(self._growing, elements + self._caches)

    def _alive(self, elements: int) -> None:
        """Count elements that are alive together with the memory that padded inputs are prepared in."""
        self._live = max(self._live, elements + self._room)


def default_chunk_frames(config: AutoencoderConfig, height: int, width: int, device: str) -> int:
    """Return the shortest chunk that is about as fast as longer ones on a kind of device, `cpu` or `cuda`.

    It is in frames, a multiple of the temporal factor.
    """
    factor = config.temporal_factor
    least = factor * (2 if config.pad_mode == "reflect" else 1)
    wanted = -(-_CHUNK_ELEMENTS[device] // (config.ch * height * width))
    return max(least, min(_CHUNK_LIMIT, -(-wanted // factor) * factor))
