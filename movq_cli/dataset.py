"""Read a batch back, to train on it: `LatentDataset`.

Latents are mapped from their files or tars, one item at a time. They are stored unscaled: drawing from moments and
scaling happen here, each time an item is read.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from .batch.manifest import NAME, Line, parse_line, scan_lines, shard_manifests
from .batch.paths import Sources
from .device import dtype_of
from .errors import MovqError, MovqUsageError, MovqWarning, about, printable
from .files import FileIdentity, require_file
from .first_frame import LATENT, PNG
from .latents import CODE_DTYPES
from .metadata import Metadata
from .model.config import AutoencoderConfig
from .model.quantizers import require_codes
from .options import FIRST_FRAMES, FLOATS
from .posterior import draw_from
from .reading import BatchFiles, Held, mapped
from .scaling import SCALES, Scaling, scale_of, scaling_of
from .video.pictures import decode_png

_EXAMPLE = "cogvideox-5b"
_SAME = 1e-6
"""The relative difference up to which two scaling factors count as one, written with more or fewer digits."""


class Sample(TypedDict):
    """One item. `latents` (C, T, H, W) are a draw or the mean, scaled; `row` is its line of the manifest.

    `frames_per_latent` (T,) is how many frames each latent stands for: one for the first of a clip, four for others.
    `first_frame` is the first frame as a picture, padding included, RGB uint8 (3, height, width); `first_frame_latents`
    (C, 1, H, W) are latents of it alone, drawn and scaled as the others.
    """

    latents: torch.Tensor
    caption: str
    row: Line
    frames_per_latent: torch.Tensor
    first_frame: NotRequired[torch.Tensor]
    first_frame_latents: NotRequired[torch.Tensor]


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return a dtype, also by its name in torch or in --store-dtype. Raises MovqError for another name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    found = dtype_of(dtype) if dtype in FLOATS else getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise MovqError(f"dtype must be one of {', '.join(FLOATS)} or a torch.dtype, got {dtype!r}")
    return found


class LatentDataset(Dataset[Sample]):
    """The items that `movq batch-encode` has done in a folder, in either layout, in order of id.

    Each time an item of moments is read, a sample is drawn (by torch's own generator, which a DataLoader seeds for each
    worker and epoch); with `draw=False` it is the mean. Items saved as mean or sample are used as they were saved.

    `scale` multiplies latents after the draw. It is a number, or the name of a model, as in SCALES. None takes the
    factors in the header of each item, which come from its weights, and scales as diffusers does:
    (latents - shift_factor) * scaling_factor. Latents without a scaling_factor are left as they are. The constructor
    warns (MovqWarning) about these, and about a name whose factor differs from the header's; the name wins. A number
    never warns. Neither a number nor a name shifts.

    A sample has its first frame if all items have files of it: `first_frame` are the kinds, as in FIRST_FRAMES. The
    constructor warns if only some have. `first_frames=False` leaves them unread.

    With `codes`, `latents` are the codes of items that were encoded by weights with a quantiser, int64 (codebooks, T, H, W),
    as tokens for a token model, and so are first frames. Such items are refused without it, and others with it; None takes
    what there is.

    `where` chooses items by their lines. Outputs that no item has any more (`orphan`) are left out, as are failed and
    skipped items. `left_out` counts all that are left out, by reason. Raises MovqError if there is no manifest, or if
    shards are to be merged first.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        scale: float | str | None = None,
        draw: bool = True,
        dtype: torch.dtype | str = torch.float32,
        first_frames: bool = True,
        codes: bool | None = False,
        where: Callable[[Line], bool] | None = None,
    ) -> None:
        self.folder = os.fspath(folder)
        self.scale = scale_of(scale)
        self.draw, self.dtype = draw, _dtype(dtype)
        if shard_manifests(self.folder):
            raise MovqError("is of a batch in shards: put them together first, by batch-encode --merge", self.folder)
        self._path = os.path.join(self.folder, NAME)
        if not os.path.exists(self._path):
            raise MovqError(
                f"has no {NAME}: it is not a folder that batch-encode made; open_latents opens a single file",
                self.folder,
            )
        self._identity = FileIdentity.of(require_file(self._path))
        last: dict[str, tuple[int, str | tuple[Any, ...], int]] = {}  # of two lines of an item, the later counts
        weights: dict[str, int] = {}  # by digest, in order of appearance
        pictured: dict[str, tuple[str, ...]] = {}
        coded: dict[str, bool] = {}
        for at, line in scan_lines(self._path):
            bucket = _left_out(line, where) or (*line["shape"], line.get("options", {}).get("save", ""))
            last[line["id"]] = at, bucket, weights.setdefault(line.get("weights_digest", ""), len(weights))
            pictured[line["id"]] = tuple(line.get("first_frame", ()))
            coded[line["id"]] = line.get("dtype") in CODE_DTYPES.values()
        self.left_out = Counter(why for _, why, _ in last.values() if isinstance(why, str))
        kept = [(at, bucket, made) for _, (at, bucket, made) in sorted(last.items()) if not isinstance(bucket, str)]
        numbers = {bucket: number for number, bucket in enumerate(sorted({bucket for _, bucket, _ in kept}))}
        self._offsets = np.array([at for at, _, _ in kept], np.int64)
        self._buckets = np.array([numbers[bucket] for _, bucket, _ in kept], np.int64)
        self.codes = self._agreed(
            {id: coded[id] for id, (_, why, _) in last.items() if not isinstance(why, str)}, codes
        )
        if self.codes and (scale not in (None, 1.0) or self.dtype != torch.float32):
            raise MovqUsageError("codes are whole numbers: leave scale and dtype out", "codes")
        pictures = [pictured[id] for id, (_, why, _) in last.items() if not isinstance(why, str)]
        self.first_frame = self._common(pictures) if first_frames else ()
        self._open()
        self.files = BatchFiles(self.folder)
        self._scalings: dict[str, Scaling] = {}
        if not self.codes and (scale is None or isinstance(scale, str)):
            first = {made: i for i, (_, _, made) in reversed(list(enumerate(kept)))}
            for text in self._look_up_scalings(first.values(), scale):
                warnings.warn(MovqWarning(f"{self.folder}: {text}"), stacklevel=2)

    def _agreed(self, coded: dict[str, bool], codes: bool | None) -> bool:
        """Return True if the items are to be codes. Raises MovqError if some are not what `codes` says."""
        wanted = codes if codes is not None else any(coded.values())
        for id, is_coded in coded.items():
            if is_coded != wanted:
                text = (
                    "codes: LatentDataset(codes=True) gives them"
                    if is_coded
                    else "no codes, as others do or codes=True asks"
                )
                raise MovqError(f"{id} holds {text}", self.folder)
        return wanted

    def _common(self, kinds: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
        """Return the kinds of first frame that all items have. Warns of those that only some have."""
        counts = Counter(kind for item in kinds for kind in item)
        for kind in (kind for kind in FIRST_FRAMES if 0 < counts[kind] < len(kinds)):
            text = f"{len(kinds) - counts[kind]} of {len(kinds)} items have no first frame ({kind}), so that none is returned"
            text += f'; the same batch with first_frame="{kind}" makes them'
            warnings.warn(MovqWarning(f"{self.folder}: {text}"), stacklevel=3)
        return tuple(kind for kind in FIRST_FRAMES if counts[kind] == len(kinds) > 0)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Sample:
        return self.slice(index)

    def row(self, index: int) -> Line:
        """Return an item's line of the manifest."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of a data set with {len(self)}")
        at = int(self._offsets[index])
        line = parse_line(self._lines[at : self._lines.find(b"\n", at) + 1 or None])
        line["path"] = self._sources.absolute(line["path"])
        return line

    def slice(self, index: int, start: int = 0, stop: int | None = None) -> Sample:
        """Return latents `start` to `stop` of an item, reading only these. The bounds work as in Python's own slices.

        If the slice does not begin at 0, no latent in it stands for a single frame, as `frames_per_latent` shows.
        Raises MovqError if the file is not what the manifest says.
        """
        row = self.row(index)
        start, stop, _ = slice(start, stop).indices(row["shape"][2])
        clip = self.files.held(row)
        digest = row["weights_digest"]
        latents = self._scaled(clip, start, stop, digest)
        frames = torch.full((latents.shape[1],), clip.factor)
        if start == 0:
            frames[:1] = 1
        sample = Sample(
            latents=latents,
            caption=row.get("caption", ""),
            row=row,
            frames_per_latent=frames,
        )
        if start == 0 and PNG in self.first_frame:
            sample["first_frame"] = self._picture(row, int(clip.header.metadata["spatial_factor"]))
        if start == 0 and LATENT in self.first_frame:
            sample["first_frame_latents"] = self._scaled(self.files.held(row, LATENT), 0, 1, digest)
        return sample

    def buckets(self) -> list[list[int]]:
        """Return the indices of items, grouped by shape and by what was saved: moments, mean or sample."""
        return [
            np.flatnonzero(self._buckets == number).tolist() for number in range(int(self._buckets.max(initial=-1)) + 1)
        ]

    def _look_up_scalings(self, items: Iterable[int], scale: str | None) -> Iterator[str]:
        """Find the scaling of the weights of each of these items, and yield the texts of warnings.

        An item that cannot be read is skipped here, and raises MovqError when it is read.
        """
        without = []
        for item in items:
            row = self.row(item)
            try:
                said = self.files.header(row)[0].metadata
            except MovqError:
                continue
            model, scaling = printable(str(said.get("model") or "unknown weights")), scaling_of(said)
            if scaling is None:
                without.append(model)
                continue
            self._scalings[row["weights_digest"]] = scaling
            if self.scale is not None and not math.isclose(self.scale, scaling.factor, rel_tol=_SAME):
                yield (
                    f"the latents made with {model} have the scaling factor {scaling.factor}, but scale={scale!r} means "
                    f"{self.scale}, which is used; leave scale out to use theirs, or pass scale={self.scale}"
                )
        if without and scale is None:
            yield (
                f"the latents made with {', '.join(without)} have no scaling factor and are left as they are; pass "
                f'scale="{_EXAMPLE}" ({SCALES[_EXAMPLE]}), the name of another model, a number, or scale=1.0 to keep '
                "them so"
            )

    def _scaled(self, held: Held, start: int, stop: int, digest: str) -> torch.Tensor:
        """Return latents `start` to `stop`, drawn or their mean, scaled as `scale` or the weights of this digest say."""
        stored = held.floats(start, stop)
        if self.codes:
            with about(held.path):
                require_codes(
                    stored, AutoencoderConfig.from_dict(Metadata.from_strings(held.header.metadata).config).codes
                )
            return stored.long()
        if held.representation == "moments":
            latents = draw_from(stored) if self.draw else stored.chunk(2)[0].to(torch.float32, copy=True)
        else:
            latents = stored.to(torch.float32, copy=True)  # a copy, as the bytes of the file cannot be changed
        scaling = Scaling(1.0 if self.scale is None else self.scale)
        if self.scale is None:
            # The same weights have the same factor, even if a header was written before factors were recorded.
            scaling = scaling_of(held.header.metadata) or self._scalings.get(digest, scaling)
        return latents.sub_(scaling.shift).mul_(scaling.factor).to(self.dtype)

    def _picture(self, row: Line, factor: int) -> torch.Tensor:
        """Return the first frame, RGB uint8 (3, height, width): the size of the latents, times the factor.

        Raises MovqError for a file that is not such a picture.
        """
        data, path = self.files.data(row, PNG)
        height, width = (factor * side for side in row["shape"][3:])
        with about(path):
            return torch.from_numpy(decode_png(bytes(data), width, height)).permute(2, 0, 1).contiguous()

    def _open(self) -> None:
        if FileIdentity.of(require_file(self._path)) != self._identity:
            raise MovqError("has changed since the dataset was made: make it anew", self._path)
        self._lines = mapped(self._path)
        self._sources = Sources(self.folder)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lines", "_sources")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __repr__(self) -> str:
        left = "".join(f", {count} {why} left out" for why, count in sorted(self.left_out.items()))
        return f"LatentDataset({self.folder!r}: {len(self)} items in {len(self.buckets())} shapes{left})"


def _left_out(line: Line, where: Callable[[Line], bool] | None) -> str:
    """Return why an item is left out; "" if it is not."""
    if line["status"] != "done":
        return line["status"]
    if line.get("orphan"):
        return "orphan"
    return "" if where is None or where(line) else "where"
