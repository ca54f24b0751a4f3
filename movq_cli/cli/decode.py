"""`movq decode LATENTS -o OUT.mp4`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..options import OUTPUTS, DecodeOptions, ForeignOptions
from ..values import format_bytes
from . import options as o
from .paths import latents_input, video_output
from .show import complain, duration, name_of, plural, progress_bar

if TYPE_CHECKING:
    from ..codec import Progress
    from ..decode import DecodeResult


EXAMPLES = o.examples(
    ("movq decode clip.safetensors", "to clip.decoded.mp4"),
    ("movq decode clip.safetensors -o back.mkv --weights zai-org/CogVideoX-2b", "lossless, with published weights"),
)


@o.takes(options=DecodeOptions, foreign=ForeignOptions)
def decode(
    files: Annotated[list[str], typer.Argument(metavar="LATENTS", help="A latents file of movq.")],
    options: DecodeOptions,
    foreign: ForeignOptions,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help=f"The video: {OUTPUTS}. (default: LATENTS' name with .decoded.mp4, in the current folder)",
        ),
    ] = None,
    quiet: o.Quiet = False,
) -> None:
    """Decode a latents file back to a video: the right frames, size and times. With --from, a file of a trainer."""
    from ..decode import decode_video
    from ..device import spare_page_faults

    latents = latents_input(files, of_movq=foreign.from_layout is None)
    output = video_output(latents, output)
    spare_page_faults()
    with progress_bar(quiet) as progress:
        if foreign.from_layout is None:
            result = decode_video(latents, output, options, progress=progress)
        else:
            result = _of_a_trainer(latents, output, foreign, options, progress)
    for warning in result.warnings:
        complain(f"warning: {warning}", latents)
    print(_result_line(result))
    for remark in () if quiet else result.remarks:
        complain(remark, latents)


def _of_a_trainer(
    path: str, output: str, foreign: ForeignOptions, options: DecodeOptions, progress: Progress
) -> DecodeResult:
    from ..export import decode_exported

    return decode_exported(
        path,
        output,
        foreign.from_layout or "",
        target=foreign.target,
        scale=foreign.scale,
        options=options,
        progress=progress,
        warn=lambda text: complain(f"warning: {text}", path),
    )


def _result_line(result: DecodeResult) -> str:
    return (
        f"{name_of(result.output_path)}: {plural(result.frames, 'frame')}, {result.width}x{result.height}, "
        f"{result.description}, {format_bytes(result.output_bytes)}; "
        f"in {duration(result.seconds)}, {result.frames / result.seconds:.1f} frames/s"
    )
