"""Write a latents file of random numbers with its metadata."""

import os
from array import array
from fractions import Fraction

import torch

from movq_cli.latents import LatentsWriter
from movq_cli.metadata import Metadata


def metadata(**changes):
    values = dict(
        representation="moments",
        semantics="frame",
        model="small",
        config={"ch": 32},
        weights_digest="ab" * 32,
        weights_licence="",
        scaling_factor="",
        shift_factor="",
        invert_scale_latents="",
        temporal_factor=4,
        spatial_factor=8,
        precision="fp32",
        width=45,
        height=30,
        pad_right=3,
        pad_bottom=2,
        crop=None,
        frames=11,
        frames_padded=2,
        frames_dropped=0,
        fps=Fraction(30000, 1001),
        duration=0.367,
        preprocessing={"filter": "none", "warnings": ["é\n"]},
        source_name="a.mp4",
        source_sha256="cd" * 32,
        movq_version="0.1.0",
    )
    return Metadata(**values | changes)


def times_and_indices():
    return array("d", [i / 30 for i in range(11)]), array("q", range(11))


def write_latents(path, latents, chunks=(1, 2, 1), force=False, **changes):
    with LatentsWriter(path, force=force) as writer:
        for piece in latents.split(chunks, dim=2):
            writer.append(piece)
        size = writer.finish(metadata(**changes), *times_and_indices())
        writer.commit()
    assert size == os.path.getsize(path)
    return path


LATENTS = torch.randn(1, 8, 4, 4, 6, generator=torch.Generator().manual_seed(0))
