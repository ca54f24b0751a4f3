"""movq against diffusers' own autoencoder, through the real commands, in fp32: differences of latents and of frames.

    python benchmarks/judge.py [--channels 128 256 256 512] [--size 64x48] [--frames 1 5 9 13 17 49]

Weights are random, saved by diffusers as a folder and sharded, and as a file like CogVideo's .pt, which is converted by
`movq weights convert`. Differences of latents are as in docs/exactness.md; those of frames are in levels of 255, with
the share of values that differ at all (a value between two bytes may round either way). For T = 5 and 13 diffusers
decodes 8 and 16 frames, so there Decoder3D judges the frames, with windows made by hand. Needs diffusers. Prints a
Markdown table.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def movq(*arguments):
    command = [sys.executable, "-m", "movq_cli", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def main():
    import numpy as np
    import torch
    from diffusers import AutoencoderKLCogVideoX

    from movq_cli import open_latents
    from movq_cli.checkpoints.checkpoint import open_checkpoint
    from movq_cli.checkpoints.layouts import to_diffusers
    from movq_cli.codec import to_frames, to_pixels
    from movq_cli.model import StreamCache
    from tests.helpers import clips
    from tests.helpers.tolerance import difference, said

    parser = argparse.ArgumentParser()
    parser.add_argument("--channels", nargs="+", type=int, default=[128, 256, 256, 512])
    parser.add_argument("--size", default="64x48", metavar="WxH")
    parser.add_argument("--frames", nargs="+", type=int, default=[1, 5, 9, 13, 17, 49])
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    torch.manual_seed(0)
    model = AutoencoderKLCogVideoX(block_out_channels=args.channels).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/vae")
        model.save_pretrained(f"{folder}/shards", max_shard_size="5MB" if max(args.channels) < 512 else "200MB")
        folders = open_checkpoint(f"{folder}/vae")
        state = model.state_dict()
        theirs = {name: state[to_diffusers(name, folders.config)] for name in folders.tensors}
        torch.save({"state_dict": theirs | {"loss.logvar": torch.zeros(())}}, f"{folder}/3d-vae.pt")
        movq("weights", "convert", f"{folder}/3d-vae.pt", "-o", f"{folder}/converted.safetensors")
        layouts = {
            "folder": f"{folder}/vae",
            "shards": f"{folder}/shards",
            ".pt converted": f"{folder}/converted.safetensors",
        }
        digests = {open_checkpoint(path).digest for path in layouts.values()}
        print(
            f"channels {args.channels}, {args.size}, {len(os.listdir(layouts['shards'])) - 2} shards, digests {len(digests)}\n"
        )
        print("| T | weights | latents | frames | levels | values that differ |\n|---|---|---|---|---|---|")
        for frames in args.frames:
            images = clips.pictures(frames, width, height)
            clip = clips.lossless(f"{folder}/{frames}.mkv", images)
            x = torch.from_numpy(np.stack(images)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            expected = model.encode(x).latent_dist.parameters
            for name, weights in layouts.items() if frames == 17 else [("folder", layouts["folder"])]:
                options = ["--weights", weights, "--precision", "fp32", "--force", "-q"]
                movq("encode", clip, "-o", f"{folder}/latents", "--semantics", "diffusers", *options)
                movq("decode", f"{folder}/latents", "-o", f"{folder}/frames.npy", *options)
                latents = open_latents(f"{folder}/latents")
                if latents.shape[2] % 2:
                    back = model.decode(latents.mean).sample
                else:
                    decoder, cache = folders.load_decoder(), StreamCache()
                    back = torch.cat([decoder(z, cache=cache) for z in latents.mean.split(2, dim=2)], dim=2)
                made = np.load(f"{folder}/frames.npy")
                different = abs(made.astype(int) - to_frames(to_pixels(back)).numpy())
                print(
                    f"| {frames} | {name} | {said(difference(latents.latents, expected))} | {len(made)} | {different.max()} "
                    f"| {(different > 0).mean():.1e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
