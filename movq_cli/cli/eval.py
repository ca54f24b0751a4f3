"""`movq eval VIDEO...`: measure how near reconstructions are to videos, and compare one setting with another."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import MovqError, MovqUsageError, option, require_torch
from ..fields import changed
from ..options import EncodeOptions, ModelOptions
from . import options as o
from .habits import slip
from .paths import picture_output, video_inputs
from .show import complain, name_of, progress_bar, warned_once

if TYPE_CHECKING:
    from ..evaluate import Evaluation


EXAMPLES = o.examples(
    ("movq eval clip.mp4 --frames 17 --picture seen.png", "scores, and a picture of the worst frame"),
    ('movq eval clips --frames 17 --against "--precision bf16"', "what bf16 costs"),
)


@o.takes(options=EncodeOptions, without=("save", "seed", "force", "target", "scaling_factor", "first_frame"))
def evaluate(
    sources: Annotated[list[str], typer.Argument(metavar="VIDEO", help="Videos, and folders of them.")],
    options: EncodeOptions,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            rich_help_panel=o.RESULT,
            metavar="SETTINGS",
            help='Other settings to compare with, like "--precision fp32"; or tiled: diffusers with tiling on.',
        ),
    ] = None,
    picture: Annotated[
        str | None,
        typer.Option(
            "--picture",
            rich_help_panel=o.RESULT,
            metavar="OUT.png",
            help="Draw source, reconstruction and 4 times their difference side by side.",
        ),
    ] = None,
    picture_frame: Annotated[
        list[int] | None,
        typer.Option(
            "--picture-frame",
            rich_help_panel=o.RESULT,
            metavar="I",
            help="A frame to draw; repeatable. (default: the first, the worst and the last)",
        ),
    ] = None,
    force: o.Force = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Encode and decode videos, and measure how near they come back."""
    from ..device import spare_page_faults
    from ..evaluate import TILED
    from ..metrics import montage
    from ..video import write_png

    other = against if against in (None, TILED) else _other_options(options, str(against))
    sources = video_inputs(sources)
    frames = _frames_to_draw(sources, picture, picture_frame, force)
    require_torch()
    spare_page_faults()
    made, failed = _evaluate_all(sources, options, other, frames, quiet)
    if picture is not None and made:
        write_png(picture, montage(list(made[0].pairs.values())), force=force)
    if as_json:
        print(json.dumps({"videos": [evaluation.to_dict() for evaluation in made], "failed": failed}, indent=2))
    elif made:
        _print_tables(made, str(against), picture)
    if failed:
        raise typer.Exit(1)


def _frames_to_draw(
    sources: list[str], picture: str | None, picture_frame: list[int] | None, force: bool
) -> list[int] | None:
    """Return the frames to draw: None for the default ones, an empty list if nothing is drawn.

    Raises MovqUsageError if options do not go together, MovqError if the picture cannot be written.
    """
    from ..files import WholeFile, refuse_inputs

    if picture is None:
        if picture_frame:
            raise MovqUsageError(f"needs {option('picture')}, which it is drawn into", option="picture_frame")
        return []
    if len(sources) > 1:
        raise MovqUsageError("draws one video; name one", option="picture")
    refuse_inputs(picture_output(picture), *sources)
    with WholeFile(picture, force=force):
        pass  # only checks that it can be written
    return picture_frame


def _evaluate_all(
    sources: list[str],
    options: EncodeOptions,
    against: EncodeOptions | str | None,
    frames: list[int] | None,
    quiet: bool,
) -> tuple[list[Evaluation], list[dict[str, str]]]:
    """Evaluate videos one after the other. Return the evaluations, and the source and reason of each failure."""
    from ..evaluate import evaluate_video

    made: list[Evaluation] = []
    failed: list[dict[str, str]] = []
    for source in sources:
        try:
            with progress_bar(quiet) as progress, warned_once():
                made.append(evaluate_video(source, options, against=against, pairs=frames, progress=progress))
        except MovqUsageError:
            raise
        except MovqError as error:
            complain(error)
            failed.append({"source": source, "reason": error.with_flags})
            continue
        for warning in made[-1].encoded.metadata.warnings:
            complain(f"warning: {warning}", source)
        for remark in () if quiet else made[-1].remarks:
            complain(remark, source)
    return made, failed


def _print_tables(made: list[Evaluation], against: str, picture: str | None) -> None:
    from ..metrics import montage_scale
    from .tables import print_pairs, print_rows

    print_rows(_COLUMNS, (row for evaluation in made for row in _rows(evaluation, against)))
    for evaluation in made:
        if evaluation.other is not None and evaluation.difference is None:
            print(f"{name_of(evaluation.source)}: latents by {against} have another shape")
        if evaluation.difference is not None:
            print_pairs(_differ(evaluation), title=f"{name_of(evaluation.source)}: what {against} changes")
    if picture is not None:
        drawn = ", ".join(map(str, made[0].pairs))
        scale = montage_scale(next(iter(made[0].pairs.values()))[0])
        size = f", at 1/{scale} of their size" if scale > 1 else ""
        print(f"{name_of(picture)}: frames {drawn}: source, reconstruction, 4 times their difference{size}")


_COLUMNS = (
    *("video", "frames", "PSNR dB", "worst", "at frame", "first", "borders", "inside"),
    *("SSIM", "worst SSIM", "flicker"),
)


def _rows(evaluation: Evaluation, against: str) -> list[list[str]]:
    rows = [_row(name_of(evaluation.source), evaluation.scores)]
    if evaluation.other is not None:
        rows.append(_row(f"  {against}", evaluation.other.scores))
    return rows


def _row(name: str, scores: dict[str, Any]) -> list[str]:
    psnr, ssim = scores["psnr_worst"], scores["ssim_worst"]
    return [
        name,
        str(scores["frames"]),
        _number(scores["psnr_mean"], 2),
        _number(psnr["psnr"], 2),
        str(psnr["frame"]),
        _number(scores["psnr_first"], 2),
        _number(scores["psnr_borders"], 2),
        _number(scores["psnr_inside"], 2),
        _number(scores["ssim_mean"], 4),
        _number(ssim and ssim["ssim"], 4),
        _number(scores["flicker"], 2),
    ]


def _differ(evaluation: Evaluation) -> dict[str, str]:
    """Return the differences between the latents and pictures of two settings, in words, by what is compared."""
    assert evaluation.difference is not None
    mean, logvar, posterior = (getattr(evaluation.difference, name) for name in ("mean", "logvar", "posterior"))
    rows = {"means": f"rms {mean.rms:.2g}, 99.9% within {mean.p999:.2g}, largest {mean.largest:.2g} of their deviation"}
    if logvar is not None:
        rows["log variances"] = f"rms {logvar.rms:.2g}, largest {logvar.largest:.2g} nats"
        rows["posterior"] = (
            f"deviation {posterior.deviation:.2g} (median); the means' rms is {posterior.error_share:.3g} times that"
        )
    if evaluation.picture_psnr is not None:
        rows["pictures"] = f"{evaluation.picture_psnr:.2f} dB against each other"
    return rows


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _other_options(options: EncodeOptions, text: str) -> EncodeOptions:
    """Return the options, changed by the flags in `text`, as typed at a prompt. Raises MovqUsageError."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise MovqUsageError(f"cannot be read: {error}; got {text!r}", option="against") from None
    if not words or not words[0].startswith("-"):
        raise MovqUsageError(
            f"takes options in quotes, like '--precision bf16', or tiled; got {text!r}", option="against"
        )
    try:
        return changed(options, _settings(words, standalone_mode=False))
    except MovqUsageError as error:
        reason = error.with_flags
    except Exception as error:
        if (usage := slip(error)) is None:
            raise
        reason = usage
    raise MovqUsageError(f"does not accept {text!r}: {reason}", option="against")


_SETTINGS = {field.name for field in fields(ModelOptions)} | {"store_dtype"}
_NOT_SETTINGS = {name for _, name, _ in o.flat_fields(EncodeOptions)} - _SETTINGS
_settings = typer.Typer(add_completion=False)


@_settings.command(add_help_option=False)
@o.takes(options=EncodeOptions, without=_NOT_SETTINGS, unset=True)
def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Return what --against changes."""
    return options
