"""The part of gpu.py about whole commands: clips from disk to latents on disk, one by one and in batches."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import FASTER, ROOT, diffusers_weights, published_weights, synthetic
from movq_cli.checkpoints.checkpoint import embedded_weights

CITY = ROOT / "tests" / "data" / "city.mp4"
TINY = str(embedded_weights())


def commands(part):
    """Time encoding from file to file, in cold commands, warm ones, and batches, and the decoders alone."""
    if importlib.util.find_spec("av") is None:
        part.say("without PyAV: no command can be run")
        return
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        clips = clips_for(part, folder)
        has_diffusers = importlib.util.find_spec("diffusers") is not None
        make = diffusers_weights if has_diffusers else published_weights
        weights = {"tiny": TINY} if part.cpu else {"tiny": TINY, "published": make(str(folder / "vae"))}
        if not has_diffusers:
            part.say("without diffusers: no script beside movq")
        batches(part, folder, clips, weights)
        decoders(part, clips, weights)
        single(part, folder, clips, weights, has_diffusers)


def clips_for(part, folder):
    """Return (name, path, frames) of the clips: the real one, and larger ones made here."""
    if part.cpu:
        synthetic(str(folder / "small.mp4"), 9, 96, 64)
        return [("small", folder / "small.mp4", 9)]
    synthetic(str(folder / "sd.mp4"), 49, 720, 480)
    synthetic(str(folder / "1080p.mp4"), 17, 1920, 1080)
    return [("city 640x360", CITY, 49), ("720x480", folder / "sd.mp4", 49), ("1920x1080", folder / "1080p.mp4", 17)]


def weights_for(clip, weights):
    """Return the weights that can encode a clip: for the published size, 1920x1080 is too large."""
    return {size: file for size, file in weights.items() if (clip, size) != ("1920x1080", "published")}


def seconds_of(command):
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - started


def movq(*arguments):
    return [sys.executable, "-m", "movq_cli", *map(str, arguments)]


def single(part, folder, clips, weights, has_diffusers):
    """Time one clip: the command from its start, a process that has the weights, and a script around diffusers."""
    from movq_cli import EncodeOptions, Selection
    from movq_cli.encode import VideoEncoder

    table = part.table({"clip": "", "weights": "", "way": "", "s": ".2f", "frames/s": ".1f", FASTER: ".2f"})
    device, out = str(part.device), folder / "out.safetensors"
    for name, path, frames in clips:
        for size, file in weights_for(name, weights).items():
            options = [
                "--weights",
                file,
                "--frames",
                frames,
                "--device",
                device,
                "--precision",
                "bf16",
                "--force",
                "-q",
            ]
            cold = seconds_of(movq("encode", path, "-o", out, *options))
            table.add(name, size, "movq encode, cold", cold, frames / cold, None)
            chosen = EncodeOptions(weights=file, device=device, precision="bf16", selection=Selection(frames=frames))
            encoder = VideoEncoder(chosen)
            warm = min(encoder.encode(path, out, force=True).seconds for _ in range(3))
            table.add(name, size, "movq, warm", warm, frames / warm, None)
            if size == "published" and has_diffusers and name == "720x480":
                script = [
                    sys.executable,
                    str(ROOT / "benchmarks" / "script.py"),
                    str(path),
                    file,
                    str(folder / "out.pt"),
                ]
                for way, more in {"script, cold": [], "script, tiled, cold": ["--tiling"]}.items():
                    taken = seconds_of([*script, "--device", device, "--frames", str(frames), *more])
                    table.add(name, size, way, taken, frames / taken, taken / cold)


def decoders(part, clips, weights):
    """Time one decoding process, and compute how many of them the device needs in order never to wait."""
    from movq_cli import EncodeOptions, Selection
    from movq_cli.encode import VideoEncoder
    from movq_cli.plan import start_reader

    table = part.table(
        {"clip": "", "weights": "", "decoding frames/s": ".0f", "encoding frames/s": ".0f", "decoders": ".1f"}
    )
    for name, path, frames in clips:
        for size, file in weights_for(name, weights).items():
            options = EncodeOptions(
                weights=file, device=str(part.device), precision="bf16", selection=Selection(frames=frames)
            )
            encoder = VideoEncoder(options)
            started = time.perf_counter()
            with start_reader(path, options, encoder.checkpoint.config) as reader:
                images = [frame.image for frame in reader]
            decoding = len(images) / (time.perf_counter() - started)
            computing = encoding_rate(encoder, images, part.device)
            table.add(name, size, decoding, computing, computing / decoding)


def encoding_rate(encoder, images, device):
    """Return the frames per second of encoding frames that are in memory."""
    import numpy as np

    from benchmarks import gpu_networks

    images = np.stack(images)
    plan = gpu_networks.plan_for(encoder.network, images.shape[:3], "bf16", device)
    forward = gpu_networks.encoding(encoder.network, images, plan, "bf16", device)
    return len(images) / gpu_networks.seconds_of(forward, device, budget=1.0)


def batches(part, folder, clips, weights):
    """Time a batch of equal clips, with one worker and with two on the device."""
    name, path, frames = clips[0]
    count = 3 if part.cpu else 40
    (folder / "in").mkdir()
    for i in range(count):
        shutil.copy(path, folder / "in" / f"{i:02}.mp4")
        os.utime(folder / "in" / f"{i:02}.mp4", (i, i))
    table = part.table(
        {"clips": "d", "of": "", "weights": "", "workers": "d", "s": ".1f", "clips/s": ".2f", "frames/s": ".1f"}
    )
    for size, file in weights.items():
        for workers in (1, 2):
            out = folder / f"out-{size}-{workers}"
            options = ["--weights", file, "--frames", frames, "--device", part.device.type, "--workers", workers, "-q"]
            taken = seconds_of(movq("batch-encode", folder / "in", "-o", out, *options))
            table.add(count, name, size, workers, taken, count / taken, count * frames / taken)
            shutil.rmtree(out)
