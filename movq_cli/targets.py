"""The diffusion models that latents are prepared for: what `--for MODEL` sets. Sources of the values: docs/export.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from .options import FIRST_FRAMES, BatchOptions, EncodeOptions, one_of
from .values import Bucket, Size

CHANNELS = 16
"""Channels of the latents of CogVideoX."""
FACTOR = 4
"""Frames that a latent of CogVideoX stands for, after the first."""
USUAL_FPS = 8
"""Frames per second of clips for CogVideoX, where no model is named."""
_PATCH = 16
"""Pixels of height and width that one patch of CogVideoX's transformers stands for: 2x2 latents."""


@dataclass(frozen=True)
class Target:
    """A diffusion model: the clips that it was trained on, and the autoencoder that it reads the latents of.

    `weights` is the id of the model on the Hugging Face hub. `sizes` are those of landscape and portrait. `store_dtype`
    is what it is trained in. `from_image`: it takes the first frame as a condition.
    """

    weights: str
    frames: int
    fps: int
    sizes: tuple[Size, ...]
    scaling_factor: float
    store_dtype: str
    from_image: bool = False
    multiple: int = _PATCH


_SD, _HD = (Size(480, 720), Size(720, 480)), (Size(768, 1360), Size(1360, 768))

TARGETS: Mapping[str, Target] = {
    "cogvideox-2b": Target("zai-org/CogVideoX-2b", 49, 8, _SD, 1.15258426, "fp16"),
    "cogvideox-5b": Target("zai-org/CogVideoX-5b", 49, 8, _SD, 0.7, "bf16"),
    "cogvideox-5b-i2v": Target("zai-org/CogVideoX-5b-I2V", 49, 8, _SD, 0.7, "bf16", from_image=True),
    "cogvideox1.5-5b": Target("zai-org/CogVideoX1.5-5B", 81, 16, _HD, 0.7, "bf16"),
    "cogvideox1.5-5b-i2v": Target("zai-org/CogVideoX1.5-5B-I2V", 81, 16, _HD, 0.7, "bf16", from_image=True),
}


def target_of(name: str) -> Target:
    """Return the model of this name. Raises MovqUsageError for an unknown one."""
    one_of("target", name, tuple(TARGETS))
    return TARGETS[name]


def prepared(options: EncodeOptions, cut: bool = False) -> EncodeOptions:
    """Return the options with what their `target` sets where they leave it open.

    With `cut`, buckets say how long items are. Raises MovqUsageError for an unknown model.
    """
    if options.target is None:
        return options
    target, selection, picture = target_of(options.target), options.selection, options.picture
    sized = picture.sizes or picture.height or picture.width or picture.short_side
    return replace(
        options,
        weights=options.weights or target.weights,
        selection=replace(
            selection,
            frames=selection.frames if cut else selection.frames or target.frames,
            fps=selection.fps or Fraction(target.fps),
        ),
        picture=replace(
            picture,
            sizes=() if cut else picture.sizes if sized else target.sizes,
            multiple=picture.multiple or target.multiple,
        ),
        store_dtype=target.store_dtype if options.store_dtype == "auto" else options.store_dtype,
        scaling_factor=options.scaling_factor or target.scaling_factor,
        first_frame=options.first_frame or (FIRST_FRAMES if target.from_image else ()),
    )


def prepared_batch(options: EncodeOptions, batch: BatchOptions) -> tuple[EncodeOptions, BatchOptions]:
    """Return the options of a batch with what their `target` sets where they leave it open: sizes are buckets.

    Raises MovqUsageError for an unknown model.
    """
    options = prepared(options, cut=bool(batch.buckets))
    if not options.picture.sizes:
        return options, batch
    frames = options.selection.frames
    assert frames is not None  # the target's, or the option's
    buckets = tuple(Bucket(frames, size.height, size.width) for size in options.picture.sizes)
    return replace(options, picture=replace(options.picture, sizes=())), replace(batch, buckets=buckets)
