"""Where and how exactly to compute: device, precision, threads, and how much memory there is.

What `auto` becomes is decided here and recorded in every file.
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
"""Of the memory that is free, the part a run may plan with."""


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Raises MovqUsageError for another name, MovqError for one that is not there."""
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
    """`auto` is bf16 on a CUDA device that computes it natively, else fp32. Raises MovqUsageError for what it cannot do.

    On a CPU bf16 is faster where it is native, but may lose more than a decibel (docs/precision.md).
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
    """Bytes of a number that is being computed: a CPU that does not compute bf16 does it in fp32."""
    from .model.convolution import cpu_computes_bf16

    emulated = precision == "bf16" and device.type == "cpu" and not cpu_computes_bf16()
    return ITEM_SIZE["fp32" if emulated else precision]


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype that a precision computes in."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


@contextmanager
def computing(precision: str, threads: int | None) -> Iterator[None]:
    """Set torch up for a run and put it back after: threads, deterministic cuDNN choices, and how fp32 is computed.

    fp32 is computed in full (IEEE), or as TF32 for the precision `tf32`, whatever the caller has set.
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
    """Return True where torch has `fp32_precision` (2.9 and newer). Reading the older settings may then raise."""
    import torch

    return hasattr(torch.backends, "fp32_precision")


def _set_fp32_precision(kind: str, undo: ExitStack) -> None:
    """Have fp32 computed as `kind`, ieee or tf32, until `undo` ends."""
    import torch

    backends: Any = torch.backends
    onednn, cudnn = backends.mkldnn, backends.cudnn
    settings = [backends, cudnn, backends.cuda.matmul, cudnn.conv, onednn.matmul, onednn.conv]
    # A private class: from 2.9 to 2.13 onednn.fp32_precision, once written to, is that of all backends.
    with suppress(TypeError):
        settings.insert(2, type(onednn.conv)("mkldnn", "all"))
    # A setting without a value of its own follows one to the left, and reading it does not tell which of them has the value.
    # So each is written to only where it does not follow: then what was read is its own, and can be put back.
    for setting in settings:
        if setting.fp32_precision != kind:
            _set(setting, "fp32_precision", kind, undo)


def _set(owner: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Set an attribute until `undo` ends."""
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns out-of-memory errors, torch's own among them, into a line that says what to try."""
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
    """Gives back what is held for no use any more, after memory ran out."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available_memory(device: torch.device) -> int:
    """Bytes a run may plan with: what the device has free, less a margin; for a CPU within its control group's limit."""
    import torch

    if device.type == "cuda":
        # What torch holds and does not use is free too, or else a plan would depend on what was computed before.
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
        with open("/sys/fs/cgroup/memory.stat") as file:  # files read lately count as used, and are given up at need
            taken -= sum(int(line.split()[1]) for line in file if line.startswith("inactive_file "))
            free = min(free, most - taken)
    except (OSError, ValueError):
        pass  # no control group, or no limit in it ("max")
    return free


def usable_cores() -> int:
    """CPU cores this process may use, within its control group's limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = map(int, file.read().split())
        return max(1, min(cores, quota // period))
    except (OSError, ValueError):
        return cores  # no control group, or no limit in it ("max")


def spare_page_faults() -> None:
    """Have glibc keep what is freed for the next chunk, and torch take large tensors in huge pages.

    Getting memory from Linux 4 kB at a time costs more than filling it. For a process of our own, before torch is imported: it
    holds for everything in the process, and cannot be undone. Peak memory becomes steadier too. Does nothing where the C library
    is another, or huge pages are off.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own; for tensors of 2 MB and more
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, 24 << 20)  # larger ones come in huge pages, soon enough not to be kept
        mallopt(trim_threshold, (1 << 31) - 1)
