"""`Format`: what a layout is, and what it asks of items; `Item` and `Content`: what is written in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from ..device import dtype_of
from ..posterior import draw_latents
from ..reading import Stored
from ..targets import TARGETS


@dataclass(frozen=True)
class Item:
    """An item on its way out: its id, its name in the output, its caption, its place among those exported, its video.

    `latents` is the number of its latent frames, which stand for `frames`; `height` and `width` are in pixels, padding
    included.
    """

    id: str
    name: str
    caption: str
    video: str
    latents: int
    frames: int
    height: int
    width: int
    first_frame: tuple[str, ...]
    """The kinds of first frame that it has."""
    has_embeds: bool
    number: int = 0


@dataclass(frozen=True)
class Content:
    """The latents of an item as stored, the embeddings of its caption, and its first frame: a PNG file, and latents.

    What it does not have, or the layout has no use for, is None.
    """

    stored: Stored
    embeds: torch.Tensor | None
    picture: bytes | None
    first: Stored | None


class Format:
    """A layout, and what it asks of items. A subclass changes what its consumer does otherwise."""

    needs_captions = needs_embeds = needs_moments = needs_videos = scaled = False
    nested = False
    """True if names keep their folders."""
    one_shape = False
    """True if the consumer stacks items, so that all must have the same shape."""
    patched = True
    """True if a transformer reads the latents in patches of 2x2: heights and widths must be even."""

    def __init__(self, scale: float | None, seed: int, dtype: str | None, target: str | None) -> None:
        self.scale, self.seed, self.dtype, self.target = scale, seed, dtype, target

    def first_frames(self) -> tuple[str, ...]:
        """Return the kinds of first frame that go into the files, in FIRST_FRAMES."""
        return ()

    @property
    def from_image(self) -> bool:
        """True if the target takes the first frame as a condition."""
        return self.target is not None and TARGETS[self.target].from_image

    def key(self, name: str) -> str:
        """Return the part of an item's name that the consumer tells items apart by."""
        return name

    def check(self, items: Iterable[Item]) -> None:
        """Raise MovqUsageError if the consumer could not read these items together."""

    def paths(self, item: Item) -> list[str]:
        """Return the paths of an item's files, relative to the output folder, in the order of `files`."""
        raise NotImplementedError

    def files(self, item: Item, content: Content) -> Iterator[bytes]:
        """Yield the bytes of each file of an item."""
        raise NotImplementedError

    @staticmethod
    def read(path: str) -> torch.Tensor:
        """Return the latents (C, T, H, W) of such a file. Raises MovqError for another file."""
        raise NotImplementedError

    def refusal(self, item: Item) -> str:
        """Return why the consumer cannot read an item; "" if it can."""
        return ""

    def is_shared(self, path: str) -> bool:
        """Return True for a file that several items have, or the trainer itself makes, whose name says what is in it."""
        return False

    def lists(self, items: list[Item]) -> dict[str, str]:
        """Return the text of each list of all items, by its path."""
        return {}

    def usage(self, items: list[Item], folder: str) -> str:
        """Return the options of the trainer that go with these files in a folder; "" if there are none."""
        return ""

    def drawn(self, stored: Stored) -> torch.Tensor:
        """Return a draw (z, T, H, W) in fp32 of moments by the seed; a saved draw or mean as it is."""
        m = stored.metadata
        if m.representation != "moments":
            return stored.latents.float()
        return draw_latents(
            stored.latents[None], 0, seed=self.seed, source_sha256=m.source_sha256, first_index=stored.first_index
        )[0]

    def typed(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents in the dtype asked for, contiguous in memory of their own."""
        kept = latents if self.dtype is None or not latents.is_floating_point() else latents.to(dtype_of(self.dtype))
        return kept.contiguous().clone()


def video_of(item: Item) -> str:
    """Return the path of an item's video in a list: its own name, with the suffix of its source."""
    suffix = os.path.splitext(item.video)[1] or ".mp4"
    return f"videos/{item.name}{suffix}"
