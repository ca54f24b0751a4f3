"""Weights files of movq, diffusers and CogVideo, and their conversion to movq's. The networks are in model/."""

from .checkpoint import EMBEDDED, Checkpoint, embedded_weights, open_checkpoint

__all__ = ["EMBEDDED", "Checkpoint", "embedded_weights", "open_checkpoint"]
