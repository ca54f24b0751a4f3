"""Storage for the chunks of a window between two stages: on the device, in host memory, then in a file.

First in, first out: the loop of stages.py asks for chunks in that order.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from types import TracebackType

import torch
from einops import rearrange
from torch import Tensor

from ..errors import MovqDiskError, MovqOutputError, option
from ..files import os_reason

Claim = Callable[[], list[Tensor]]
"""Gives back the tensors that were put into a store. It can be called once."""

_BLOCK = 64 << 20  # bytes per system call; Linux moves at most 2 GB in one


class SpillFile:
    """A ring buffer of `capacity` bytes in a temporary file of `folder` without a name, so that nothing is left behind.

    The file is read and written, never mapped: mapped pages would count as this process's memory. Use it in a `with`.
    Raises MovqOutputError if the folder cannot be written, MovqDiskError if reading or writing fails, as on a full
    disk.
    """

    def __init__(self, folder: str, capacity: int) -> None:
        self.folder, self.capacity = folder, capacity
        self._start = self._held = 0
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # closed by __exit__
        except OSError as error:
            raise MovqOutputError(
                f"{os_reason(error)}; {option('spill_dir')} names a folder for activations", folder
            ) from None

    def push(self, data: memoryview) -> None:
        """Write bytes after the last ones. Raises RuntimeError if they exceed the capacity."""
        if self._held + len(data) > self.capacity:
            raise RuntimeError(f"{self._held + len(data)} bytes for a spill file planned for {self.capacity}")
        self._move(data, self._start + self._held, os.pwrite)
        self._held += len(data)

    def pop(self, into: memoryview) -> None:
        """Read the oldest bytes and free their space."""
        self._move(into, self._start, lambda fd, view, at: os.preadv(fd, [view], at))
        self._start = (self._start + len(into)) % self.capacity
        self._held -= len(into)

    def _move(self, view: memoryview, at: int, move: Callable[[int, memoryview, int], int]) -> None:
        try:
            while view:
                at %= self.capacity
                moved = move(self._file.fileno(), view[: min(_BLOCK, self.capacity - at)], at)
                if not moved:
                    raise OSError("the spill file was cut")
                view, at = view[moved:], at + moved
        except OSError as error:
            reason = f"{os_reason(error)} while activations were spilled; {option('spill_dir')} names another folder"
            raise MovqDiskError(reason, self.folder) from error

    def __enter__(self) -> SpillFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class Store:
    """Keeps tensors (B, C, T, H, W) in three tiers.

    The tiers are the device's memory up to `device_bytes`, pinned host memory up to `host_bytes`, and `spill`. A limit
    of None means no limit. On a CPU, device and host memory are the same, and `host_bytes` is not used.
    """

    def __init__(
        self, device_bytes: int | None = None, host_bytes: int | None = None, spill: SpillFile | None = None
    ) -> None:
        self._limits = [device_bytes, host_bytes]
        self._used = [0, 0]
        self._spill = spill

    def put(self, tensors: list[Tensor]) -> Claim:
        """Keep tensors in the first tier that has room, and return a function that gives them back.

        Raises RuntimeError if no tier has room.
        """
        size = sum(t.numel() * t.element_size() for t in tensors)
        device = tensors[0].device
        for tier in range(1 if device.type == "cpu" else 2):
            limit = self._limits[tier]
            if limit is None or self._used[tier] + size <= limit:
                return self._keep([_to_host(t) for t in tensors] if tier else list(tensors), tier, size, device)
        if self._spill is None:
            raise RuntimeError("a store is full and has no file to spill into")
        return self._write(tensors, self._spill)

    def _keep(self, held: list[Tensor], tier: int, size: int, device: torch.device) -> Claim:
        self._used[tier] += size

        def take() -> list[Tensor]:
            self._used[tier] -= size
            taken = [t.to(device, non_blocking=True) for t in held]
            held.clear()
            return taken

        return take

    def _write(self, tensors: list[Tensor], spill: SpillFile) -> Claim:
        shapes = []
        for tensor in tensors:
            flat = rearrange(tensor, "b c t h w -> b t h w c").contiguous()  # its order in memory
            spill.push(_bytes(flat.cpu()))
            shapes.append((flat.shape, flat.dtype, flat.device))

        def take() -> list[Tensor]:
            taken = []
            for shape, dtype, device in shapes:
                flat = torch.empty(shape, dtype=dtype)
                spill.pop(_bytes(flat))
                taken.append(rearrange(flat.to(device), "b t h w c -> b c t h w"))
            return taken

        return take


def _to_host(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def _bytes(flat: Tensor) -> memoryview:
    return flat.view(-1).view(torch.uint8).numpy().data
