"""The options of encoding, decoding and batches, each declared once, with its type and its default.

The command line makes its flags of these fields (cli/options.py), Python takes them by name. Nothing here imports torch, numpy
or av. Values that cannot be are refused when an option is set: MovqUsageError names the field.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Self

from .errors import MovqUsageError, option
from .values import Bucket, Pick, Shard, parse_bytes

SEMANTICS = ("auto", "whole", "diffusers")
"""Ways to run weights whose norms span frames; weights with norms per frame have one way, "frame"."""
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
TAILS = ("pad", "drop", "error")
FITS = ("cover", "contain", "stretch")
REPRESENTATIONS = ("moments", "mean", "sample")
STORE_DTYPES = ("fp32", "fp16", "bf16")
SHORT = ("encode", "pad", "refuse")
"""Ways to treat a video with fewer frames than `Selection.frames` asks for."""
SHORT_IN_BATCH = ("skip", "pad")
"""The same in a batch: nothing but a line that says so, or its last frame is repeated."""
ENGINES = ("local", "ray")
LAYOUTS = ("files", "tar")
TAR_BYTES = 10**9
"""Bytes of a tar that no further item is added to, if it would exceed them."""
TIMEOUT = 600.0
"""Seconds without progress after which a worker is taken to hang."""


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise MovqUsageError unless the option's value is one of those allowed."""
    if value not in allowed:
        raise MovqUsageError(f"must be one of {', '.join(allowed)}, got {value!r}", option=name)


@dataclass(frozen=True)
class Selection:
    """Which frames of a video are taken, in the order of the fields.

    `start` and `duration` are seconds, from the first frame shown; `fps` frames per second; then each `every`-th of these. Of
    what is left, `skip` frames are passed over and at most `frames` taken. `allow_partial`: of a video that is cut off or
    damaged, what comes before is taken, instead of nothing.
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

    def __post_init__(self) -> None:
        if self.start < 0:
            raise MovqUsageError(f"must not be negative, got {float(self.start):g}", option="start")
        for name in ("duration", "fps", "every", "frames"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise MovqUsageError(f"must be above 0, got {float(value):g}", option=name)
        if self.fps_repeat and self.fps is None:
            raise MovqUsageError(f"needs {option('fps')}", option="fps_repeat")


@dataclass(frozen=True)
class Picture:
    """Which size is asked for, in pixels: `height`, `width` or `short_side` keeps the aspect; height and width go with `fit`."""

    height: int | None = None
    width: int | None = None
    short_side: int | None = None
    fit: str = "cover"
    upscale: bool = False

    def __post_init__(self) -> None:
        if self.short_side is not None and (self.height or self.width):
            raise MovqUsageError(f"goes without {option('height')} and {option('width')}", option="short_side")
        one_of("fit", self.fit, FITS)
        for name in ("height", "width", "short_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MovqUsageError(f"must be above 0, got {value}", option=name)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of running a network, to encode or to decode.

    `weights`: a file, folder or model id (None: the embedded ones). `chunk_frames`: frames computed at once (None: as many as
    suit). `memory_budget`: bytes to stay within (None: what is free). `spill_dir`: where activations go that do not fit (None:
    beside the output). `threads` of the CPU (None: all cores; in a batch one for each worker).
    """

    weights: str | None = None
    semantics: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    chunk_frames: int | None = None
    memory_budget: int | None = None
    spill_dir: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        one_of("semantics", self.semantics, SEMANTICS)
        if self.threads is not None and self.threads < 1:
            raise MovqUsageError(f"must be above 0, got {self.threads}", option="threads")

    def beside(self, output: str | os.PathLike[str]) -> Self:
        """Return the same options with a spill_dir: the output's folder where none was given."""
        return self if self.spill_dir else replace(self, spill_dir=os.path.dirname(os.fspath(output)) or ".")


@dataclass(frozen=True, kw_only=True)
class EncodeOptions(ModelOptions):
    """Options of encoding.

    `short`: a video with fewer frames than `selection.frames` is encoded, with a warning, or first made as long by repeating its
    last frame (pad), or refused (MovqTooShortError). `seed` is of draws (save "sample", and a batch's pick "random").
    """

    selection: Selection = Selection()
    tail: str = "pad"
    picture: Picture = Picture()
    save: str = "moments"
    seed: int = 0
    store_dtype: str = "auto"
    short: str = "encode"
    force: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("tail", self.tail, TAILS)
        one_of("save", self.save, REPRESENTATIONS)
        one_of("store_dtype", self.store_dtype, ("auto", *STORE_DTYPES))
        one_of("short", self.short, SHORT)

    def flat(self) -> dict[str, Any]:
        """Return all options by name, those of the selection and the picture among them, as JSON can hold them."""
        from .records import to_values  # which --help need not wait for

        values: dict[str, Any] = to_values(self)
        for part in ("selection", "picture"):
            values |= values.pop(part)
        return values

    @cached_property
    def choices(self) -> dict[str, Any]:
        """Options that are not at their default and change latents by more than rounding; without weights and precision."""
        usual, chosen = EncodeOptions().flat(), self.flat()
        if self.save != "sample":
            del chosen["seed"]
        if self.short != "pad":  # else there is what all options give, or nothing
            del chosen["short"]
        return {name: value for name, value in chosen.items() if name not in _KNOBS and value != usual[name]}


_KNOBS = {field.name for field in fields(ModelOptions)} | {"force"}
"""Options that change no latent by more than rounding, and weights and precision, which are recorded apart."""


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(ModelOptions):
    """Options of decoding.

    `semantics`, of weights whose norms span frames: "diffusers" (and "auto") is windows of 2 latents, the first of 3 where
    their number is odd, as both published decoders do; or "whole". Moments are decoded from their mean, or with `draw` from
    a draw by `seed`; `crf` is H.264's.
    """

    draw: bool = False
    seed: int = 0
    crf: int = 18
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Options of a batch, besides those of encoding each video.

    Items: `lists` of them; `captions`, a file with one line for each; `buckets`, `pick` and `short` cut items out of videos
    (batch/cut.py); `shard` is the part of the videos that is made here.
    Running: `workers` are processes (None: as many as suit; 0: this process itself); `timeout` is seconds without progress;
    `verify` reads all videos and outputs that are there; `retry_failed` tries again what was refused; `replace` makes again
    what was made with other options or of another video of the same name; `engine` with `ray_address` and `ray_gpus`, of each
    worker.
    Output: `layout` (None: as the folder has it, files in a new one), and `shard_size`, the bytes of a tar at most (None:
    TAR_BYTES).
    """

    lists: tuple[str, ...] = ()
    captions: str | None = None
    buckets: tuple[Bucket, ...] = ()
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
    shard_size: int | None = None

    def __post_init__(self) -> None:
        one_of("short", self.short, SHORT_IN_BATCH)
        one_of("engine", self.engine, ENGINES)
        if self.layout is not None:
            one_of("layout", self.layout, LAYOUTS)
        for name, kind in (("shard", Shard), ("pick", Pick)):
            if not isinstance(value := getattr(self, name), kind | None):
                raise MovqUsageError(f"must be a text like that on the command line, got {value!r}", option=name)
        if self.workers is not None and self.workers < 0:
            raise MovqUsageError(f"must be 0 or more, got {self.workers}", option="workers")
        if self.workers == 0 and self.engine != "local":
            raise MovqUsageError(f"0 is this process: it goes with {option('engine', 'local')}", option="workers")
        for name in ("timeout", "shard_size", "ray_gpus"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise MovqUsageError(f"must be above 0, got {value:g}", option=name)
        if self.ray_gpus > 1 and self.ray_gpus % 1:
            raise MovqUsageError(f"above 1 must be a whole number, got {self.ray_gpus:g}", option="ray_gpus")


def with_overrides(
    options: EncodeOptions | None, batch: BatchOptions | None, overrides: dict[str, Any]
) -> tuple[EncodeOptions, BatchOptions]:
    """Return both options with what is overridden by name; texts are read as on the command line."""
    own = {field.name: overrides.pop(field.name) for field in fields(BatchOptions) if field.name in overrides}
    for name, read in (("pick", Pick.parse), ("shard", Shard.parse), ("shard_size", _tar_bytes)):
        if isinstance(own.get(name), str):
            own[name] = read(own[name])
    if "buckets" in own:
        buckets = (Bucket.parse(one) if isinstance(one, str) else one for one in own["buckets"])
        own["buckets"] = tuple(dict.fromkeys(buckets))
    if "lists" in own:
        own["lists"] = tuple(map(os.fspath, own["lists"]))
    if own.get("captions") is not None:
        own["captions"] = os.fspath(own["captions"])
    return replace(options or EncodeOptions(), **overrides), replace(batch or BatchOptions(), **own)


def _tar_bytes(text: str) -> int:
    return parse_bytes(text, "shard_size")
