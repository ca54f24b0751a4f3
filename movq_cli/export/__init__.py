"""Latents in the layouts that trainers read: `export_latents`."""

from .run import Exported, ExportResult, export_latents

__all__ = ["ExportResult", "Exported", "export_latents"]
