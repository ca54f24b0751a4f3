"""The flags of the command line: the help of every field in `movq_cli.options`, and how fields become flags."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from fractions import Fraction
from functools import partial, wraps
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from ..checkpoints.checkpoint import EMBEDDED
from ..errors import MovqUsageError, flag
from ..options import (
    ENGINES,
    FITS,
    LAYOUTS,
    PRECISIONS,
    REPRESENTATIONS,
    SEMANTICS,
    SHORT_IN_BATCH,
    STORE_DTYPES,
    TAILS,
)
from ..values import Bucket, Pick, Shard, parse_bytes, parse_seconds

MODEL, PICTURE, RESULT = "Model", "Picture", "Result"
FRAMES = "Frames, in this order"
ITEMS, RUN, SHARDS, OUTPUT = "Batch: items", "Batch: workers", "Batch: shards", "Batch: output"


@dataclass(frozen=True)
class Words:
    """The help of an option. `parse` converts its text, if that is more than a number, a name or a path."""

    panel: str
    help: str
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None


def fraction(text: str) -> Fraction:
    """Read '25', '29.97' or '30000/1001', exactly."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"{text!r} is not a number like 25, 29.97 or 30000/1001") from None


_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def _dtype(text: str) -> str:
    """Read torch's name of a precision too."""
    return _DTYPES.get(text, text)


def _choices(values: Iterable[str]) -> str:
    return "|".join(values)


def _auto(name: str, what: str, text: str) -> int | None:
    """Return None for "auto", or the number. Raises MovqUsageError that names the option."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise MovqUsageError(f"must be auto or a number of {what}, got {text!r}", option=name)
    return int(text)


def _bytes(name: str) -> Callable[[str], int]:
    return partial(parse_bytes, option=name)


WORDS: Mapping[str, Words] = {
    "weights": Words(
        MODEL,
        "Weights: a file or vae folder of movq, diffusers or CogVideo, or a model id in the Hugging Face cache. "
        f"(default: {EMBEDDED})",
        "WEIGHTS",
    ),
    "semantics": Words(
        MODEL,
        "For weights that normalise across frames: over the whole clip, or over diffusers' windows. auto: as the weights say.",
        _choices(SEMANTICS),
    ),
    "DecodeOptions.semantics": Words(
        MODEL,
        "For weights that normalise across frames: over windows of 2 latents, as published, or the whole clip.",
        _choices(SEMANTICS),
    ),
    "device": Words(MODEL, "Device to compute on.", "auto|cpu|cuda[:N]"),
    "precision": Words(
        MODEL,
        "Precision to compute in. (default: auto, bf16 on CUDA devices that have it, fp32 elsewhere)",
        _choices(("auto", *PRECISIONS)),
        _dtype,
    ),
    "chunk_frames": Words(
        MODEL,
        "Frames to compute at once. Costs memory, never quality. (default: auto)",
        "auto|N",
        partial(_auto, "chunk_frames", "frames"),
    ),
    "memory_budget": Words(
        MODEL, "Stay within this much memory, like 4GB. (default: what is free)", "SIZE", _bytes("memory_budget")
    ),
    "spill_dir": Words(
        MODEL,
        "Where to spill activations that exceed --memory-budget. (default: next to the output)",
        "DIR",
    ),
    "threads": Words(MODEL, "CPU threads to use. (default: all cores; in a batch, 1 per worker)", "N"),
    "stream": Words(FRAMES, "Index of the video stream. (default: the first)", "I"),
    "start": Words(
        FRAMES, "Skip this much: seconds, or hours:minutes:seconds.", "S", partial(parse_seconds, option="start")
    ),
    "duration": Words(FRAMES, "Take this much, in the same way.", "S", partial(parse_seconds, option="duration")),
    "fps": Words(
        FRAMES, "Resample to this rate: the nearest frames in time, never blended, never repeated.", "F", fraction
    ),
    "fps_repeat": Words(FRAMES, "Let --fps repeat frames of a slower video."),
    "every": Words(FRAMES, "Keep every N-th frame, starting with the first.", "N"),
    "frames": Words(FRAMES, "Take the first N frames; in a batch that cuts spans, N for each.", "N"),
    "allow_partial": Words(FRAMES, "Encode a damaged video up to the damage, with a warning."),
    "tail": Words(
        FRAMES, "Leftover frames that do not fill a latent: pad (repeat the last), drop, or fail.", _choices(TAILS)
    ),
    "height": Words(PICTURE, "Scale to this height.", "H"),
    "width": Words(PICTURE, "Scale to this width.", "W"),
    "short_side": Words(PICTURE, "Scale the shorter side to N.", "N"),
    "fit": Words(PICTURE, "With --height and --width: crop the middle, fit inside, or distort.", _choices(FITS)),
    "upscale": Words(PICTURE, "Allow enlarging the picture."),
    "save": Words(RESULT, "What to store: mean and log variance, the mean, or a draw.", _choices(REPRESENTATIONS)),
    "seed": Words(RESULT, "Random seed for draws.", "N"),
    "store_dtype": Words(
        RESULT,
        "Data type to store. (default: auto, the precision that was computed in)",
        _choices(("auto", *STORE_DTYPES)),
        _dtype,
    ),
    "force": Words(RESULT, "Overwrite the output; in a batch, make everything again."),
    "DecodeOptions.force": Words(RESULT, "Overwrite the output."),
    "draw": Words(RESULT, "Decode a random draw from the moments instead of their mean."),
    "DecodeOptions.seed": Words(RESULT, "Random seed for --draw.", "N"),
    "crf": Words(RESULT, "Quality of H.264; lower is better.", "N"),
    "lists": Words(
        ITEMS,
        "Read videos from a text, CSV or JSON lines file: path, and optionally id, start, duration, caption. "
        "Other columns are kept.",
        "FILE",
    ),
    "captions": Words(
        ITEMS,
        "Read captions from a file, one line for each row of the list or each item. (default: clip.txt next to clip.mp4)",
        "FILE",
    ),
    "buckets": Words(
        ITEMS,
        "Cut each video to the longest bucket that fits, then the nearest in shape, and crop it to its size. Repeatable.",
        "FxHxW",
        Bucket.parse,
    ),
    "pick": Words(
        ITEMS,
        "Cut spans out of each video: the first, K evenly spaced, one every S frames, or K random ones, by --seed.",
        "head|uniform:K|slide:S|random:K",
        Pick.parse,
    ),
    "short": Words(
        ITEMS, "Videos with too few frames: skip them, or pad (repeat the last frame).", _choices(SHORT_IN_BATCH)
    ),
    "shard": Words(
        SHARDS,
        "Encode only this part of the videos: 0/8 to 7/8, or 1/8 to 8/8. auto: from SLURM or torchrun.",
        "I/N|auto",
        Shard.parse,
    ),
    "workers": Words(
        RUN,
        "Number of worker processes; 0 encodes in this process. (default: auto, one per CUDA device or core)",
        "auto|N",
        partial(_auto, "workers", "processes"),
    ),
    "timeout": Words(RUN, "Give up on a file after this many seconds without progress.", "S"),
    "retry_failed": Words(RUN, "Also try items again that were refused before."),
    "replace": Words(
        RUN,
        "Replace finished outputs that were made with other weights or options, or from another video of that name.",
    ),
    "verify": Words(RUN, "Check every video and output by reading it whole."),
    "engine": Words(RUN, "Run workers on this machine, or on a Ray cluster with shared storage.", _choices(ENGINES)),
    "ray_address": Words(RUN, "Address of the Ray cluster. (default: this machine's, or a new one)", "ADDRESS"),
    "ray_gpus": Words(RUN, "GPUs per worker; with 0.5 two workers share one.", "F"),
    "layout": Words(
        OUTPUT,
        "Write one file per item, or tars for WebDataset. (default: as in DIR; files in a new one)",
        _choices(LAYOUTS),
    ),
    "tar_size": Words(OUTPUT, "Maximum size of a tar. (default: 1GB)", "SIZE", _bytes("tar_size")),
}
"""The help of each field, by its name, or by CLASS.NAME if classes need different help for the same name."""

_ALIASES = {"tar_size": ("--shard-size",)}
"""Other flags of an option: WebDataset calls a tar a shard."""

WITHOUT_FLAG = {"skip", "EncodeOptions.short"}
"""Fields without a flag, because a batch sets them when it cuts items out of videos."""


def option_of(name: str, owner: str = "") -> typer.models.OptionInfo:
    """Return the typer option of a field, with the help that the class `owner` has for it, if any."""
    words = WORDS.get(f"{owner}.{name}") or WORDS[name]
    option: typer.models.OptionInfo = typer.Option(
        flag(name),
        *_ALIASES.get(name, ()),
        rich_help_panel=words.panel,
        help=words.help,
        metavar=words.metavar,
        parser=words.parse,
        show_default=words.parse is None,
    )
    return option


DryRun = Annotated[
    bool, typer.Option("--dry-run", rich_help_panel=RESULT, help="Show what would be done, without doing it.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel=RESULT, help="Hide progress and remarks.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Weights = Annotated[str | None, option_of("weights")]
Force = Annotated[bool, typer.Option("--force", rich_help_panel=RESULT, help="Overwrite the output.")]

Command = Callable[..., Any]


def takes(*, without: Collection[str] = (), unset: bool = False, **options: type) -> Callable[[Command], Command]:
    """Return a decorator that replaces parameters of a command by the flags of option classes.

    With `takes(options=EncodeOptions)`, `def encode(source, options)` has the flags --chunk-frames, --tail and so on,
    and receives an EncodeOptions. Fields in `without` have no flag and keep their defaults. With `unset`, the parameter
    is a dict of only those fields that were given.
    """

    def decorated(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        names: dict[str, list[str]] = {}
        for name, own in inspect.signature(command).parameters.items():
            if name in options:
                flags = list(_flags(options[name], without, unset))
                names[name] = [parameter.name for parameter in flags]
                parameters += flags
            else:
                parameters.append(own.replace(annotation=hints[name], kind=own.KEYWORD_ONLY))

        @wraps(command)
        def run(**values: Any) -> Any:
            for place, taken in names.items():
                given = {name: values.pop(name) for name in taken}
                if unset:
                    values[place] = {name: value for name, value in given.items() if value is not None}
                else:
                    values[place] = _made(options[place], given)
            return command(**values)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorated


def flat_fields(kind: Any) -> Iterator[tuple[str, Any, Field[Any]]]:
    """Yield (class name, type, field) of every option with a flag. A nested class is replaced by its own fields."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint) and is_dataclass(field.default):
            yield from flat_fields(hint)
        elif not {field.name, f"{kind.__name__}.{field.name}"} & WITHOUT_FLAG:
            yield kind.__name__, hint, field


def _flags(kind: type, without: Collection[str], unset: bool) -> Iterator[inspect.Parameter]:
    for owner, hint, field in flat_fields(kind):
        if field.name in without:
            continue
        default: Any = field.default if field.default is not MISSING else None
        if get_origin(hint) is tuple:  # a flag that may be repeated
            hint, default = list[get_args(hint)[0]], list(default or ())  # type: ignore[misc]
        option = option_of(field.name, owner)
        if unset or option.parser is not None:  # typer would also parse the default
            default = None
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[hint if default is not None else hint | None, option],
        )


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    """Return an instance of an option class from values by field. A field whose value is None keeps its default."""
    hints = get_type_hints(kind)
    own: dict[str, Any] = {}
    for field in fields(kind):
        if is_dataclass(hints[field.name]) and is_dataclass(field.default):
            own[field.name] = _made(hints[field.name], values)
        elif (value := values.get(field.name)) is not None:
            own[field.name] = tuple(dict.fromkeys(value)) if isinstance(value, list) else value
    return kind(**own)
