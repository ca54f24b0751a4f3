"""Flags that people know from other tools, and what they are called here."""

from __future__ import annotations

_SIZE = "--height, --width or --short-side"
_PRECISION = "--precision (to compute in) or --store-dtype (to store)"
_WORKERS = "--workers of batch-encode"
_AT_ONCE = "--chunk-frames (frames computed at once), or --workers of batch-encode"
_QUIET = "--quiet; movq -V prints the version"
_MEANT = {
    **dict.fromkeys(("--size", "--resolution", "--scale", "-s"), _SIZE),
    **dict.fromkeys(("--dtype", "--half", "--fp16", "--bf16"), _PRECISION),
    **dict.fromkeys(("--batch-size", "-b"), _AT_ONCE),
    **dict.fromkeys(("--num-workers", "--jobs", "-j"), _WORKERS),
    **dict.fromkeys(("--verbose", "-v"), _QUIET),
    **dict.fromkeys(("--num-frames", "--max-frames", "-n"), "--frames"),
    **dict.fromkeys(("--vae", "--model", "--checkpoint", "--ckpt", "-m"), "--weights"),
    **dict.fromkeys(("--gpu", "--cuda"), "--device cuda"),
    **dict.fromkeys(("--out", "--output-dir", "--outdir"), "--output"),
    **dict.fromkeys(("--overwrite", "-y", "-f"), "--force"),
    **dict.fromkeys(("--tile", "--tiling"), "--memory-budget; movq needs no tiles"),
}
"""The options that are meant by flags which movq does not have."""


def slip(error: Exception) -> str | None:
    """Return the line for a usage error of typer, or None for any other exception.

    The class comes from the click inside typer or from click, depending on typer's version, so it goes by its method.
    """
    if not hasattr(error, "format_message"):
        return None
    text = " ".join(error.format_message().split()).rstrip(".")
    typed = getattr(error, "option_name", "")
    if typed in _MEANT:
        text = f"No such option: {typed}. Did you mean {_MEANT[typed]}?"
    context = getattr(error, "ctx", None)
    return text if context is None or text.endswith("?") else f"{text} (see {context.command_path} --help)"
