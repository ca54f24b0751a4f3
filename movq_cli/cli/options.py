"""The options of commands that encode, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from fractions import Fraction
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..errors import MovqUsageError
from ..model.checkpoint import EMBEDDED

if TYPE_CHECKING:
    from ..plan import EncodeOptions


def _fraction(text: str) -> Fraction:
    """'25', '29.97' or '30000/1001', exactly."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"{text!r} is not a number like 25, 29.97 or 30000/1001") from None


MODEL, _WHAT, _PICTURE, RESULT = "Model", "What is encoded, in this order", "Picture", "Result"


def _option(*names: str, panel: str, help: str, metavar: str | None = None) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(*names, rich_help_panel=panel, help=help, metavar=metavar)
    return option


def _number(name: str, *, panel: str, help: str, metavar: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        name, rich_help_panel=panel, help=help, metavar=metavar, parser=_fraction
    )
    return option


Weights = Annotated[
    str | None,
    _option(
        "--weights",
        panel=MODEL,
        metavar="WEIGHTS",
        help="A weights file or vae folder of movq, diffusers or CogVideo, or the id of a model in the Hugging Face cache. "
        f"(default: {EMBEDDED})",
    ),
]
Semantics = Annotated[
    str,
    _option(
        "--semantics",
        panel=MODEL,
        metavar="auto|whole|diffusers",
        help="Of weights whose norms span frames: over the whole clip, or over diffusers' windows. (auto: as they come)",
    ),
]
DecodeSemantics = Annotated[
    str,
    _option(
        "--semantics",
        panel=MODEL,
        metavar="auto|whole|diffusers",
        help="Of weights whose norms span frames: over windows of 2 latents, as published decoders do, or the whole clip.",
    ),
]
Device = Annotated[str, _option("--device", panel=MODEL, metavar="auto|cpu|cuda[:N]", help="Where to compute.")]
Precision = Annotated[
    str,
    _option(
        "--precision",
        panel=MODEL,
        metavar="auto|fp32|tf32|bf16|fp16",
        help="auto is bf16 on CUDA devices that have it, else fp32.",
    ),
]
ChunkFrames = Annotated[
    str,
    _option(
        "--chunk-frames", panel=MODEL, metavar="auto|N", help="Frames computed at once: costs memory, never quality."
    ),
]
MemoryBudget = Annotated[
    str | None,
    _option(
        "--memory-budget", panel=MODEL, metavar="SIZE", help="Memory to stay within, like 4GB. (default: what is free)"
    ),
]
SpillDir = Annotated[
    str | None,
    _option(
        "--spill-dir",
        panel=MODEL,
        metavar="DIR",
        help="Where activations wait that exceed it, where norms span frames. (default: beside the output)",
    ),
]
Threads = Annotated[
    int | None,
    _option("--threads", panel=MODEL, metavar="N", help="CPU threads. (default: all cores; in a batch 1 per worker)"),
]

Stream = Annotated[
    int | None,
    _option("--stream", panel=_WHAT, metavar="I", help="Index of the video stream. (default: the first that is video)"),
]
Start = Annotated[
    Fraction | None, _number("--start", panel=_WHAT, metavar="S", help="Seconds from the first frame to begin at.")
]
Duration = Annotated[Fraction | None, _number("--duration", panel=_WHAT, metavar="S", help="Seconds to take.")]
Fps = Annotated[
    Fraction | None,
    _number(
        "--fps", panel=_WHAT, metavar="F", help="Frames per second: the nearest in time, never blended, never repeated."
    ),
]
FpsRepeat = Annotated[
    bool, _option("--fps-repeat", panel=_WHAT, help="Let --fps show a frame of a slower video twice.")
]
Every = Annotated[
    int, _option("--every", panel=_WHAT, metavar="N", help="Each N-th of these frames, from the first on.")
]
Frames = Annotated[
    int | None, _option("--frames", panel=_WHAT, metavar="N", help="The first N frames; with --pick, of each span.")
]
AllowPartial = Annotated[
    bool,
    _option(
        "--allow-partial",
        panel=_WHAT,
        help="Of a video that is cut off or damaged, take what comes before, with a warning.",
    ),
]
Tail = Annotated[
    str,
    _option(
        "--tail",
        panel=_WHAT,
        metavar="pad|drop|error",
        help="Frames that fill no latent: repeat the last, drop them, or refuse.",
    ),
]

Height = Annotated[int | None, _option("--height", panel=_PICTURE, metavar="H", help="Scale to this height.")]
Width = Annotated[int | None, _option("--width", panel=_PICTURE, metavar="W", help="Scale to this width.")]
ShortSide = Annotated[
    int | None, _option("--short-side", panel=_PICTURE, metavar="N", help="Scale the shorter side to N.")
]
Fit = Annotated[
    str,
    _option(
        "--fit",
        panel=_PICTURE,
        metavar="cover|contain|stretch",
        help="With height and width: crop the middle, pad, or distort.",
    ),
]
Upscale = Annotated[bool, _option("--upscale", panel=_PICTURE, help="Allow enlarging.")]

Save = Annotated[
    str,
    _option("--save", panel=RESULT, metavar="moments|mean|sample", help="Mean and log variance, the mean, or a draw."),
]
Seed = Annotated[int, _option("--seed", panel=RESULT, metavar="N", help="Of --save sample, and of --pick random.")]
StoreDtype = Annotated[
    str,
    _option("--store-dtype", panel=RESULT, metavar="auto|fp32|fp16|bf16", help="Of the latents; auto is as computed."),
]
Force = Annotated[bool, _option("--force", panel=RESULT, help="Overwrite the output.")]
DryRun = Annotated[bool, _option("--dry-run", panel=RESULT, help="Print what would be done, and do nothing.")]
Quiet = Annotated[bool, _option("--quiet", "-q", panel=RESULT, help="No progress, no remarks.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _chunk_frames(text: str) -> int | None:
    """None for auto. Raises MovqUsageError."""
    if text == "auto":
        return None
    if not text.isdigit():
        raise MovqUsageError(f"must be auto or a number of frames, got {text!r}", "--chunk-frames")
    return int(text)


def model_options(
    weights: Weights = None,
    semantics: Semantics = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    chunk_frames: ChunkFrames = "auto",
    memory_budget: MemoryBudget = None,
    spill_dir: SpillDir = None,
    threads: Threads = None,
) -> dict[str, Any]:
    """The fields of ModelOptions. Raises MovqUsageError."""
    from ..device import parse_bytes

    return {
        "weights": weights,
        "semantics": semantics,
        "device": device,
        "precision": precision,
        "chunk_frames": _chunk_frames(chunk_frames),
        "memory_budget": None if memory_budget is None else parse_bytes(memory_budget, "--memory-budget"),
        "spill_dir": spill_dir,
        "threads": threads,
    }


def encode_options(
    stream: Stream = None,
    start: Start = None,
    duration: Duration = None,
    fps: Fps = None,
    fps_repeat: FpsRepeat = False,
    every: Every = 1,
    frames: Frames = None,
    allow_partial: AllowPartial = False,
    tail: Tail = "pad",
    height: Height = None,
    width: Width = None,
    short_side: ShortSide = None,
    fit: Fit = "cover",
    upscale: Upscale = False,
    save: Save = "moments",
    seed: Seed = 0,
    store_dtype: StoreDtype = "auto",
    **model: Any,
) -> EncodeOptions:
    """EncodeOptions; `model` are of model_options. Raises MovqUsageError."""
    from ..plan import EncodeOptions
    from ..video import Picture, Selection

    return EncodeOptions(
        **model_options(**model),
        selection=Selection(stream, start or Fraction(0), duration, fps, fps_repeat, every, 0, frames, allow_partial),
        tail=tail,
        picture=Picture(height, width, short_side, fit, upscale),
        save=save,
        seed=seed,
        store_dtype=store_dtype,
    )


_Command = Callable[..., Any]


def decorate(
    place: str, make: Callable[..., Any], *declared_by: _Command, without: tuple[str, ...] = ()
) -> Callable[[_Command], _Command]:
    """Puts the parameters declared by functions where a command has one named `place`, which becomes what `make` makes."""
    given: dict[str, inspect.Parameter] = {}
    for function in declared_by:
        hints = _hints(function)
        for name, parameter in inspect.signature(function).parameters.items():
            if name not in without and parameter.kind is not parameter.VAR_KEYWORD:
                given[name] = parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY)

    def decorated(command: _Command) -> _Command:
        @wraps(command)
        def run(**values: Any) -> Any:
            return command(**{place: make(**{name: values.pop(name) for name in given})}, **values)

        hints = _hints(command)
        parameters: list[inspect.Parameter] = []
        for name, own in inspect.signature(command).parameters.items():
            keyword = own.replace(annotation=hints.get(name), kind=own.KEYWORD_ONLY)
            parameters += given.values() if name == place else [keyword]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorated


def _hints(function: _Command) -> dict[str, Any]:
    """Its annotations, but those whose types are not imported before they are needed."""
    for name in ("options", "batch", "return"):
        function.__annotations__.pop(name, None)
    return get_type_hints(function, include_extras=True)


takes_model_options = partial(decorate, "options", model_options, model_options)
"""Decorates a command: its `options` are the fields of ModelOptions, a dict, from the options in panel Model."""

takes_encode_options = partial(decorate, "options", encode_options, model_options, encode_options)
"""Decorates a command: its `options` are EncodeOptions, from all options above but --force, --dry-run and --quiet."""
