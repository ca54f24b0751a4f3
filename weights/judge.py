"""Judge weights by clips and pictures that none was trained on: `python weights/judge.py [WEIGHTS ...]`.

Each clip is encoded and decoded in fp32 as a whole; `python weights/data.py` fetches them. Beside the weights stand ways without
a network that keep as many numbers: the best linear one (a principal component analysis of blocks of the training set) and
pictures made small and large again by bicubic interpolation. Prints Markdown: PSNR in dB and SSIM, means over frames.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from batches import Footage, batch
from einops import rearrange, repeat
from torch import Tensor

from movq_cli.metrics import psnr, ssim
from movq_cli.model.checkpoint import open_checkpoint
from movq_cli.video.write import write_png

DATA = Path(__file__).parent / "data"
CUT = 25.0
"""Mean difference, of 255, between two frames that belong to different shots."""
BEHIND = 4
"""Frames that count as behind a cut."""

Way = Callable[[Tensor], Tensor]
"""(1, 3, T, H, W) in [-1, 1] to what becomes of it."""


def network(path: str | None) -> Way:
    """Encode and decode by weights, means of the posterior."""
    checkpoint = open_checkpoint(path)
    encoder, decoder = checkpoint.load_encoder(dtype=torch.float32), checkpoint.load_decoder(dtype=torch.float32)
    z = checkpoint.config.z_channels
    return lambda x: decoder(encoder(x)[:, :z])


def components(footage: Footage, values: int = 16, batches: int = 120) -> Way:
    """Keep so many principal components of blocks of 4x8x8 pixels, of 1x8x8 for a first frame: what is best without a network."""
    bases = []
    clips = [batch(footage, step, seed=1, clips=16, frames=5, side=64) for step in range(batches)]
    for first, last in ((0, 1), (1, 5)):
        rows = torch.cat([_blocks(x[:, first:last].permute(0, 4, 1, 2, 3)).flatten(0, 1) for x in clips]).double()
        mean = rows.mean(0)
        _, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean))
        bases.append((mean.float(), vectors[:, -values:].float()))

    def way(x: Tensor) -> Tensor:
        parts = []
        for part, (mean, basis) in zip(
            [x[:, :, :1], *x[:, :, 1:].split(4, 2)], [bases[0], *[bases[1]] * (x.shape[2] // 4)], strict=True
        ):
            rows = _blocks(part)
            parts.append(_unblocks((rows - mean) @ basis @ basis.T + mean, part))
        return torch.cat(parts, 2)

    return way


def _blocks(x: Tensor) -> Tensor:
    return rearrange(x, "b c t (h p) (w q) -> b (h w) (t p q c)", p=8, q=8)


def _unblocks(rows: Tensor, like: Tensor) -> Tensor:
    t, h = like.shape[2], like.shape[3] // 8
    return rearrange(rows, "b (h w) (t p q c) -> b c t (h p) (w q)", h=h, t=t, p=8, q=8)


def bicubic(x: Tensor) -> Tensor:
    """Of each four frames the mean, at 1 / sqrt(12) of its width and height: 16 numbers for 4x8x8x3."""
    sides = [round(side / 12**0.5) for side in x.shape[-2:]]
    parts = []
    for part in [x[:, :, :1], *x[:, :, 1:].split(4, 2)]:
        small = F.interpolate(part.mean(2), sides, mode="bicubic", antialias=True)
        large = F.interpolate(small, x.shape[-2:], mode="bicubic")
        parts.append(repeat(large, "b c h w -> b c t h w", t=part.shape[2]))
    return torch.cat(parts, 2)


def held(way: Way) -> Way:
    """Every fourth frame by itself, shown until the next."""

    def run(x: Tensor) -> Tensor:
        shown = torch.cat([way(frame) for frame in x[:, :, ::4].split(1, 2)], 2)
        return shown.repeat_interleave(4, 2)[:, :, : x.shape[2]]

    return run


def alone(way: Way) -> Way:
    """Every frame by itself."""
    return lambda x: torch.cat([way(frame) for frame in x.split(1, 2)], 2)


def kinds(frames: np.ndarray) -> dict[str, list[int]]:
    """The frames of a clip by what makes them hard: the first, those behind a cut, and all others."""
    steps = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean((1, 2, 3))
    behind = sorted(
        {i + k for i in range(1, len(frames)) if steps[i - 1] > CUT for k in range(BEHIND) if i + k < len(frames)}
    )
    return {"first": [0], "cuts": behind, "motion": [i for i in range(1, len(frames)) if i not in behind]}


@torch.no_grad()
def judged(way: Way, frames: np.ndarray) -> tuple[np.ndarray, list[float], list[float]]:
    """What becomes of frames (T, H, W, 3) in uint8, and of each the PSNR and SSIM."""
    x = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    y = ((way(x)[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
    pairs = list(zip(frames, y, strict=True))
    return y, [psnr(*pair) for pair in pairs], [ssim(*pair) or 0.0 for pair in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", help="weights files (default: the embedded ones)")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="pictures of what becomes of clips, there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all numbers, there")
    args = parser.parse_args()
    networks = {Path(path).stem if path else "embedded": network(path) for path in args.weights or [None]}
    footage = Footage.load(args.data, torch.device("cpu"))
    ways: dict[str, Way] = {**networks, "linear": components(footage), "bicubic": bicubic}
    del footage
    ways |= {f"{name}, every 4th frame held": held(way) for name, way in networks.items()}
    everything = []
    for side in (128, 256):
        everything += table(side, ways, args)
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1) + "\n")


def table(side: int, ways: dict[str, Way], args: argparse.Namespace) -> list[dict]:
    rows = []
    for path in sorted((args.data / f"judges-{side}").glob("*.npz")):
        frames = np.load(path)["frames"]
        still = len(frames) == 1
        sorts = {} if still else kinds(frames)
        seen = {}
        for name, way in ways.items():
            if still and name.endswith("held"):
                continue
            made, decibels, similar = judged(way, frames)
            seen[name] = made
            row = {
                "side": side,
                "clip": path.stem,
                "way": name,
                "frames": len(frames),
                "psnr": np.mean(decibels),
                "ssim": np.mean(similar),
            }
            row |= {kind: np.mean([decibels[i] for i in places]) for kind, places in sorts.items() if places}
            rows.append({key: round(float(v), 4) if isinstance(v, np.floating) else v for key, v in row.items()})
        if args.pictures:
            args.pictures.mkdir(parents=True, exist_ok=True)
            shown = [0, len(frames) // 2, len(frames) - 1] if not still else [0]
            lines = [np.concatenate([frames[i], *(made[i] for made in seen.values())], 1) for i in shown]
            write_png(args.pictures / f"{path.stem}-{side}.png", np.concatenate(lines), force=True)
    for still in (False, True):
        _print(side, [row for row in rows if (row["frames"] == 1) == still], list(ways))
    return rows


def _print(side: int, rows: list[dict], ways: list[str]) -> None:
    """Rows are clips, and their mean; cells PSNR and SSIM by way, then the kinds of frames over all clips."""
    clips = list(dict.fromkeys(row["clip"] for row in rows))
    if not clips:
        return
    ways = [way for way in ways if any(row["way"] == way for row in rows)]
    cell = {(row["clip"], row["way"]): row for row in rows}
    print(f"\n{side}x{side}, {rows[0]['frames']} frames\n\n| | {' | '.join(ways)} |\n|{'---|' * (len(ways) + 1)}")
    for clip in clips:
        print(
            f"| {clip} | "
            + " | ".join(f"{cell[clip, way]['psnr']:.2f}, {cell[clip, way]['ssim']:.3f}" for way in ways)
            + " |"
        )
    for label, key in (("mean", "psnr"), ("first frames", "first"), ("behind cuts", "cuts"), ("motion", "motion")):
        means = []
        for way in ways:
            values = [cell[clip, way][key] for clip in clips if key in cell[clip, way]]
            if values:
                similar = np.mean([cell[clip, way]["ssim"] for clip in clips])
                means.append(f"{np.mean(values):.2f}" + (f", {similar:.3f}" if key == "psnr" else ""))
        if means:
            print(f"| {label} | {' | '.join(means)} |")


if __name__ == "__main__":
    main()
