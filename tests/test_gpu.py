"""Tests that need a CUDA device: `make test-gpu` runs them and prints rows for docs/exactness.md.

They are skipped without a device, not faked.
"""

import numpy as np
import pytest
import torch

from movq_cli import EncodeOptions, decode_video, encode_video, open_latents
from movq_cli.checkpoints.checkpoint import open_checkpoint
from movq_cli.codec import decode, encode
from movq_cli.device import computing, dtype_of
from movq_cli.model import StreamCache
from movq_cli.model.store import SpillFile, Store

from .helpers import clips
from .helpers.tolerance import AGREE, difference, moments_off, moments_rms_off, said

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


ROUNDED = 0.02
"""Limit for means in bf16, fp16 or tf32, root mean square; bf16 is 0.02 off at most (docs/precision.md).
"""


@pytest.fixture
def clip(tmp_path):
    return clips.lossless(tmp_path / "clip.mkv", clips.pictures(23, 128, 96))


@pytest.fixture
def row():
    """Print a row of the table in docs/exactness.md."""

    def show(what, against, made, expected):
        device = torch.cuda.get_device_name()
        print(f"\n| {what} | {against} | {device} | {said(difference(made, expected))} |")

    return show


def encoded(clip, output, device="cuda", **options):
    encode_video(clip, output, EncodeOptions(device=device, force=True, **options))
    return open_latents(output).latents.float()


def test_fp32_is_the_cpus(tmp_path, clip, row):
    cpu = encoded(clip, tmp_path / "cpu", precision="fp32", device="cpu")
    cuda = encoded(clip, tmp_path / "cuda", precision="fp32")
    row("CUDA, fp32, embedded weights", "CPU, fp32", cuda, cpu)
    assert moments_rms_off(cuda, cpu) < AGREE


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_precisions(tmp_path, clip, row, precision):
    fp32 = encoded(clip, tmp_path / "fp32", precision="fp32")
    other = encoded(clip, tmp_path / "other", precision=precision)
    row(f"{precision}, embedded weights", "fp32", other, fp32)
    assert 0 < difference(other, fp32).mean.rms < ROUNDED


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_chunks_are_a_memory_knob(tmp_path, clip, row, precision):
    one = encoded(clip, tmp_path / "one", precision=precision, chunk_frames=24)
    chunked = encoded(clip, tmp_path / "chunked", precision=precision, chunk_frames=4)
    row(f"`--chunk-frames` 4, {precision}", "one chunk", chunked, one)
    if precision == "fp32":
        assert moments_off(chunked, one) < AGREE
    else:
        assert difference(chunked, one).mean.rms < ROUNDED


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tiers", [{}, {"device_bytes": 10**6}, {"device_bytes": 10**6, "host_bytes": 10**6}])
def test_strips_are_a_memory_knob(tmp_path, precision, tiers):
    """With everything on the device, with most of it in host memory, with most of that on disk."""
    encoder = open_checkpoint().load_encoder("cuda", dtype_of(precision))
    images = np.stack(clips.pictures(13, 136, 200))

    def run(rows, store):
        windows = ([images[start:stop]] for start, stop in ((0, 5), (5, 9), (9, 13)))
        cache = StreamCache(store=store, strip_rows=rows)
        with computing(precision, None):
            found = encode(encoder, windows, torch.device("cuda"), dtype_of(precision), cache)
            return torch.cat([z.float() for z in found], dim=2)

    one = run(0, Store())
    with SpillFile(str(tmp_path)) as spill:
        strips = run(64, Store(**tiers, spill=spill))
        assert (spill.end > 0) == ("host_bytes" in tiers)
    if precision == "fp32":
        assert moments_off(strips, one) < AGREE
    else:
        assert difference(strips, one).mean.rms < ROUNDED


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_strips_are_a_memory_knob_of_decoding(tmp_path, precision):
    """Frames of one piece are those of strips, most of which wait in host memory and on disk."""
    z = torch.randn(1, 16, 4, 17, 25, generator=torch.Generator().manual_seed(0))

    def run(precision, rows, store):
        decoder = open_checkpoint().load_decoder("cuda", dtype_of(precision))
        windows, cache = ([part] for part in z.split(2, dim=2)), StreamCache(store=store, strip_rows=rows)
        with computing(precision, None):
            found = decode(decoder, windows, torch.device("cuda"), dtype_of(precision), cache)
            return np.concatenate([frames.astype(int) for frames in found])

    one, exact = run(precision, 0, Store()), run("fp32", 0, Store())
    with SpillFile(str(tmp_path)) as spill:
        strips = run(precision, 64, Store(10**6, 10**6, spill))
        assert spill.end > 0
    assert one.shape == (13, 136, 200, 3)
    if precision == "fp32":
        assert abs(strips - one).max() <= 1
    else:
        assert abs(strips - exact).mean() < 1.2 * abs(one - exact).mean()


def test_diffusers(tmp_path, vae, row):
    images = clips.pictures(17, 128, 96)
    clip = clips.lossless(tmp_path / "seventeen.mkv", images)
    x = torch.from_numpy(np.stack(images)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = vae.model.encode(x).latent_dist.parameters  # on the CPU, in fp32
    made = encoded(clip, tmp_path / "latents", precision="fp32", weights=vae.folder)
    row("`--semantics diffusers`, fp32", "AutoencoderKLCogVideoX.encode on a CPU", made, expected)
    assert moments_rms_off(made, expected) < AGREE


def test_whole_clips_in_chunks(tmp_path, clip, vae, row):
    options = dict(precision="fp32", weights=vae.folder, semantics="whole")
    one = encoded(clip, tmp_path / "one", **options)
    chunked = encoded(clip, tmp_path / "chunked", chunk_frames=4, **options)
    row("`--semantics whole`, chunks of 4, fp32", "one chunk", chunked, one)
    assert moments_off(chunked, one) < AGREE


def test_every_tier_gives_back_what_it_was_given(tmp_path):
    """Chunks wait on the device, in pinned host memory, and in the file, in turn."""
    chunks = [
        torch.randn(1, 8, 4, 6, 5, device="cuda").contiguous(memory_format=torch.channels_last_3d) for _ in range(3)
    ]
    size = chunks[0].numel() * chunks[0].element_size()
    with SpillFile(str(tmp_path)) as spill:
        store = Store(size, size, spill)
        held = [store.put(chunk) for chunk in chunks]
        assert spill.end == size
        for kept, chunk in zip(held, chunks, strict=True):
            back = kept.get()
            assert back.device == chunk.device
            assert back.is_contiguous(memory_format=torch.channels_last_3d)
            assert torch.equal(back, chunk)


def test_decoding(tmp_path, clip, row):
    encode_video(clip, tmp_path / "latents", precision="fp32", device="cpu")
    for device in ("cpu", "cuda"):
        decode_video(tmp_path / "latents", tmp_path / f"{device}.npy", precision="fp32", device=device)
    cpu, cuda = (torch.from_numpy(np.load(tmp_path / f"{device}.npy")).float() for device in ("cpu", "cuda"))
    levels = (cpu - cuda).abs()
    print(
        f"\n| `movq decode`, fp32 | CPU | levels of 255: {levels.max():.0f}, in {(levels > 0).float().mean():.1e} of values |"
    )
    assert levels.max() <= 1
