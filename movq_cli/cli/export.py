"""`movq export DIR -o OUT --to FORMAT`: a batch, as a trainer reads it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import ExportOptions
from ..values import format_bytes
from . import options as o
from .show import complain, name_of, plural, progress_bar

if TYPE_CHECKING:
    from ..export import ExportResult

_REASONS = 20

EXAMPLES = o.examples(
    ("movq export latents -o data --to cogvideo-finetune --for cogvideox-5b", "the cache of CogVideo's finetuning"),
    ("movq export latents -o arrays --to npy --dry-run", "what would be written"),
)


@o.takes(options=ExportOptions)
def export(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder that batch-encode made.")],
    options: ExportOptions,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT", help="Folder for the files; created if missing.")
    ],
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write the latents of a batch in the layout that a trainer reads. Keeps what is up to date."""
    from ..export import export_latents

    with progress_bar(quiet or as_json, unit="items") as progress:
        result = export_latents(folder, output, options, dry_run=dry_run, progress=progress)
    refused = [line for line in result.lines if line["status"] == "refused"]
    if as_json:
        print(json.dumps(asdict(result), indent=2, ensure_ascii=False))
    else:
        _report(result, output, dry_run, quiet)
    if refused:
        raise typer.Exit(1)


def _report(result: ExportResult, output: str, dry_run: bool, quiet: bool) -> None:
    for warning in result.warnings:
        complain(f"warning: {warning}")
    done = [line for line in result.lines if line["status"] == "done"]
    refused = [line for line in result.lines if line["status"] == "refused"]
    for line in refused[:_REASONS]:
        complain(line["reason"], line["id"])
    if len(refused) > _REASONS:
        complain(f"... and {plural(len(refused) - _REASONS, 'more item')} refused")
    if result.removed:
        complain(f"{plural(len(result.removed), 'file')} of items that are gone {'would be ' * dry_run}removed", output)
    others = sum(line["status"] == "left out" for line in result.lines)
    size = sum(sum(line["files"].values()) for line in done)
    parts = [f"{plural(len(done), 'item')} {'to export' if dry_run else 'exported'}"]
    parts += [f"{result.kept:,} of them kept"] * bool(result.kept) + [f"{len(refused):,} refused"] * bool(refused)
    parts += [f"{others:,} of another shape left out"] * bool(others)
    print(f"{name_of(output)}: {', '.join(parts)}" + ("" if dry_run else f"; {format_bytes(size)}"))
    if result.usage and not quiet:
        complain(f"to train on it: {result.usage}")
