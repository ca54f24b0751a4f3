"""`Item`: one row of a dataset, from the moment it is found until it is encoded."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import msgspec
from msgspec import Struct

from ..errors import MovqError
from ..files import FileIdentity, text_of
from ..options import EncodeOptions, Picture
from ..video import VideoFacts, part_kept


class Item(Struct, frozen=True, gc=False):
    """One row of a dataset: a video or a span of it, with its caption and other columns.

    `id` is unique and names the item in the manifest; `source_path` is absolute; `output` is relative to the output
    folder; `start` and `duration` are in seconds. `facts` are those of the video, before spans are cut, when its file
    had this `identity`. The fields from `of` to `padded` are set when items are cut out of videos (cut.py): `of` is the
    id of the whole video's item if this is a span, which begins `skip` frames into it; `frames` is how many it takes,
    repeating the last if `pad`; `size` is the (height, width) of its bucket; `shape` is (frames, height, width) as
    encoded, with padded frames and edges; `padded` is how many of these frames are padding. `refusal` is why the item
    cannot be encoded, if that is known already. `times` are those of the video's frames, packed, if others share them.
    """

    id: str
    source_path: str
    output: str
    start: Fraction | None = None
    duration: Fraction | None = None
    caption: str | None = None
    extra: dict[str, Any] = {}
    identity: FileIdentity | None = None
    facts: VideoFacts | None = None
    of: str = ""
    skip: int = 0
    frames: int | None = None
    pad: bool = False
    size: tuple[int, int] | None = None
    shape: tuple[int, int, int] | None = None
    padded: int = 0
    refusal: MovqError | None = None
    times: bytes = b""

    def updated(self, **fields: Any) -> Item:
        """Return a copy of the item with these fields changed."""
        return msgspec.structs.replace(self, **fields)

    @property
    def video(self) -> str:
        """The id of the item of the whole video; the item's own id unless it is a span."""
        return self.of or self.id

    @property
    def encoded_frames(self) -> int:
        """The number of the video's frames to encode, without padding; 0 if unknown or if the item is refused."""
        return 0 if self.shape is None or self.refusal is not None else self.shape[0] - self.padded

    @property
    def kept(self) -> float:
        """The fraction of the picture that remains after cropping."""
        if self.facts is None or self.size is None or self.shape is None:
            return 1.0
        (height, width), (_, *encoded) = self.size, self.shape
        return part_kept((self.facts.width, self.facts.height), (width, height), (encoded[1], encoded[0]))

    @property
    def key(self) -> tuple[Any, ...]:
        """The values that make items the same: id, path and range, but not caption or other columns."""
        return text_of(self.id), self.source_path, self.start or 0, self.duration or 0

    def encode_options(self, options: EncodeOptions) -> EncodeOptions:
        """Return the options of the batch, with the item's own instead where it has any."""
        own = {name: value for name in ("start", "duration", "frames") if (value := getattr(self, name)) is not None}
        selection, picture = options.selection, options.picture
        if own or self.skip:
            selection = replace(selection, skip=self.skip, **own)
        if self.size is not None:
            picture = Picture(*self.size, **picture.allowing)
        if selection is options.selection and picture is options.picture and not self.pad:
            return options
        return replace(options, selection=selection, picture=picture, short="pad" if self.pad else options.short)
