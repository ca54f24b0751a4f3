"""`movq encode IN -o OUT.safetensors`."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o
from .show import complain, duration, name_of, plural, ratio, shape, size

if TYPE_CHECKING:
    from ..encode import EncodeResult
    from ..plan import EncodeOptions, Plan


def encode(
    source: Annotated[str, typer.Argument(metavar="IN", help="A video file, or a picture (png, jpeg, webp).")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUT", help="The latents file, .safetensors.")],
    weights: o.Weights = None,
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    chunk_frames: o.ChunkFrames = "auto",
    memory_budget: o.MemoryBudget = None,
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
    from ..device import keep_freed_memory, parse_bytes
    from ..files import WholeFile, refuse_inputs
    from ..plan import EncodeOptions, plan_encode
    from ..video import Picture, Selection

    chosen = EncodeOptions(
        weights=weights,
        device=device,
        precision=precision,
        chunk_frames=o.chunk_frames(chunk_frames),
        memory_budget=None if memory_budget is None else parse_bytes(memory_budget),
        threads=threads,
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
        _print_plan(plan_encode(source, chosen), output)
        return
    if weights is None and not quiet:
        complain(
            "the embedded movq-tiny-4x8x8 weights are for trying, testing and archiving: no public diffusion model reads "
            "their latents; --weights takes others"
        )
    keep_freed_memory()
    result = _encode_with_bar(source, output, chosen, quiet)
    for warning in result.warnings:
        complain(f"warning: {warning}", source)
    print(_result_line(result))


def _encode_with_bar(source: str, output: str, chosen: EncodeOptions, quiet: bool) -> EncodeResult:
    from tqdm import tqdm

    from ..encode import encode_video

    # disable=None: no bar where stderr is not a terminal
    with tqdm(unit=" frames", disable=True if quiet else None, leave=False, dynamic_ncols=True) as bar:

        def progress(done: int, total: int | None) -> None:
            bar.total = None if total is None else max(total, done)
            bar.update(done - bar.n)

        return encode_video(source, output, chosen, progress=progress)


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

    geometry, chunks = plan.geometry, plan.chunks
    pad = f", padded to {geometry.padded_width}x{geometry.padded_height}"
    print_pairs(
        {
            "output": name_of(output),
            "picture": f"{geometry.width}x{geometry.height}{pad if geometry.pad_right or geometry.pad_bottom else ''}",
            "frames": f"{plan.frames} + {plan.frames_padded} repeated, {plan.frames_dropped} dropped",
            "latents": shape(plan.latent_shape or ()),
            "chunks": "all frames at once" if chunks == 1 else f"{chunks}, of {plan.chunk_frames} frames",
            "computed": f"in {plan.precision} on {plan.device}",
            "peak memory": f"about {size(plan.memory_bytes)}",
            "output size": f"about {size(plan.output_bytes or 0)}",
        }
    )
    for warning in (*plan.warnings, *plan.info.warnings):
        complain(f"warning: {warning}")
