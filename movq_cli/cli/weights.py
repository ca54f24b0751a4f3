"""`movq weights convert IN -o OUT.safetensors`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import require_torch
from . import options as o
from .show import complain, name_of

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint

app = typer.Typer(no_args_is_help=True, help="Convert the checkpoints of other programs to movq's format.")


@app.callback()
def _weights() -> None:
    pass  # with a callback, typer keeps `convert` a subcommand


EXAMPLES = o.examples(
    ("movq weights convert 3d-vae.pt -o vae.safetensors --ema", "a checkpoint of CogVideo"),
    ("movq weights convert zai-org/CogVideoX-2b -o vae.safetensors", "a model in the Hugging Face cache"),
)


@app.command(epilog=EXAMPLES)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A checkpoint of movq, diffusers or CogVideo: a file (.safetensors, .pt), a folder (also of .bin files), or "
            "the id of a model in the Hugging Face cache.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUT", help="The weights file, .safetensors.")],
    ema: Annotated[bool, typer.Option("--ema", help="Take a PyTorch file's averaged weights.")] = False,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What to call the model. (default: what it is called)")
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", metavar="TEXT", help="Licence of the weights.")] = None,
    scaling_factor: Annotated[
        str | None,
        typer.Option("--scaling-factor", metavar="F", help="What diffusion models multiply its latents by."),
    ] = None,
    force: o.Force = False,
) -> None:
    """Make a movq weights file of someone else's checkpoint, numbers and dtypes kept. A PyTorch file's code is not run."""
    require_torch()
    from ..checkpoints.convert import convert_checkpoint

    made = convert_checkpoint(
        source, output, ema=ema, name=name, licence=licence, scaling_factor=scaling_factor, force=force
    )
    numbers = sum(made.parameters.values()) / 1e6
    print(
        f"{name_of(made.path)}: {name_of(made.name)}, {len(made.tensors)} tensors, {numbers:.1f} M parameters, "
        f"{', '.join(made.dtypes)}, digest {made.digest}"
    )
    if not made.metadata["scaling_factor"]:
        complain(f"the scaling factor is {scaling(made)}; --scaling-factor records it", made.path)


def scaling(checkpoint: Checkpoint) -> str:
    """Return the scaling factor. If it is unknown and norms span the clip, as in published models, name theirs."""
    published = "unknown: 1.15258426 for CogVideoX-2B, 0.7 for 5B and 1.5"
    unknown = published if checkpoint.config.norm_scope == "whole" else "unknown"
    return checkpoint.metadata["scaling_factor"] or unknown
