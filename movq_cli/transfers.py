"""Copying chunks to a CUDA device and results from it while it computes. On a CPU nothing is copied.

torch caches the memory on both sides, so that the memory of one chunk serves the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


class Uploads:
    """Copies arrays to the device from pinned memory, on its own CUDA stream, so that copying overlaps computing."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, chunk: np.ndarray) -> torch.Tensor:
        """Return the array as a tensor on the device.

        On a CPU both share memory, so use the tensor before changing the array. On a CUDA device, use it on the stream
        that is current now.
        """
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
    """Yield each result's tensors on the CPU. CUDA results are copied to pinned memory one result behind.

    So the copy of a result overlaps the computing of the next, and there is one wait per result.
    """
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
