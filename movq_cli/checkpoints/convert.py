"""Any checkpoint to a movq weights file. PyTorch files are opened here and nowhere else, and their code is never run."""

from __future__ import annotations

import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import MovqError, MovqUsageError, about, option
from ..files import WholeFile, refuse_inputs
from ..headers import header_bytes
from ..model.config import AutoencoderConfig
from .checkpoint import (
    DTYPES,
    FORMAT,
    FORMAT_VERSION,
    SAID,
    SEMANTICS,
    Checkpoint,
    open_checkpoint,
    open_located,
    require_finite,
    require_fit,
    torch_dtypes,
)
from .layouts import describe, some
from .locate import Located, is_pytorch, locate

_WRAPPERS = ("state_dict", "model", "module")
_EMA = "model_ema."
_EMA_BOOKKEEPING = {"model_ema.decay", "model_ema.num_updates"}
_DTYPE_NAMES = {dtype: name for name, dtype in torch_dtypes().items()}


@dataclass(frozen=True)
class _Model:
    """What is converted: tensors by our names, their dtypes and shapes known, their numbers read one at a time."""

    path: str
    config: AutoencoderConfig
    metadata: Mapping[str, str]
    entries: Mapping[str, tuple[str, tuple[int, ...]]]
    read: Callable[[list[str]], Iterator[tuple[str, Tensor]]]


def convert_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    ema: bool = False,
    name: str | None = None,
    licence: str | None = None,
    scaling_factor: str | None = None,
    force: bool = False,
) -> Checkpoint:
    """Writes a movq weights file of anything `open_checkpoint` opens, or of a PyTorch file, and opens it.

    Numbers and dtypes are kept, so it has the digest of its source. `ema` takes a PyTorch file's averaged weights; name,
    licence and scaling_factor stand in for what the source says. Raises MovqError for a source that is refused, before
    anything is written, and MovqUsageError for a scaling_factor that is not a number above 0.
    """
    given = {"name": name, "licence": licence, "scaling_factor": scaling_factor}
    _check_given(given)
    located = locate(source)
    refuse_inputs(output, *located.weights, *(file for file in (located.index, located.config) if file is not None))
    with WholeFile(output, force=force) as file:
        if len(located.weights) == 1 and is_pytorch(located.weights[0]):
            model = _open_pytorch(located, ema)
        elif ema:
            raise MovqError(f"has no averaged weights ({option('ema')}): only PyTorch files do", located.path)
        else:
            model = _of_checkpoint(open_located(located))
        with about(model.path):
            require_fit(model.config, {ours: shape for ours, (_, shape) in model.entries.items()})
        names = sorted(model.entries)
        metadata = {
            **model.metadata,
            **{key: text for key, text in given.items() if text is not None},
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "config": model.config.to_json(),
        }
        file.write(header_bytes({ours: model.entries[ours] for ours in names}, metadata))
        for _, tensor in model.read(names):
            file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.commit()
    return open_checkpoint(output)


def _check_given(given: Mapping[str, str | None]) -> None:
    for name, text in given.items():
        if text is not None and not text.isprintable():  # undecodable bytes are not either
            raise MovqUsageError(f"must be plain text, got {text!r}", option=name)
    text = given["scaling_factor"]
    if text is not None and not _is_positive(text):
        raise MovqUsageError(f"must be a number above 0, got {text!r}", option="scaling_factor")


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _of_checkpoint(checkpoint: Checkpoint) -> _Model:
    return _Model(
        checkpoint.path,
        checkpoint.config,
        {**checkpoint.metadata, "semantics": checkpoint.semantics},
        {ours: (stored.entry.dtype, stored.entry.shape) for ours, stored in checkpoint.tensors.items()},
        checkpoint.read,
    )


_SHARED = 2
"""How many times larger than the file its tensors may be: some share their numbers."""


def _open_pytorch(located: Located, ema: bool) -> _Model:
    (path,) = located.weights
    with about(path):
        state = _choose(_state(_load(path)), ema)
        for key, tensor in state.items():
            if tensor.dtype not in _DTYPE_NAMES or tensor.layout is not torch.strided or tensor.device.type != "cpu":
                raise MovqError(f"tensor {key} is {tensor.dtype} on {tensor.device}, not one of {', '.join(DTYPES)}")
        if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > os.path.getsize(path) * _SHARED:
            raise MovqError("has tensors that are far larger than the file")
        described = describe({key: tuple(tensor.shape) for key, tensor in state.items()}, located.config)
    tensors = {ours: state[key] for ours, key in described.names.items()}

    def read(names: list[str]) -> Iterator[tuple[str, Tensor]]:
        for ours in names:
            require_finite(ours, tensors[ours], path)
            yield ours, tensors[ours]

    said = {"name": located.name, "source": located.source, "semantics": SEMANTICS[described.layout]}
    return _Model(
        path,
        described.config,
        dict.fromkeys(SAID, "") | said | dict(described.scaling),
        {ours: (_DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for ours, tensor in tensors.items()},
        read,
    )


def _load(path: str) -> Any:
    """What a PyTorch file holds. Its tensors stay in the file until they are read, where it is of the newer kind, a zip."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        words = str(error).split("WeightsUnpickler error:")[-1].strip()  # before it: the advice to run the code
        if asked := re.search(r"\bGLOBAL ([\w.]+)", words):
            raise MovqError(f"asks for {asked[1]}, which is code and not run") from None
        reason = re.split(r"\. |\n", words)[0] or type(error).__name__
        raise MovqError(f"is not a whole PyTorch file ({reason})") from None


def _state(held: Any) -> dict[str, Tensor]:
    """The state dict, under one of the names it is saved by or alone, without what belongs to losses."""
    if isinstance(held, dict):
        held = next((held[key] for key in _WRAPPERS if key in held), held)
    if not isinstance(held, dict):
        raise MovqError(f"holds a {type(held).__name__}, not tensors by name")
    state = {str(key): value for key, value in held.items() if "loss" not in str(key)}
    if others := sorted(key for key, value in state.items() if not isinstance(value, Tensor)):
        raise MovqError(f"has {some(others)}, which are no tensors")
    return state


def _choose(state: dict[str, Tensor], ema: bool) -> dict[str, Tensor]:
    """The plain weights, or the averaged ones under their names: those are stored with the dots taken out."""
    plain = {key: tensor for key, tensor in state.items() if not key.startswith(_EMA)}
    if not ema:
        return plain
    averaged = {key: state[key] for key in state if key.startswith(_EMA) and key not in _EMA_BOOKKEEPING}
    if not averaged:
        raise MovqError(f"has no averaged weights ({option('ema')})")
    names = {_EMA + key.replace(".", ""): key for key in plain}
    if lacking := sorted(key for dotless, key in names.items() if dotless not in averaged):
        raise MovqError(f"has no averaged {some(lacking)} ({option('ema')})")
    if unknown := sorted(averaged.keys() - names.keys()):
        raise MovqError(f"has {some(unknown)}, averages of nothing in it ({option('ema')})")
    return {key: averaged[dotless] for dotless, key in names.items()}
