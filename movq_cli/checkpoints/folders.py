"""The weights files of a folder by their names, as diffusers writes them: plain, a variant (fp16), in shards, PyTorch's."""

from __future__ import annotations

import os
import re
import shlex
import warnings
from dataclasses import dataclass

from ..errors import MovqError, MovqWarning
from ..files import os_reason
from .configs import some

SINGLE = "diffusion_pytorch_model.safetensors"
INDEX = f"{SINGLE}.index.json"
VAE = "vae"
"""The folder of the autoencoder in a whole model."""

_NAME = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model)(?:\.(?P<v1>[\w-]+))?\.(?P<kind>safetensors|bin)"
    r"(?P<index>(?:\.(?P<v2>[\w-]+))?\.index(?:\.(?P<v3>[\w-]+))?\.json)?",
    re.ASCII,
)
"""diffusers' names. That of an index has the variant last (`.index.fp16.json`); in older ones it is further in front."""
_SHARD = re.compile(r"\d{5}-of-\d{5}")


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights, or the index of several: its folder and name, and what the name says of it.

    `variant` is "" for plain weights.
    """

    folder: str
    name: str
    variant: str
    is_index: bool
    is_pytorch: bool

    @property
    def path(self) -> str:
        """The path of the file."""
        return os.path.join(self.folder, self.name)


def weights_file(folder: str, name: str) -> WeightsFile | None:
    """Return what a name says of a weights file; None for any other name, such as that of a shard."""
    found = _NAME.fullmatch(name)
    if found is None or (found["stem"], found["kind"]) == ("pytorch_model", "safetensors"):
        return None
    variants = {found[f"v{i}"] for i in (1, 2, 3)} - {None}
    if len(variants) > 1 or any(map(_SHARD.search, variants)):
        return None
    return WeightsFile(folder, name, "".join(variants), found["index"] is not None, found["kind"] == "bin")


def weights_files(folder: str) -> list[WeightsFile]:
    """Return the weights files of a folder, or of its folder `vae`: of the first that has any that are not PyTorch's."""
    both = [_weights_in(place) for place in (folder, os.path.join(folder, VAE))]
    of_safetensors = (files for files in both if not all(file.is_pytorch for file in files))
    return next(of_safetensors, next(filter(None, both), []))


def _weights_in(folder: str) -> list[WeightsFile]:
    try:
        files = [weights_file(folder, name) for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []
    except OSError:
        return []
    return [file for file in files if file is not None and os.path.isfile(file.path)]


def choose_weights(folder: str, pytorch: bool = False) -> WeightsFile | None:
    """Return the weights file of a folder or of its folder `vae`; None if it has none. An index comes before a file.

    Plain weights are chosen before a variant, and a variant only if it is the only one, with a warning. `pytorch` allows
    for PyTorch files, if a folder has no others. Raises MovqError for several variants, and if all are PyTorch files.
    """
    files = weights_files(folder)
    kept = [file for file in files if not file.is_pytorch] or (files if pytorch else [])
    if files and not kept:
        raise MovqError(
            f"has only PyTorch files ({some([file.name for file in files])}), which can hold code; "
            f"`movq weights convert {shlex.quote(folder)} -o OUT.safetensors` makes weights of them",
            folder,
        )
    if not kept:
        return None
    variants = sorted({file.variant for file in kept})
    if variants[0] and len(variants) > 1:
        raise MovqError(
            f"has no plain weights, but the variants {', '.join(variants)}: name the file of one, as {kept[0].path}",
            kept[0].folder,
        )
    of_variant = [file for file in kept if file.variant == variants[0]]
    chosen = next((file for file in of_variant if file.is_index), of_variant[0])
    if chosen.variant:
        text = f"the only weights are of the variant {chosen.variant}, {chosen.name}: they are used"
        warnings.warn(MovqWarning(text), stacklevel=2)
    return chosen


def contents(folder: str) -> str:
    """Return the names of the first files of a folder, and of its folder `vae`, as text. Raises MovqError."""
    vae = os.path.join(folder, VAE)
    try:
        names = [name for name in sorted(os.listdir(folder)) if name != VAE or not os.path.isdir(vae)]
        names += [f"{VAE}/{name}" for name in sorted(os.listdir(vae))] if os.path.isdir(vae) else []
    except OSError as error:
        raise MovqError(os_reason(error), folder) from None
    return some(names) or "nothing"
