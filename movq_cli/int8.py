"""Latents in 8 bits: whole numbers from -127 to 127, and a scale for each channel of each latent frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MOST = 127


def quantise(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents (1, C, n, H, W) as int8, and their scales (C, n) in fp32: the largest value of each is 127.

    A latent is its whole number times its scale, and is at most half a scale off. Where all values are 0, so is the scale.
    """
    import torch

    x = latents.float()
    scale = x.abs().amax(dim=(-2, -1))[0] / _MOST
    steps = torch.where(scale > 0, scale, 1.0)[None, :, :, None, None]
    return (x / steps).round_().clamp_(-_MOST, _MOST).to(torch.int8), scale


def dequantise(numbers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return latents (..., C, n, H, W) in fp32 from their whole numbers and scales (C, n)."""
    return numbers.float().mul_(scale[..., None, None])


def require_scale(scale: torch.Tensor) -> None:
    """Raise ValueError for scales that are negative or not finite."""
    if not bool(((scale >= 0) & scale.isfinite()).all()):
        raise ValueError("scales that are negative or not finite")
