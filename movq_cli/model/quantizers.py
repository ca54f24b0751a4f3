"""Quantisers of VQ-VAE pipelines, with the published arguments, names and numbers, over (B, C, T, H, W).

Sources: CogVideo's sat/sgm/modules/autoencoding at e519ece: vqvae/quantize.py, regularizers/finite_scalar_quantization.py
(FSQ, arXiv:2309.15505) and regularizers/lookup_free_quantization.py (LFQ, arXiv:2310.05737). All compute in fp32. What
they make of a frame does not depend on other frames, but for rounding: `encode` takes frames one by one, so that it does
not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import MovqError
from .config import AutoencoderConfig

_LEAST_LOG = 1e-5  # entropies take no logarithm of less
_INVERSE_TEMPERATURE = 100.0
_MARGIN = 1e-3  # by how much FSQ's range is wider than its levels
_ROWS = 1024  # vectors that are compared with a codebook at once


class Quantised(NamedTuple):
    """The result of a quantiser for (B, C, T, H, W): `quantised`, of that shape, `indices` (B, T, H, W), and a scalar `loss`.

    With several codebooks, indices have a last axis of them.
    """

    quantised: Tensor
    indices: Tensor
    loss: Tensor


class Quantizer(nn.Module):
    """A quantiser: `forward` for training, `encode` and `decode` for codes. `codes` is how many there are."""

    codes: int
    codebooks = 1
    many = False
    """True if indices have a last axis of codebooks."""

    def forward(self, z: Tensor) -> Quantised:
        """Quantise (B, C, T, H, W). Gradients go straight through."""
        raise NotImplementedError

    def decode(self, indices: Tensor) -> Tensor:
        """Return the quantised values (B, C, T, H, W) in fp32 of indices (B, T, H, W)."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Return the indices of (B, C, T, H, W), each frame by itself: they do not depend on the others."""
        clips = [torch.cat([self(frame[None, :, None]).indices for frame in clip.unbind(1)], 1) for clip in z]
        return torch.cat(clips)

    def store(self, z: Tensor) -> Tensor:
        """Return the indices of (1, C, T, H, W) as a file has them, int64: (1, codebooks, T, H, W)."""
        indices = self.encode(z.cpu())
        return rearrange(indices, "b t h w n -> b n t h w") if self.many else indices[:, None]

    def restore(self, stored: Tensor) -> Tensor:
        """Return the quantised values (1, C, T, H, W) in fp32 of indices as a file has them.

        Raises MovqError for an index that this quantiser does not have.
        """
        require_codes(stored, self.codes)
        indices = rearrange(stored.long(), "b n t h w -> b t h w n")
        return self.decode(indices if self.many else indices[..., 0])


class VectorQuantizer2(Quantizer):
    """Takes the nearest entry of a codebook of `n_e` entries of `e_dim` numbers; of equally near ones the first.

    `beta` weighs the commitment term of the loss; `legacy` puts it on the other term, as published by mistake, and as
    published models were trained. `remap` is refused: it names a file. `unknown_index` is for that alone, and
    `sane_index_shape` has no effect: indices always have the shape of the picture.
    """

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float,
        remap: str | None = None,
        unknown_index: str = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        super().__init__()
        if remap is not None:
            raise MovqError("a quantiser with remap reads a file of indices, which movq does not")
        self.codes, self.beta, self.legacy = n_e, beta, legacy
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_e, 1.0 / n_e)

    def forward(self, z: Tensor) -> Quantised:
        """Quantise (B, C, T, H, W)."""
        x = rearrange(z, "b c t h w -> b t h w c").float()
        indices = self._nearest(x.detach())
        quantised = self._entries(indices)
        to_codes, to_latents = F.mse_loss(x, quantised.detach()), F.mse_loss(quantised, x.detach())
        loss = to_codes + self.beta * to_latents if self.legacy else self.beta * to_codes + to_latents
        quantised = x + (quantised - x).detach()
        return Quantised(rearrange(quantised, "b t h w c -> b c t h w").to(z.dtype), indices, loss)

    def decode(self, indices: Tensor) -> Tensor:
        """Return the entries of indices."""
        return rearrange(self._entries(indices), "b t h w c -> b c t h w")

    def _entries(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.embedding.weight.float())

    def _nearest(self, x: Tensor) -> Tensor:
        entries = self.embedding.weight.detach().float()
        squares = entries.square().sum(1)
        rows = [
            (part.square().sum(1, keepdim=True) + squares - 2 * part @ entries.T).argmin(1)
            for part in torch.split(x.flatten(0, -2), _ROWS)
        ]
        return torch.cat(rows).view(x.shape[:-1])


class _OfBits(Quantizer):
    """A quantiser that rounds channels, in one codebook or several; it has no codebook to learn.

    With another `dim` than that of its codebooks together, linear layers lead in and out, as published.
    """

    def __init__(self, dim: int | None, channels: int, num_codebooks: int, keep_num_codebooks_dim: bool | None) -> None:
        super().__init__()
        if num_codebooks > 1 and keep_num_codebooks_dim is False:
            raise MovqError("a quantiser of several codebooks keeps their axis")
        self.codebooks = num_codebooks
        self.many = num_codebooks > 1 if keep_num_codebooks_dim is None else keep_num_codebooks_dim
        needed, same = channels * num_codebooks, dim in (None, channels * num_codebooks)
        self.project_in = nn.Identity() if same else nn.Linear(dim or needed, needed)
        self.project_out = nn.Identity() if same else nn.Linear(needed, dim or needed)

    def _enter(self, z: Tensor) -> Tensor:
        """Return (B, T, H, W, codebooks, channels of each) in fp32."""
        x = _linear(self.project_in, rearrange(z, "b c t h w -> b t h w c").float())
        return rearrange(x, "b t h w (n c) -> b t h w n c", n=self.codebooks)

    def _leave(self, codes: Tensor) -> Tensor:
        """Return (B, C, T, H, W) in fp32."""
        x = _linear(self.project_out, rearrange(codes, "b t h w n c -> b t h w (n c)"))
        return rearrange(x, "b t h w c -> b c t h w")

    def _shown(self, indices: Tensor) -> Tensor:
        """Return indices (B, T, H, W, codebooks) without the last axis if there is one codebook."""
        return indices if self.many else indices[..., 0]

    def _each(self, indices: Tensor) -> Tensor:
        """Return indices as (B, T, H, W, codebooks, 1)."""
        return (indices if self.many else indices[..., None])[..., None]


class FSQ(_OfBits):
    """Rounds each of a few channels to one of its `levels`. `scale` is unused, as published."""

    def __init__(
        self,
        levels: Sequence[int],
        dim: int | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__(dim, len(levels), num_codebooks, keep_num_codebooks_dim)
        self.codes = math.prod(levels)
        self.register_buffer("_levels", torch.tensor(levels), persistent=False)
        self.register_buffer("_basis", torch.tensor([1, *levels[:-1]]).cumprod(0), persistent=False)

    def forward(self, z: Tensor) -> Quantised:
        """Quantise (B, C, T, H, W). The loss is 0."""
        levels, x = self.get_buffer("_levels"), self._enter(z)
        half = (levels - 1) * (1 + _MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        bounded = (x + (offset / half).atanh()).tanh() * half - offset
        codes = (bounded + (bounded.round() - bounded).detach()) / (levels // 2)
        steps = (codes.detach() * (levels // 2)).round().long() + levels // 2
        indices = (steps * self.get_buffer("_basis")).sum(-1)
        return Quantised(self._leave(codes).to(z.dtype), self._shown(indices), x.new_zeros(()))

    def decode(self, indices: Tensor) -> Tensor:
        """Return the rounded values of indices."""
        levels = self.get_buffer("_levels")
        each = self._each(indices) // self.get_buffer("_basis") % levels
        return self._leave((each - levels // 2) / (levels // 2))


class LFQ(_OfBits):
    """Takes the sign of each channel as a bit, the most significant first.

    In training, the loss wants each choice to be sure and all to be used alike. In evaluation there is neither loss nor
    gradient. Inputs are not normalised.
    """

    mask: Tensor

    def __init__(
        self,
        *,
        dim: int | None = None,
        codebook_size: int | None = None,
        entropy_loss_weight: float = 0.1,
        commitment_loss_weight: float = 0.25,
        diversity_gamma: float = 1.0,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        codebook_scale: float = 1.0,
        frac_per_sample_entropy: float = 1.0,
    ) -> None:
        size = codebook_size or 2 ** (dim or 0)
        bits = size.bit_length() - 1
        if bits < 1 or 1 << bits != size:
            raise MovqError(f"LFQ needs dim, or a codebook_size that is a power of 2: got {dim} and {codebook_size}")
        super().__init__(dim, bits, num_codebooks, keep_num_codebooks_dim)
        self.codes = size
        self._entropy, self._commitment, self._diversity = entropy_loss_weight, commitment_loss_weight, diversity_gamma
        self._scale, self._part = codebook_scale, frac_per_sample_entropy
        self.register_buffer("mask", 2 ** torch.arange(bits - 1, -1, -1))

    def forward(self, z: Tensor) -> Quantised:
        """Quantise (B, C, T, H, W)."""
        x = self._enter(z)
        quantised, loss = self._signs(x > 0), x.new_zeros(())
        indices = ((x > 0) * self.mask).sum(-1)
        if self.training:
            loss = self._loss(x, quantised)
            quantised = x + (quantised - x).detach()
        return Quantised(self._leave(quantised).to(z.dtype), self._shown(indices), loss)

    def decode(self, indices: Tensor) -> Tensor:
        """Return the signs of indices."""
        return self._leave(self._signs(self._each(indices) & self.mask != 0))

    def _signs(self, bits: Tensor) -> Tensor:
        return torch.where(bits, self._scale, -self._scale)

    def _loss(self, x: Tensor, quantised: Tensor) -> Tensor:
        codebook = self._signs(torch.arange(self.codes, device=x.device)[:, None] & self.mask != 0)
        chosen = (2 * _INVERSE_TEMPERATURE * x.flatten(0, -3) @ codebook.T).softmax(-1)
        if self._part < 1:
            chosen = chosen[torch.randperm(len(chosen), device=x.device)[: int(self._part * len(chosen))]]
        sure, used = _entropy(chosen).mean(), _entropy(chosen.mean(0)).mean()
        commitment = F.mse_loss(x, quantised.detach())
        return self._entropy * (sure - self._diversity * used) + self._commitment * commitment


def _entropy(probabilities: Tensor) -> Tensor:
    return (-probabilities * probabilities.clamp(min=_LEAST_LOG).log()).sum(-1)


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what a linear layer makes of x in fp32; x itself if there is none."""
    return F.linear(x, layer.weight.float(), layer.bias.float()) if isinstance(layer, nn.Linear) else x


def require_codes(indices: Tensor, codes: int) -> None:
    """Raise MovqError unless all indices are from 0 to codes - 1."""
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= codes:
        raise MovqError(f"holds codes from {low} to {high}, of which its weights have {codes:,}")


def build(config: AutoencoderConfig) -> Quantizer:
    """Return the quantiser of a config, with weights that are not loaded yet. Raises MovqError if none can be made."""
    assert config.quantizer is not None
    arguments = dict(config.quantizer)
    kind: type[Quantizer] = {"VectorQuantizer2": VectorQuantizer2, "FSQ": FSQ, "LFQ": LFQ}[arguments.pop("kind")]
    try:
        return kind(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MovqError(f"its config makes no quantiser: {error}") from None
