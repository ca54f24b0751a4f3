"""Draws from the posterior that moments (mean, then log variance) describe. Tensors in, tensors out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Draw:
    """Posterior noise that does not depend on chunks, devices, workers or file names, and differs for every clip."""

    seed: int
    source_sha256: str
    first_index: int

    def __call__(self, moments: torch.Tensor, first_latent: int) -> torch.Tensor:
        """mean + exp(logvar / 2) * noise of moments (1, 2z, n, H', W') in fp32; logvar clamped to [-30, 20]."""
        import torch

        moments = moments.cpu()
        c, n, h, w = moments.shape[1] // 2, *moments.shape[2:]
        noise = [self._noise(first_latent + i, torch.Size((c, h, w))) for i in range(n)]
        return draw_from(moments[0], torch.stack(noise, dim=1))[None]

    def _noise(self, latent: int, shape: torch.Size) -> torch.Tensor:
        import torch

        key = f"{self.seed} {self.source_sha256} {self.first_index} {latent}".encode()
        number = int.from_bytes(hashlib.sha256(key).digest(), "little") % 2**63  # a seed torch takes
        return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def draw_from(moments: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """mean + exp(logvar / 2) * noise of moments (2z, T, H, W): (z, T, H, W) in fp32; logvar clamped to [-30, 20].

    `noise` is torch's own where none is given.
    """
    import torch

    mean, logvar = moments.float().chunk(2)
    deviation = logvar.clamp(-30.0, 20.0).mul_(0.5).exp_()
    return deviation.mul_(torch.randn_like(mean) if noise is None else noise).add_(mean)
