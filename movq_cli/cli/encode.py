"""`movq encode IN -o OUT.safetensors`."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o
from .show import complain, duration, name_of, plural, progress_bar, ratio, shape, size

if TYPE_CHECKING:
    from ..encode import EncodeResult
    from ..plan import Plan


def encode(
    source: Annotated[str, typer.Argument(metavar="IN", help="A video file, or a picture (png, jpeg, webp).")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUT", help="The latents file, .safetensors.")],
    weights: o.Weights = None,
    semantics: o.Semantics = "auto",
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    chunk_frames: o.ChunkFrames = "auto",
    memory_budget: o.MemoryBudget = None,
    spill_dir: o.SpillDir = None,
    threads: o.Threads = None,
    stream: o.Stream = None,
    start: o.Start = None,
    duration: o.Duration = None,
    fps: o.Fps = None,
    fps_repeat: o.FpsRepeat = False,
    frames: o.Frames = None,
    tail: o.Tail = "pad",
    height: o.Height = None,
    width: o.Width = None,
    short_side: o.ShortSide = None,
    fit: o.Fit = "cover",
    upscale: o.Upscale = False,
    save: o.Save = "moments",
    seed: o.Seed = 0,
    store_dtype: o.StoreDtype = "auto",
    force: o.Force = False,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
) -> None:
    """Encode one video to one latents file."""
    from ..device import keep_freed_memory
    from ..encode import encode_video
    from ..files import WholeFile, refuse_inputs
    from ..plan import EncodeOptions, plan_encode
    from ..video import Picture, Selection

    chosen = EncodeOptions(
        **o.model_options(weights, semantics, device, precision, chunk_frames, memory_budget, spill_dir, threads),
        selection=Selection(stream, start or Fraction(0), duration, fps, fps_repeat, frames),
        tail=tail,
        picture=Picture(height, width, short_side, fit, upscale),
        save=save,
        seed=seed,
        store_dtype=store_dtype,
        force=force,
    )
    if dry_run:
        refuse_inputs(output, source)
        with WholeFile(output, force=force):
            pass  # it can be written
        _print_plan(plan_encode(source, chosen.beside(output)), output)
        return
    if weights is None and not quiet:
        complain(
            "the embedded movq-tiny-4x8x8 weights are for trying, testing and archiving: no public diffusion model reads "
            "their latents; --weights takes others"
        )
    keep_freed_memory()
    with progress_bar(quiet) as progress:
        result = encode_video(source, output, chosen, progress=progress)
    for warning in result.warnings:
        complain(f"warning: {warning}", source)
    print(_result_line(result))


def _result_line(result: EncodeResult) -> str:
    repeated = f" + {result.frames_padded} repeated" if result.frames_padded else ""
    dropped = f", {result.frames_dropped} dropped" if result.frames_dropped else ""
    return (
        f"{name_of(result.path)}: {shape(result.shape[1:])} {result.dtype}, {size(result.bytes)} "
        f"({ratio(result.raw_bytes, result.bytes)} of RGB, {ratio(result.source_bytes, result.bytes)} of the source); "
        f"{plural(result.frames, 'frame')}{repeated}{dropped} of {result.width}x{result.height} "
        f"in {duration(result.seconds)}, {result.frames / result.seconds:.1f} frames/s"
    )


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
            "frames": f"{plan.frames} + {plan.frames_padded} repeated, {plan.frames_dropped} dropped",
            "latents": shape(plan.latent_shape or ()),
            "windows": ", ".join(f"{n} of {k}" for k, n in Counter(plan.windows or ()).items()),
            "chunks": chunks,
            "computed": f"in {plan.precision} on {plan.device}, semantics {plan.semantics}",
            "peak memory": f"about {size(budget.memory_bytes)}",
            "spilled": f"up to {size(budget.spill_bytes)} to {name_of(budget.spill_dir)}" if budget.spill_bytes else "",
            "output size": f"about {size(plan.output_bytes or 0)}",
        }
    )
    for warning in (*budget.warnings, *plan.info.warnings):
        complain(f"warning: {warning}")
