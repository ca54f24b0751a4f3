"""The options of encoding, decoding and batches, each declared once, with its type and its default.

The command line makes its flags from these fields (cli/options.py); Python takes them by name. Nothing here imports
torch, numpy or av. Most invalid values are refused when an option is set, with a MovqUsageError that names the field.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Self

from .errors import MovqUsageError, option
from .fields import options_of, read_fields
from .values import Bucket, Column, Pick, Shard, Size

SEMANTICS = ("auto", "whole", "diffusers")
"""Ways to run weights whose norms span frames; weights with norms per frame have one way, "frame"."""
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
TAILS = ("pad", "drop", "error")
FITS = ("cover", "contain", "stretch")
EDGES = PAD, CROP = ("pad", "crop")
"""Ways to bring a side to a multiple: repeat the edge up to the next, or keep the centre down to the one before."""
CODES = "codes"
REPRESENTATIONS = ("moments", "mean", "sample", CODES)
FLOATS = ("fp32", "fp16", "bf16")
"""The data types of numbers that are computed with."""
INT8 = "int8"
STORE_DTYPES = (*FLOATS, INT8)
"""The data types that latents are stored in."""
SHORT = ("encode", "pad", "refuse")
"""Ways to treat a video with fewer frames than `Selection.frames` asks for."""
SHORT_IN_BATCH = ("skip", "pad")
"""The same in a batch: only note it in the manifest, or repeat the last frame."""
FIRST_FRAMES = ("png", "latent")
"""Kinds of a clip's first frame: a picture, and latents of it alone."""
NO_FIRST_FRAME = "none"
ENGINES = ("local", "ray")
LAYOUTS = ("files", "tar")
EXPORTS = ("cogvideo-finetune", "finetrainers", "cogvideox-factory", "npy")
"""The layouts of an export, as their trainers are called."""
OUTPUTS = (
    ".mp4 or .mov (H.264), .webm (VP9), .mkv (FFV1, lossless), .gif, .npy (an array), no suffix (a folder of PNG "
    "pictures), or .png or .jpg for a single frame"
)
"""The names that decoding writes to."""
MOST_PIXELS = 2**28 - 1
"""The most pixels of a picture that FFmpeg decodes."""
TAR_BYTES = 10**9
"""The default size limit of a tar in bytes. An item that would exceed it starts the next tar."""
TIMEOUT = 600.0
"""Seconds without progress after which a worker is taken to hang."""


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise MovqUsageError unless the option's value is one of those allowed."""
    if value not in allowed:
        raise MovqUsageError(f"must be one of {', '.join(allowed)}, got {value!r}", option=name)


@dataclass(frozen=True)
class Selection:
    """The frames of a video that are taken. The fields apply in their order.

    `start` and `duration` are in seconds, from the first frame shown. `fps` is in frames per second; of these frames,
    each `every`-th is kept. Then `skip` frames are left out and at most `frames` are taken. With `allow_partial`, a
    video that is cut off or damaged gives the frames before that, instead of none. `max_pixels` allows a picture whose
    size is suspicious for its file.
    """

    stream: int | None = None
    start: Fraction = Fraction(0)
    duration: Fraction | None = None
    fps: Fraction | None = None
    fps_repeat: bool = False
    every: int = 1
    skip: int = 0
    frames: int | None = None
    allow_partial: bool = False
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        read_fields(self)
        if self.start < 0:
            raise MovqUsageError(f"must not be negative, got {float(self.start):g}", option="start")
        for name in ("duration", "fps", "every", "frames", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise MovqUsageError(f"must be above 0, got {float(value):g}", option=name)
        if (self.max_pixels or 0) > MOST_PIXELS:
            raise MovqUsageError(f"must be at most {MOST_PIXELS}, got {self.max_pixels}", option="max_pixels")
        if self.fps_repeat and self.fps is None:
            raise MovqUsageError(f"needs {option('fps')}", option="fps_repeat")


@dataclass(frozen=True)
class Picture:
    """The size that is asked for, in pixels.

    One of `height`, `width` and `short_side` keeps the aspect; height and width together go with `fit`. Of several
    `sizes`, a picture gets the one nearest to its shape. Height and width become a `multiple` (None: the factor of the
    weights) by padding, or with `edge` "crop" by cropping what was scaled.
    """

    height: int | None = None
    width: int | None = None
    short_side: int | None = None
    sizes: tuple[Size, ...] = ()
    fit: str = "cover"
    upscale: bool = False
    multiple: int | None = None
    edge: str = PAD

    def __post_init__(self) -> None:
        read_fields(self)
        if self.short_side is not None and (self.height or self.width):
            raise MovqUsageError(f"goes without {option('height')} and {option('width')}", option="short_side")
        if self.sizes and (self.height or self.width or self.short_side):
            raise MovqUsageError(
                f"goes without {option('height')}, {option('width')} and {option('short_side')}", option="sizes"
            )
        one_of("fit", self.fit, FITS)
        one_of("edge", self.edge, EDGES)
        for name in ("height", "width", "short_side", "multiple"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MovqUsageError(f"must be above 0, got {value}", option=name)

    def padding(self, factor: int) -> int:
        """Return the multiple that sides become, for weights of this factor. Raises MovqUsageError."""
        if self.multiple is not None and self.multiple % factor:
            raise MovqUsageError(f"must be a multiple of {factor}, got {self.multiple}", option="multiple")
        return self.multiple or factor

    @property
    def allowing(self) -> dict[str, Any]:
        """The fields that go with any size."""
        return {"upscale": self.upscale, "multiple": self.multiple, "edge": self.edge}


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of running a network, to encode or to decode.

    `weights`: a file, folder or model id (None: the embedded ones). `chunk_frames`: frames computed at once (None: as
    many as suit). `strip_rows`: rows of a picture computed at once (None: all of them, or as many as fit into memory).
    `memory_budget`: bytes to stay within (None: what is free). `spill_dir`: the folder for activations
    that do not fit (None: that of the output). `threads`: CPU threads (None: all cores; in a batch, one per worker).
    """

    weights: str | None = None
    semantics: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    chunk_frames: int | None = None
    strip_rows: int | None = None
    memory_budget: int | None = None
    spill_dir: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        read_fields(self)
        one_of("semantics", self.semantics, SEMANTICS)
        for name in ("strip_rows", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MovqUsageError(f"must be above 0, got {value}", option=name)

    def beside(self, output: str | os.PathLike[str]) -> Self:
        """Return the same options with a `spill_dir`: the output's folder if none was given."""
        return self if self.spill_dir else replace(self, spill_dir=os.path.dirname(os.fspath(output)) or ".")


@dataclass(frozen=True, kw_only=True)
class EncodeOptions(ModelOptions):
    """Options of encoding.

    `short`: a video with fewer frames than `selection.frames` is encoded with a warning ("encode"), padded to that
    length by repeating its last frame ("pad"), or refused with MovqTooShortError ("refuse"). `save` "moments" is what the
    weights give: codes, if they have a quantiser, and the mean alone, if they have no variance. `seed` is for draws: save
    "sample", and a batch's pick "random". `target` is the diffusion model to prepare for, a name in targets.py, which
    sets what other options leave open. `scaling_factor` is recorded instead of the weights', and never applied.
    `first_frame` are kinds of the first frame to write beside the latents, in FIRST_FRAMES; () leaves it open, "none" does
    not.
    """

    selection: Selection = Selection()
    tail: str = "pad"
    picture: Picture = Picture()
    save: str = "moments"
    seed: int = 0
    store_dtype: str = "auto"
    target: str | None = None
    scaling_factor: float | None = None
    short: str = "encode"
    first_frame: tuple[str, ...] = ()
    force: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in self.first_frame:
            one_of("first_frame", kind, (*FIRST_FRAMES, NO_FIRST_FRAME))
        if NO_FIRST_FRAME in self.first_frame and len(self.first_frame) > 1:
            raise MovqUsageError(f"{NO_FIRST_FRAME} goes alone", option="first_frame")
        one_of("tail", self.tail, TAILS)
        one_of("save", self.save, REPRESENTATIONS)
        one_of("store_dtype", self.store_dtype, ("auto", *STORE_DTYPES))
        one_of("short", self.short, SHORT)
        if self.scaling_factor is not None and self.scaling_factor <= 0:
            raise MovqUsageError(f"must be above 0, got {self.scaling_factor:g}", option="scaling_factor")

    @property
    def first_frames(self) -> tuple[str, ...]:
        """The kinds of the first frame that are asked for, in the order of FIRST_FRAMES."""
        return tuple(kind for kind in FIRST_FRAMES if kind in self.first_frame)

    def flat(self) -> dict[str, Any]:
        """Return all options by name, including those of the selection and the picture, as values for JSON."""
        from .records import to_values  # imported here so that --help need not wait for it

        values: dict[str, Any] = to_values(self)
        for part in ("selection", "picture"):
            values |= values.pop(part)
        return values

    @cached_property
    def choices(self) -> dict[str, Any]:
        """Options other than the default that change latents by more than rounding, without those in KNOBS."""
        usual, chosen = EncodeOptions().flat(), self.flat()
        if self.save != "sample":
            del chosen["seed"]
        if self.save == CODES:  # what weights with a quantiser give by default
            del chosen["save"]
        if self.short != "pad":  # "encode" does not change latents, and "refuse" gives none
            del chosen["short"]
        return {name: value for name, value in chosen.items() if name not in KNOBS and value != usual[name]}


KNOBS = {field.name for field in fields(ModelOptions)} | {"force", "first_frame"}
"""Options that change latents by no more than rounding; and weights, semantics and precision, recorded separately."""


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(ModelOptions):
    """Options of decoding.

    `semantics` is for weights whose norms span frames: "diffusers" (and "auto") decodes windows of 2 latents, the first
    of 3 if their number is odd, as both published decoders do; "whole" decodes the clip as one window. Moments are
    decoded from their mean, or with `draw` from a draw by `seed`. `crf` is that of H.264.
    """

    draw: bool = False
    seed: int = 0
    crf: int = 18
    force: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed and not self.draw:
            raise MovqUsageError(f"goes with {option('draw', True)}", option="seed")


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Options of a batch, besides those of encoding each video.

    Items: `lists` are files that list them, and `columns` say which of their columns is taken for what; `captions` is a
    file with one line for each; `buckets`, `pick` and `short` cut items out of videos (batch/cut.py), and `aspects` adds the
    buckets' siblings of other shapes; `shard` is the part of the videos that is made here.
    Running: `workers` is the number of processes (None: as many as suit; 0: only this process); `timeout` is in seconds
    without progress; `verify` reads all existing videos and outputs; `retry_failed` tries again what was refused;
    `replace` makes outputs again that were made with other options or from another video of the same name; `engine`
    starts the workers, "ray" on the cluster at `ray_address` with `ray_gpus` for each.
    Output: `layout` (None: that of the folder, files in a new one); `tar_size` is the size limit of a tar in bytes
    (None: TAR_BYTES).
    """

    lists: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    captions: str | None = None
    buckets: tuple[Bucket, ...] = ()
    aspects: bool = False
    pick: Pick | None = None
    short: str = "skip"
    shard: Shard | None = None
    workers: int | None = None
    timeout: float = TIMEOUT
    retry_failed: bool = False
    replace: bool = False
    verify: bool = False
    engine: str = "local"
    ray_address: str | None = None
    ray_gpus: float = 1.0
    layout: str | None = None
    tar_size: int | None = None

    def __post_init__(self) -> None:
        read_fields(self)
        one_of("short", self.short, SHORT_IN_BATCH)
        one_of("engine", self.engine, ENGINES)
        if self.layout is not None:
            one_of("layout", self.layout, LAYOUTS)
        if self.workers is not None and self.workers < 0:
            raise MovqUsageError(f"must be 0 or more, got {self.workers}", option="workers")
        if self.workers == 0 and self.engine != "local":
            raise MovqUsageError(f"0 is this process: it goes with {option('engine', 'local')}", option="workers")
        for name in ("timeout", "tar_size", "ray_gpus"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise MovqUsageError(f"must be above 0, got {value:g}", option=name)
        if self.ray_gpus > 1 and self.ray_gpus % 1:
            raise MovqUsageError(f"above 1 must be a whole number, got {self.ray_gpus:g}", option="ray_gpus")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of an export.

    `to` is the layout, a name in EXPORTS. `scale` multiplies latents: a number, or the name of a model as in scaling.py
    (None: the target's factor, or that in the header, for layouts that are scaled). `seed` is for draws. `dtype` is that
    of the numbers (None: that of the target, or as stored). `prompt_embeds` is a folder of text embeddings, one file for
    each caption, named by its sha256. `shape` leaves out items of another. `target` is the diffusion model (None: the one
    that the latents were prepared for). `any_weights` exports latents of other weights than CogVideoX's. `force`
    overwrites files of others.
    """

    to: str | None = None
    scale: str | None = None
    seed: int = 0
    dtype: str | None = None
    prompt_embeds: str | None = None
    shape: Bucket | None = None
    target: str | None = None
    any_weights: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", None if self.scale is None else str(self.scale))
        read_fields(self)
        if self.to is not None:
            one_of("to", self.to, EXPORTS)
        if self.dtype is not None:
            one_of("dtype", self.dtype, STORE_DTYPES)


@dataclass(frozen=True, kw_only=True)
class ForeignOptions:
    """Options of decoding a file in the layout of a trainer.

    `from_layout` is a name in EXPORTS. `target` is the diffusion model that the file is for, whose weights, scale and
    frames per second are taken where nothing else is said. `scale` is what its latents are multiplied by.
    """

    from_layout: str | None = None
    target: str | None = None
    scale: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", None if self.scale is None else str(self.scale))
        read_fields(self)
        if self.from_layout is not None:
            one_of("from_layout", self.from_layout, EXPORTS)
        for name in ("target", "scale"):
            if self.from_layout is None and getattr(self, name) is not None:
                raise MovqUsageError(f"goes with {option('from_layout')}", option=name)


def batch_options(
    options: EncodeOptions | None, batch: BatchOptions | None, changes: Mapping[str, Any]
) -> tuple[EncodeOptions, BatchOptions]:
    """Return both options of a batch, with changes by name. Raises MovqUsageError as `options_of` does."""
    own = {field.name for field in fields(BatchOptions)} & changes.keys()
    return (
        options_of(EncodeOptions, options, {name: value for name, value in changes.items() if name not in own}),
        options_of(BatchOptions, batch, {name: changes[name] for name in own}),
    )
