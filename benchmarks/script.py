"""A script as people use it today: diffusers' autoencoder over all frames of a video at once.

    python benchmarks/script.py VIDEO VAE OUT.pt [--tiling] [--precision bf16] [--device cuda] [--frames 49]

With --tiling it does the same as CogVideo's own demo of its autoencoder: imageio, all frames in memory, slicing and
tiling on. Without, it does the same as scripts that precompute latents for training. Both scale pixels to [-1, 1] and
keep the moments, so that their numbers can be compared.
"""

import argparse
from itertools import islice

import imageio.v3 as imageio
import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("video")
    parser.add_argument("vae")
    parser.add_argument("out")
    parser.add_argument("--tiling", action="store_true")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, help="the first N alone")
    args = parser.parse_args()
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.precision]
    model = AutoencoderKLCogVideoX.from_pretrained(args.vae, torch_dtype=dtype).eval().to(args.device)
    model.enable_slicing()
    if args.tiling:
        model.enable_tiling()
    frames = np.stack(list(islice(imageio.imiter(args.video, plugin="pyav"), args.frames)))
    x = torch.from_numpy(frames).to(args.device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        moments = model.encode(x.to(dtype)).latent_dist.parameters
    torch.save(moments.cpu(), args.out)


if __name__ == "__main__":
    main()
