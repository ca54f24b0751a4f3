"""Train the embedded weights further: `python weights/train.py RUN --steps N`, or `--minutes M`.

RUN is a folder. It gets log.jsonl and its picture, curve.svg; watched-STEP.png, which shows clips that are never
trained on and their reconstructions; and at the end NAME.safetensors. After a kill the same command goes on from
RUN/state.pt: with --steps, on a CPU, with the numbers of a run that was not killed; with --minutes from where it was.
The minutes are the whole time of the run, from the start of the command to the weights file. `python weights/data.py`
makes the data.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from batches import Footage, batch
from curve import svg
from network import decode, encode
from safetensors.torch import save_file
from torch import Tensor, nn

from movq_cli.checkpoints.checkpoint import FORMAT, FORMAT_VERSION, embedded_weights, open_checkpoint
from movq_cli.metrics import montage
from movq_cli.model.convolution import lay_out, round_weight
from movq_cli.model.decoder import Decoder3D
from movq_cli.model.encoder import Encoder3D
from movq_cli.model.quantizers import VectorQuantizer2, build
from movq_cli.video import write_png

WATCHED, WATCHED_FRAMES = ("bikes", "carphone", "cup", "street", "tree"), 33
"""The clips to judge by that are evaluated during a run, and how many of their frames."""
SCALING_BATCHES = 32
"""Number of training batches that the scaling factor is measured on."""
COLLAPSED, FIRST_LOGVAR = -12.0, -7.0
"""A log variance below the first means that the posterior has collapsed; all log variances then start at the second."""
LOGGED_TOGETHER = 10
"""Number of steps whose numbers are fetched from the device at once, so that it need not wait for each step."""
LEAST_ROWS = 16
"""A weight with fewer filters, or fewer numbers in each, is not worth making orthogonal."""
WARM_UP, LAST_RATE = 0.03, 0.02
"""Share of a run in which the learning rate rises, and the rate at the end as a share of the highest."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the numbers of a run depend on, besides code, data and machine. The state of a run holds it."""

    steps: int | None = None
    minutes: float | None = None
    start: str = str(embedded_weights())
    """A weights file, or "scratch"."""
    seed: int = 0
    clips: int = 1
    frames: int = 33
    side: int = 64
    pictures: float = 0.25
    """Share of steps that take single pictures, three times as many as they would take clips."""
    rate: float = 5e-4
    """The highest learning rate."""
    divergence: float = 3e-3
    """Weight of the KL divergence, which is a mean over the numbers of the latents."""
    details: float = 1.0
    """Weight of the terms that keep edges sharp; the mean squared error has the weight 40."""
    average: float = 0.998
    """Decay of the weights' moving average, which is the result of a run."""
    precision: str = "bf16"
    compiled: bool = True
    quantizer: str | None = None
    """A quantiser to train with the networks, in place of the posterior: vq:ENTRIES, or fsq:LEVEL,LEVEL,..."""


BEGAN = time.monotonic()
RESERVE = 25.0
"""Seconds of --minutes reserved for imports, scaling factor and files; the last evaluation has its own reserve."""


class Autoencoder(nn.Module):
    """Both networks: weights in fp32, computing in the recipe's precision. Raises SystemExit for other networks."""

    def __init__(self, recipe: Recipe, device: torch.device, compiled: bool = False) -> None:
        super().__init__()
        self._encode, self._decode = (torch.compile(f, dynamic=False) if compiled else f for f in (encode, decode))
        self._dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        scratch = recipe.start == "scratch"
        checkpoint = open_checkpoint(None if scratch else recipe.start)
        c = checkpoint.config
        quantizer = quantizer_config(recipe.quantizer, c.z_channels) if recipe.quantizer else None
        self.config = c = dataclasses.replace(c, quantizer=quantizer)
        if (c.pad_mode, c.norm_scope, c.attn_resolutions, c.dropout) != ("first", "frame", (), 0.0):
            raise SystemExit(
                f"{recipe.start}: network.py computes only networks that pad with the first frame and norm each frame"
            )
        if scratch:
            torch.manual_seed(recipe.seed)
            arguments = dataclasses.asdict(self.config)
            self.encoder, self.decoder = Encoder3D(**arguments).to(device), Decoder3D(**arguments).to(device)
        else:
            self.encoder = checkpoint.load_encoder(device, torch.float32)
            self.decoder = checkpoint.load_decoder(device, torch.float32)
        for parameter in self.parameters():
            parameter.data = lay_out(parameter.data)
        torch.manual_seed(recipe.seed)
        self.quantize = build(self.config).to(device) if recipe.quantizer else None
        self.requires_grad_(True)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and log variance of clips' posterior."""
        mean, logvar = self._encode(self.encoder, x.to(self._dtype)).chunk(2, -1)
        return mean, logvar.clamp(-30.0, 20.0)

    def latents(self, mean: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is decoded in training, and the loss of it: a draw with its KL divergence, or codes with theirs."""
        if self.quantize is None:
            divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
            return mean + (0.5 * logvar).exp() * noise, divergence
        made = self.quantize(mean.movedim(-1, 1))
        return made.quantised.movedim(1, -1), made.loss

    def shown(self, mean: Tensor) -> Tensor:
        """Return what a file of these latents decodes to: their means, or their codes."""
        return mean if self.quantize is None else self.quantize(mean.movedim(-1, 1)).quantised.movedim(1, -1)

    def frames(self, z: Tensor) -> Tensor:
        """Decode latents to clips."""
        return self._decode(self.decoder, z.to(self._dtype))

    @torch.no_grad()
    def widen_posterior(self) -> None:
        """Give every latent the log variance FIRST_LOGVAR."""
        convolution = self.encoder.conv_out.conv
        assert convolution.bias is not None
        convolution.weight[self.config.z_channels :] = 0.0
        convolution.bias[self.config.z_channels :] = FIRST_LOGVAR


def losses(model: Autoencoder, x: Tensor, noise: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of clips x (B, T, H, W, 3), and two parts of it: the mean squared error, and that of latents."""
    latents, divergence = model.latents(*model.moments(x), noise)
    error = model.frames(latents) - x
    squares = error.square().mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    details = (error.square() + 1e-6).sqrt().mean() + 0.25 * edges
    if x.shape[1] > 1:
        details = details + 0.3 * error.diff(dim=1).abs().mean()
    weight = recipe.divergence if model.quantize is None else 1.0
    return 40.0 * squares + recipe.details * details + weight * divergence, squares, divergence


def quantizer_config(text: str, channels: int) -> dict[str, Any]:
    """Return the config of a quantiser of latents of this many channels. Raises SystemExit for another text."""
    kind, _, sizes = text.partition(":")
    try:
        numbers = [int(size) for size in sizes.split(",")]
    except ValueError:
        numbers = []
    if kind == "vq" and len(numbers) == 1:
        return {"kind": "VectorQuantizer2", "n_e": numbers[0], "e_dim": channels, "beta": 0.25, "legacy": False}
    if kind == "fsq" and numbers:
        return {"kind": "FSQ", "levels": numbers, "dim": channels}
    raise SystemExit(f"--quantizer: must be like vq:1024 or fsq:8,8,8,5,5, got {text}")


class Optimiser:
    """torch's Muon for the filters, each layer's as the rows of a matrix, and torch's Adam for all other parameters.

    Both have the same learning rate. In equal time it came further than Adam alone (weights/README.md).
    """

    def __init__(self, model: nn.Module) -> None:
        self.filters = [p for p in model.parameters() if p.dim() >= 4 and min(len(p), p[0].numel()) >= LEAST_ROWS]
        self.matrices = [_as_matrix(p.detach()) for p in self.filters]
        chosen = {id(p) for p in self.filters}
        others = [p for p in model.parameters() if id(p) not in chosen]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(self.matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.Adam(others, betas=(0.9, 0.99), fused=True),
        ]

    def step(self, rate: float) -> None:
        for parameter, matrix in zip(self.filters, self.matrices, strict=True):
            assert parameter.grad is not None
            matrix.grad = _as_matrix(parameter.grad)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def _as_matrix(weight: Tensor) -> Tensor:
    """Return a layer's filters as rows: a view, in the memory layout of this project."""
    return weight.movedim(1, -1).flatten(1)


class Run:
    """A training run and its folder."""

    def __init__(self, folder: Path, recipe: Recipe, footage: Footage, watched: dict[str, Tensor]) -> None:
        self.folder, self.recipe, self.footage, self.watched = folder, recipe, footage, watched
        self.device = next(iter(watched.values())).device
        self.model = Autoencoder(recipe, self.device, recipe.compiled)
        self.average = Autoencoder(recipe, self.device).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.optimiser = Optimiser(self.model)
        self.step = 0
        self.evaluated = -1
        """The last step that was evaluated."""
        self.earlier_seconds = 0.0
        """Seconds that the killed processes of the run took."""
        self.setup_seconds = 0.0
        """Seconds until the first step."""
        self.reserve = 0.0
        """Seconds of --minutes reserved for the end."""
        self.unwritten: list[dict[str, Any]] = []

    def train(self, evaluate_every: int, save_every: int) -> None:
        """Train from the last state, if there is one, to the end of the run."""
        fresh = not (self.folder / "state.pt").exists()
        if fresh:
            (self.folder / "log.jsonl").write_text("")
            if self.recipe.quantizer is None and self._lowest_logvar() < COLLAPSED:
                self.model.widen_posterior()
                self.average.widen_posterior()
            self.fill_codebook()
            started = self.seconds
            self.evaluate()
            self.reserve = RESERVE + 3 * (self.seconds - started)
        else:
            self._load()
        if self.recipe.compiled and self._progress() < 1.0:
            self._compile()
        if fresh:
            self.setup_seconds = self.seconds
        while (progress := self._progress()) < 1.0:
            self._train_step(progress)
            if self.step % evaluate_every == 0:
                self.evaluate()
            if self.step % save_every == 0:
                self._save()
        if self.evaluated < self.step:
            self.evaluate()
        self._save()

    @torch.no_grad()
    def fill_codebook(self) -> None:
        """Take the entries of a codebook from latents of the first clips: of those near 0, most would never be chosen."""
        codebooks = [
            q.embedding for q in (self.model.quantize, self.average.quantize) if isinstance(q, VectorQuantizer2)
        ]
        if not codebooks:
            return
        found: list[Tensor] = []
        wanted = codebooks[0].num_embeddings
        while sum(map(len, found)) < wanted:
            mean, _ = self.average.moments(self._batch(len(found), single=False))
            found.append(mean.flatten(0, -2).float())
        latents = torch.cat(found)
        order = np.random.default_rng(self.recipe.seed).permutation(len(latents))[:wanted]
        for codebook in codebooks:
            codebook.weight.copy_(latents[torch.from_numpy(order).to(latents.device)])

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, in all its processes."""
        return self.earlier_seconds + time.monotonic() - BEGAN

    @torch.no_grad()
    def _lowest_logvar(self) -> float:
        return min(self.average.moments(x)[1].min().item() for x in self.watched.values())

    def _progress(self) -> float:
        if self.recipe.steps is not None:
            return self.step / self.recipe.steps
        assert self.recipe.minutes is not None
        return (self.seconds - self.setup_seconds) / max(
            1.0, self.recipe.minutes * 60 - self.reserve - self.setup_seconds
        )

    def _batch(self, step: int, single: bool) -> Tensor:
        r = self.recipe
        clips, frames = (3 * r.clips, 1) if single else (r.clips, r.frames)
        return batch(self.footage, step, seed=r.seed, clips=clips, frames=frames, side=r.side)

    def _noise(self, x: Tensor, chance: np.random.Generator) -> Tensor:
        """Return noise of the size of x's latents."""
        c, (b, t, h, w, _) = self.model.config, x.shape
        shape = (b, c.latent_frames(t), h // c.spatial_factor, w // c.spatial_factor, c.z_channels)
        return torch.from_numpy(chance.standard_normal(shape, dtype=np.float32)).to(self.device)

    def _compile(self) -> None:
        """Compile for both kinds of batches before the clock of the schedule begins."""
        for single in (False, True):
            x = self._batch(0, single)
            losses(self.model, x, self._noise(x, np.random.default_rng(0)), self.recipe)[0].backward()
        self.model.zero_grad()

    def _train_step(self, progress: float) -> None:
        chance = np.random.default_rng((self.recipe.seed, self.step))
        x = self._batch(self.step, single=chance.random() < self.recipe.pictures)
        loss, squares, divergence = losses(self.model, x, self._noise(x, chance), self.recipe)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = self.recipe.rate * schedule(progress)
        self.optimiser.step(rate)
        self.model.zero_grad()
        self.step += 1
        decay = min(self.recipe.average, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        line = {"step": self.step, "seconds": round(self.seconds, 1), "frames": x.shape[1], "rate": rate}
        numbers = {"loss": loss, "squares": squares, "divergence": divergence, "norm": norm}
        self._log(line | {name: number.detach() for name, number in numbers.items()})

    def _log(self, line: dict[str, Any]) -> None:
        """Write a line to the log, now or together with later ones. Raises SystemExit if a loss is not finite."""
        self.unwritten.append(line)
        if len(self.unwritten) >= LOGGED_TOGETHER:
            self._write_log()

    def _write_log(self) -> None:
        with open(self.folder / "log.jsonl", "a") as file:
            for line in self.unwritten:
                numbers = {name: value.item() if isinstance(value, Tensor) else value for name, value in line.items()}
                if not math.isfinite(numbers.get("loss", 0.0)):
                    raise SystemExit(f"{self.folder}: the loss of step {numbers['step']} is not finite")
                file.write(json.dumps(numbers) + "\n")
        self.unwritten.clear()

    @torch.no_grad()
    def evaluate(self) -> None:
        """Evaluate the averaged weights on the watched clips: a line in the log, a picture, and the curve.

        PSNR in dB: "clip" decodes the means, "sample" a draw, "picture" every eighth frame separately. "spread" is the
        posterior's deviation, in standard deviations of the means; "lowest" is its lowest log variance.
        """
        found, each, shown = [], {}, []
        for name, x in self.watched.items():
            mean, logvar = self.average.moments(x)
            deviation = (0.5 * logvar).exp()
            noise = self._noise(x, np.random.default_rng(0))
            y = self.average.frames(self.average.shown(mean))
            sample = self.average.frames(self.average.latents(mean, logvar, noise)[0])
            singles = x[:, ::8].transpose(0, 1)
            single = self.average.frames(self.average.shown(self.average.moments(singles)[0]))
            found.append(
                {
                    "clip": decibels(y, x),
                    "sample": decibels(sample, x),
                    "picture": decibels(single, singles),
                    "spread": (deviation.mean() / mean.std()).item(),
                    "lowest": logvar.min().item(),
                }
            )
            each[name] = round(found[-1]["clip"], 2)
            for i in (0, x.shape[1] // 2, x.shape[1] - 1):
                shown.append((pixels(x[0, i]), pixels(y[0, i])))
        write_png(self.folder / f"watched-{self.step:06}.png", montage(shown), force=True)
        means = {kind: round(sum(f[kind] for f in found) / len(found), 4) for kind in found[0]}
        line = {"step": self.step, "seconds": round(self.seconds, 1), "watched": means, "clips": each}
        self._log(line)
        self._write_log()
        self.evaluated = self.step
        print(json.dumps(line), flush=True)
        lines = (self.folder / "log.jsonl").read_text().splitlines()
        (self.folder / "curve.svg").write_text(svg(map(json.loads, lines)))

    def _save(self) -> None:
        self._write_log()
        state = {
            "step": self.step,
            "evaluated": self.evaluated,
            "seconds": self.seconds,
            "setup_seconds": self.setup_seconds,
            "reserve": self.reserve,
            "log_bytes": (self.folder / "log.jsonl").stat().st_size,
            "recipe": dataclasses.asdict(self.recipe),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        torch.save(state, self.folder / "state.tmp")
        os.replace(self.folder / "state.tmp", self.folder / "state.pt")

    def _load(self) -> None:
        """Load the last state. Raises SystemExit if the run was begun with another recipe."""
        state = torch.load(self.folder / "state.pt", map_location="cpu", weights_only=True)
        if dataclasses.asdict(Recipe()) | state["recipe"] | {"start": ""} != dataclasses.asdict(self.recipe) | {
            "start": ""
        }:
            raise SystemExit(f"{self.folder}: was begun by another recipe, {state['recipe']}; take another folder")
        self.step, self.evaluated = state["step"], state["evaluated"]
        self.earlier_seconds, self.setup_seconds = state["seconds"], state["setup_seconds"]
        self.reserve = state["reserve"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        os.truncate(self.folder / "log.jsonl", state["log_bytes"])

    @torch.no_grad()
    def scaling_factor(self) -> float:
        """Return 1 / the standard deviation of the latents of the training set."""
        means = [self.average.moments(self._batch(-1 - i, single=False))[0].double() for i in range(SCALING_BATCHES)]
        return 1.0 / torch.stack(means).std().item()

    def write(self, name: str) -> Path:
        """Write the averaged weights in fp16, and in fp32 and bf16 to compare; return the path of the first file."""
        metadata = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "config": self.average.config.to_json(),
            "semantics": self.average.config.norm_scope,
            "scaling_factor": f"{self.scaling_factor():.4f}",
            "licence": "Apache-2.0",
            "source": "trained for movq from scratch; see weights/README.md",
        }
        for suffix, dtype in (("", torch.float16), ("-fp32", torch.float32), ("-bf16", torch.bfloat16)):
            tensors = {k: round_weight(v.cpu(), dtype).contiguous() for k, v in self.average.state_dict().items()}
            save_file(tensors, self.folder / "weights.tmp", metadata | {"name": name + suffix})
            os.replace(self.folder / "weights.tmp", self.folder / f"{name}{suffix}.safetensors")
        return self.folder / f"{name}.safetensors"


def schedule(progress: float) -> float:
    """Return the learning rate as a share of the highest: a rise, then a cosine."""
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return min(1.0, (progress + 1e-3) / WARM_UP) * (LAST_RATE + (1.0 - LAST_RATE) * cosine)


def decibels(y: Tensor, x: Tensor) -> float:
    """Return the mean PSNR of frames (B, T, H, W, 3) in [-1, 1]."""
    squares = (y.clamp(-1.0, 1.0) - x).square().mean((2, 3, 4)).clamp_min(1e-10)
    return float((10.0 * torch.log10(4.0 / squares)).mean())


def pixels(x: Tensor) -> np.ndarray:
    shown: np.ndarray = ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round().byte().cpu().numpy()
    return shown


def load_watched(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """Return the clips that are evaluated during a run: (1, T, H, W, 3) in [-1, 1]."""
    clips = {}
    for name in WATCHED:
        path = folder / "judges-128" / f"{name}.npz"
        if path.exists():
            frames = torch.from_numpy(np.load(path)["frames"][:WATCHED_FRAMES])
            clips[name] = (frames.to(device).float() / 127.5 - 1.0)[None]
    if not clips:
        raise SystemExit(f"{folder}: has no clips to evaluate on; python weights/data.py fetches them")
    return clips


SMOKE = Recipe(
    steps=40, start="scratch", clips=2, frames=5, side=32, rate=2e-3, average=0.9, precision="fp32", compiled=False
)
"""A run of a minute, on made-up pictures."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of the run")
    parser.add_argument("--name", default="movq-tiny-4x8x8-new", help="what the weights are called")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--evaluate-every", type=int, default=500, metavar="STEPS")
    parser.add_argument("--save-every", type=int, default=250, metavar="STEPS")
    parser.add_argument("--smoke", action="store_true", help="a minute from scratch, of made-up pictures, without data")
    recipe = parser.add_argument_group("the recipe", "a run goes on with the recipe that it was begun with")
    for field in dataclasses.fields(Recipe):
        option = f"--{field.name}"
        if field.type == "bool":
            recipe.add_argument(option, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            kind = {"int": int, "float": float, "str": str}[str(field.type).removesuffix(" | None")]
            recipe.add_argument(option, type=kind, default=field.default)
    args = vars(parser.parse_args())
    chosen = (
        dataclasses.replace(SMOKE, quantizer=args["quantizer"])
        if args["smoke"]
        else Recipe(**{field.name: args[field.name] for field in dataclasses.fields(Recipe)})
    )
    if (chosen.steps is None) == (chosen.minutes is None):
        parser.error("say either --steps or --minutes")
    if chosen.frames % 4 != 1 or chosen.side % 8:
        parser.error("--frames must be 1 more than a multiple of 4, --side a multiple of 8")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args["run"].mkdir(parents=True, exist_ok=True)
    if args["smoke"]:
        footage = Footage.made_up(device)
        watched = {"made up": batch(footage, 0, seed=-1, clips=1, frames=5, side=32)}
    else:
        footage, watched = Footage.load(args["data"], device), load_watched(args["data"], device)
    run = Run(args["run"], chosen, footage, watched)
    run.train(args["evaluate_every"], args["save_every"])
    print(run.write(args["name"]))


if __name__ == "__main__":
    main()
