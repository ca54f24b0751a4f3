"""Batches of clips to train on: film, and pictures under a moving camera, with sprites, cuts and fades.

Everything is chosen by a generator that is seeded with the run's seed and the number of the step: a step's batch
depends on nothing else, so a run that was killed goes on with the same batches that it would have had.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FILM = 0.55
"""Share of clips that are film; the others are pictures that a camera moves over."""
STILL, SPRITES, CUT, FADE = 0.12, 0.3, 0.12, 0.05
"""Shares: STILL of the pictures do not move; SPRITES, CUT and FADE of the clips have moving pieces, a cut, a fade."""
PALE, LEAST_CONTRAST = 0.25, 0.3
"""Share of clips whose contrast is reduced, and the least contrast that remains: dark, flat, grey or bright footage."""
REACH = 2.2
"""Largest factor by which a clip is shown smaller than it is stored."""


@dataclass(frozen=True)
class Footage:
    """The training set in memory: clips (T, 3, H, W) and pictures (1, 3, H, W) in uint8, each at full, half and quarter size."""

    clips: list[list[Tensor]]
    pictures: list[list[Tensor]]

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Footage:
        """Decode what data.py prepared. Raises SystemExit if there is nothing."""
        clips, pictures = (
            [_pyramid(_decode(path), device) for path in sorted((folder / part).glob("*.*"))]
            for part in ("clips", "pictures")
        )
        if not clips and not pictures:
            raise SystemExit(f"{folder}: has no clips and no pictures; python weights/data.py makes them")
        return cls(clips, pictures)

    @classmethod
    def made_up(cls, device: torch.device) -> Footage:
        """Return a few smooth pictures, and a moving clip of one of them: enough to see that training works."""
        waves = torch.Generator().manual_seed(0)
        pictures = []
        for _ in range(6):
            noise = torch.rand(1, 3, 12, 16, generator=waves)
            smooth = F.interpolate(noise, (96, 128), mode="bicubic").clamp(0, 1).mul(255).byte()
            pictures.append(_pyramid(smooth, device))
        still = pictures[0][0]
        clip = torch.cat([still.roll(2 * i, 3) for i in range(24)])
        return cls([_pyramid(clip, device)], pictures)


def _decode(path: Path) -> Tensor:
    """Return the frames of a video or picture, RGB (T, 3, H, W) in uint8; read by OpenCV if PyAV is missing."""
    try:
        import av
    except ImportError:
        return torch.from_numpy(np.stack(_by_opencv(path))).permute(0, 3, 1, 2)
    with av.open(str(path)) as video:
        video.streams.video[0].thread_type = "AUTO"
        return torch.from_numpy(np.stack([f.to_ndarray(format="rgb24") for f in video.decode(video=0)])).permute(
            0, 3, 1, 2
        )


def _by_opencv(path: Path) -> list[np.ndarray]:
    import cv2

    if path.suffix == ".jpg":  # OpenCV would read numbered pictures as one video
        frames = [cv2.imread(str(path))]
    else:
        video, frames = cv2.VideoCapture(str(path)), []
        while (read := video.read())[0]:
            frames.append(read[1])
    if not frames:
        raise SystemExit(f"{path}: OpenCV reads no frame of it")
    return [cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in frames]


def _pyramid(frames: Tensor, device: torch.device) -> list[Tensor]:
    """Return the frames at full size and, if they are large enough, also at half and quarter size."""
    levels = [frames.to(device).contiguous()]
    while len(levels) < 3 and min(levels[-1].shape[-2:]) >= 192:
        levels.append(torch.cat([F.avg_pool2d(part.float(), 2).round().byte() for part in levels[-1].split(64)]))
    return levels


def batch(footage: Footage, step: int, *, seed: int, clips: int, frames: int, side: int) -> Tensor:
    """Return the clips of a step: (B, T, H, W, 3) in [-1, 1]."""
    chance = random.Random(f"{seed} {step}")
    made = torch.stack([_clip(footage, chance, frames, side) for _ in range(clips)])
    return made.div_(127.5).sub_(1).clamp_(-1, 1)


def _clip(footage: Footage, chance: random.Random, frames: int, side: int) -> Tensor:
    """Return one clip of a batch: (T, H, W, 3) in [0, 255]."""
    clip = _scene(footage, chance, frames, side)
    if footage.pictures and chance.random() < SPRITES:
        for _ in range(chance.randint(1, 2)):
            clip = _with_sprite(clip, _scene(footage, chance, frames, side), chance)
    if frames > 1 and chance.random() < CUT:
        at = chance.randint(1, frames - 1)
        clip = torch.cat([clip[:at], _scene(footage, chance, frames - at, side)])
    if frames > 1 and chance.random() < FADE:
        other = _scene(footage, chance, frames, side) if chance.random() < 0.5 else torch.zeros_like(clip)
        share = torch.linspace(chance.random(), chance.random(), frames, device=clip.device).view(-1, 1, 1, 1)
        clip = clip * share + other * (1 - share)
    if chance.random() < PALE:
        contrast = chance.uniform(LEAST_CONTRAST, 1.0)
        clip = clip * contrast + 255.0 * (1 - contrast) * chance.random()
    return clip


def _scene(footage: Footage, chance: random.Random, frames: int, side: int) -> Tensor:
    if footage.clips and (chance.random() < FILM or not footage.pictures):
        (levels,) = chance.choices(footage.clips, [len(levels[0]) for levels in footage.clips])
        stride = chance.choice((1, 1, 1, 2, 3))
        first = chance.randrange(max(1, len(levels[0]) - (frames - 1) * stride))
        times = [min(first + i * stride, len(levels[0]) - 1) for i in range(frames)]
        if chance.random() < 0.5:
            times.reverse()
        moves = chance.random() < 0.25
    else:
        levels, times, moves = chance.choice(footage.pictures), [0] * frames, chance.random() >= STILL
    return _through_camera(levels, times, moves, chance, side)


def _through_camera(levels: list[Tensor], times: list[int], moves: bool, chance: random.Random, side: int) -> Tensor:
    """Return frames of a source as seen by a camera that pans, zooms and turns: (T, side, side, 3)."""
    height, width = levels[0].shape[-2:]
    most = min(REACH, min(height, width) / (side * 1.1))
    scale = math.exp(chance.uniform(math.log(0.8), math.log(most))) if most > 0.8 else most
    level = min(len(levels) - 1, max(0, round(math.log2(scale))))
    source, scale = levels[level], scale / 2**level
    height, width = source.shape[-2:]
    speed = chance.choice((0.3, 1.0, 2.5, 5.0)) * scale if moves else 0.0
    pan = chance.gauss(0, speed), chance.gauss(0, speed)
    zoom = chance.gauss(0, 0.012) if moves else 0.0
    turn = chance.gauss(0, 0.012) if moves else 0.0
    tilt = chance.gauss(0, 0.1) if moves else 0.0
    flip = -1.0 if chance.random() < 0.5 else 1.0
    bend = chance.gauss(0, 0.1) if moves else 0.0
    reach = side * scale / 2
    middle = (chance.uniform(reach, max(reach, width - reach)), chance.uniform(reach, max(reach, height - reach)))
    views = []
    for i in range(len(times)):
        t = i - len(times) / 2
        half, a = reach * math.exp(zoom * t), tilt + turn * t
        x, y = middle[0] + pan[0] * t + bend * t * t * 0.5, middle[1] + pan[1] * t
        cos, sin = half * math.cos(a), half * math.sin(a)
        # From [-1, 1] in the view to [-1, 1] in the source.
        views.append(
            [
                [flip * cos * 2 / width, -sin * 2 / width, 2 * x / width - 1],
                [flip * sin * 2 / height, cos * 2 / height, 2 * y / height - 1],
            ]
        )
    theta = torch.tensor(views).to(source.device)
    grid = F.affine_grid(theta, [len(times), 3, side, side], align_corners=False)
    frames = source[times[0] : times[0] + 1].expand(len(times), -1, -1, -1) if len({*times}) == 1 else source[times]
    return F.grid_sample(frames.float(), grid, padding_mode="reflection", align_corners=False).permute(0, 2, 3, 1)


def _with_sprite(clip: Tensor, other: Tensor, chance: random.Random) -> Tensor:
    """Return the clip with an ellipse or a rectangle cut from another one, which moves across it."""
    frames, side = clip.shape[:2]
    steps = torch.arange(side, device=clip.device, dtype=torch.float32)
    t = torch.arange(frames, device=clip.device, dtype=torch.float32).view(-1, 1, 1)
    speed = side * 0.03
    x = chance.uniform(0, side) + chance.gauss(0, speed) * t
    y = chance.uniform(0, side) + chance.gauss(0, speed) * t
    radii = [side * chance.uniform(0.08, 0.3) for _ in range(2)]
    dx, dy = (steps.view(1, 1, -1) - x) / radii[0], (steps.view(1, -1, 1) - y) / radii[1]
    distance = (dx**2 + dy**2).sqrt() if chance.random() < 0.7 else torch.maximum(dx.abs(), dy.abs())
    mask = ((1 - distance) * min(radii) + 0.5).clamp(0, 1)[..., None]
    return clip * (1 - mask) + other * mask
