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
from ..values import Bucket, Pick, Shard, parse_bytes

MODEL, PICTURE, RESULT = "Model", "Picture", "Result"
FRAMES = "What is encoded, in this order"
ITEMS, RUN, SHARDS, OUTPUT = "Batch: items", "Batch: how it runs", "Batch: shards", "Batch: output"


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
        "A weights file or vae folder of movq, diffusers or CogVideo, or the id of a model in the Hugging Face cache. "
        f"(default: {EMBEDDED})",
        "WEIGHTS",
    ),
    "semantics": Words(
        MODEL,
        "Of weights whose norms span frames: over the whole clip, or over diffusers' windows. (auto: as they come)",
        _choices(SEMANTICS),
    ),
    "DecodeOptions.semantics": Words(
        MODEL,
        "Of weights whose norms span frames: over windows of 2 latents, as published decoders do, or the whole clip.",
        _choices(SEMANTICS),
    ),
    "device": Words(MODEL, "Where to compute.", "auto|cpu|cuda[:N]"),
    "precision": Words(MODEL, "auto is bf16 on CUDA devices that have it, else fp32.", _choices(("auto", *PRECISIONS))),
    "chunk_frames": Words(
        MODEL,
        "Frames computed at once: costs memory, never quality. (default: auto)",
        "auto|N",
        partial(_auto, "chunk_frames", "frames"),
    ),
    "memory_budget": Words(
        MODEL, "Memory to stay within, like 4GB. (default: what is free)", "SIZE", _bytes("memory_budget")
    ),
    "spill_dir": Words(
        MODEL,
        "Where activations wait that exceed it, where norms span frames. (default: beside the output)",
        "DIR",
    ),
    "threads": Words(MODEL, "CPU threads. (default: all cores; in a batch 1 per worker)", "N"),
    "stream": Words(FRAMES, "Index of the video stream. (default: the first that is video)", "I"),
    "start": Words(FRAMES, "Seconds from the first frame to begin at.", "S", fraction),
    "duration": Words(FRAMES, "Seconds to take.", "S", fraction),
    "fps": Words(FRAMES, "Frames per second: the nearest in time, never blended, never repeated.", "F", fraction),
    "fps_repeat": Words(FRAMES, "Let --fps show a frame of a slower video twice."),
    "every": Words(FRAMES, "Each N-th of these frames, from the first on.", "N"),
    "frames": Words(FRAMES, "The first N frames; with --pick, of each span.", "N"),
    "allow_partial": Words(FRAMES, "Of a video that is cut off or damaged, take what comes before, with a warning."),
    "tail": Words(FRAMES, "Frames that fill no latent: repeat the last, drop them, or refuse.", _choices(TAILS)),
    "height": Words(PICTURE, "Scale to this height.", "H"),
    "width": Words(PICTURE, "Scale to this width.", "W"),
    "short_side": Words(PICTURE, "Scale the shorter side to N.", "N"),
    "fit": Words(PICTURE, "With height and width: crop the middle, pad, or distort.", _choices(FITS)),
    "upscale": Words(PICTURE, "Allow enlarging."),
    "save": Words(RESULT, "Mean and log variance, the mean, or a draw.", _choices(REPRESENTATIONS)),
    "seed": Words(RESULT, "Of --save sample, and of --pick random.", "N"),
    "store_dtype": Words(RESULT, "Of the latents; auto is as computed.", _choices(("auto", *STORE_DTYPES))),
    "force": Words(RESULT, "Overwrite the output; of a batch, make everything again."),
    "DecodeOptions.force": Words(RESULT, "Overwrite the output."),
    "draw": Words(RESULT, "Decode a draw of the moments instead of their mean."),
    "DecodeOptions.seed": Words(RESULT, "Of --draw.", "N"),
    "crf": Words(RESULT, "Quality of H.264: lower is better.", "N"),
    "lists": Words(
        ITEMS,
        "Text, CSV or JSON lines: path, and if wanted id, start, duration, caption; others go to the manifest.",
        "FILE",
    ),
    "captions": Words(
        ITEMS,
        "A caption per line, for each row of the list, or each item in order of id. (default: clip.txt beside clip.mp4)",
        "FILE",
    ),
    "buckets": Words(
        ITEMS,
        "Repeatable. Each video takes the longest that it fills, then the nearest in aspect; scaled and cropped to it.",
        "FxHxW",
        Bucket.parse,
    ),
    "pick": Words(
        ITEMS,
        "Cut spans of --frames, or of the bucket: the first, K evenly, one each S frames, K drawn by --seed.",
        "head|uniform:K|slide:S|random:K",
        Pick.parse,
    ),
    "short": Words(
        ITEMS, "Videos with too few frames: only say so, or repeat their last frame.", _choices(SHORT_IN_BATCH)
    ),
    "shard": Words(
        SHARDS,
        "Only this part of the videos: 0/8 to 7/8, or 1/8 to 8/8. auto: as SLURM or torchrun number this process.",
        "I/N|auto",
        Shard.parse,
    ),
    "workers": Words(
        RUN,
        "Number of processes. auto, the default: one per CUDA device, or per core. 0: this process, one item after the "
        "other, without a time limit or second attempts.",
        "auto|N",
        partial(_auto, "workers", "processes"),
    ),
    "timeout": Words(RUN, "Seconds without progress that a file is given up after.", "S"),
    "retry_failed": Words(RUN, "Try again what was refused before, too."),
    "replace": Words(
        RUN,
        "Make finished outputs again that were made with other weights or options, or of another video of that name.",
    ),
    "verify": Words(RUN, "Read all videos and outputs that are there; try refused ones again."),
    "engine": Words(RUN, "Workers on this machine, or on a Ray cluster with shared storage.", _choices(ENGINES)),
    "ray_address": Words(RUN, "Of the cluster. (default: the one of this machine, or a new one on it)", "ADDRESS"),
    "ray_gpus": Words(RUN, "GPUs of each worker, where there are any; 0.5: two share one.", "F"),
    "layout": Words(
        OUTPUT,
        "A file for each item, or tars as WebDataset reads them. (default: as DIR has it, files in a new one)",
        _choices(LAYOUTS),
    ),
    "shard_size": Words(OUTPUT, "Of a tar, at most. (default: 1GB)", "SIZE", _bytes("shard_size")),
}
"""The help of each field, by its name, or by CLASS.NAME if classes need different help for the same name."""

WITHOUT_FLAG = {"skip", "EncodeOptions.short"}
"""Fields without a flag, because a batch sets them when it cuts items out of videos."""


def option_of(name: str, owner: str = "") -> typer.models.OptionInfo:
    """Return the typer option of a field, with the help that the class `owner` has for it, if any."""
    words = WORDS.get(f"{owner}.{name}") or WORDS[name]
    option: typer.models.OptionInfo = typer.Option(
        flag(name),
        rich_help_panel=words.panel,
        help=words.help,
        metavar=words.metavar,
        parser=words.parse,
        show_default=words.parse is None,
    )
    return option


DryRun = Annotated[
    bool, typer.Option("--dry-run", rich_help_panel=RESULT, help="Print what would be done, and do nothing.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel=RESULT, help="No progress, no remarks.")]
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
