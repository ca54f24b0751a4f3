"""Latents in the layouts that trainers read, and back: `export_latents`, `decode_exported`."""

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .back import decode_exported
    from .manifest import Exported
    from .run import ExportResult, export_latents

__getattr__, __dir__ = lazily(
    __name__,
    {"back": "decode_exported", "manifest": "Exported", "run": "ExportResult export_latents"},
)

__all__ = ["ExportResult", "Exported", "decode_exported", "export_latents"]
