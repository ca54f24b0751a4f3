"""Weights files: movq's own, those of diffusers and CogVideo, and how one becomes the other. The networks are in model/."""

from .checkpoint import EMBEDDED, Checkpoint, embedded_weights, open_checkpoint

__all__ = ["EMBEDDED", "Checkpoint", "embedded_weights", "open_checkpoint"]
