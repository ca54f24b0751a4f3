"""What only a CUDA device can show. `make test-gpu` runs these; without a device they are skipped, not faked."""

import pytest
import torch

from movq_cli import EncodeOptions, encode_video, open_latents

from . import clips
from .tolerance import AGREE, off, rms_off

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def clip(tmp_path):
    return clips.lossless(tmp_path / "clip.mkv", clips.pictures(23, 128, 96))


def encoded(clip, output, **options):
    encode_video(clip, output, EncodeOptions(**options))
    return open_latents(output).latents.float()


def test_fp32_is_the_cpus(tmp_path, clip):
    cpu = encoded(clip, tmp_path / "cpu", precision="fp32", device="cpu")
    assert rms_off(encoded(clip, tmp_path / "cuda", precision="fp32", device="cuda"), cpu) < AGREE


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_chunks_are_a_memory_knob(tmp_path, clip, precision):
    one = encoded(clip, tmp_path / "one", precision=precision, device="cuda", chunk_frames=24)
    chunked = encoded(clip, tmp_path / "chunked", precision=precision, device="cuda", chunk_frames=4)
    difference = off(chunked, one)
    print(f"{torch.cuda.get_device_name()}: {precision}, chunks of 4 against one: {difference:.1e} standard deviations")
    if precision == "fp32":
        assert difference < AGREE
    else:
        assert rms_off(chunked, one) < 0.05  # rounding alone; bf16 against fp32 is 0.014
