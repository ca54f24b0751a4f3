"""Ways to run norm and SiLU that did not pay: milliseconds for 4 frames of each level of movq-tiny at 256x256.

    python benchmarks/tried.py

"movq" is model/norms.py: exact statistics of blocks that stay in the cache, then normalising and SiLU block by block,
into the next convolution's buffer. It is compared with torch's own group_norm, whose plain sums lose digits, followed
by SiLU, and with torch.compile of normalising and SiLU in one pass, without the statistics. The statistics alone are
compared with torch.var_mean, and with a product with the transpose, from which the square of the mean must be
subtracted. Prints a Markdown table, and how long compiling took.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

LEVELS = ((32, 256), (64, 128), (128, 64))


def milliseconds(work, runs=30):
    work()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * sorted(times)[runs // 4]


def main():
    import torch
    import torch.nn.functional as F

    from movq_cli.model.causal import fold_frames
    from movq_cli.model.convolution import LAYOUT
    from movq_cli.model.norms import GroupNorm

    def fused(x, scale, shift, out):
        out.copy_(F.silu(x.float() * scale + shift).to(x.dtype))

    compiled, first = torch.compile(fused), 0.0
    print(
        "| precision | channels | movq: statistics | norm, SiLU | group_norm | SiLU | compiled | var_mean | product |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with torch.inference_mode():
        for dtype in (torch.bfloat16, torch.float32):
            for channels, side in LEVELS:
                x = torch.randn(1, channels, 4, side, side).to(dtype).contiguous(memory_format=LAYOUT)
                norm, out = GroupNorm(channels, "frame").to(dtype), torch.empty_like(x, memory_format=LAYOUT)
                moments, frames = norm.measure(x), fold_frames(x)
                scale, shift = torch.ones(1, channels, 4, 1, 1), torch.zeros(1, channels, 4, 1, 1)
                rows = x[0].permute(1, 2, 3, 0).reshape(4, -1, channels)
                started = time.perf_counter()
                compiled(x, scale, shift, out)
                first += time.perf_counter() - started
                times = [
                    milliseconds(work)
                    for work in (
                        lambda: norm.measure(x),  # noqa: B023
                        lambda: norm.write(x, out, moments, silu=True),  # noqa: B023
                        lambda: F.group_norm(frames, 32, norm.weight, norm.bias, 1e-6),  # noqa: B023
                        lambda: F.silu(x),  # noqa: B023
                        lambda: compiled(x, scale, shift, out),  # noqa: B023
                        lambda: torch.var_mean(rows.float(), 1, correction=0),  # noqa: B023
                        lambda: [frame.T @ frame for frame in rows],  # noqa: B023
                    )
                ]
                name = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
                print(f"| {name} | {channels} | " + " | ".join(f"{t:.2f}" for t in times) + " |", flush=True)
    print(f"\ncompiling took {first:.1f} s")


if __name__ == "__main__":
    main()
