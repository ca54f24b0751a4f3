"""Choose chunks, strips and where activations wait, so that encoding and decoding fit into memory.

Everything that does not fit is refused here, with the estimate, before the work.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .checkpoints.checkpoint import Checkpoint
from .device import available_memory, choose_device
from .errors import MovqError, MovqMemoryError, MovqOutputError, MovqUsageError, option
from .memory import ONE_PIECE, Need, NetworkMemory
from .model.config import AutoencoderConfig
from .model.cost import MAX_ELEMENTS
from .options import ModelOptions
from .schedule import WHOLE_WINDOW, check_chunk_frames, near_multiples
from .values import format_bytes
from .video.geometry import round_up

if TYPE_CHECKING:
    from .model.causal import StreamCache

LOW_STRIPS = 2
"""The height of low strips, in steps of `strip_step`. Lower ones take longer (docs/performance.md)."""


_TOO_LARGE = f"has a tensor of more than {MAX_ELEMENTS:,} numbers"


def check_weights(options: ModelOptions, checkpoint: Checkpoint) -> None:
    """Raise MovqUsageError if an option does not suit these weights."""
    if options.strip_rows is not None:
        _check_strip_rows(options.strip_rows, checkpoint)
    if options.chunk_frames is not None:
        check_chunk_frames(options.chunk_frames, checkpoint.config)
    if options.semantics != "auto" and checkpoint.semantics == "frame":
        raise MovqUsageError(
            f"{checkpoint.name} norms each frame by itself, which has no other semantics: leave it out",
            option="semantics",
        )


def _check_strip_rows(strip_rows: int, checkpoint: Checkpoint) -> None:
    """Raise MovqUsageError, naming the nearest multiples, if pictures cannot be cut into strips of this height."""
    step = checkpoint.config.strip_step
    if checkpoint.config.attends:
        raise MovqUsageError(
            f"{checkpoint.name} has attention, which sees the whole picture: leave it out", option="strip_rows"
        )
    if strip_rows % step:
        near = near_multiples(strip_rows, step)
        raise MovqUsageError(f"must be a multiple of {step} rows, got {strip_rows}: use {near}", option="strip_rows")


@dataclass(frozen=True)
class Budget:
    """The size of chunks and strips, and what that takes.

    `chunk_frames` is 0 if each window is one chunk, `strip_rows` if a picture is one strip; `strips` is their number.
    `memory_bytes` is the predicted peak of the process, or of a CUDA device's own memory. Between stages, activations
    wait in up to `device_bytes`, then `host_bytes`, then `spill_bytes` of a file in `spill_dir`. `warnings` concern the
    latents, `remarks` do not.
    """

    chunk_frames: int
    strip_rows: int
    strips: int
    memory_bytes: int
    device_bytes: int | None
    host_bytes: int | None
    spill_bytes: int
    spill_dir: str
    warnings: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @contextmanager
    def stream(self) -> Iterator[StreamCache]:
        """Yield the cache of a new stream. Its spill file has no name and is gone after the `with`."""
        from .model.causal import StreamCache
        from .model.store import SpillFile, Store

        with ExitStack() as stack:
            spill = stack.enter_context(SpillFile(self.spill_dir)) if self.spill_bytes else None
            yield StreamCache(store=Store(self.device_bytes, self.host_bytes, spill), strip_rows=self.strip_rows)

    def smaller(self, longest: int, height: int, config: AutoencoderConfig) -> dict[str, int]:
        """Return options that take about half of this memory: shorter chunks, then lower strips. {} if there are none.

        `longest` is the longest window or chunk in frames, 0 if it is not known, and `height` that of a picture.
        """
        factor, step = config.temporal_factor, config.strip_step
        most = longest - 1 if longest else self.chunk_frames  # the first chunk has a frame more than chunk_frames
        frames = min(self.chunk_frames or most, most)
        if frames > factor:
            return {"chunk_frames": max(factor, frames // 2 // factor * factor)}
        rows = self.strip_rows or height
        return {"strip_rows": round_up(rows // 2, step)} if rows > step and not config.attends else {}


def in_words(smaller: Mapping[str, int]) -> str:
    """Return in words what `Budget.smaller` returns."""
    frames, rows = smaller.get("chunk_frames"), smaller.get("strip_rows")
    return f"chunks of {frames} frames" if frames else f"strips of {rows} rows"


def least_memory(config: AutoencoderConfig) -> dict[str, int]:
    """Return options with which encoding and decoding take the least memory."""
    strips = {} if config.attends else {"strip_rows": config.strip_step}
    return {"chunk_frames": config.temporal_factor, **strips}


def make_budget(memory: NetworkMemory, options: ModelOptions) -> Budget:
    """Choose chunks, strips, and where activations wait. Raises MovqError with the estimate if nothing fits.

    With windows, one chunk for each is tried first. Then the default chunk, and shorter ones, with the first of these
    that fits: one piece, whose window may wait on disk; the fewest strips with which nothing has to wait on disk; low
    strips, and the rest waits on disk. The option `strip_rows` leaves no choice of strips.
    """
    return _Choice(memory, options).budget()


class _Choice:
    """The choice of a budget: what may be used, and what fits into it."""

    def __init__(self, memory: NetworkMemory, options: ModelOptions) -> None:
        self._memory, self._options, self._strip_rows = memory, options, options.strip_rows
        self._free = available_memory(memory.device)
        self._budget = options.memory_budget or self._free
        # With windows, the budget is kept by spilling what waits; computing one chunk may need more than it.
        self._most = max(self._budget, self._free) if memory.window else self._budget
        self._host: int | None = None
        if memory.device.type == "cuda":
            # torch rounds pinned memory up to powers of two and keeps it: a request may take twice its size.
            self._host = options.memory_budget or available_memory(choose_device("cpu")) // 3

    def budget(self) -> Budget:
        """Return the budget. Raises MovqError with the estimate if nothing fits."""
        memory, options = self._memory, self._options
        wanted = options.chunk_frames or memory.default_chunk
        factor = memory.config.temporal_factor
        if memory.window and options.chunk_frames is None and ONE_PIECE in self._heights(memory):
            need = memory.need(memory.longest(WHOLE_WINDOW), ONE_PIECE)
            if need.indexable and need.computing <= self._budget:
                return self._made(WHOLE_WINDOW, ONE_PIECE, need)
        asked = options.chunk_frames and self._fitting(memory, [wanted])
        found = asked or self._fitting(memory, range(wanted, 0, -factor))
        if found is None:
            raise self._refusal(factor)
        chunk, strip_rows, need = found
        if chunk != wanted and options.chunk_frames is not None:
            raise self._refusal(wanted, f"{option('chunk_frames', chunk)} fits")
        warning = f"chunks of {chunk} frames instead of {wanted}: more do not fit"
        return self._made(chunk, strip_rows, need, () if chunk == wanted else (warning,))

    def _fitting(self, memory: NetworkMemory, chunks: Sequence[int]) -> tuple[int, int, Need] | None:
        """Return the first chunk_frames and strip_rows that fit, and what they need; None if nothing fits."""
        heights = self._heights(memory)
        highest = LOW_STRIPS * memory.config.strip_step
        low = [rows for rows in heights if (rows or memory.height) <= highest] or heights

        def within(bytes_: int) -> Callable[[int, Need], bool]:
            return lambda rows, need: need.computing <= bytes_

        for among, fits in ((heights, self._fits), (low, within(self._budget)), (low, within(self._most))):
            for chunk in chunks:
                longest = memory.longest(chunk)
                for rows in among:
                    need = memory.need(longest, rows)
                    if need.indexable and fits(rows, need):
                        return chunk, rows, need
        return None

    def _heights(self, memory: NetworkMemory) -> list[int]:
        if self._strip_rows is None:
            return list(memory.strips())
        return [self._strip_rows if self._strip_rows < memory.height else ONE_PIECE]

    def _fits(self, strip_rows: int, need: Need) -> bool:
        """Return True if nothing has to wait on disk, or if a picture in one piece can be computed."""
        if strip_rows == ONE_PIECE:
            return need.computing <= self._budget
        return need.computing <= self._most and need.waiting + need.spare <= self._room(need)

    def _on_device(self, need: Need) -> int:
        """Return the bytes of the device in which activations may wait. With windows, a device's budget is its host's."""
        hosts = self._host is not None and self._memory.window
        return max(0, (self._free if hosts else self._budget) - need.computing)

    def _room(self, need: Need) -> int:
        return self._on_device(need) + (self._host or 0)

    def _made(self, chunk: int, strip_rows: int, need: Need, warnings: tuple[str, ...] = ()) -> Budget:
        memory, options = self._memory, self._options
        strips = -(-memory.height // strip_rows) if strip_rows else 1
        if not need.waiting:
            return Budget(chunk, strip_rows, strips, need.computing, None, None, 0, "", warnings)
        on_device = self._on_device(need)
        spill = max(0, need.waiting + need.spare - self._room(need)) * 11 // 10  # a tenth more for gaps in the file
        folder = options.spill_dir or tempfile.gettempdir()
        if spill:
            _require_disk(folder, spill)
        remarks = []
        if strip_rows and (spill or self._strip_rows is None):
            whole, why = memory.need(memory.longest(chunk), ONE_PIECE), ""
            if self._strip_rows is None:
                needs = f"needs about {format_bytes(whole.computing)} where {format_bytes(self._budget)} may be used"
                why = f", as a whole picture {needs if whole.indexable else _TOO_LARGE}"
            waits = f"; up to {format_bytes(spill)} of activations wait in {os.path.abspath(folder)}" if spill else ""
            remarks.append(f"computed in {strips} strips of {strip_rows} rows{why}{waits}")
        predicted = need.computing + min(on_device, need.waiting)
        return Budget(
            chunk, strip_rows, strips, predicted, on_device, self._host, spill, folder, warnings, tuple(remarks)
        )

    def _refusal(self, chunk: int, fits: str = "") -> MovqError:
        """Return the error that says what a chunk needs at least, and what to do."""
        memory = self._memory
        what = (
            f"a picture of {_by(memory.size)}"
            if memory.total == 1
            else f"a chunk of {chunk} frames of {_by(memory.size)}"
        )
        rows = self._heights(memory)[-1]
        need = memory.need(memory.longest(chunk), rows)
        what += f" in strips of {rows} rows" if rows else ""
        advice = fits or self._advice(need)
        if not need.indexable:
            return MovqError(f"{what} {_TOO_LARGE}; {advice}")
        needed, allowed = format_bytes(need.computing), format_bytes(self._most)
        return MovqMemoryError(f"{what} needs about {needed} where {allowed} may be used; {advice}")

    def _advice(self, need: Need) -> str:
        """Return what to do where not even the smallest chunk fits."""
        memory = self._memory
        if need.indexable and need.computing <= self._free:
            megabytes = -(-need.computing // 10**6)
            return f"{option('memory_budget', f'{megabytes}MB')} is enough"
        chunks = [memory.config.temporal_factor]
        largest = next((other.size for other in memory.smaller() if self._fitting(other, chunks)), None)
        return memory.advice + (f"; the largest that fits is {_by(largest)}" if largest else "")


def _by(size: tuple[int, int]) -> str:
    return "{}x{}".format(*size)


def _require_disk(folder: str, needed: int) -> None:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise MovqOutputError(f"{folder} cannot be used ({error.strerror})", option="spill_dir") from None
    if free < needed:
        raise MovqMemoryError(
            f"{format_bytes(needed)} of activations have to wait on disk, where {format_bytes(free)} are free; "
            f"{option('spill_dir')} names another folder, {option('memory_budget')} allows more memory",
            folder,
        )
