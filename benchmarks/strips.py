"""Strips: what they cost in time, what they take of memory and disk, and how that was predicted.

    python benchmarks/strips.py speed [--decode] [--size 3840x2160] [--strips 64] [--memory 2.8] [--runs 3] [--json FILE]
    python benchmarks/strips.py memory [--setting embedded,3840x2160,33,4GB ...] [--runs 1] [--json FILE]
    python benchmarks/strips.py seams [--size 5760x3240] [--frames 5] [--budget 8GB]
    python benchmarks/strips.py judge [--size 720x480] [--frames 9] [--budget 2GB] [--runs 1] [--json FILE]

`speed` encodes random pictures, or decodes random latents, with the embedded weights, in turn: 640x360 in one piece, and the
given size in strips, all in memory, and with so many GB of memory and the rest in a spill file. Times are of whole chunks
after the first, per pixel.

`memory` encodes synthetic clips by `movq encode` under a --memory-budget, and decodes them by `movq decode` to .mp4: the
embedded weights, and random ones of the published size in diffusers' windows. Peaks are those of the computing process, and
of all processes together, as PSS. Times are those of the whole command, and these per pixel.

`seams` encodes and decodes a clip in strips, and compares rows of the first frame with the row above them: the mean
difference, in levels of 255, where a strip begins, and where only a latent does (between two latents the embedded weights
leave a step in any case), in the source and in what was decoded. What was computed in one piece is left out.

`judge` encodes one clip with one set of random weights of the published size: movq without and with a budget, and
script.py, a script around diffusers, with and without tiling. "off" is the root mean square difference of the means from
movq without a budget, in standard deviations. Needs diffusers and imageio.

All print Markdown tables.
"""

import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import (
    Table,
    diffusers_weights,
    native_precision,
    options,
    synthetic,
    watched,
)

SCRIPT = str(Path(__file__).with_name("script.py"))
SETTINGS = [  # weights, size, frames, budget
    *(f"embedded,3840x2160,9,{budget}" for budget in ("2GB", "4GB", "8GB")),
    *(f"embedded,1920x1080,9,{budget}" for budget in ("1GB", "2GB", "3GB")),
    *(f"embedded,1280x720,17,{budget}" for budget in ("700MB", "1GB")),
    *(f"published,720x480,9,{budget}" for budget in ("1500MB", "2GB", "2500MB")),
    "published,1280x720,5,4GB",
]


def seconds_per_pixel(network, size, strip_rows=0, store=None):
    """Return the nanoseconds per pixel of each chunk of 4 frames after the first."""
    import numpy as np
    import torch

    from movq_cli.codec import decode, encode
    from movq_cli.model import Encoder3D, StreamCache

    width, height = map(int, size.split("x"))
    if encodes := isinstance(network, Encoder3D):
        first = np.random.default_rng(0).integers(0, 256, (5, height, width, 3), np.uint8)
        later = first[:4]
    else:
        factor = network.config.spatial_factor
        first = torch.randn(1, network.config.z_channels, 2, height // factor, width // factor)
        later = first[:, :, :1]
    stamps = []

    def windows():
        yield iter([first])
        for _ in range(2 if strip_rows else 6):
            stamps.append(time.perf_counter())
            yield iter([later])
        stamps.append(time.perf_counter())

    cache = StreamCache(store=store, strip_rows=strip_rows)
    dtype = next(network.parameters()).dtype
    for _ in (encode if encodes else decode)(network, windows(), torch.device("cpu"), dtype, cache):
        pass
    return [(after - before) / (4 * height * width) * 1e9 for before, after in pairwise(stamps)]


def speed(args, table):
    from movq_cli.device import dtype_of, spare_page_faults

    spare_page_faults()
    from movq_cli.checkpoints.checkpoint import open_checkpoint
    from movq_cli.model.store import SpillFile, Store

    load = open_checkpoint().load_decoder if args.decode else open_checkpoint().load_encoder
    network = load(dtype=dtype_of(args.precision or native_precision()))
    ways = {("640x360", "one piece"): [], (args.size[0], "strips in memory"): [], (args.size[0], "strips on disk"): []}
    disk = 0
    for _ in range(args.runs):
        for (size, way), found in ways.items():
            if way == "strips on disk":
                with SpillFile(tempfile.gettempdir()) as spill:
                    found += seconds_per_pixel(network, size, args.strips, Store(int(args.memory * 1e9), None, spill))
                    disk = max(disk, spill.end)
            else:
                found += seconds_per_pixel(network, size, args.strips if "strips" in way else 0)
    usual = statistics.median(ways["640x360", "one piece"])
    for (size, way), found in ways.items():
        middle = statistics.median(found)
        rows = args.strips if "strips" in way else None
        spilled = disk / 1e9 if "disk" in way else None
        table.add(size, way, rows, spilled, middle, min(found), max(found), middle / usual)


def memory(args, table):
    from movq_cli import plan_encode

    precise = args.precision or native_precision()
    with tempfile.TemporaryDirectory() as folder:
        published = None
        for setting in args.setting:
            weights, size, frames, budget = setting.split(",")
            width, height = map(int, size.split("x"))
            clip, latents, back = f"{folder}/{size}-{frames}.mp4", f"{folder}/out.safetensors", f"{folder}/out.mp4"
            if not Path(clip).exists():
                synthetic(clip, int(frames), width, height)
            chosen = {"precision": precise, "memory_budget": budget, "spill_dir": folder}
            if weights == "published":
                chosen["weights"] = published = published or diffusers_weights(f"{folder}/vae")
            flags = [word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", value)]
            for way, source, output in (("encode", clip, latents), ("decode", latents, back)):
                plan = plan_encode(clip, **chosen).budget if way == "encode" else planned(latents, back, chosen)
                command = [sys.executable, "-m", "movq_cli", way, source, "-o", output, "--force", "-q", *flags]
                runs = [watched(command) for _ in range(args.runs)]
                seconds, own, together, disk = (statistics.median(values) for values in zip(*runs, strict=True))
                table.add(
                    *(weights, size, int(frames), budget, way, plan.strips),
                    *(seconds, seconds / (int(frames) * width * height) * 1e9),
                    *(plan.memory_bytes / 1e6, own / 1e6, plan.memory_bytes / own, together / 1e6),
                    *(plan.spill_bytes / 1e6, disk / 1e6),
                )


def planned(latents, output, chosen):
    """Return the budget of a `movq decode` of these latents to this video."""
    from movq_cli import DecodeOptions, open_latents
    from movq_cli.decode import decode_budget, find_weights
    from movq_cli.video import open_writer

    opened, options = open_latents(latents), DecodeOptions(**chosen)
    m = opened.metadata
    seconds = {"times": opened.seconds(), "duration": m.duration, "fps": m.fps}
    with open_writer(output, width=m.width, height=m.height, force=True, **seconds) as writer:
        return decode_budget(opened.shape, find_weights(opened, options), options, writer.memory_bytes)[1]


def seams(args, table):
    import numpy as np

    from movq_cli import decode_video, encode_video, open_latents, read_frames

    for size in args.size:
        with tempfile.TemporaryDirectory() as folder:
            clip, latents, back = f"{folder}/clip.mp4", f"{folder}/latents", f"{folder}/back.npy"
            synthetic(clip, args.frames, *map(int, size.split("x")))
            options = {"precision": args.precision or native_precision(), "memory_budget": args.budget}
            ways = {
                "encoded": encode_video(clip, latents, **options),
                "decoded": decode_video(latents, back, **options),
            }
            source, decoded = next(iter(read_frames(clip))).image, np.load(back, mmap_mode="r")[0]
            steps = [np.abs(np.diff(image.astype(int), axis=0)).mean((1, 2)) for image in (source, decoded)]
            for way, made in ways.items():
                if made.strips == 1:
                    continue
                height = -(-len(source) // made.strips)
                rows = next(rows for rows in range(32, len(source) + 1, 32) if rows >= height)
                row, factor = np.arange(1, len(source)), open_latents(latents).metadata.spatial_factor
                borders, others = row % rows == 0, (row % rows > 0) & (row % factor == 0)
                figures = [step[chosen].mean() for step in steps for chosen in (borders, others)]
                table.add(size, way, made.strips, *figures)


def judge(args, table):
    import torch

    from movq_cli import open_latents
    from tests.helpers.tolerance import difference

    precise = ["--precision", args.precision or native_precision()]
    with tempfile.TemporaryDirectory() as folder:
        vae = diffusers_weights(f"{folder}/vae")
        for size in args.size:
            clip, script = f"{folder}/clip.mp4", f"{folder}/script.pt"
            whole, little = f"{folder}/whole.safetensors", f"{folder}/little.safetensors"
            synthetic(clip, args.frames, *map(int, size.split("x")))
            encode = [
                sys.executable,
                "-m",
                "movq_cli",
                "encode",
                clip,
                "--weights",
                vae,
                "--force",
                "-q",
                *precise,
                "-o",
            ]
            theirs = [sys.executable, SCRIPT, clip, vae, script, *precise]
            budget = ["--memory-budget", args.budget]
            ways = {
                "movq": [*encode, whole],
                f"movq, {args.budget}": [*encode, little, *budget],
                "script": theirs,
                "script, tiled": [*theirs, "--tiling"],
            }
            usual = None
            for way, command in ways.items():
                runs = [watched(command) for _ in range(args.runs)]
                seconds, _, together, disk = (statistics.median(values) for values in zip(*runs, strict=True))
                usual = usual or seconds
                made = {"movq": whole, f"movq, {args.budget}": little}.get(way)
                moments = open_latents(made).latents if made else torch.load(script)
                off = difference(moments.float(), open_latents(whole).latents.float())
                table.add(
                    size, way, seconds, seconds / usual, together / 1e6, disk / 1e6, off.mean.rms, off.mean.largest
                )


COLUMNS = {
    speed: {
        "size": "",
        "way": "",
        "rows": "",
        "GB on disk": ".1f",
        "ns per pixel": ".0f",
        "least": ".0f",
        "most": ".0f",
        "of 640x360": ".2f",
    },
    memory: {
        "weights": "",
        "size": "",
        "frames": "",
        "budget": "",
        "way": "",
        "strips": "",
        "s": ".0f",
        "ns per pixel": ".0f",
        "predicted MB": ".0f",
        "peak MB": ".0f",
        "predicted / peak": ".2f",
        "all processes MB": ".0f",
        "predicted on disk MB": ".0f",
        "on disk MB": ".0f",
    },
    seams: {"size": "", "way": "", "strips": "", "source, borders": ".3f", "other rows": ".3f"}
    | {"decoded, borders": ".3f", "others": ".3f"},
    judge: {
        "size": "",
        "way": "",
        "s": ".1f",
        "of movq": ".2f",
        "peak MB": ".0f",
        "on disk MB": ".0f",
        "off, rms": ".1e",
        "off, largest": ".1e",
    },
}


def main():
    parser = options(__doc__)
    parser.add_argument("what", choices=[what.__name__ for what in COLUMNS])
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--setting", nargs="+", metavar="WEIGHTS,WxH,FRAMES,BUDGET", default=SETTINGS)
    parser.add_argument("--size", nargs="+", metavar="WxH")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--budget", default="2GB")
    parser.add_argument("--strips", type=int, default=64)
    parser.add_argument("--memory", type=float, default=2.8)
    parser.add_argument("--precision", choices=["bf16", "fp32"])
    args = parser.parse_args()
    what = next(what for what in COLUMNS if what.__name__ == args.what)
    args.size = args.size or [{judge: "720x480", seams: "5760x3240"}.get(what, "3840x2160")]
    print(f"{args.precision or native_precision()}, medians of {args.runs} runs\n")
    what(args, Table(COLUMNS[what], args.json))


if __name__ == "__main__":
    main()
