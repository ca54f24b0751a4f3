"""First frames for image-to-video: the first frame of a clip as a picture, and encoded alone, in files beside its latents.

The picture is what the encoder gets, padding included, so that its sides are those of the latents times their factor.

They are named by WebDataset's rule, by which the files of an item differ only in what follows its name: next to
`a.safetensors` are `a.first_frame.png` and `a.first_frame.safetensors`.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from .files import WholeFile, short_name
from .latents import LatentsWriter, is_latents
from .metadata import Metadata
from .options import FIRST_FRAMES
from .video.pictures import encode_png, is_signed_png, signed_png

if TYPE_CHECKING:
    import torch

    from .video import Frame

LATENTS = ".safetensors"
"""The suffix of latents files."""
PNG, LATENT = FIRST_FRAMES
SUFFIXES: Mapping[str, str] = {PNG: ".first_frame.png", LATENT: f".first_frame{LATENTS}"}
"""The suffix of a first frame's file, by its kind. It follows the name of the item."""


class FirstFrameFile(NamedTuple):
    """A file of a first frame: its path, its size, and its hex SHA-256 digest."""

    output_path: str
    bytes: int
    sha256: str


def first_frame_path(output: str | os.PathLike[str], kind: str) -> str:
    """Return the path of a first frame from the path of the clip's latents. `kind` is one of FIRST_FRAMES.

    A name that would be too long for a file system is shortened, and marked by a digest.
    """
    folder, name = os.path.split(os.fspath(output).removesuffix(LATENTS))
    return os.path.join(folder, short_name(name, "", SUFFIXES[kind]))


def is_first_frame(path: str, kind: str) -> bool:
    """Return True for a file of this kind that movq wrote."""
    return is_signed_png(path) if kind == PNG else is_latents(path)


def remove_first_frames(output: str | os.PathLike[str], kept: Container[str], source: str | os.PathLike[str]) -> None:
    """Delete first frames that movq wrote beside latents: they are of an older clip or crop.

    The kinds `kept` stay, and a picture that is the source of the latents.
    """
    for kind in FIRST_FRAMES:
        path = first_frame_path(output, kind)
        if kind not in kept and is_first_frame(path, kind):
            with suppress(OSError):
                if not os.path.samefile(path, source):
                    os.unlink(path)


class FirstFrame:
    """Writes the first frame of a clip beside its latents, as each of `kinds`: `noted`, `append`, `finish`, `commit`.

    Use it in a `with`. Latents are stored in int8 if the clip's are. Its files get their names before the clip's latents
    do, so that those without latents are left over, and are replaced. The constructor raises MovqError, before any work is
    done, if a file cannot be written.
    """

    def __init__(self, output: str | os.PathLike[str], kinds: Sequence[str], force: bool, int8: bool = False) -> None:
        self.frame: Frame | None = None
        self._png: WholeFile | None = None
        self._latents: LatentsWriter | None = None
        with ExitStack() as stack:
            for kind in kinds:
                path = first_frame_path(output, kind)
                replaces = force or (not os.path.lexists(output) and is_first_frame(path, kind))
                if kind == PNG:
                    self._png = stack.enter_context(WholeFile(path, force=replaces))
                else:
                    self._latents = stack.enter_context(LatentsWriter(path, force=replaces, int8=int8))
            self._stack = stack.pop_all()

    @property
    def wants_latents(self) -> bool:
        """True if the frame is to be encoded."""
        return self._latents is not None

    def noted(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Yield the same frames, and keep the first of them in `frame`."""
        for frame in frames:
            if self.frame is None:
                self.frame = frame
            yield frame

    def append(self, latents: torch.Tensor) -> None:
        """Take the latents (1, C, 1, H', W') of the frame. Raises MovqError if any is not finite."""
        assert self._latents is not None
        self._latents.append(latents)

    def finish(self, clip: Metadata, warnings: Sequence[str]) -> dict[str, FirstFrameFile]:
        """Write the files, and return them by kind; they get their names in `commit`.

        `clip` is the metadata of the whole clip's latents, `warnings` are those that were given before its first frame.
        """
        assert self.frame is not None
        made = {}
        if self._png is not None:
            data = signed_png(encode_png(self.frame.image))
            self._png.write(data)
            made[PNG] = FirstFrameFile(self._png.path, len(data), hashlib.sha256(data).hexdigest())
        if self._latents is not None:
            times, indices = array("d", [float(self.frame.time)]), array("q", [self.frame.index])
            size = self._latents.finish(self._metadata(clip, warnings), times, indices)
            made[LATENT] = FirstFrameFile(self._latents.path, size, self._latents.sha256)
        return made

    def _metadata(self, clip: Metadata, warnings: Sequence[str]) -> Metadata:
        """Return what does not depend on the rest of the clip, so that the file is the same whenever it is made."""
        assert self.frame is not None
        preprocessing = {name: value for name, value in clip.preprocessing.items() if name != "partial"}
        return replace(
            clip,
            frames=1,
            frames_padded=0,
            frames_dropped=0,
            windows=None if clip.windows is None else [1],
            duration=float(self.frame.end - self.frame.time),
            preprocessing=preprocessing | {"warnings": list(warnings)},
        )

    def commit(self) -> None:
        """Give the files their names. Raises MovqError if another file has one by now."""
        for file in (self._latents, self._png):
            if file is not None:
                file.commit()

    def __enter__(self) -> FirstFrame:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
