"""The parts of gpu.py about the networks: the machine, the encoder, its profile, the decoder."""

import gc
import re
import statistics
import time
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from benchmarks.common import FASTER, SIZES, network

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = [(17, 256, 256), (49, 480, 720), (17, 768, 1360)]
SMALL = [(9, 32, 48)]
LARGE, NOT_SO_LARGE = (9, 2160, 3840), (5, 96, 64)
"""A clip that is encoded in strips, and one for a CPU."""
THEIRS = {}
"""Arguments of diffusers' autoencoder; by default it has the published size."""
_LEAST = 3


def shrink():
    """Make everything small, so that a CPU runs the same code in seconds."""
    global _LEAST
    _LEAST = 1
    SIZES["published"] |= dict(ch=32, num_res_blocks=1)
    THEIRS.update(block_out_channels=(32, 64, 64, 128), layers_per_block=1)


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work, device, budget=2.0, most=20):
    """Return the median seconds of `work` after a warm-up: of 3 runs, or of more if the budget of seconds allows."""
    work()
    synchronize(device)
    taken = []
    while len(taken) < _LEAST or (_LEAST > 1 and sum(taken) < budget and len(taken) < most):
        started = time.perf_counter()
        work()
        synchronize(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def product_rate(dtype, device, n):
    """Return the FLOP per second of a square matrix product."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / seconds_of(lambda: a @ b, device, budget=0.5)


def copy_rate(device, numbers):
    """Return the bytes per second, read and written, of a copy on the device."""
    a, b = (torch.empty(numbers, dtype=torch.bfloat16, device=device).normal_() for _ in range(2))
    return 2 * a.nbytes / seconds_of(lambda: b.copy_(a), device, budget=0.3)


def machine(part):
    """Print the device, and the rates that everything else is compared with."""
    device, small = part.device, part.cpu
    if small:
        part.say(f"a CPU, torch {torch.__version__}")
    else:
        card = torch.cuda.get_device_properties(device)
        part.say(
            f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {card.multi_processor_count} multiprocessors; torch "
            f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        )
    table = part.table({"rate": "", "of": "", "": ".1f"})
    n = 256 if small else 8192
    for precision in ("bf16", "fp16", "tf32", "fp32")[: 1 if small else 4]:
        torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        table.add("TFLOP/s", f"{precision} product {n} x {n}", product_rate(DTYPES[precision], device, n) / 1e12)
    table.add("TB/s", "copy on the device", copy_rate(device, 2**20 if small else 2**29) / 1e12)


def make_images(shape):
    """Return random frames (T, H, W, 3) in uint8."""
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def plan_for(model, shape, precision, device, **options):
    """Plan an encoding of frames in memory as `movq encode` would with these options."""
    from movq_cli import EncodeOptions, Picture
    from movq_cli.plan import make_plan
    from movq_cli.video.geometry import Orientation, plan_geometry

    frames, height, width = shape
    config = model.config
    geometry = plan_geometry(width, height, Fraction(1), Orientation(), Picture(), config.spatial_factor)
    reader = SimpleNamespace(info=SimpleNamespace(is_picture=False), geometry=geometry)
    checkpoint = SimpleNamespace(
        config=config,
        semantics="frame" if config.norm_scope == "frame" else "diffusers",
        parameters={"encoder": sum(p.numel() for p in model.parameters())},
    )
    return make_plan(reader, frames, EncodeOptions(**options), checkpoint, device, precision)


def encoding(model, images, plan, precision, device, kept=None):
    """Return a function that encodes the images as planned, and appends latents to `kept`."""
    from movq_cli.codec import encode
    from movq_cli.device import computing
    from movq_cli.schedule import ChunkSchedule

    def windows(cache):
        at = 0
        schedule = ChunkSchedule.of_frames(plan.semantics, len(images), plan.budget.chunk_frames, model.config)
        for window in schedule.windows():

            def chunks(window=window):
                nonlocal at
                for length in window:
                    chunk = images[at : at + length if length else None]
                    at += len(chunk)
                    if not len(chunk):
                        return
                    if at >= len(images):
                        cache.end()
                    yield chunk

            yield chunks()
            if at >= len(images):
                return

    def run():
        latents = 0
        with computing(precision, None), plan.budget.stream() as cache:
            for z in encode(model, windows(cache), device, DTYPES[precision], cache):
                latents += z.shape[2]
                if kept is not None:
                    kept.append(z.float())
        assert latents == 1 + (len(images) - 1) // model.config.temporal_factor, latents

    return run


def convolutions_of(model, forward, precision, device):
    """Return (seconds, FLOP) of every convolution that a forward runs, alone on an input of the same layout."""
    from movq_cli.device import computing

    calls = Counter()
    layers = {}

    def note(module, inputs, output):
        x = inputs[0]
        key = id(module), tuple(x.shape), x.stride(), output.numel()
        calls[key] += 1
        layers[id(module)] = module

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    forward()
    for hook in hooks:
        hook.remove()
    seconds = flop = 0
    with torch.inference_mode(), computing(precision, None):
        for (name, shape, stride, outputs), count in calls.items():
            layer = layers[name]
            x = torch.empty_strided(shape, stride, dtype=layer.weight.dtype, device=device).normal_()
            seconds += count * seconds_of(lambda layer=layer, x=x: layer(x), device, budget=0.02)
            flop += count * 2 * outputs * layer.weight[0].numel()
            del x
    return seconds, flop


def peak_of(work, device):
    """Return the peak bytes of the device's memory while work runs."""
    gc.collect()
    if device.type != "cuda":
        work()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    work()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def encoder(part):
    """Time the encoder of both sizes, with its memory, and diffusers in the same process."""
    from movq_cli.model import Encoder3D

    device = part.device
    table = part.table(
        {
            "size": "",
            "clip": "",
            "precision": "",
            "way": "",
            "strips": "",
            "s": ".3f",
            "frames/s": ".1f",
            FASTER: ".2f",
            "bare convolutions": ".0%",
            "of the product rate": ".0%",
            "peak GB": ".2f",
            "of the estimate": ".2f",
        }
    )
    rates = {}
    cases = [(size, shape, "bf16") for size in ("published", "tiny") for shape in (SMALL if part.cpu else SHAPES)]
    if not part.cpu:
        cases[1:1] = [("published", SHAPES[0], precision) for precision in ("fp16", "tf32", "fp32")]
    strips = NOT_SO_LARGE if part.cpu else LARGE
    for size, shape, precision in [*cases, ("tiny", strips, "bf16"), ("published", strips, "bf16")]:
        dtype = DTYPES[precision]
        model = network(Encoder3D, size, dtype, device)
        images = make_images(shape)
        cut = {"strip_rows": 32 if part.cpu else None} if shape == strips else {}
        plan = plan_for(model, shape, precision, device, **cut)
        forward = encoding(model, images, plan, precision, device)
        clip = "x".join(map(str, shape))
        forward()
        peak = peak_of(forward, device)
        seconds = seconds_of(forward, device)
        if shape != strips:  # those of strips are no calls of modules, which alone are counted
            bare, flop = convolutions_of(model, forward, precision, device)
        if precision not in rates:
            torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
            rates[precision] = product_rate(dtype, device, 256 if part.cpu else 8192)
        estimate = peak and peak / plan.budget.memory_bytes
        share, rate = (None, None) if shape == strips else (bare / seconds, flop / seconds / rates[precision])
        table.add(
            size,
            clip,
            precision,
            "movq",
            plan.budget.strips,
            seconds,
            shape[0] / seconds,
            None,
            share,
            rate,
            peak and peak / 1e9,
            estimate,
        )
        del model, forward
        if size == "published" and precision == "bf16" and shape != strips:
            for way, theirs in diffusers_encodings(images, dtype, device, part):
                try:
                    theirs()
                    peak = peak_of(theirs, device)
                    taken = seconds_of(theirs, device)
                except torch.OutOfMemoryError:
                    part.say(f"{way} ran out of memory at {clip}")
                    continue
                peak = peak and peak / 1e9
                table.add(
                    size, clip, precision, way, None, taken, shape[0] / taken, taken / seconds, None, None, peak, None
                )


def diffusers_encodings(images, dtype, device, part):
    """Yield (name, function) of diffusers' encodings of the same frames from memory, untiled and tiled."""
    try:
        from diffusers import AutoencoderKLCogVideoX
    except ImportError as error:
        part.say(f"without diffusers: {error}")
        return
    with torch.device(device):
        model = AutoencoderKLCogVideoX(**THEIRS).eval().requires_grad_(False).to(dtype)
    del model.decoder

    def run():
        with torch.inference_mode():
            pixels = torch.from_numpy(images).to(device).permute(3, 0, 1, 2)[None]
            model.encode(pixels.float().div_(127.5).sub_(1).to(dtype)).latent_dist.parameters.cpu()

    yield "diffusers", run
    model.enable_tiling()
    yield "diffusers, tiled", run


def chunks(part):
    """Time the tiny encoder with chunks of several lengths, with its memory."""
    from movq_cli.model import Encoder3D

    device = part.device
    table = part.table(
        {
            "clip": "",
            "chunk": "d",
            "by default": "",
            "s": ".3f",
            "frames/s": ".0f",
            "peak GB": ".2f",
            "of the estimate": ".2f",
        }
    )
    model = network(Encoder3D, "tiny", torch.bfloat16, device)
    for shape in SMALL if part.cpu else SHAPES:
        images = make_images(shape)
        default = plan_for(model, shape, "bf16", device).budget.chunk_frames
        for length in sorted({4, 8, 16, 32, 64, default} - set(range(shape[0] + 4, 65))):
            plan = plan_for(model, shape, "bf16", device, chunk_frames=length)
            forward = encoding(model, images, plan, "bf16", device)
            forward()
            peak = peak_of(forward, device)
            seconds = seconds_of(forward, device, budget=0.5)
            marked = "yes" if length == default else ""
            estimate = peak and peak / plan.budget.memory_bytes
            table.add(
                "x".join(map(str, shape)), length, marked, seconds, shape[0] / seconds, peak and peak / 1e9, estimate
            )


def profile(part):
    """Print the kernels that take the time of one encoding, and the share of copies from the host."""
    from movq_cli.model import Encoder3D

    device = part.device
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities):  # its first start takes seconds
        torch.ones(1, device=device).add_(1)
    large, small = SHAPES[1], SHAPES[0]
    cases = [("published", large, "bf16"), ("tiny", large, "bf16"), ("published", small, "fp16")]
    for size, shape, precision in [("tiny", SMALL[0], "bf16")] if part.cpu else cases:
        model = network(Encoder3D, size, DTYPES[precision], device)
        plan = plan_for(model, shape, precision, device)
        forward = encoding(model, make_images(shape), plan, precision, device)
        forward()
        with torch.profiler.profile(activities=activities) as measured:
            started = time.perf_counter()
            forward()
            synchronize(device)
            wall = time.perf_counter() - started
        kernels = kernels_of(measured, device)
        total = sum(seconds for seconds, _ in kernels.values())
        part.say(
            f"{size}, {'x'.join(map(str, shape))}, {precision}: {wall:.3f} s with the profiler, the device busy "
            f"{total / wall:.0%} of it, {sum(count for _, count in kernels.values()):,} launches in {plan.chunks} chunks"
        )
        table = part.table({"kernel": "", "s": ".4f", "of the device's time": ".0%", "launches": "d"})
        for name, (seconds, count) in sorted(kernels.items(), key=lambda item: -item[1][0])[:12]:
            table.add(name, seconds, seconds / total, count)
        copies = sum(seconds for name, (seconds, _) in kernels.items() if "memcpy htod" in name.lower())
        part.say(f"copies from the host: {copies / total:.1%} of the device's time")


def kernels_of(measured, device):
    """Return (seconds, launches) by name of everything that ran on the device; on a CPU, the operators' own time."""
    found = Counter(), Counter()
    for event in measured.key_averages():
        taken = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        on_device = device.type != "cuda" or event.device_type == torch.autograd.DeviceType.CUDA
        if taken and on_device:
            name = short_name(event.key)
            found[0][name] += taken / 1e6
            found[1][name] += event.count
    return {name: (seconds, found[1][name]) for name, seconds in found[0].items()}


def short_name(kernel):
    """Return a kernel's name without the noise of its templates, at most 100 characters."""
    for noise in ("void ", "at::native::", "(anonymous namespace)::", "std::", "c10::"):
        kernel = kernel.replace(noise, "")
    telling = r"CUDAFunctor_\w+|\w+_kernel_impl\w*|\w+_kernel_cuda|WelfordOps|func_wrapper\w*|\w+Functor\w*"
    known = re.findall(telling, kernel[20:])
    start = kernel.split("<")[0][:70]
    return " ".join(dict.fromkeys([start, *known]))[:100].replace("|", "/")


def decoder(part):
    """Time the decoder of the published size in bf16, with its memory, and diffusers."""
    from movq_cli.codec import decode
    from movq_cli.model import Decoder3D
    from movq_cli.schedule import ChunkSchedule

    device = part.device
    table = part.table({"latents": "", "way": "", "s": ".3f", "frames/s": ".1f", FASTER: ".2f", "peak GB": ".2f"})
    for latents, height, width in [(3, 4, 6)] if part.cpu else [(5, 32, 32), (13, 60, 90)]:
        z = torch.randn(1, 16, latents, height, width).to(torch.bfloat16)
        model = network(Decoder3D, "published", torch.bfloat16, device)

        def forward(model=model, z=z, latents=latents):
            at = iter(range(latents))
            windows = ChunkSchedule.of_latents("diffusers", latents, 0, model.config).windows()
            pieces = ([z[:, :, [next(at) for _ in range(n)]] for n in window] for window in windows)
            return sum(len(frames) for frames in decode(model, pieces, device, torch.bfloat16))

        frames, clip = forward(), f"{latents}x{height}x{width}"
        peak, seconds = peak_of(forward, device), seconds_of(forward, device)
        table.add(clip, "movq", seconds, frames / seconds, None, peak and peak / 1e9)
        del model, forward
        try:
            from diffusers import AutoencoderKLCogVideoX
        except ImportError as error:
            part.say(f"without diffusers: {error}")
            continue
        with torch.device(device):
            theirs = AutoencoderKLCogVideoX(**THEIRS).eval().requires_grad_(False).to(torch.bfloat16)
        del theirs.encoder

        def run(theirs=theirs, z=z):
            with torch.inference_mode():
                theirs.decode(z.to(device)).sample.cpu()

        run()
        peak, taken = peak_of(run, device), seconds_of(run, device)
        table.add(clip, "diffusers", taken, frames / taken, taken / seconds, peak and peak / 1e9)
        del theirs, run
