"""The cost of encoding on paper, checked on this machine: FLOPs, bytes and memory per frame, and from them an H100.

    python benchmarks/scaling.py [--shape 17x128x128] [--precision bf16]

FLOPs by formula: 2 x weights x the pixels that they meet, summed over layers (model/stages.py counts the same for
progress bars); torch's own counter is the judge. Bytes by formula: every convolution reads its input and writes its
output, every norm reads twice and writes once, every sum reads twice and writes once, and nothing stays in a cache. The
time that both would take at this machine's rates of matrix products and of copies is printed next to the measured time.
Prints Markdown.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import REST, SIZES, network
from benchmarks.encoder import gemm_rate

H100_FLOPS, H100_BYTES, H100_SHARE = 989e12, 3.35e12, 0.4
"""bf16 without sparsity, HBM3, by NVIDIA's data sheet (SXM); the share of FLOPs that convolutions reach is assumed."""
CLIPS, FRAMES, DOLLARS = 1_000_000, 49, 2.5
"""A million clips of CogVideoX's length; dollars per H100 hour are assumed."""


def flops_per_frame(encoder, height, width):
    return 2 * sum(stage.work for stage in encoder.stages()) * height * width


def bytes_per_frame(config, height, width, item):
    """Return the bytes of activations, in and out of every layer, per frame."""
    total, channels, pixels = 0.0, config.ch, float(height * width)
    total += (config.in_channels + channels) * pixels
    for level in range(config.levels):
        pixels = height * width / (config.level_area(level) * config.level_time(level))
        for _ in range(config.num_res_blocks):
            out = config.level_channels(level)
            total += (_norm(channels) + channels + out + _norm(out) + 2 * out + 3 * out) * pixels
            total += (channels + out) * pixels if channels != out else 0
            channels = out
        if level < config.levels - 1:
            following = height * width / (config.level_area(level + 1) * config.level_time(level + 1))
            total += channels * pixels + channels * following * (4 + 4 + 1)
    total += 2 * (2 * _norm(channels) + 7 * channels) * pixels
    total += (_norm(channels) + channels + config.moment_channels) * pixels
    return total * item


def _norm(channels):
    return 3 * channels


def copy_rate():
    """Return the bytes read and written per second by a large copy, the best of three runs."""
    import torch

    a = torch.empty(1 << 28, dtype=torch.uint8).fill_(1)
    b, best = torch.empty_like(a).fill_(1), float("inf")
    for _ in range(3):
        started = time.perf_counter()
        b.copy_(a)
        best = min(best, time.perf_counter() - started)
    return 2 * len(a) / best


def main():
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from movq_cli.device import spare_page_faults
    from movq_cli.model import Encoder3D
    from movq_cli.model.causal import StreamCache
    from movq_cli.model.cost import default_chunk_frames, encode_cost
    from tests.helpers import published

    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="17x128x128")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    args = parser.parse_args()
    frames, height, width = map(int, args.shape.split("x"))
    dtype, item = {"bf16": (torch.bfloat16, 2), "fp32": (torch.float32, 4)}[args.precision]
    spare_page_faults()
    gemm, copies = gemm_rate(dtype), copy_rate()
    print(f"{args.shape}, {args.precision}: products at {gemm / 1e9:.0f} GFLOP/s, copies at {copies / 1e9:.1f} GB/s\n")
    print("| size | GFLOP per frame | counted | MB per frame | s by FLOPs | s by bytes | both | measured | of it |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size, arguments in SIZES.items():
        encoder = Encoder3D(**arguments, **REST).eval().requires_grad_(False)
        x = torch.rand(1, 3, frames, height, width) * 2 - 1
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            published.encode(encoder.to("meta"), x.to("meta"))
        encoder = network(Encoder3D, size, dtype)
        seconds = float("inf")
        with torch.inference_mode():
            for _ in range(3):
                started = time.perf_counter()
                encoder(x.to(dtype), StreamCache())
                seconds = min(seconds, time.perf_counter() - started)
        flops, moved = flops_per_frame(encoder, height, width), bytes_per_frame(encoder.config, height, width, item)
        by_flops, by_bytes = flops * frames / gemm, moved * frames / copies
        print(
            f"| {size} | {flops / 1e9:.1f} | {counter.get_total_flops() / frames / 1e9:.1f} | {moved / 1e6:.0f} | {by_flops:.2f} "
            f"| {by_bytes:.2f} | {by_flops + by_bytes:.2f} | {seconds:.2f} | {seconds / (by_flops + by_bytes):.2f} |",
            flush=True,
        )
    print(
        f"\nOne H100, bf16, if convolutions reach {H100_SHARE:.0%} of {H100_FLOPS / 1e12:.0f} TFLOP/s, the rest moves at "
        f"{H100_BYTES / 1e12:.2f} TB/s, nothing overlaps and decoding keeps up; {CLIPS:,} clips of {FRAMES} frames at "
        f"${DOLLARS} per hour:\n"
    )
    print("| size | picture | TFLOP per frame | frames/s by FLOPs | with bytes | GPU hours | $ | memory, chunks of 8 |")
    print("|---|---|---|---|---|---|---|---|")
    for size, arguments in SIZES.items():
        encoder = Encoder3D(**arguments, **REST)
        for height, width in ((256, 256), (480, 720), (720, 1280)):
            flops = flops_per_frame(encoder, height, width)
            compute = flops / (H100_SHARE * H100_FLOPS)
            rate = 1 / (compute + bytes_per_frame(encoder.config, height, width, 2) / H100_BYTES)
            hours = CLIPS * FRAMES / rate / 3600
            chunk = max(8, default_chunk_frames(encoder.config, height, width, "cpu"))
            cost = encode_cost(encoder.config, chunk + 1, height, width)
            memory = (cost.activations + cost.caches) * 2 / 1e9
            print(
                f"| {size} | {width}x{height} | {flops / 1e12:.2f} | {1 / compute:.0f} | {rate:.0f} | {hours:,.0f} "
                f"| {hours * DOLLARS:,.0f} | {memory:.1f} GB |"
            )


if __name__ == "__main__":
    main()
