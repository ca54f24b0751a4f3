"""The flags of the command line: the help of every field in `movq_cli.options`, and how fields become flags."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from ..checkpoints.checkpoint import EMBEDDED
from ..errors import flag
from ..fields import changed, declared
from ..options import (
    EDGES,
    ENGINES,
    EXPORTS,
    FIRST_FRAMES,
    FITS,
    LAYOUTS,
    NO_FIRST_FRAME,
    PRECISIONS,
    REPRESENTATIONS,
    SEMANTICS,
    SHORT_IN_BATCH,
    STORE_DTYPES,
    TAILS,
)
from ..targets import TARGETS

FRAMES, PICTURE, MODEL = "Frames, in this order", "Picture", "Model"
ITEMS, RESULT, OUTPUT = "Items", "Result", "Files or tars"
COMPUTE, RUN, SHARDS = "Memory and speed", "Workers and resuming", "Several machines"
_PANELS = (ITEMS, FRAMES, PICTURE, MODEL, RESULT, OUTPUT, COMPUTE, RUN, SHARDS)
"""The groups of options in a command's help, in the order of use."""


class Words(NamedTuple):
    """The help of an option."""

    panel: str
    help: str
    metavar: str | None = None


def _choices(values: Iterable[str]) -> str:
    return "|".join(values)


WORDS: Mapping[str, Words] = {
    "target": Words(
        MODEL,
        "Prepare for a diffusion model: weights, frames, rate, sizes, data type and scaling factor, where no other option "
        f"sets them. {', '.join(TARGETS)}.",
        "MODEL",
    ),
    "export.target": Words(ITEMS, "The model to train. (default: the one that the latents were prepared for)", "MODEL"),
    "from_layout": Words(
        ITEMS, f"The file is not movq's, but in the layout of a trainer: {', '.join(EXPORTS)}.", "LAYOUT"
    ),
    "decode.target": Words(
        ITEMS, "With --from: the model that it is for. Sets weights, scale and frames per second.", "MODEL"
    ),
    "decode.scale": Words(
        ITEMS,
        "With --from: the factor that its latents are multiplied by, or a model. (default: that of the weights)",
        "F|MODEL",
    ),
    "to": Words(ITEMS, f"The layout: {', '.join(EXPORTS)}. Required.", "LAYOUT"),
    "scale": Words(
        ITEMS,
        "Multiply latents by this factor, or a model's: cogvideox-5b. (default: the factor in their header)",
        "F|MODEL",
    ),
    "export.seed": Words(ITEMS, "Seed of the draws from moments.", "N"),
    "dtype": Words(ITEMS, "Data type to write. (default: the model's, or as stored)", _choices(STORE_DTYPES)),
    "prompt_embeds": Words(
        ITEMS, "Folder of text embeddings, as examples/embed_prompts.py makes them, for layouts that have them.", "DIR"
    ),
    "shape": Words(ITEMS, "Export only items of this shape.", "FxHxW"),
    "any_weights": Words(ITEMS, "Export latents of weights that no model of CogVideoX's family reads."),
    "scaling_factor": Words(
        MODEL, "The scaling factor to record; it is never applied. (default: that of --for, or of the weights)", "F"
    ),
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
    "decode.semantics": Words(
        MODEL,
        "For weights that normalise across frames: decode in windows of 2 latents, as published decoders do, or the whole clip. "
        "auto: in windows.",
        _choices(SEMANTICS),
    ),
    "device": Words(COMPUTE, "Device to compute on.", "auto|cpu|cuda[:N]"),
    "precision": Words(
        COMPUTE,
        "Precision to compute in. (default: auto, bf16 on CUDA devices that have it, fp32 elsewhere)",
        _choices(("auto", *PRECISIONS)),
    ),
    "chunk_frames": Words(COMPUTE, "Frames to compute at once. Costs memory, never quality. (default: auto)", "auto|N"),
    "strip_rows": Words(
        COMPUTE,
        "Rows of a picture to compute at once. Costs memory, never quality. (default: auto, all that fit)",
        "auto|N",
    ),
    "memory_budget": Words(COMPUTE, "Stay within this much memory, like 4GB. (default: what is free)", "SIZE"),
    "spill_dir": Words(
        COMPUTE, "Where to spill activations that exceed --memory-budget. (default: next to the output)", "DIR"
    ),
    "threads": Words(COMPUTE, "CPU threads to use. (default: all cores)", "N"),
    "batch_encode.threads": Words(
        COMPUTE, "CPU threads of each worker. With 1, bytes do not depend on the number of workers. (default: 1)", "N"
    ),
    "stream": Words(FRAMES, "Index of the video stream. (default: the first)", "I"),
    "start": Words(FRAMES, "Skip this much: seconds, or hours:minutes:seconds.", "S"),
    "duration": Words(FRAMES, "Take this much, in the same way.", "S"),
    "fps": Words(FRAMES, "Resample to this rate: the nearest frames in time, never blended, never repeated.", "F"),
    "fps_repeat": Words(FRAMES, "Let --fps repeat frames of a slower video."),
    "every": Words(FRAMES, "Keep every N-th frame, starting with the first.", "N"),
    "frames": Words(FRAMES, "Take the first N frames.", "N"),
    "batch_encode.frames": Words(FRAMES, "Take the first N frames; with --pick, N for each span.", "N"),
    "max_pixels": Words(
        FRAMES, "Allow pictures of up to N pixels in files that seem too small for them, as made to fill memory.", "N"
    ),
    "allow_partial": Words(FRAMES, "Encode a damaged video up to the damage, with a warning."),
    "tail": Words(
        FRAMES, "Leftover frames that do not fill a latent: pad (repeat the last), drop, or fail.", _choices(TAILS)
    ),
    "height": Words(PICTURE, "Scale to this height.", "H"),
    "width": Words(PICTURE, "Scale to this width.", "W"),
    "short_side": Words(PICTURE, "Scale the shorter side to N.", "N"),
    "fit": Words(PICTURE, "With --height and --width: crop the middle, fit inside, or distort.", _choices(FITS)),
    "multiple": Words(
        PICTURE,
        "Make heights and widths multiples of N, by --edge: 16 for CogVideoX, whose transformer takes latents in patches of 2x2. "
        "(default: the factor of the weights, 8)",
        "N",
    ),
    "edge": Words(
        PICTURE,
        "How sides become multiples: pad repeats the right and bottom edge; crop keeps the centre, without made-up pixels.",
        _choices(EDGES),
    ),
    "upscale": Words(PICTURE, "Allow enlarging the picture."),
    "save": Words(
        RESULT,
        "What to store: mean and log variance, the mean, a draw, or codes. (default: moments, or codes if the weights have a "
        "quantiser)",
        _choices(REPRESENTATIONS),
    ),
    "seed": Words(RESULT, "Random seed for --save sample.", "N"),
    "batch_encode.seed": Words(RESULT, "Random seed for --save sample and --pick random.", "N"),
    "store_dtype": Words(
        RESULT,
        "Data type to store. int8 has a scale for each channel and latent: half of bf16, and as good as fp32 to the eye. "
        "(default: auto, the precision that was computed in)",
        _choices(("auto", *STORE_DTYPES)),
    ),
    "first_frame": Words(
        RESULT,
        "Also write the first frame beside the latents, for image-to-video: a picture, or latents of it alone. Repeatable. "
        "(default: none, or both by --for of an image-to-video model)",
        _choices((*FIRST_FRAMES, NO_FIRST_FRAME)),
    ),
    "batch_encode.first_frame": Words(
        RESULT,
        "Also write the first frame of each item beside it, for image-to-video: a picture, or latents of it alone. "
        "Repeatable. none: not in this run. (default: as in DIR; in a new one none, or both by --for of an image-to-video model)",
        _choices((*FIRST_FRAMES, NO_FIRST_FRAME)),
    ),
    "force": Words(RESULT, "Overwrite the output."),
    "batch_encode.force": Words(RUN, "Make everything again."),
    "draw": Words(RESULT, "Decode a random draw from the moments instead of their mean."),
    "decode.seed": Words(RESULT, "Random seed for --draw.", "N"),
    "crf": Words(RESULT, "Quality of H.264 and VP9; lower is better.", "N"),
    "lists": Words(
        ITEMS,
        "Read videos from a text, CSV or JSON file: path, and optionally id, start, duration, caption, or what trainers call "
        "them. Other columns are kept.",
        "FILE",
    ),
    "columns": Words(
        ITEMS,
        "Take this column of a list as path, caption, id, start, duration or end: caption=summary. id= takes none. Repeatable.",
        "FIELD=NAME",
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
    ),
    "aspects": Words(
        ITEMS,
        "Add to each --bucket its siblings: the same frames and about the same area, portrait, square and wide, in steps of "
        "--multiple.",
    ),
    "pick": Words(
        ITEMS,
        "Cut spans out of each video: head (the first), uniform:K (K, evenly spaced), slide:S (one every S frames) or "
        "random:K (K, by --seed).",
        "RULE",
    ),
    "short": Words(
        ITEMS, "Videos with too few frames: skip them, or pad (repeat the last frame).", _choices(SHORT_IN_BATCH)
    ),
    "shard": Words(
        SHARDS,
        "Encode only this part of the videos: 0/8 to 7/8, or 1/8 to 8/8 (8/8 is 0/8). auto: from SLURM or torchrun.",
        "I/N|auto",
    ),
    "workers": Words(
        RUN,
        "Number of worker processes; 0 encodes in this process. (default: auto, one per CUDA device or core)",
        "auto|N",
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
    "tar_size": Words(OUTPUT, "Maximum size of a tar. (default: 1GB)", "SIZE"),
}
"""The help of each field, by its name, or by COMMAND.NAME if a command needs other words."""

_ALIASES = {"tar_size": ("--shard-size",)}
"""Other flags of an option: WebDataset calls a tar a shard."""

WITHOUT_FLAG = {"skip", "EncodeOptions.short", "sizes"}
"""Fields without a flag: a batch sets them when it cuts items out of videos, or --for does."""


def option_of(name: str, default: Any = None, command: str = "") -> typer.models.OptionInfo:
    """Return the typer option of a field, with the words that this command has for it, if any."""
    words = WORDS.get(f"{command}.{name}") or WORDS[name]
    shown = (
        ""
        if default in (None, False, ()) or "(default:" in words.help
        else f" (default: {default:g})"
        if isinstance(default, float)
        else f" (default: {default})"
    )
    option: typer.models.OptionInfo = typer.Option(
        flag(name),
        *_ALIASES.get(name, ()),
        rich_help_panel=words.panel,
        help=words.help + shown,
        metavar=words.metavar,
        show_default=False,
    )
    return option


DryRun = Annotated[
    bool, typer.Option("--dry-run", rich_help_panel=RESULT, help="Show what would be done, without doing it.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel=RESULT, help="Hide progress and remarks.")]
Json = Annotated[bool, typer.Option("--json", rich_help_panel=RESULT, help="Print JSON.")]
Weights = Annotated[str | None, option_of("weights")]
MaxPixels = Annotated[str | None, option_of("max_pixels")]
Force = Annotated[bool, typer.Option("--force", rich_help_panel=RESULT, help="Overwrite the output.")]

Command = Callable[..., Any]


def examples(*commands: tuple[str, str]) -> str:
    """Return the end of a command's help: commands, each with what it does."""
    return "\n\n".join(("Examples:", *(f"[bold]{command}[/bold]   # {what}" for command, what in commands)))


def takes(*, without: Collection[str] = (), unset: bool = False, **options: type) -> Callable[[Command], Command]:
    """Return a decorator that replaces parameters of a command by the flags of option classes.

    With `takes(options=EncodeOptions)`, `def encode(source, options)` has the flags --chunk-frames, --tail and so on,
    and receives an EncodeOptions. Fields in `without` have no flag and keep their defaults. With `unset`, the parameter
    is a dict of only those fields that were given. Flags take texts, which the option classes read.
    """

    def decorated(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        names: dict[str, list[str]] = {}
        for name, own in inspect.signature(command).parameters.items():
            if name in options:
                flags = [
                    _flag(*found, command.__name__) for found in flat_fields(options[name]) if found[1] not in without
                ]
                names[name] = [parameter.name for parameter in flags]
                parameters += flags
            else:
                parameters.append(own.replace(annotation=hints[name], kind=own.KEYWORD_ONLY))

        @wraps(command)
        def run(**values: Any) -> Any:
            for place, taken in names.items():
                given = {name: values.pop(name) for name in taken}
                given = {name: value for name, value in given.items() if value not in (None, False)}
                values[place] = given if unset else changed(options[place](), given)
            return command(**values)

        run.__signature__ = inspect.Signature(sorted(parameters, key=_place))  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorated


def flat_fields(kind: Any) -> Iterator[tuple[type, str, Any]]:
    """Yield (class, name, default) of every option with a flag. A nested class is replaced by its own fields."""
    for field in fields(kind):
        if is_dataclass(field.default):
            yield from flat_fields(type(field.default))
        elif not {field.name, f"{kind.__name__}.{field.name}"} & WITHOUT_FLAG:
            yield kind, field.name, field.default


def _flag(owner: type, name: str, default: Any, command: str) -> inspect.Parameter:
    kind, several, _ = declared(owner)[name]
    hint: Any = bool if kind is bool else list[str] | None if several else str | None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if kind is bool else None,
        annotation=Annotated[hint, option_of(name, default, command)],
    )


def _place(parameter: inspect.Parameter) -> int:
    """Return where a parameter stands in the help: arguments and options of no panel first, then panel by panel."""
    panel = getattr(parameter.annotation.__metadata__[0], "rich_help_panel", None)
    return _PANELS.index(panel) + 1 if panel in _PANELS else 0
