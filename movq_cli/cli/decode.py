"""`movq decode LATENTS -o OUT.mp4`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from .show import complain, duration, name_of, plural, progress_bar, size

if TYPE_CHECKING:
    from ..decode import DecodeResult


@o.takes_model_options(without=("semantics",))
def decode(
    latents: Annotated[str, typer.Argument(metavar="LATENTS", help="A latents file of movq.")],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="The video: .mp4 or .mov (H.264), .mkv (FFV1, lossless), .npy (uint8), or a folder for .png files.",
        ),
    ],
    options: dict[str, Any],
    semantics: o.DecodeSemantics = "auto",
    draw: Annotated[
        bool,
        typer.Option("--draw", rich_help_panel=o.RESULT, help="Decode a draw of the moments instead of their mean."),
    ] = False,
    seed: Annotated[int, typer.Option("--seed", rich_help_panel=o.RESULT, metavar="N", help="Of --draw.")] = 0,
    crf: Annotated[
        int, typer.Option("--crf", rich_help_panel=o.RESULT, metavar="N", help="Quality of H.264: lower is better.")
    ] = 18,
    force: o.Force = False,
    quiet: o.Quiet = False,
) -> None:
    """Decode a latents file back to a video: the right frames, size and times."""
    from ..decode import DecodeOptions, decode_video
    from ..device import spare_page_faults

    chosen = DecodeOptions(
        **(options | {"semantics": semantics}),
        draw=draw,
        seed=seed,
        crf=crf,
        force=force,
    )
    spare_page_faults()
    with progress_bar(quiet) as progress:
        result = decode_video(latents, output, chosen, progress=progress)
    for warning in result.warnings:
        complain(f"warning: {warning}", latents)
    print(_result_line(result))


def _result_line(result: DecodeResult) -> str:
    return (
        f"{name_of(result.path)}: {plural(result.frames, 'frame')} of {result.width}x{result.height}, {result.description}, "
        f"{size(result.bytes)}; in {duration(result.seconds)}, {result.frames / result.seconds:.1f} frames/s"
    )
