"""Choose the size of chunks and where activations wait, so that encoding and decoding fit into memory.

Everything that does not fit is refused here, with the estimate, before the work.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .checkpoints.checkpoint import Checkpoint
from .device import ITEM_SIZE, available_memory, choose_device, computed_size
from .errors import MovqError, MovqMemoryError, MovqOutputError, MovqUsageError, option
from .model.config import AutoencoderConfig
from .model.cost import MAX_ELEMENTS, ChunkCost
from .options import ModelOptions
from .schedule import WHOLE_WINDOW, check_chunk_frames
from .values import format_bytes

if TYPE_CHECKING:
    import torch

    from .model.store import Store

PROCESS_BYTES = 330 << 20
"""Resident memory of a process with torch loaded, before it has computed anything (measured: benchmarks/memory.py)."""

WORKSPACE_BYTES = 600 << 20
"""Memory that cuDNN's kernels take on a CUDA device beside activations, at most (measured: benchmarks/gpu.py)."""


def check_weights(options: ModelOptions, checkpoint: Checkpoint) -> None:
    """Raise MovqUsageError if an option does not suit these weights."""
    if options.chunk_frames is not None:
        check_chunk_frames(options.chunk_frames, checkpoint.config)
    if options.semantics != "auto" and checkpoint.semantics == "frame":
        raise MovqUsageError(
            f"{checkpoint.name} norms each frame by itself, which has no other semantics: leave it out",
            option="semantics",
        )


@dataclass(frozen=True)
class Task:
    """The memory needs of an encoding or a decoding. Lengths are in frames.

    `total`: the number of frames, or an upper bound, if known. `window`: the largest window (0: norms per frame, so
    each chunk is a window). `longest`: the longest chunk for a `chunk_frames`. `cost`: the cost of a chunk. `beside`:
    the bytes that a chunk takes besides activations. `default`: the `chunk_frames` to use if none is given. `picture`:
    WxH. `advice`: what to do if not even the smallest chunk fits. `smaller`: the tasks for smaller pictures, from large
    to small.
    """

    config: AutoencoderConfig
    parameters: int
    total: int | None
    window: int
    longest: Callable[[int], int]
    cost: Callable[[int], ChunkCost]
    beside: Callable[[int], int]
    default: int
    picture: str
    advice: str
    smaller: Callable[[], Iterable[Task]] = tuple

    def memory(self, chunk: int, precision: str, device: torch.device) -> int:
        """Return the predicted bytes at the peak, with chunks of `chunk` frames."""
        longest = self.longest(chunk)
        base = WORKSPACE_BYTES if device.type == "cuda" else PROCESS_BYTES
        computing = self.cost(longest).bytes(computed_size(precision, device), alone=longest == self.total)
        return base + self.parameters * ITEM_SIZE[precision] + computing + self.beside(longest)

    def indexable(self, chunk: int) -> bool:
        """Return True if no tensor of such a chunk has more than MAX_ELEMENTS elements."""
        return self.cost(self.longest(chunk)).largest <= MAX_ELEMENTS


@dataclass(frozen=True)
class Budget:
    """The size of chunks (`chunk_frames`; 0: each window in one chunk), and what that takes.

    `memory_bytes` is the predicted peak of the process, or of a CUDA device's own memory. Between stages, activations
    wait in up to `device_bytes`, then `host_bytes`, then `spill_bytes` of a file in `spill_dir`.
    """

    chunk_frames: int
    memory_bytes: int
    device_bytes: int
    host_bytes: int
    spill_bytes: int
    spill_dir: str
    warnings: tuple[str, ...]

    @contextmanager
    def store(self) -> Iterator[Store]:
        """Yield the store in which run_window keeps chunks. Its spill file has no name and is gone after the `with`."""
        from .model.store import SpillFile, Store

        if not (self.device_bytes or self.host_bytes or self.spill_bytes):
            yield Store()  # no chunk waits, except the one in progress
        elif not self.spill_bytes:
            yield Store(self.device_bytes, self.host_bytes)
        else:
            with SpillFile(self.spill_dir, self.spill_bytes) as spill:
                yield Store(self.device_bytes, self.host_bytes, spill)


def make_budget(task: Task, options: ModelOptions, device: torch.device, precision: str) -> Budget:
    """Choose the size of chunks and where activations wait. Raises MovqError with the estimate if nothing fits.

    With norms per frame, this is the default chunk, or a shorter one if it exceeds the budget. With windows, it is one
    chunk per window if that fits the budget; if not, the default chunk, and activations wait in what the budget leaves,
    then in a file.
    """
    item = ITEM_SIZE[precision]
    free = available_memory(device)
    budget = options.memory_budget or free
    # With windows, the budget is kept by spilling what waits; one chunk may need more than it.
    most = max(budget, free) if task.window else budget

    def memory(chunk: int) -> int:
        return task.memory(chunk, precision, device)

    def fits(task: Task, chunk: int) -> bool:
        return task.memory(chunk, precision, device) <= most and task.indexable(chunk)

    def refuse(chunk: int, advice: str) -> MovqError:
        what = f"a picture of {task.picture}" if task.total == 1 else f"a chunk of {chunk} frames of {task.picture}"
        if not task.indexable(chunk):
            return MovqError(f"{what} has a tensor of more than {MAX_ELEMENTS:,} numbers; {advice}")
        needed, allowed = format_bytes(memory(chunk)), format_bytes(most)
        return MovqMemoryError(f"{what} needs about {needed} where {allowed} may be used; {advice}")

    if task.window and options.chunk_frames is None and memory(WHOLE_WINDOW) <= budget and task.indexable(WHOLE_WINDOW):
        return Budget(WHOLE_WINDOW, memory(WHOLE_WINDOW), 0, 0, 0, "", ())
    wanted = options.chunk_frames or task.default
    factor = task.config.temporal_factor
    chunk = next((n for n in range(wanted, 0, -factor) if fits(task, n)), None)
    if chunk is None:
        largest = next((other.picture for other in task.smaller() if fits(other, factor)), None)
        raise refuse(factor, task.advice + (f"; the largest that fits is {largest}" if largest else ""))
    if chunk != wanted and options.chunk_frames is not None:
        raise refuse(wanted, f"{option('chunk_frames', chunk)} fits")
    warnings = () if chunk == wanted else (f"chunks of {chunk} frames instead of {wanted}: more do not fit",)
    longest = task.longest(chunk)
    if longest >= task.window:
        return Budget(chunk, memory(chunk), 0, 0, 0, "", warnings)
    waiting = task.cost(task.window).waiting * item
    on_device, on_host = max(0, budget - memory(chunk)), 0
    if device.type == "cuda":
        # torch rounds pinned memory up to powers of two and keeps it: a request may take twice its size.
        on_device = max(0, free - memory(chunk))
        on_host = options.memory_budget or available_memory(choose_device("cpu")) // 3
    predicted = memory(chunk) + min(on_device, waiting)
    # Three chunks more: one passes between stages, and each of the two tiers may have room left, but not for a chunk.
    spill = max(0, waiting + 3 * task.cost(longest).waiting * item - on_device - on_host)
    folder = options.spill_dir or tempfile.gettempdir()
    if spill:
        _require_disk(folder, spill)
    return Budget(chunk, predicted, on_device, on_host, spill, folder, warnings)


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
