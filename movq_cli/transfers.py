"""Chunks up to a CUDA device and results down from it, beside the computing; on a CPU, what is given.

By torch's documentation: unmeasured until there is a device (benchmarks/gpu.py). Memory on both sides is torch's to keep: what
one chunk has freed serves the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


class Uploads:
    """Takes arrays to the device, from pinned memory, on a stream of its own: a chunk arrives while another is computed."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, chunk: np.ndarray) -> torch.Tensor:
        """The array as a tensor on the device. It may be overwritten once the tensor has been used, as work is given out."""
        import torch

        if self._stream is None:
            return torch.from_numpy(chunk)
        pinned = torch.from_numpy(chunk).pin_memory()
        with torch.cuda.stream(self._stream):
            there = pinned.to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        there.record_stream(computing)
        return there


def landed(results: Iterable[tuple[torch.Tensor, ...]], device: torch.device) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the tensors of each result on the CPU, each waited for once the next is under way: one wait for a chunk."""
    import torch

    if device.type != "cuda":
        yield from results
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(result: tuple[torch.Tensor, ...]) -> tuple[tuple[torch.Tensor, ...], torch.cuda.Event]:
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            there = tuple(
                torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) for x in result
            )
            arrival = stream.record_event()
        for x in result:
            x.record_stream(stream)
        return there, arrival

    before: tuple[tuple[torch.Tensor, ...], torch.cuda.Event] | None = None
    for result in results:
        sent = send(result)
        if before is not None:
            before[1].synchronize()
            yield before[0]
        before = sent
    if before is not None:
        before[1].synchronize()
        yield before[0]
