"""Checkpoints: their metadata, their digest, and networks made of them. Headers are read without torch.

A movq weights file is a safetensors file with tensors `encoder.*` and usually `decoder.*`. Its metadata are `format` =
"movq-weights", `format_version` = "1", `name`, `config` (JSON), `scaling_factor`, `shift_factor`,
`invert_scale_latents`, `semantics`, `licence` and `source`, and `latents_mean` and `latents_std` (JSON) if its origin
had them. Files of diffusers and CogVideo are read as they are:
locate.py finds them, layouts.py knows their tensor names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import MovqError, about
from ..files import BLOCK, os_reason
from ..headers import Header, TensorEntry, read_header
from ..model.config import AutoencoderConfig
from ..values import is_numbers
from .configs import LISTS, parse_object, some
from .layouts import LAYOUTS, describe
from .locate import Located, locate, refuse_pytorch

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..model.decoder import Decoder3D
    from ..model.encoder import Encoder3D
    from ..model.quantizers import Quantizer

Network = TypeVar("Network", bound="nn.Module")

FORMAT = "movq-weights"
FORMAT_VERSION = "1"
SAID = ("name", "licence", "source", "semantics", "scaling_factor", "shift_factor", "invert_scale_latents")
"""The keys of a checkpoint's metadata. A value is "" if it is unknown."""

QUANTIZER = "quantize"
"""The prefix of the names of a quantiser's tensors."""
_MASK = f"{QUANTIZER}.mask"

DTYPES = ("F64", "F32", "F16", "BF16")


EMBEDDED = "movq-tiny-4x8x8-v1"
"""The name of the weights that come with movq. A name always has the same digest: other weights get another name."""

FORMER = {
    "5c4663050c34b0395bcd55114d7c413f38217e206f798064804da4fbba3379f1": (
        "weights/movq-tiny-4x8x8.safetensors",
        "4247c3eff8bd2b162d09cc9ee341dd4ae88a5a0b",
    ),
}
"""Earlier embedded weights by digest: their file in movq's repository, and a commit that contains it."""


_NAMES = {EMBEDDED, *(Path(file).stem for file, _ in FORMER.values())}


def is_embedded_name(text: str) -> bool:
    """Return True if a text names embedded weights, present or former, and not a file that exists."""
    return text in _NAMES and not os.path.lexists(text)


def embedded_weights() -> Path:
    """Return the path of the embedded weights: inside an installed package, next to the package in a git checkout."""
    name = f"{EMBEDDED}.safetensors"
    package = Path(__file__).parents[1]
    inside = package / "weights" / name
    return inside if inside.exists() else package.parent / "weights" / name


@dataclass(frozen=True)
class Checkpoint:
    """Weights whose headers have been read and checked. Make one with `open_checkpoint`.

    `path` is the file, or the folder of several files; `files` are all files read. `layout` is "movq", "diffusers" or
    "sat" (CogVideo's own). `metadata` has the keys SAID, and LISTS if they are known. `tensors` has movq's names in every layout.
    """

    path: str
    files: tuple[str, ...]
    layout: str
    config: AutoencoderConfig
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.metadata["name"]

    @property
    def semantics(self) -> str:
        """The way the weights should be run: "frame" for norms per frame, otherwise "whole" or "diffusers"."""
        if self.config.norm_scope == "frame":
            return "frame"
        return self.metadata["semantics"] or LAYOUTS[self.layout][1]

    def numbers(self, key: str) -> list[float] | None:
        """Return one of LISTS; None if the weights do not have it. Raises MovqError if it is not a list of numbers."""
        if (text := self.metadata.get(key)) is None:
            return None
        try:
            numbers = json.loads(text)
        except (ValueError, RecursionError):
            numbers = None
        if not is_numbers(numbers):
            raise MovqError(f"has {key} {text[:40]!r}, which is not a list of numbers", self.path)
        return numbers  # type: ignore[no-any-return]

    @property
    def parameters(self) -> dict[str, int]:
        """The number of parameters of each network in the file: {"encoder": n, "decoder": m}."""
        counts: dict[str, int] = {}
        for name, stored in self.tensors.items():
            network = name.split(".", 1)[0]
            counts[network] = counts.get(network, 0) + stored.numel
        return counts

    @property
    def dtypes(self) -> list[str]:
        """The safetensors names of the tensors' dtypes, sorted."""
        return sorted({stored.dtype for stored in self.tensors.values()})

    @cached_property
    def digest(self) -> str:
        """The identity of the model: a sha256 of its config and of each tensor's name, dtype, shape and bytes.

        Tensors are taken in the order of movq's names. Files, layout and other metadata do not change it. Raises
        MovqError if a file cannot be read.
        """
        digest = hashlib.sha256(self.config.identity_json().encode())
        try:
            with ExitStack() as stack:
                files = {stored.file: None for stored in self.tensors.values()}
                opened = {path: stack.enter_context(open(path, "rb")) for path in files}
                for name, entry in sorted(self.tensors.items()):
                    file = opened[entry.file]
                    digest.update(f"\n{name} {entry.dtype} {list(entry.shape)}\n".encode())
                    file.seek(entry.start)
                    left = entry.end - entry.start
                    while left:
                        block = file.read(min(left, BLOCK))
                        if not block:
                            raise MovqError("the file shrank while it was read", entry.file)
                        digest.update(block)
                        left -= len(block)
        except OSError as error:
            raise MovqError(os_reason(error), self.path) from None
        return digest.hexdigest()

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) for each of these names, as stored, reading one tensor at a time.

        The names are movq's. Raises MovqError for values that are not finite, or a file that cannot be read.
        """
        import torch

        dtypes = torch_dtypes()
        with ExitStack() as stack:
            opened: dict[str, BufferedReader] = {}
            for name in names:
                stored = self.tensors[name]
                data = bytearray(stored.end - stored.start)
                try:
                    if stored.file not in opened:
                        opened[stored.file] = stack.enter_context(open(stored.file, "rb"))
                    opened[stored.file].seek(stored.start)
                    count = opened[stored.file].readinto(data)
                except OSError as error:
                    raise MovqError(os_reason(error), stored.file) from None
                if count < len(data):
                    raise MovqError("the file shrank while it was read", stored.file)
                tensor = torch.frombuffer(data, dtype=dtypes[stored.dtype]).reshape(stored.shape)
                require_finite(name, tensor, self.path)
                yield name, tensor

    def require_decoder(self) -> None:
        """Raise MovqError if the checkpoint has no decoder."""
        if "decoder" not in self.parameters:
            raise MovqError("has no decoder: these weights can encode, not decode", self.path)

    def load_encoder(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Encoder3D:
        """Load the encoder in evaluation mode, its weights in `dtype` (default: as stored) and in the fastest layout.

        Raises MovqError, naming the tensor, if one is missing, unexpected, not finite or of another shape.
        """
        from ..model.encoder import Encoder3D

        return self._load(Encoder3D, "encoder", device, dtype)

    def load_decoder(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Decoder3D:
        """Load the decoder as `load_encoder` does the encoder. Also raises MovqError if the checkpoint has none."""
        from ..model.decoder import Decoder3D

        self.require_decoder()
        return self._load(Decoder3D, "decoder", device, dtype)

    def load_quantizer(self) -> Quantizer:
        """Load the quantiser in evaluation mode, in fp32 on the CPU. Raises MovqError as `load_encoder` does."""
        with about(self.path):
            shapes = {name: stored.shape for name, stored in self.tensors.items()}
            quantizer, names = _fitting_quantizer(self.config, shapes)
        state = {name.removeprefix(f"{QUANTIZER}."): tensor.float() for name, tensor in self.read(names)}
        quantizer.load_state_dict(quantizer.state_dict() | state, strict=True)
        return quantizer.requires_grad_(False).eval()

    def _load(self, kind: type[Network], part: str, device: torch.device | str, dtype: torch.dtype | None) -> Network:
        from ..model.convolution import lay_out, round_weight

        with about(self.path):
            shapes = {name: stored.shape for name, stored in self.tensors.items()}
            network, names = _fitting(kind, part, self.config, shapes)
        state = {
            name.removeprefix(f"{part}."): lay_out(round_weight(tensor.to(device), dtype or tensor.dtype))
            for name, tensor in self.read(names)
        }
        network.load_state_dict(state, strict=True, assign=True)
        network.requires_grad_(False).eval()
        return network


def torch_dtypes() -> dict[str, torch.dtype]:
    """Return torch's dtypes by the names in DTYPES."""
    import torch

    return dict(zip(DTYPES, (torch.float64, torch.float32, torch.float16, torch.bfloat16), strict=True))


def require_finite(name: str, tensor: Tensor, path: str) -> None:
    """Raise MovqError if a tensor has values that are not finite."""
    if not bool(tensor.isfinite().all()):
        raise MovqError(f"tensor {name} has values that are not finite", path)


def require_fit(config: AutoencoderConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise MovqError, naming the tensor, unless these shapes (by movq's names) are those of the config's networks."""
    from ..model.decoder import Decoder3D
    from ..model.encoder import Encoder3D

    _fitting(Encoder3D, "encoder", config, shapes)
    if any(name.startswith("decoder.") for name in shapes):
        _fitting(Decoder3D, "decoder", config, shapes)
    if config.quantizer is not None:
        _fitting_quantizer(config, shapes)


def _fitting_quantizer(config: AutoencoderConfig, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Quantizer, list[str]]:
    """Return the config's quantiser, not loaded yet, and the names of its weights. Raises MovqError as `_fitting` does."""
    import torch

    from ..model.quantizers import build

    with torch.device("meta"):  # no memory for a codebook that is not there
        learnt = {name: value for name, value in build(config).state_dict().items() if value.is_floating_point()}
    wanted = {f"{QUANTIZER}.{name}": tuple(value.shape) for name, value in learnt.items()}
    _require_shapes(QUANTIZER, wanted, shapes)
    return build(config), list(wanted)


def _fitting(
    kind: type[Network], part: str, config: AutoencoderConfig, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Network, list[str]]:
    """Return the config's network, without memory for its weights, and the names of its weights.

    Raises MovqError if the config makes no network, or if `shapes` does not fit it.
    """
    import torch

    try:
        with torch.device("meta"):
            network = kind(**dataclasses.asdict(config))
    except (RuntimeError, TypeError, ValueError) as error:  # torch's errors for impossible sizes among them
        raise MovqError(f"its config makes no network: {str(error).splitlines()[0]}") from None
    wanted = {f"{part}.{name}": tuple(value.shape) for name, value in network.state_dict().items()}
    _require_shapes(part, wanted, shapes)
    return network, list(wanted)


def _require_shapes(part: str, wanted: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise MovqError, naming the tensor, unless the tensors of a part are exactly those wanted."""
    found = {name for name in shapes if name.startswith(f"{part}.")}
    missing, unexpected = sorted(wanted.keys() - found), sorted(found - wanted.keys())
    if missing:
        raise MovqError(f"lacks {some(missing)}, which its config asks for")
    if unexpected:
        raise MovqError(f"has {some(unexpected)}, which its config has no place for")
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise MovqError(f"tensor {name} has shape {list(shapes[name])}, its config asks for {list(shape)}")


def open_checkpoint(path_or_id: str | os.PathLike[str] | None = None) -> Checkpoint:
    """Open a checkpoint (default: the embedded one, which may also be named), reading only its headers. Nothing is downloaded.

    It may be a movq weights file, a diffusers autoencoder (its folder, sharded or not, or the safetensors file), a
    safetensors file with CogVideo's names, the folder of a whole CogVideoX model, or the id of one in the Hugging Face
    cache. Raises MovqError if it cannot be used, and for PyTorch files, which can hold code.
    """
    if path_or_id is None:
        return open_located(locate(embedded_weights()))
    text = os.fspath(path_or_id)
    if is_embedded_name(text):
        if text != EMBEDDED:
            raise MovqError(f"is the name of earlier embedded weights; the current ones are {EMBEDDED}", text)
        text = str(embedded_weights())
    return open_located(locate(text))


def open_located(located: Located) -> Checkpoint:
    """Open a checkpoint, as `open_checkpoint` does, whose files have already been found."""
    headers = {}
    for file in located.weights:
        refuse_pytorch(file)
        headers[file] = read_header(file)
    first = headers[located.weights[0]]
    with about(located.path):
        if first.metadata.get("format") == FORMAT and located.index is None:
            checkpoint = _open_movq(located, first)
        else:
            checkpoint = _open_foreign(located, headers)
        _check(checkpoint)
    return checkpoint


def _open_movq(located: Located, header: Header) -> Checkpoint:
    metadata = header.metadata
    version = metadata.get("format_version", "")
    if version != FORMAT_VERSION:
        raise MovqError(f"has format_version {version!r}; this movq reads {FORMAT_VERSION}")
    try:
        config = AutoencoderConfig.from_dict(parse_object(metadata.get("config", "")))
    except (ValueError, TypeError) as error:
        raise MovqError(f"its config cannot be used: {error}") from None
    said = {key: metadata.get(key, "") for key in SAID}
    said["name"] = said["name"] or located.name
    said |= {key: metadata[key] for key in LISTS if key in metadata}
    file = located.weights[0]
    # LFQ's mask is a constant of its class, whether a file has it or not.
    tensors = {name: entry for name, entry in header.tensors.items() if not (config.codes and name == _MASK)}
    return Checkpoint(located.path, (file,), "movq", config, said, tensors)


def _open_foreign(located: Located, headers: Mapping[str, Header]) -> Checkpoint:
    stored = {}
    for file, header in headers.items():
        for key, entry in header.tensors.items():
            if located.placed is not None and located.placed.get(key) != file:
                raise MovqError(f"holds {key}, which the index does not place there", file)
            stored[key] = entry
    if located.placed is not None and (absent := sorted(located.placed.keys() - stored.keys())):
        raise MovqError(f"lacks {some(absent)}, which its index places in its files")
    described = describe({key: entry.shape for key, entry in stored.items()}, located.config)
    read = (located.index, located.config if described.read_config else None)
    said = dict.fromkeys(SAID, "") | {"name": located.name, "source": located.source, **described.scaling}
    return Checkpoint(
        located.path,
        (*located.weights, *(file for file in read if file is not None)),
        described.layout,
        described.config,
        said,
        {ours: stored[key] for ours, key in described.names.items()},
    )


def _check(checkpoint: Checkpoint) -> None:
    """Raise MovqError if the headers of a checkpoint show that it cannot be used."""
    config, tensors = checkpoint.config, checkpoint.tensors
    for name, stored in tensors.items():
        if name.split(".", 1)[0] not in ("encoder", "decoder", *([QUANTIZER] if config.codes else [])):
            raise MovqError(f"has {name}, which belongs to neither encoder nor decoder")
        if stored.dtype not in DTYPES:
            raise MovqError(f"tensor {name} has dtype {stored.dtype}, not one of {', '.join(DTYPES)}")
    if "encoder" not in checkpoint.parameters:
        raise MovqError("has no encoder")
    if config.levels * config.num_res_blocks > len(tensors):
        raise MovqError(
            f"its config asks for {config.levels * config.num_res_blocks} blocks, it has {len(tensors)} tensors"
        )
    for key in LISTS:
        checkpoint.numbers(key)
    said = checkpoint.metadata["semantics"]
    if config.norm_scope == "whole" and said not in ("", "whole", "diffusers"):
        raise MovqError(f"has semantics {said!r}; weights with whole-clip norms have whole or diffusers")
