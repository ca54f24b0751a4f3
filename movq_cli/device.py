"""The device, precision and threads to compute with, and the memory that is free.

The meaning of `auto` is decided here; the choice is recorded in every file.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from .errors import MovqError, MovqOutOfMemoryError, MovqUsageError, option, require_torch
from .options import PRECISIONS

if TYPE_CHECKING:
    import torch

ITEM_SIZE = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "could not create a primitive")  # the last is oneDNN's
MEMORY_MARGIN = 0.9
"""The part of the free memory that a run may plan with."""


def choose_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises MovqUsageError for another name, MovqError if torch does not see the device.
    """
    require_torch()
    import torch

    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()) or (kind == "cpu" and number):
        raise MovqUsageError(f"must be auto, cpu, cuda or cuda:N, got {name!r}", option="device")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(number or 0)
    if index >= count:
        raise MovqError(f"{name} is not there: torch sees {count} CUDA devices", option="device")
    return torch.device("cuda", index)


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision to compute in. `auto` is bf16 on a CUDA device that computes it natively, otherwise fp32.

    Raises MovqUsageError for an unknown precision, or one that the device cannot compute. On a CPU with native bf16,
    bf16 is faster but may lose more than a decibel (docs/precision.md).
    """
    import torch

    if name == "auto":
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if native else "fp32"
    if name not in PRECISIONS:
        raise MovqUsageError(f"must be auto, {', '.join(PRECISIONS)}, got {name!r}", option="precision")
    if device.type == "cpu" and name in ("tf32", "fp16"):
        raise MovqUsageError(f"{name} is for CUDA devices; a CPU computes fp32 or bf16", option="precision")
    return name


def computed_size(precision: str, device: torch.device) -> int:
    """Return the bytes of a number during computing. A CPU without native bf16 computes bf16 in fp32."""
    from .model.convolution import cpu_computes_bf16

    emulated = precision == "bf16" and device.type == "cpu" and not cpu_computes_bf16()
    return ITEM_SIZE["fp32" if emulated else precision]


def dtype_of(precision: str) -> torch.dtype:
    """Return the torch dtype of a precision."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


@contextmanager
def computing(precision: str, threads: int | None) -> Iterator[None]:
    """Set torch up for a run and restore it afterwards: threads, deterministic cuDNN choices, and how fp32 is computed.

    fp32 is computed in full (IEEE), or as TF32 for the precision `tf32`, regardless of the caller's settings.
    """
    import torch

    with ExitStack() as undo:
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        if threads is not None:
            torch.set_num_threads(threads)
        _set(torch.backends.cudnn, "benchmark", False, undo)
        if _has_fp32_precision():
            _set_fp32_precision("tf32" if precision == "tf32" else "ieee", undo)
        else:
            undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
            _set(torch.backends.cudnn, "allow_tf32", precision == "tf32", undo)
        yield


def _has_fp32_precision() -> bool:
    """Return True if torch has `fp32_precision` (2.9 and newer). Reading the older settings may then raise."""
    import torch

    return hasattr(torch.backends, "fp32_precision")


def _set_fp32_precision(kind: str, undo: ExitStack) -> None:
    """Make torch compute fp32 as `kind`, ieee or tf32, until `undo` ends."""
    import torch

    backends: Any = torch.backends
    onednn, cudnn = backends.mkldnn, backends.cudnn
    settings = [backends, cudnn, backends.cuda.matmul, cudnn.conv, onednn.matmul, onednn.conv]
    # A private class is used, as from torch 2.9 to 2.13 writing to onednn.fp32_precision sets it for all backends.
    with suppress(TypeError):
        settings.insert(2, type(onednn.conv)("mkldnn", "all"))
    # A setting without its own value takes that of one to its left, and reading it does not tell which one has the
    # value. So a setting is written only if it still differs: the value read is then its own, and can be restored.
    for setting in settings:
        if setting.fp32_precision != kind:
            _set(setting, "fp32_precision", kind, undo)


def _set(owner: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Set an attribute until `undo` ends."""
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn out-of-memory errors, torch's included, into MovqOutOfMemoryError, which says what to try."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = str(error)
        if isinstance(error, MemoryError) or any(sign in words for sign in _OUT_OF_MEMORY):
            raise MovqOutOfMemoryError(
                f"ran out of memory; try a smaller {option('chunk_frames')} or picture"
            ) from error
        raise


def free_memory(device: torch.device) -> None:
    """Free memory that is no longer used, after memory ran out."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available_memory(device: torch.device) -> int:
    """Return the bytes a run may plan with: the device's free memory, for a CPU within its cgroup, less a margin."""
    import torch

    if device.type == "cuda":
        # Memory that torch caches counts as free, so that a plan does not depend on what was computed before.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((torch.cuda.mem_get_info(device)[0] + kept) * MEMORY_MARGIN)
    return int(_host_memory() * MEMORY_MARGIN)


def _host_memory() -> int:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    free = int(line.split()[1]) * 1024
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            most = int(limit.read())
            taken = int(used.read())
        with open("/sys/fs/cgroup/memory.stat") as file:  # file cache counts as used, but is freed when needed
            taken -= sum(int(line.split()[1]) for line in file if line.startswith("inactive_file "))
            free = min(free, most - taken)
    except (OSError, ValueError):
        pass  # no cgroup, or no limit in it ("max")
    return free


def usable_cores() -> int:
    """Return the number of CPU cores this process may use, within its cgroup's limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = map(int, file.read().split())
        return max(1, min(cores, quota // period))
    except (OSError, ValueError):
        return cores  # no cgroup, or no limit in it ("max")


def spare_page_faults() -> None:
    """Make glibc keep freed memory for the next chunk, and torch allocate large tensors in huge pages.

    Getting memory from Linux in pages of 4 kB costs more than filling it. Peak memory becomes steadier too. Call it
    only in a process of movq's own, and before torch is imported: it affects the whole process and cannot be undone.
    The parts have no effect with another C library, or if huge pages are off.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch, for tensors of 2 MB and more
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, 24 << 20)  # larger ones get huge pages, fast enough without being kept
        mallopt(trim_threshold, (1 << 31) - 1)
