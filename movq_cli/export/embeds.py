"""Text embeddings of captions, in a folder with a safetensors file for each, named by the sha256 of the caption."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from ..errors import MovqError, MovqUsageError
from ..headers import read_header

if TYPE_CHECKING:
    import torch

HELP = "examples/embed_prompts.py makes them"


def embeds_name(caption: str) -> str:
    """Return the name of the file of a caption's embeddings, as movq and CogVideo's finetuning have it."""
    return f"{hashlib.sha256(caption.encode()).hexdigest()}.safetensors"


class PromptEmbeds:
    """The embeddings in a folder (None: there are none), all of one shape. Raises MovqUsageError if it is not a folder."""

    def __init__(self, folder: str | None) -> None:
        if folder is not None and not os.path.isdir(folder):
            raise MovqUsageError(f"{folder} is not a folder", option="prompt_embeds")
        self._folder = folder
        self._shape: tuple[int, ...] = ()

    def path(self, caption: str) -> str:
        """Return the path of the file of a caption."""
        return os.path.join(self._folder or "", embeds_name(caption))

    def has(self, caption: str) -> bool:
        """Return True if there are embeddings of a caption."""
        return self._folder is not None and os.path.exists(self.path(caption))

    def identity(self, caption: str) -> list[int]:
        """Return what changes with the file of a caption: size and time."""
        found = os.stat(self.path(caption))
        return [found.st_size, found.st_mtime_ns]

    def refusal(self, caption: str) -> str:
        """Return why a caption's embeddings do not go with those asked for before; "" if they do."""
        path = self.path(caption)
        try:
            shapes = [entry.shape for entry in read_header(path).tensors.values()]
        except MovqError as error:
            return error.with_flags
        shape = shapes[0][-2:] if len(shapes) == 1 else ()
        self._shape = self._shape or shape
        if len(shape) == len(("tokens", "channels")) and shape == self._shape:
            return ""
        wanted = f"{list(self._shape)}, like those before it," if self._shape else "(tokens, channels)"
        return f"has embeddings of {list(shapes[0]) if shapes else []} where {wanted} are needed: {path}"

    def read(self, caption: str) -> torch.Tensor | None:
        """Return the embeddings (tokens, channels) of a caption; None if there are none. Raises MovqError."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not self.has(caption):
            return None
        try:
            (embeds,) = load_file(self.path(caption)).values()
        except (SafetensorError, OSError, ValueError) as error:
            raise MovqError(f"is not a file of text embeddings ({error})", self.path(caption)) from None
        return embeds.view(self._shape)
