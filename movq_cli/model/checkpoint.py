"""Weights files: what they say, their identity, and networks made of them. The header is read without torch.

A movq weights file is safetensors: tensors `encoder.*` and (usually) `decoder.*`; metadata `format` = "movq-weights",
`format_version` = "1", `name`, `config` (JSON), `scaling_factor`, `semantics`, `licence`, `source`. Other people's
checkpoints are not read here yet.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MovqError
from ..files import BLOCK, TensorEntry, file_name, os_reason, read_header
from .config import AutoencoderConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .encoder import Encoder3D

FORMAT = "movq-weights"
FORMAT_VERSION = "1"
_CONFIG_BYTES = 1 << 20
_DTYPES = ("F64", "F32", "F16", "BF16")


def embedded_weights() -> Path:
    """The weights that come with movq: beside the package in a checkout, inside it once built."""
    name = "movq-tiny-4x8x8.safetensors"
    package = Path(__file__).parents[1]
    inside = package / "weights" / name
    return inside if inside.exists() else package.parent / "weights" / name


@dataclass(frozen=True)
class Checkpoint:
    """A weights file whose header has been read and found sound. Make one with `open_checkpoint`."""

    path: str
    config: AutoencoderConfig
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]

    @property
    def name(self) -> str:
        return self.metadata.get("name") or Path(file_name(self.path)).stem

    @property
    def parameters(self) -> dict[str, int]:
        """Numbers per network: {"encoder": n, "decoder": m}, without the networks that are not in the file."""
        counts: dict[str, int] = {}
        for name, entry in self.tensors.items():
            network = name.split(".", 1)[0]
            counts[network] = counts.get(network, 0) + entry.numel
        return counts

    @cached_property
    def digest(self) -> str:
        """The model's identity: sha256 over its config and, in order of name, each tensor's name, dtype, shape and bytes.

        Neither the file's name nor its other metadata take part.
        """
        digest = hashlib.sha256(self.config.identity_json().encode())
        try:
            with open(self.path, "rb") as file:
                for name, entry in sorted(self.tensors.items()):
                    digest.update(f"\n{name} {entry.dtype} {list(entry.shape)}\n".encode())
                    file.seek(entry.start)
                    left = entry.end - entry.start
                    while left:
                        block = file.read(min(left, BLOCK))
                        if not block:
                            raise MovqError("the file shrank while it was read", self.path)
                        digest.update(block)
                        left -= len(block)
        except OSError as error:
            raise MovqError(os_reason(error), self.path) from None
        return digest.hexdigest()

    def load_encoder(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Encoder3D:
        """The encoder, in evaluation mode, its weights in `dtype` (default: as stored) and laid out for speed.

        Raises MovqError naming the tensor where one is missing, unexpected, of another shape or not finite.
        """
        import torch

        from .encoder import Encoder3D

        with torch.device("meta"):
            encoder = Encoder3D(**dataclasses.asdict(self.config))
        self._fill(encoder, "encoder.", device, dtype)
        return encoder

    def _fill(self, network: nn.Module, prefix: str, device: torch.device | str, dtype: torch.dtype | None) -> None:
        import torch
        from safetensors import SafetensorError, safe_open

        from .causal import lay_out

        shapes = {prefix + name: tuple(value.shape) for name, value in network.state_dict().items()}
        self._check_names(shapes, prefix)
        state = {}
        try:
            with safe_open(self.path, framework="pt") as file:
                for name in shapes:
                    tensor = file.get_tensor(name)
                    if not bool(torch.isfinite(tensor).all()):
                        raise MovqError(f"tensor {name} has values that are not finite", self.path)
                    state[name.removeprefix(prefix)] = lay_out(tensor.to(device=device, dtype=dtype, copy=True))
        except (SafetensorError, OSError) as error:
            raise MovqError(f"cannot be read ({error})", self.path) from None
        network.load_state_dict(state, strict=True, assign=True)
        network.requires_grad_(False).eval()

    def _check_names(self, shapes: Mapping[str, tuple[int, ...]], prefix: str) -> None:
        ours = {name for name in self.tensors if name.startswith(prefix)}
        missing, unexpected = sorted(shapes.keys() - ours), sorted(ours - shapes.keys())
        if missing:
            raise MovqError(f"lacks {_some(missing)}, which its config asks for", self.path)
        if unexpected:
            raise MovqError(f"has {_some(unexpected)}, which its config has no place for", self.path)
        for name, shape in shapes.items():
            if self.tensors[name].shape != shape:
                found = list(self.tensors[name].shape)
                raise MovqError(f"tensor {name} has shape {found}, its config asks for {list(shape)}", self.path)


def open_checkpoint(path: str | os.PathLike[str] | None = None) -> Checkpoint:
    """Reads the header of a weights file (default: the embedded one). Raises MovqError where it is not sound."""
    name = os.fspath(path if path is not None else embedded_weights())
    header = read_header(name)
    metadata = header.metadata
    if metadata.get("format") != FORMAT:
        raise MovqError("is not a movq weights file", name)
    version = metadata.get("format_version", "")
    if version != FORMAT_VERSION:
        raise MovqError(f"has format_version {version!r}; this movq reads {FORMAT_VERSION}", name)
    text = metadata.get("config", "")
    if len(text) > _CONFIG_BYTES:
        raise MovqError(f"its config is {len(text)} bytes long", name)
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        config = AutoencoderConfig.from_dict(values)
    except (ValueError, TypeError, RecursionError) as error:
        raise MovqError(f"its config cannot be used: {error}", name) from None
    for tensor, entry in header.tensors.items():
        if not tensor.startswith(("encoder.", "decoder.")):
            raise MovqError(f"has {tensor}, which belongs to neither encoder nor decoder", name)
        if entry.dtype not in _DTYPES:
            raise MovqError(f"tensor {tensor} has dtype {entry.dtype}, not one of {', '.join(_DTYPES)}", name)
    return Checkpoint(name, config, metadata, header.tensors)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
