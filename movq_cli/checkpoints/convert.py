"""Conversion of any checkpoint to a movq weights file. PyTorch files are opened only here; their code is never run."""

from __future__ import annotations

import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import MovqError, MovqUsageError, about, option
from ..files import WholeFile, refuse_inputs
from ..headers import TensorEntry, header_bytes
from .checkpoint import (
    DTYPES,
    FORMAT,
    FORMAT_VERSION,
    SAID,
    Checkpoint,
    open_checkpoint,
    open_located,
    require_finite,
    require_fit,
    torch_dtypes,
)
from .configs import some
from .layouts import describe, without_prefix
from .locate import Located, is_pytorch, locate

_WRAPPERS = ("state_dict", "model", "module")
_EMA = "model_ema."
_EMA_BOOKKEEPING = {"model_ema.decay", "model_ema.num_updates"}
_DTYPE_NAMES = {dtype: name for name, dtype in torch_dtypes().items()}


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
    """Write a movq weights file from a PyTorch file, or from anything `open_checkpoint` opens, and open it.

    Values and dtypes are kept, so the file has the digest of its source. `ema` takes a PyTorch file's averaged weights.
    `name`, `licence` and `scaling_factor` replace what the source says. Raises MovqError for a source that is refused,
    without leaving an output, and MovqUsageError for unprintable text or a scaling_factor that is not a finite number
    above 0.
    """
    given = {"name": name, "licence": licence, "scaling_factor": scaling_factor}
    _check_given(given)
    located = locate(source, pytorch=True)
    refuse_inputs(output, *located.weights, *(file for file in (located.index, located.config) if file is not None))
    with WholeFile(output, force=force) as file:
        if all(map(is_pytorch, located.weights)):
            model: Checkpoint = _open_pytorch(located, ema)
        elif ema:
            raise MovqError(f"has no averaged weights ({option('ema')}): only PyTorch files do", located.path)
        else:
            model = open_located(located)
        with about(model.path):
            require_fit(model.config, {name: entry.shape for name, entry in model.tensors.items()})
        names = sorted(model.tensors)
        metadata = {
            **model.metadata,
            "semantics": model.semantics,
            **{key: text for key, text in given.items() if text is not None},
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "config": model.config.to_json(),
        }
        entries = {name: (model.tensors[name].dtype, model.tensors[name].shape) for name in names}
        file.write(header_bytes(entries, metadata))
        for _, tensor in model.read(names):
            file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.commit()
    return open_checkpoint(output)


def _check_given(given: Mapping[str, str | None]) -> None:
    for name, text in given.items():
        if text is not None and not text.isprintable():  # undecodable bytes are unprintable too
            raise MovqUsageError(f"must be plain text, got {text!r}", option=name)
    text = given["scaling_factor"]
    if text is not None and not _is_positive(text):
        raise MovqUsageError(f"must be a number above 0, got {text!r}", option="scaling_factor")


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


@dataclass(frozen=True)
class _PyTorchFile(Checkpoint):
    """The weights of a PyTorch file. `state` has them by movq's names."""

    state: Mapping[str, Tensor]

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            require_finite(name, self.state[name], self.path)
            yield name, self.state[name]


_SHARED = 2
"""The most bytes of tensors for each byte of the file. It is above 1, as tensors may share memory."""


def _open_pytorch(located: Located, ema: bool) -> Checkpoint:
    with about(located.path):
        held: dict[str, Any] = {}
        for path in located.weights:
            with about(path):
                held |= _held(load_pytorch(path))
        state = _choose(_state(held), ema)
        for key, tensor in state.items():
            if tensor.dtype not in _DTYPE_NAMES or tensor.layout is not torch.strided or tensor.device.type != "cpu":
                raise MovqError(f"tensor {key} is {tensor.dtype} on {tensor.device}, not one of {', '.join(DTYPES)}")
        size = sum(map(os.path.getsize, located.weights))
        if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > size * _SHARED:
            raise MovqError("has tensors that are far larger than the file")
        described = describe({key: tuple(tensor.shape) for key, tensor in state.items()}, located.config)
    named = {ours: state[key] for ours, key in described.names.items()}
    said = {"name": located.name, "source": located.source}
    return _PyTorchFile(
        located.path,
        located.weights,
        described.layout,
        described.config,
        dict.fromkeys(SAID, "") | said | dict(described.scaling),
        {name: TensorEntry(_DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in named.items()},
        named,
    )


def load_pytorch(path: str) -> Any:
    """Load the contents of a PyTorch file. In the newer kind, a zip, tensors stay in the file until they are used.

    Raises MovqError for a file that asks for code or cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        words = str(error).split("WeightsUnpickler error:")[-1].strip()  # the part before it advises running the code
        if asked := re.search(r"\bGLOBAL ([\w.]+)", words):
            raise MovqError(f"asks for {asked[1]}, which is code and not run") from None
        reason = re.split(r"\. |\n", words)[0] or type(error).__name__
        raise MovqError(f"is not a whole PyTorch file ({reason})") from None


def _held(contents: Any) -> dict[str, Any]:
    """Return what a file holds by name; the state dict may be saved under one of the names in _WRAPPERS."""
    if isinstance(contents, dict):
        contents = next((contents[key] for key in _WRAPPERS if key in contents), contents)
    if not isinstance(contents, dict):
        raise MovqError(f"holds a {type(contents).__name__}, not tensors by name")
    return {str(key): value for key, value in contents.items()}


def _state(held: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the autoencoder's tensors without the prefix of their names, and without the tensors of losses."""
    state = {key: held[stored] for key, stored in without_prefix(held).items() if "loss" not in key}
    if others := sorted(key for key, value in state.items() if not isinstance(value, Tensor)):
        raise MovqError(f"has {some(others)}, which are no tensors")
    return state


def _choose(state: dict[str, Tensor], ema: bool) -> dict[str, Tensor]:
    """Return the plain weights, or the averaged ones under the plain names; they are stored without the names' dots."""
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
