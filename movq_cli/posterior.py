"""Draws from the posterior that moments (mean, then log variance) describe. It works on tensors, not on files."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def draw_latents(
    moments: torch.Tensor, first_latent: int, *, seed: int, source_sha256: str, first_index: int
) -> torch.Tensor:
    """Draw a sample (1, z, n, H', W') in fp32 on the CPU from moments (1, 2z, n, H', W').

    The first of the n latents is number `first_latent` of the clip. The noise is keyed by the seed, the clip (the
    digest of its file and the index of its first frame) and the latent's number. So it does not depend on chunks,
    devices, workers or file names, and differs for every clip.
    """
    import torch

    moments = moments.cpu()
    c, n, h, w = moments.shape[1] // 2, *moments.shape[2:]

    def noise(latent: int) -> torch.Tensor:
        key = f"{seed} {source_sha256} {first_index} {latent}".encode()
        number = int.from_bytes(hashlib.sha256(key).digest(), "little") % 2**63  # the range of torch's seeds
        return torch.randn((c, h, w), generator=torch.Generator().manual_seed(number))

    return draw_from(moments[0], torch.stack([noise(first_latent + i) for i in range(n)], dim=1))[None]


def draw_from(moments: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """Return mean + exp(logvar / 2) * noise, (z, T, H, W) in fp32, for moments (2z, T, H, W).

    logvar is clamped to [-30, 20]. Without `noise`, it is drawn by torch's default generator.
    """
    import torch

    mean, logvar = moments.float().chunk(2)
    deviation = logvar.clamp(-30.0, 20.0).mul_(0.5).exp_()
    return deviation.mul_(torch.randn_like(mean) if noise is None else noise).add_(mean)
