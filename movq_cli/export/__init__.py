"""Latents in the layouts that trainers read, and back: `export_latents`, `decode_exported`."""

from .back import decode_exported
from .manifest import Exported
from .run import ExportResult, export_latents

__all__ = ["ExportResult", "Exported", "decode_exported", "export_latents"]
