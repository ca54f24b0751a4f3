"""`movq encode IN -o OUT.safetensors`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import EncodeOptions
from ..targets import prepared
from ..values import format_bytes
from . import options as o
from .paths import latents_output, video_input
from .show import (
    LEAST_PART,
    compared,
    complain,
    duration,
    name_of,
    odd_rows,
    plural,
    progress_bar,
    say_target,
    say_whose_weights,
    shape,
    tail,
)

if TYPE_CHECKING:
    from ..encode import EncodeResult
    from ..plan import Plan


EXAMPLES = o.examples(
    ("movq encode clip.mp4", "all frames, to clip.safetensors"),
    (
        "movq encode clip.mp4 -o part.safetensors --start 0:01.5 --frames 49 --short-side 480",
        "49 frames from there, scaled down",
    ),
)


@o.takes(options=EncodeOptions)
def encode(
    sources: Annotated[list[str], typer.Argument(metavar="IN", help="A video file, or a picture (png, jpeg, webp).")],
    options: EncodeOptions,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="The latents file, .safetensors, or a folder for it. (default: IN's name, in the current folder)",
        ),
    ] = None,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
) -> None:
    """Encode one video to one latents file."""
    from ..device import spare_page_faults
    from ..encode import encode_video
    from ..plan import plan_encode

    source = video_input(sources)
    output, options = latents_output(source, output), prepared(options)
    if not quiet:
        say_target(options)
    if dry_run:
        _check_writable(source, output, options)
        _print_plan(plan_encode(source, options.beside(output)), output)
        return
    spare_page_faults()
    with progress_bar(quiet) as progress:
        result = encode_video(source, output, options, progress=progress)
    for warning in result.metadata.warnings:
        complain(f"warning: {warning}", source)
    print("\n".join(_result_lines(result)))
    if not quiet:
        _remark(result, source)
        say_whose_weights(options)


def _check_writable(source: str, output: str, options: EncodeOptions) -> None:
    """Raise MovqError if an output cannot be written."""
    from ..files import WholeFile, refuse_inputs
    from ..first_frame import FirstFrame

    refuse_inputs(output, source)
    with WholeFile(output, force=options.force), FirstFrame(output, options.first_frames, options.force):
        pass


def _remark(result: EncodeResult, source: str) -> None:
    """Say what is easily overlooked: strips, a crop of more than half, and an odd size of latents."""
    for remark in result.remarks:
        complain(remark, source)
    m = result.metadata
    width, height = m.preprocessing["scaled"] or m.preprocessing["stored"]
    kept = m.width * m.height / (width * height)
    if m.crop is not None and kept < LEAST_PART:
        complain(f"the crop keeps {kept:.0%} of the picture; --fit contain keeps all of it, with padding", source)
    if remark := odd_rows([(result.shape[3], result.shape[4])], m.semantics):
        complain(remark, source)


def _result_lines(result: EncodeResult) -> Iterator[str]:
    m, written = result.metadata, result.output_bytes
    yield (
        f"{name_of(result.output_path)}: {shape(result.shape[1:])} {result.dtype}, {format_bytes(written)} "
        f"({compared(written, m.raw_bytes, 'raw RGB')}, {compared(written, m.source_bytes, 'the source')}); "
        f"{plural(m.frames, 'frame')}{tail(m.frames_padded, m.frames_dropped)}, {m.width}x{m.height}, "
        f"in {duration(result.seconds)}, {m.frames / result.seconds:.1f} frames/s"
    )
    for kind, file in result.first_frame.items():
        yield f"{name_of(file.output_path)}: first frame ({kind}), {format_bytes(file.bytes)}"


def _print_plan(plan: Plan, output: str) -> None:
    from .tables import print_pairs

    geometry, budget = plan.geometry, plan.budget
    chunks = "all frames at once"
    if plan.chunks != 1:
        chunks = f"{plan.chunks}, of {f'{budget.chunk_frames} frames' if budget.chunk_frames else 'a window each'}"
    pad = f", padded to {geometry.padded_width}x{geometry.padded_height}"
    print_pairs(
        {
            "output": name_of(output),
            "picture": f"{geometry.width}x{geometry.height}{pad if geometry.pad_right or geometry.pad_bottom else ''}",
            "frames": f"{plural(plan.frames or 0, 'frame')}{tail(plan.frames_padded, plan.frames_dropped)}",
            "latents": shape(plan.latent_shape or ()),
            "windows": ", ".join(f"{n} of {k}" for k, n in Counter(plan.windows or ()).items()),
            "chunks": chunks,
            "strips": f"{budget.strips}, of {budget.strip_rows} rows" if budget.strips > 1 else "",
            "computed": f"in {plan.precision} on {plan.device}, semantics {plan.semantics}",
            "peak memory": f"about {format_bytes(budget.memory_bytes)}",
            "spilled": f"up to {format_bytes(budget.spill_bytes)} to {name_of(budget.spill_dir)}"
            if budget.spill_bytes
            else "",
            "output size": f"about {format_bytes(plan.output_bytes or 0)}",
        }
    )
    for warning in (*budget.warnings, *plan.info.warnings):
        complain(f"warning: {warning}")
    for remark in budget.remarks:
        complain(remark)
    if plan.latent_shape and (remark := odd_rows([plan.latent_shape[3:]], plan.semantics)):
        complain(remark)
