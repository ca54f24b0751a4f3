"""Flags that people know from other tools, and what they are called here."""

from __future__ import annotations

import re
from typing import Any

_SIZE = "Did you mean --height, --width or --short-side?"
_PRECISION = "Did you mean --precision (to compute in) or --store-dtype (to store)?"
_AT_ONCE = "Did you mean --chunk-frames (frames computed at once), or --workers of batch-encode?"
_RESUME = "It is not needed: the same command makes what is missing"
_CODES = "Codes come with weights that hold a quantiser. For others, --store-dtype int8 makes latents small"
_ANSWERS = {
    **dict.fromkeys(("--size", "--resolution", "--scale", "-s"), _SIZE),
    **dict.fromkeys(("--dtype", "--half", "--fp16", "--bf16"), _PRECISION),
    **dict.fromkeys(("--batch-size", "-b"), _AT_ONCE),
    **dict.fromkeys(("--num-workers", "--jobs", "-j"), "Did you mean --workers?"),
    **dict.fromkeys(("--verbose", "-v"), "Remarks and progress are shown unless you pass --quiet"),
    **dict.fromkeys(("--num-frames", "--max-frames", "-n"), "Did you mean --frames?"),
    **dict.fromkeys(("--end", "--to", "-t"), "Did you mean --duration?"),
    **dict.fromkeys(("--vae", "--model", "--checkpoint", "--ckpt", "-m"), "Did you mean --weights?"),
    **dict.fromkeys(("--gpu", "--cuda"), "Did you mean --device cuda?"),
    **dict.fromkeys(("--out", "--output-dir", "--outdir"), "Did you mean --output?"),
    **dict.fromkeys(("--overwrite", "-y", "-f"), "Did you mean --force?"),
    **dict.fromkeys(("--tile", "--tiling"), "Did you mean --memory-budget, or --strip-rows? movq needs no tiles"),
    **dict.fromkeys(("--quantize", "--quantizer", "--codes"), _CODES),
    **dict.fromkeys(("--resume", "--skip-existing", "--continue"), _RESUME),
}
"""The answers to flags that movq does not have, for commands that have the option which the answer names."""


def slip(error: Exception) -> str | None:
    """Return the line for a usage error of typer, or None for any other exception.

    The class comes from the click inside typer or from click, depending on typer's version, so it goes by its method.
    """
    if not hasattr(error, "format_message"):
        return None
    text = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    typed = getattr(error, "option_name", "")
    answer = _ANSWERS.get(typed, "")
    if answer and (re.findall(r"--[a-z-]+", answer)[:1] or [""])[0] in {"", *_options(context)}:
        return f"No such option: {typed}. {answer}"
    return text if context is None or text.endswith("?") else f"{text} (see {context.command_path} --help)"


def _options(context: Any) -> set[str]:
    return set() if context is None else {flag for parameter in context.command.params for flag in parameter.opts}
