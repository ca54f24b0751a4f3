"""The geometry from stored frame to encoded picture: turning, square pixels, scaling, cropping, padding. No PyAV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from ..errors import MovqTooSmallError, option
from ..options import CROP, PAD, Picture


@dataclass(frozen=True)
class Orientation:
    """The steps that turn the stored picture into the shown one: transpose, then mirror columns, then mirror rows."""

    transpose: bool = False
    mirror_columns: bool = False
    mirror_rows: bool = False

    @property
    def rotation(self) -> int:
        """The rotation by quarter turns, in degrees clockwise, after mirroring the columns if `mirrored`."""
        if self.transpose:
            return 90 if self.mirror_columns else 270
        return 180 if self.mirror_rows else 0

    @property
    def mirrored(self) -> bool:
        """True if the picture is mirrored, apart from any rotation."""
        return self.transpose ^ self.mirror_columns ^ self.mirror_rows

    def then(self, other: Orientation) -> Orientation:
        """Return the orientation that shows what `other` makes of the picture shown by this one."""
        columns, rows = self.mirror_columns, self.mirror_rows
        if other.transpose:
            columns, rows = rows, columns
        return Orientation(self.transpose ^ other.transpose, columns ^ other.mirror_columns, rows ^ other.mirror_rows)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return a view of an image (H, W, 3) as it is shown."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        return image[:: -1 if self.mirror_rows else 1, :: -1 if self.mirror_columns else 1]


@dataclass(frozen=True)
class Geometry:
    """The way from each stored frame to the encoded picture. All sizes are (width, height) in pixels.

    `scaled` is the size after the one resampling, which also makes pixels square, and before turning. `crop` is (left,
    top, width, height) in the turned picture. Padding repeats the right and bottom edge.
    """

    stored: tuple[int, int]
    shown: tuple[int, int]
    orientation: Orientation
    scaled: tuple[int, int]
    crop: tuple[int, int, int, int]
    pad_right: int
    pad_bottom: int

    @property
    def width(self) -> int:
        """Width of the picture, without padding."""
        return self.crop[2]

    @property
    def height(self) -> int:
        """Height of the picture, without padding."""
        return self.crop[3]

    @property
    def padded_width(self) -> int:
        """Width with padding."""
        return self.width + self.pad_right

    @property
    def padded_height(self) -> int:
        """Height with padding."""
        return self.height + self.pad_bottom

    @property
    def resamples(self) -> bool:
        """True if the picture is scaled."""
        return self.scaled != self.stored

    @property
    def whole(self) -> tuple[int, int]:
        """The size of the scaled and turned picture, before it is cropped."""
        return self.scaled[::-1] if self.orientation.transpose else self.scaled

    @property
    def crops(self) -> bool:
        """True if a part of the scaled picture is cut away."""
        return (self.width, self.height) != self.whole

    def place(self, image: np.ndarray, out: np.ndarray) -> None:
        """Turn and crop a scaled frame (H, W, 3) into `out` (padded_height, padded_width, 3), and pad it."""
        left, top, width, height = self.crop
        out[:height, :width] = self.orientation.apply(image)[top : top + height, left : left + width]
        out[:height, width:] = out[:height, width - 1 : width]
        out[height:] = out[height - 1 : height]


def plan_geometry(
    width: int, height: int, pixel_aspect: Fraction, orientation: Orientation, picture: Picture, multiple: int
) -> Geometry:
    """Return the geometry for stored frames of width x height, whose sides become multiples of `multiple`.

    The edge is repeated up to the next multiple, or with edge "crop" the picture is cropped to the one before. With fit
    "contain", the picture is in the upper left of its box, and the rest of the box is padding like any other: "crop" makes
    the box smaller, and the picture stays whole. Raises MovqTooSmallError if the picture is too small to be cropped, or
    would have to be enlarged and `upscale` is not set.
    """
    turn = orientation.transpose
    upright = max(1, round(width * pixel_aspect)), height
    shown = upright[::-1] if turn else upright
    size, box = _target(shown, picture, multiple)
    if not picture.upscale and (size[0] > shown[0] or size[1] > shown[1]):
        raise MovqTooSmallError(
            f"shows {shown[0]}x{shown[1]}, which would be enlarged to {size[0]}x{size[1]}; {option('upscale', True)} allows it"
        )
    full = on_multiple(box, multiple, picture.edge)
    if not all(full):
        raise MovqTooSmallError(
            f"shows {shown[0]}x{shown[1]}: {box[0]}x{box[1]} is too small to be cropped to multiples of {multiple}; "
            f"{option('edge', PAD)} repeats its edge instead"
        )
    crop_width, crop_height = (min(sides) for sides in zip(size, box, full, strict=True))
    return Geometry(
        stored=(width, height),
        shown=shown,
        orientation=orientation,
        scaled=size[::-1] if turn else size,
        crop=((size[0] - crop_width) // 2, (size[1] - crop_height) // 2, crop_width, crop_height),
        pad_right=full[0] - crop_width,
        pad_bottom=full[1] - crop_height,
    )


def _target(shown: tuple[int, int], picture: Picture, multiple: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size to scale to and the box that it has to fill, both (width, height)."""
    w, h = shown
    if picture.sizes:
        nearest = min(picture.sizes, key=lambda size: abs(math.log(size.width * h / (size.height * w))))
        picture = replace(picture, sizes=(), height=nearest.height, width=nearest.width)
    if picture.width is not None and picture.height is not None:
        box = picture.width, picture.height
        if picture.fit == "stretch":
            return box, box
        # To contain the whole picture, what is kept of the box has to hold it.
        room = on_multiple(box, multiple, CROP) if picture.fit == "contain" and picture.edge == CROP else box
        choose = max if picture.fit == "cover" else min
        scale = choose(Fraction(room[0], w), Fraction(room[1], h))
        return (max(1, round(w * scale)), max(1, round(h * scale))), box
    if picture.width is not None:
        scale = Fraction(picture.width, w)
    elif picture.height is not None:
        scale = Fraction(picture.height, h)
    elif picture.short_side is not None:
        scale = Fraction(picture.short_side, min(w, h))
    else:
        return shown, shown
    size = max(1, round(w * scale)), max(1, round(h * scale))
    return size, size


def part_kept(shown: tuple[int, int], box: tuple[int, int], encoded: tuple[int, int]) -> float:
    """Return the fraction of a picture that remains when it is scaled to cover a box, and cropped to it and its `encoded` part.

    Sizes are (width, height). What is encoded may be larger than the box, by padding.
    """
    ratio = box[0] * shown[1] / (box[1] * shown[0])
    inside = min(encoded[0] / box[0], 1) * min(encoded[1] / box[1], 1)
    return min(ratio, 1 / ratio) * inside


def smaller_pictures(size: tuple[int, int], multiple: int, edge: str) -> Iterator[tuple[int, int]]:
    """Yield smaller sizes (width, height) of the same aspect, from large to small, whose short side is a multiple.

    With `edge` "crop", the long side is cropped to a multiple too.
    """
    short = min(size)
    for side in range(round_up(short, multiple) - multiple, 0, -multiple):
        smaller = round(size[0] * side / short), round(size[1] * side / short)
        yield smaller if edge == PAD else on_multiple(smaller, multiple, edge)


def on_multiple(size: tuple[int, int], multiple: int, edge: str) -> tuple[int, int]:
    """Return a size whose sides are multiples: padded to the next, or cropped to the one before, which may be 0."""
    if edge == PAD:
        return round_up(size[0], multiple), round_up(size[1], multiple)
    return size[0] // multiple * multiple, size[1] // multiple * multiple


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple that is not below `value`."""
    return -(-value // multiple) * multiple
