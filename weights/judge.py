"""Judge weights by clips and pictures that are never trained on: `python weights/judge.py [WEIGHTS ...]`.

Clips are encoded and decoded whole, in fp32; `python weights/data.py` fetches them. The weights are compared with
codecs without a network that keep as many numbers: "linear", the principal components of blocks of the training set,
and "bicubic", which makes pictures small and large again. Prints Markdown: PSNR in dB and SSIM, means over frames.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from batches import Footage, batch
from einops import rearrange, repeat
from torch import Tensor

from movq_cli.checkpoints.checkpoint import open_checkpoint
from movq_cli.metrics import psnr, ssim
from movq_cli.video import write_png

CUT = 25.0
"""Mean difference, in levels of 255, above which two frames belong to different shots."""
BEHIND = 4
"""Number of frames from a cut on that count as at the cut, with all frames of the latent that the cut is in."""

Codec = Callable[[Tensor], Tensor]
"""A function that encodes and decodes (1, 3, T, H, W) in [-1, 1]."""


def network(path: str | None) -> Codec:
    """Return the codec of a weights file; it decodes the means of the posterior."""
    checkpoint = open_checkpoint(path)
    encoder, decoder = checkpoint.load_encoder(dtype=torch.float32), checkpoint.load_decoder(dtype=torch.float32)
    z = checkpoint.config.z_channels
    return lambda x: decoder(encoder(x)[:, :z])


def linear(footage: Footage, values: int = 16, batches: int = 120) -> Codec:
    """Return the best linear codec of blocks: `values` principal components of 4x8x8 pixels, 1x8x8 for first frames."""
    parts = {1: slice(0, 1), 4: slice(1, 5)}
    sums = {frames: torch.zeros(frames * 192 + 1, frames * 192 + 1, dtype=torch.float64) for frames in parts}
    for step in range(batches):
        x = rearrange(batch(footage, step, seed=1, clips=16, frames=5, side=64), "b t h w c -> b c t h w")
        for frames, part in parts.items():
            rows = F.pad(_blocks(x[:, :, part]).flatten(0, 1).double(), (0, 1), value=1.0)  # the ones give the mean
            sums[frames] += rows.T @ rows
    bases = {}
    for frames, products in sums.items():
        center = products[-1, :-1] / products[-1, -1]
        _, vectors = torch.linalg.eigh(products[:-1, :-1] / products[-1, -1] - center[:, None] * center)
        bases[frames] = center.float(), vectors[:, -values:].float()

    def codec(x: Tensor) -> Tensor:
        return torch.cat([project(part, *bases[part.shape[2]]) for part in _latents_of(x)], 2)

    def project(x: Tensor, center: Tensor, basis: Tensor) -> Tensor:
        return _unblocks((_blocks(x) - center) @ basis @ basis.T + center, x)

    return codec


def _latents_of(x: Tensor) -> list[Tensor]:
    """Return the frames (1, 3, T, H, W) of each latent: the first one alone, then four at a time."""
    return [part for part in (x[:, :, :1], *x[:, :, 1:].split(4, 2)) if part.shape[2]]


def _blocks(x: Tensor) -> Tensor:
    return rearrange(x, "b c t (h p) (w q) -> b (h w) (t p q c)", p=8, q=8)


def _unblocks(rows: Tensor, like: Tensor) -> Tensor:
    t, h = like.shape[2], like.shape[3] // 8
    return rearrange(rows, "b (h w) (t p q c) -> b c t (h p) (w q)", h=h, t=t, p=8, q=8)


def bicubic(x: Tensor) -> Tensor:
    """Keep the mean of each latent's frames, at 1 / sqrt(12) of the width and height: 16 numbers for 4x8x8x3."""
    sides = [round(side / 12**0.5) for side in x.shape[-2:]]
    parts = []
    for part in _latents_of(x):
        small = F.interpolate(part.mean(2), sides, mode="bicubic", antialias=True)
        large = F.interpolate(small, x.shape[-2:], mode="bicubic")
        parts.append(repeat(large, "b c h w -> b c t h w", t=part.shape[2]))
    return torch.cat(parts, 2)


def hold_every_fourth(codec: Codec) -> Codec:
    """Return a codec that encodes every fourth frame separately and shows it until the next one."""

    def held(x: Tensor) -> Tensor:
        shown = torch.cat([codec(frame) for frame in x[:, :, ::4].split(1, 2)], 2)
        return shown.repeat_interleave(4, 2)[:, :, : x.shape[2]]

    return held


def group_frames(frames: np.ndarray) -> dict[str, list[int]]:
    """Return the numbers of a clip's frames (T, H, W, 3) in three groups: the first, those at cuts, all others."""
    steps = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean((1, 2, 3))
    at_cuts = set[int]()
    for cut in np.flatnonzero(steps > CUT) + 1:
        latent = (cut - 1) // 4
        at_cuts |= {*range(1 + 4 * latent, 5 + 4 * latent), *range(cut, min(cut + BEHIND, len(frames)))}
    others = set(range(1, len(frames))) - at_cuts
    return {"first": [0], "cuts": sorted(at_cuts), "motion": sorted(others)}


@torch.no_grad()
def evaluate(codec: Codec, frames: np.ndarray) -> tuple[np.ndarray, list[float], list[float]]:
    """Return frames (T, H, W, 3) in uint8 after encoding and decoding, and the PSNR and SSIM of each."""
    x = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    y = ((codec(x)[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
    similarities = [ssim(*pair) for pair in zip(frames, y, strict=True)]
    assert None not in similarities
    return y, [psnr(*pair) for pair in zip(frames, y, strict=True)], similarities


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", help="weights files (default: the embedded ones)")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--side", type=int, nargs="+", default=[128, 256], metavar="PIXELS")
    parser.add_argument(
        "--alone", action="store_true", help="the weights alone: no held frames, nothing linear or bicubic"
    )
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="also pictures of what becomes of the clips")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also all numbers")
    args = parser.parse_args()
    networks = {Path(path).stem if path else "embedded": network(path) for path in args.weights or [None]}
    if len(networks) < len(args.weights):
        parser.error("give the weights files different names")
    codecs = dict(networks)
    if not args.alone:
        codecs |= {"linear": linear(Footage.load(args.data, torch.device("cpu"))), "bicubic": bicubic}
        codecs |= {f"{name}, every 4th frame held": hold_every_fourth(codec) for name, codec in networks.items()}
    rows = [row for side in args.side for row in judge(side, codecs, args.data, args.pictures)]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def judge(side: int, codecs: dict[str, Codec], data: Path, pictures: Path | None) -> list[dict[str, Any]]:
    """Judge by all clips and pictures of a size, print the tables, and return a row for each of them and each codec."""
    rows = []
    for path in sorted((data / f"judges-{side}").glob("*.npz")):
        frames = np.load(path)["frames"]
        groups = group_frames(frames) if len(frames) > 1 else {}
        shown = [frames]
        for name, codec in codecs.items():
            if len(frames) == 1 and name.endswith("held"):
                continue
            made, decibels, similarities = evaluate(codec, frames)
            shown.append(made)
            row = {"side": side, "clip": path.stem, "codec": name, "frames": len(frames)}
            row |= {"psnr": mean(decibels), "ssim": mean(similarities)}
            rows.append(
                row | {group: mean([decibels[i] for i in places]) for group, places in groups.items() if places}
            )
        if pictures:
            pictures.mkdir(parents=True, exist_ok=True)
            lines = [
                np.concatenate([made[i] for made in shown], 1) for i in sorted({0, len(frames) // 2, len(frames) - 1})
            ]
            write_png(pictures / f"{path.stem}-{side}.png", np.concatenate(lines), force=True)
    for still in (False, True):
        _print(side, [row for row in rows if (row["frames"] == 1) == still])
    return rows


def _print(side: int, rows: list[dict[str, Any]]) -> None:
    """Print a line for each clip and for means over clips, with PSNR and SSIM of each codec."""
    if not rows:
        return
    cells = {(row["clip"], row["codec"]): row for row in rows}
    clips, codecs = (list(dict.fromkeys(row[key] for row in rows)) for key in ("clip", "codec"))
    print(f"\n{side}x{side}, {rows[0]['frames']} frames\n\n| | {' | '.join(codecs)} |\n|{'---|' * (len(codecs) + 1)}")
    for clip in clips:
        texts = ["{psnr:.2f}, {ssim:.3f}".format(**cells[clip, codec]) for codec in codecs]
        print(f"| {clip} | {' | '.join(texts)} |")
    similar = [mean([cells[clip, codec]["ssim"] for clip in clips]) for codec in codecs]
    for label, key in (("mean", "psnr"), ("first frames", "first"), ("at cuts", "cuts"), ("motion", "motion")):
        having = [clip for clip in clips if key in cells[clip, codecs[0]]]
        if having:
            values = [mean([cells[clip, codec][key] for clip in having]) for codec in codecs]
            texts = [f"{v:.2f}, {s:.3f}" if key == "psnr" else f"{v:.2f}" for v, s in zip(values, similar, strict=True)]
            print(f"| {label} | {' | '.join(texts)} |")


if __name__ == "__main__":
    main()
