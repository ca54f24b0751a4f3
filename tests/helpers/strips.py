"""Networks and clips that are computed in strips and in one piece, as the tool does, for comparison."""

import itertools

import numpy as np
import torch

from movq_cli.codec import encode
from movq_cli.model import Decoder3D, Encoder3D, StreamCache
from movq_cli.schedule import ChunkSchedule

from . import clips
from .models import VAE


def network(kind, semantics, **config):
    """Return an Encoder3D or Decoder3D whose every parameter is random: norms of weight 1 and bias 0 could hide mistakes."""
    torch.manual_seed(0)
    scope = "frame" if semantics == "frame" else "whole"
    given = {name: getattr(VAE, name) for name in VAE.__dataclass_fields__} | {"norm_scope": scope, **config}
    made = kind(**given).eval().requires_grad_(False)
    for parameter in made.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def encoder(semantics, **config):
    return network(Encoder3D, semantics, **config)


def decoder(semantics, **config):
    return network(Decoder3D, semantics, **config)


def pixels(frames, height, width):
    """Return frames (T, H, W, 3) of a smooth moving picture with noise."""
    noise = np.random.default_rng(0).integers(-20, 20, (frames, height, width, 3))
    return np.clip(np.stack(clips.pictures(frames, width, height)).astype(int) + noise, 0, 255).astype(np.uint8)


def encoded(network, semantics, images, chunk=0, rows=0, store=None, dtype=torch.float32):
    """Return the moments of a clip, computed as `movq encode` does."""
    schedule = ChunkSchedule.of_frames(semantics, len(images), chunk, network.config)
    cache = StreamCache(store=store, strip_rows=rows)
    cut = itertools.accumulate(schedule.lengths(), initial=0)
    spans = iter([slice(*pair) for pair in itertools.pairwise(cut)])
    windows = finite(schedule, len(images))
    arrays = ((images[next(spans)] for _ in window) for window in windows)
    return torch.cat(list(encode(network, arrays, torch.device("cpu"), dtype, cache)), dim=2)


def decoded(network, semantics, z, chunk=0, rows=0, store=None):
    """Return the frames (1, 3, T, H, W) of latents, as numbers, in the windows and chunks of `movq decode`."""
    schedule = ChunkSchedule.of_latents(semantics, z.shape[2], chunk, network.config)
    cache = StreamCache(store=store, strip_rows=rows)
    frames, left = [], z
    with torch.inference_mode():
        for lengths in finite(schedule, z.shape[2]):
            chunks, left = left[:, :, : sum(lengths)].split(lengths, dim=2), left[:, :, sum(lengths) :]
            frames += network.decode_window([(part, part) for part in chunks], cache)
    return torch.cat(frames, dim=2)


def finite(schedule, count):
    """Return the lengths of the chunks of each window, as many as the clip has."""
    found = []
    for window in schedule.windows():
        lengths = []
        for length in window:
            lengths.append(min(length or count, count))
            count -= lengths[-1]
            if count <= 0:
                return [*found, lengths]
        found.append(lengths)
    return found
