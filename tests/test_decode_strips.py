"""Strips, on the way back: frames that are decoded band by band are those of the picture in one piece."""

import itertools
import re

import numpy as np
import pytest
import torch

from movq_cli import DecodeOptions, MovqError, MovqUsageError, decode_video, encode_video, evaluate_video, open_latents
from movq_cli.checkpoints.checkpoint import open_checkpoint
from movq_cli.codec import to_pixels
from movq_cli.decode import decode_budget
from movq_cli.model import StreamCache, Upsample3D
from movq_cli.model.stages import Carry
from movq_cli.model.store import SpillFile, Store
from movq_cli.model.strips import Band
from movq_cli.video import open_writer

from .helpers import clips
from .helpers.processes import run_limited
from .helpers.strips import decoded, decoder, pixels
from .helpers.tolerance import SAME, off, rms_off

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = [(17, 5), (13, 9), (25, 7)]
"""Heights and widths of latents that are no multiples of a strip."""


def latents(count, height, width, channels=4):
    return torch.randn(1, channels, count, height, width, generator=torch.Generator().manual_seed(0))


def levels_off(got, expected):
    """Return the largest difference in levels of 255."""
    return (to_pixels(got).int() - to_pixels(expected).int()).abs().max().item()


def require_near(one, exact, strips):
    """Require of fp32 what can be: one level of 255, and no further from float64 than one piece is.

    The largest difference says little: at its worst pixel even one piece is 4e-5 to 4e-4 deviations from float64.
    """
    for made in strips:
        assert levels_off(made, one) <= 1
        assert rms_off(made, exact) < 1.3 * rms_off(one, exact)


def require_exact(semantics, z, settings, **config):
    """Require that (chunk, rows) give what one piece does: the first in float64 to 11 digits, all as `require_near` says."""
    network, double, settings = decoder(semantics, **config), decoder(semantics, **config).double(), list(settings)
    exact = decoded(double, semantics, z.double())
    assert off(decoded(double, semantics, z.double(), *settings[0]), exact) < SAME
    require_near(
        decoded(network, semantics, z), exact, (decoded(network, semantics, z, *setting) for setting in settings)
    )


@pytest.mark.parametrize("semantics", ["frame", "whole", "diffusers"])
def test_strips_are_exact(semantics):
    require_exact(semantics, latents(2, 9, 3), [(4, 32), (0, 64)])
    network, z = decoder(semantics), latents(4, 9, 3)
    one = decoded(network, semantics, z)
    for setting in ((0, 32), (4, 32), (8, 64)):
        assert levels_off(decoded(network, semantics, z, *setting), one) <= 1, setting


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("semantics", ["frame", "whole", "diffusers"])
def test_every_combination_is_exact(semantics, count, height, width):
    """In strips of 32, 64 and 96 rows and in one piece, with chunks of 4, 8 and of whole windows."""
    require_exact(semantics, latents(count, height, width), itertools.product((4, 8, 0), (32, 64, 96, 0)))


@pytest.mark.slow
@pytest.mark.parametrize("config", [{"pad_mode": "reflect"}, {"pad_mode": "constant", "resamp_with_conv": False}])
def test_strips_are_exact_with_other_layers(config):
    for semantics in ("frame", "whole"):
        settings = itertools.product((4, 0), (32, 64))
        require_exact(semantics, latents(7, 36, 9), settings, ch_mult=(1, 2), temporal_compress_times=2, **config)


@pytest.mark.parametrize("rows", [32, pytest.param(64, marks=pytest.mark.slow)])
def test_embedded_weights_are_exact_on_footage(tmp_path, rows):
    """In fp32 as above; in bf16 no further from fp32 than one piece is."""
    encode_video(clips.CITY, tmp_path / "latents", precision="fp32", frames=5, short_side=40)
    z = open_latents(tmp_path / "latents").mean
    network, double = (open_checkpoint().load_decoder(dtype=dtype) for dtype in (torch.float32, torch.float64))
    one = decoded(network, "frame", z)
    require_near(one, decoded(double, "frame", z.double()), [decoded(network, "frame", z, rows=rows)])
    network = open_checkpoint().load_decoder(dtype=torch.bfloat16)
    whole, strips = (decoded(network, "frame", z.bfloat16(), rows=height).float() for height in (0, rows))
    assert 0 < rms_off(strips, one) < 1.05 * rms_off(whole, one)


@pytest.mark.parametrize(("count", "rows"), [(3, 32), pytest.param(5, 64, marks=pytest.mark.slow)])
def test_strips_are_what_diffusers_decodes(vae, count, rows):
    z = latents(count, 13, 6, channels=16)
    with torch.no_grad():
        expected = vae.model.decode(z).sample
    network = open_checkpoint(vae.folder).load_decoder(dtype=torch.float32)
    assert levels_off(decoded(network, "diffusers", z, rows=rows), expected) <= 1


@pytest.mark.parametrize(
    ("semantics", "chunk"),
    [("whole", 4), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("frame", 4), ("diffusers", 0)))],
)
def test_strips_on_disk_are_those_in_memory(tmp_path, semantics, chunk):
    network, z = decoder(semantics), latents(4, 9, 5)
    in_memory = decoded(network, semantics, z, chunk, 32)
    for limit in (0, 10**6):
        with SpillFile(str(tmp_path)) as spill:
            assert torch.equal(decoded(network, semantics, z, chunk, 32, Store(limit, 0, spill)), in_memory)
            assert spill.end > 10**6


def test_upsampling_takes_the_nearer_row_of_each_neighbour():
    torch.manual_seed(0)
    x = torch.randn(1, 32, 2, 12, 8)
    for layer in (Upsample3D(32, with_conv, compress_time=True).requires_grad_(False) for with_conv in (True, False)):
        whole, cache, strips = layer(x), StreamCache(strip_rows=5), []
        assert whole.shape == (1, 32, 3, 24, 16)
        cache.cut(x, 1)
        run = layer.stage("up", 1.0)
        for number, span in enumerate(cache.spans):
            cache.strip = number  # the loop's own state
            above, below = x[:, :, :, max(0, span.start - 1) : span.start], x[:, :, :, span.stop : span.stop + 1]
            beside = [rows if rows.shape[3] and run.halo.above else None for rows in (above, below)]
            strips.append(run.run(Carry(Band(beside[0], x[:, :, :, span], beside[1])), cache, None))
        assert off(torch.cat(strips, dim=3), whole) < 1e-5


def test_strips_that_a_decoder_cannot_take_are_refused(tmp_path, movq, make_weights):
    with pytest.raises(ValueError, match="20 rows for a network that takes multiples of 32 rows"):
        decoder("frame")(latents(1, 8, 4), cache=StreamCache(strip_rows=20))
    with pytest.raises(ValueError, match="32 rows for a network that takes whole pictures"):
        decoder("frame", attn_resolutions=(32,))(latents(1, 8, 4), cache=StreamCache(strip_rows=32))
    clip = clips.lossless(tmp_path / "clip.mkv", list(pixels(1, 72, 40)))
    encode_video(clip, tmp_path / "latents")
    result = movq("decode", "latents", "-o", "back.npy", "--strip-rows", "100")
    assert (result.returncode, "use 96 or 128" in result.stderr) == (2, True), result.stderr
    weights = str(make_weights(attn_resolutions=[8]))
    encode_video(clip, tmp_path / "attends", weights=weights)
    with pytest.raises(MovqUsageError, match="has attention, which sees the whole picture: leave it out"):
        decode_video(tmp_path / "attends", tmp_path / "back.npy", weights=weights, strip_rows=32)


def test_what_the_tool_says_of_strips(tmp_path, movq):
    """A remark says how many, the result too; the frames are those of one piece, but for a level."""
    clip = clips.lossless(tmp_path / "clip.mkv", list(pixels(5, 136, 72)))
    encode_video(clip, tmp_path / "latents", precision="fp32")
    one = decode_video(tmp_path / "latents", tmp_path / "one.npy", precision="fp32")
    assert (one.strips, one.spilled_bytes, one.remarks) == (1, 0, ())
    made = decode_video(tmp_path / "latents", tmp_path / "made.npy", precision="fp32", strip_rows=32)
    assert (made.strips, made.remarks) == (5, ())
    little = movq("decode", "latents", "-o", "little.npy", "--memory-budget", "420MB", "--precision", "fp32")
    assert "latents: computed in 5 strips of 32 rows, as a whole picture needs about" in little.stderr
    assert re.search(rf"; up to \d+\.\d MB of activations wait in {tmp_path}\n", little.stderr), little.stderr
    assert movq("decode", "latents", "-o", "quiet.npy", "--strip-rows", "32", "-q").stderr == ""
    frames = {name: np.load(tmp_path / f"{name}.npy").astype(int) for name in ("one", "made", "little")}
    assert frames["one"].shape == (5, 136, 72, 3)
    for name in ("made", "little"):
        assert abs(frames[name] - frames["one"]).max() <= 1
    scores = evaluate_video(clip, precision="fp32", strip_rows=32)
    assert scores.encoded.strips == 5
    assert scores.decode_strips == 5
    assert scores.scores["psnr_mean"] > 15


def test_the_memory_of_the_video_encoder_counts(tmp_path):
    taken = []
    for frames in (9, 33):
        clock = {"times": np.arange(frames) / 25, "duration": frames / 25}
        with open_writer(tmp_path / "a.mp4", width=1920, height=1080, **clock) as writer:
            taken.append(writer.memory_bytes)
    options = DecodeOptions(memory_budget=2 * 10**9, precision="fp32", spill_dir=str(tmp_path))
    spilled = [decode_budget((1, 16, 3, 135, 240), open_checkpoint(), options, n)[1].spill_bytes for n in (0, *taken)]
    assert 0 < spilled[0] < spilled[1] < spilled[2]


def test_where_memory_runs_out_later_no_frame_is_lost_or_given_twice(tmp_path):
    """A progress that raises MemoryError stands in for a device that is full after 9 frames."""
    clip = clips.lossless(tmp_path / "clip.mkv", list(pixels(17, 136, 40)))
    encode_video(clip, tmp_path / "latents", precision="fp32")
    options = {"precision": "fp32", "chunk_frames": 4}
    decode_video(tmp_path / "latents", tmp_path / "one.npy", **options)
    raised = []

    def full(done, total):
        if done > 9 and not raised:
            raised.append(done)
            raise MemoryError

    made = decode_video(tmp_path / "latents", tmp_path / "made.npy", progress=full, **options)
    assert (raised, made.strips) == ([10], 2)
    assert made.warnings == ("ran out of memory, and went on in strips of 96 rows",)
    frames = [np.load(tmp_path / f"{name}.npy").astype(int) for name in ("one", "made")]
    assert frames[1].shape == (17, 136, 40, 3)
    assert abs(frames[1] - frames[0]).max() <= 1
    with pytest.raises(MovqError, match="ran out of memory even in the smallest chunks and strips"):
        decode_video(tmp_path / "latents", tmp_path / "no.npy", progress=always_full, **options)
    assert not (tmp_path / "no.npy").exists()


def always_full(done, total):
    raise MemoryError


@pytest.mark.slow
def test_where_memory_runs_out_smaller_pieces_are_tried(tmp_path):
    """The process has address space for low strips, and not for a whole picture."""
    clip = clips.write(tmp_path / "a.mp4", clips.pictures(9, 512, 384))
    encode_video(clip, tmp_path / "latents", precision="fp32")

    decode = "decode", "latents", "-o"
    _, peak = run_limited(tmp_path, 0, *decode, "small.npy", "--strip-rows", "96", "--chunk-frames", "4")
    large, _ = run_limited(tmp_path, int(peak * 1.05), *decode, "large.npy")
    assert large.returncode == 0, large.stderr
    assert re.search("warning: ran out of memory, and went on in strips of (192|96|64|32) rows", large.stderr)
    frames = [np.load(tmp_path / f"{name}.npy").astype(int) for name in ("large", "small")]
    assert abs(frames[0] - frames[1]).max() <= 1
    assert len(list(tmp_path.iterdir())) == 4
