"""Storage for activations between two stages: on the device, in host memory, then in a file."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import torch
from einops import rearrange
from torch import Tensor

from ..errors import MovqDiskError, MovqOutputError, option
from ..files import os_reason

_IN_FLIGHT = 3  # copies to the host that may be under way
_BLOCK = 64 << 20  # bytes per system call; Linux moves at most 2 GB in one


class SpillFile:
    """A temporary file of `folder` without a name, so that nothing is left behind. Room that is freed is used again.

    The file is read and written, never mapped: mapped pages would count as this process's memory. Use it in a `with`.
    Raises MovqOutputError if the folder cannot be written, MovqDiskError if reading or writing fails, as on a full
    disk.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.end = 0
        """The most bytes that the file has had."""
        self._gaps: list[tuple[int, int]] = []  # (start, end) of every gap, in order
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # closed by __exit__
        except OSError as error:
            raise MovqOutputError(
                f"{os_reason(error)}; {option('spill_dir')} names a folder for activations", folder
            ) from None

    def write(self, data: memoryview) -> int:
        """Write bytes into the smallest gap that has room, or at the end. Return where they begin."""
        size = len(data)
        fitting = [(end - start, i) for i, (start, end) in enumerate(self._gaps) if end - start >= size]
        if fitting:
            _, i = min(fitting)
            start, end = self._gaps[i]
            self._gaps[i : i + 1] = [(start + size, end)] if end - start > size else []
        else:
            start, self.end = self.end, self.end + size
        self._move(data, start, os.pwrite)
        return start

    def read(self, start: int, into: memoryview) -> None:
        """Read bytes from `start` until `into` is full."""
        self._move(into, start, lambda fd, view, at: os.preadv(fd, [view], at))

    def free(self, start: int, size: int) -> None:
        """Make a gap of bytes that are not needed any more, one with the gaps beside it."""
        end, apart = start + size, []
        for gap in self._gaps:
            if gap[1] < start or end < gap[0]:
                apart.append(gap)
            else:
                start, end = min(start, gap[0]), max(end, gap[1])
        self._gaps = sorted([*apart, (start, end)])

    def _move(self, view: memoryview, at: int, move: Callable[[int, memoryview, int], int]) -> None:
        try:
            while view:
                moved = move(self._file.fileno(), view[:_BLOCK], at)
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


@dataclass(frozen=True)
class Held:
    """A tensor in a store. `get` returns it, on its device, as often as it is called; `free` gives its room back."""

    get: Callable[[], Tensor]
    free: Callable[[], None]


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
        self._copies: _HostCopies | None = None

    def put(self, tensor: Tensor) -> Held:
        """Keep a tensor in the first tier that has room. Raises RuntimeError if no tier has."""
        size, device = tensor.numel() * tensor.element_size(), tensor.device
        for tier in range(1 if device.type == "cpu" else 2):
            limit = self._limits[tier]
            if limit is None or self._used[tier] + size <= limit:
                return self._keep(self._on_host(tensor) if tier else lambda: tensor, tier, size)
        if self._spill is None:
            raise RuntimeError("a store is full and has no file to spill into")
        return _written(tensor, self._spill)

    def _keep(self, get: Callable[[], Tensor], tier: int, size: int) -> Held:
        self._used[tier] += size

        def free() -> None:
            self._used[tier] -= size

        return Held(get, free)

    def _on_host(self, tensor: Tensor) -> Callable[[], Tensor]:
        if self._copies is None:
            self._copies = _HostCopies(tensor.device)
        return self._copies.send(tensor)


class _HostCopies:
    """Copies to pinned host memory and back. Each way has its own CUDA stream, so that both overlap computing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._out, self._back = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]
        self._sent = deque[torch.cuda.Event]()

    def send(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Copy a tensor to the host, and return a function that copies it back for the stream that is current then."""
        self._out.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._out):
            there = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
            arrived = self._out.record_event()
        tensor.record_stream(self._out)
        self._sent.append(arrived)
        if len(self._sent) > _IN_FLIGHT:  # each keeps its tensor on the device until it has arrived
            self._sent.popleft().synchronize()

        def get() -> Tensor:
            with torch.cuda.stream(self._back):
                self._back.wait_event(arrived)
                back = there.to(self._device, non_blocking=True)
            computing = torch.cuda.current_stream(self._device)
            computing.wait_stream(self._back)
            back.record_stream(computing)
            return back

        return get


def return_freed_memory() -> None:
    """Give memory that is free back to the system. glibc keeps it, which is fast, but it counts as this process's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _written(tensor: Tensor, spill: SpillFile) -> Held:
    flat = rearrange(tensor, "b c t h w -> b t h w c").contiguous()  # its order in memory
    start, shape, dtype, device = spill.write(_bytes(flat.cpu())), flat.shape, flat.dtype, flat.device
    size = flat.numel() * flat.element_size()

    def get() -> Tensor:
        read = torch.empty(shape, dtype=dtype)
        spill.read(start, _bytes(read))
        return rearrange(read.to(device), "b t h w c -> b c t h w")

    return Held(get, lambda: spill.free(start, size))


def _bytes(flat: Tensor) -> memoryview:
    return flat.view(-1).view(torch.uint8).numpy().data
