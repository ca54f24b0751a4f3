"""The options of commands that encode, declared once."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any

import typer

from ..errors import MovqUsageError


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
        "(default: movq-tiny-4x8x8)",
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
        help="auto is bf16 where the device has it, else fp32.",
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
    int | None, _option("--threads", panel=MODEL, metavar="N", help="CPU threads. (default: all cores)")
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
Frames = Annotated[int | None, _option("--frames", panel=_WHAT, metavar="N", help="The first N frames.")]
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
Seed = Annotated[int, _option("--seed", panel=RESULT, metavar="N", help="Of --save sample.")]
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
    weights: str | None,
    semantics: str,
    device: str,
    precision: str,
    chunk_frames: str,
    memory_budget: str | None,
    spill_dir: str | None,
    threads: int | None,
) -> dict[str, Any]:
    """The fields of ModelOptions. Raises MovqUsageError."""
    from ..device import parse_bytes

    return {
        "weights": weights,
        "semantics": semantics,
        "device": device,
        "precision": precision,
        "chunk_frames": _chunk_frames(chunk_frames),
        "memory_budget": None if memory_budget is None else parse_bytes(memory_budget),
        "spill_dir": spill_dir,
        "threads": threads,
    }
