"""Strips: the latents of a picture that is computed band by band are those of the picture in one piece."""

import itertools
import re
import subprocess
import sys

import pytest
import torch

from movq_cli import MovqError, MovqUsageError, encode_batch, encode_video, open_latents
from movq_cli.checkpoints.checkpoint import open_checkpoint
from movq_cli.model import DownSample3D, StreamCache
from movq_cli.model.store import SpillFile, Store
from movq_cli.model.strips import Halo, StripQueue

from .helpers import clips
from .helpers.batches import manifest
from .helpers.strips import encoded, encoder, pixels
from .helpers.tolerance import AGREE, moments_off, rms_off

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = 4e-5
"""The most that strips may be from one piece in fp32, in standard deviations: kernels add in another order. Of 648
combinations all but one are below 3e-5. There one piece is 2.6e-5 from float64, and strips are 3.1e-5 from one piece."""

SIZES = [(136, 40), (104, 72), (200, 56)]
"""Heights and widths that are no multiples of a strip."""

LENGTHS = 1, 2, 5, 16, 17, 33
CHUNKS = 4, 8, 0


@pytest.mark.parametrize("semantics", ["frame", "whole", "diffusers"])
def test_strips_are_exact(semantics):
    network = encoder(semantics)
    for frames, few in ((5, ((0, 32), (0, 64), (0, 96))), (17, ((4, 32), (8, 64)))):
        images = pixels(frames, 104, 40)
        one = encoded(network, semantics, images)
        for chunk, rows in few:
            assert moments_off(encoded(network, semantics, images, chunk, rows), one) < EXACT, (frames, chunk, rows)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("semantics", ["frame", "whole", "diffusers"])
def test_every_combination_is_exact(semantics, frames, height, width):
    """In strips of 32, 64 and 96 rows and in one piece, with chunks of 4, 8 and of whole windows."""
    if semantics != "frame":
        frames += -(frames - 1) % 4  # `movq encode` makes clips up to 1 + 4n frames before it plans windows
    network, images = encoder(semantics), pixels(frames, height, width)
    one = encoded(network, semantics, images)
    assert one.shape[2:] == (1 + (frames - 1) // 4, height // 8, width // 8)
    for rows, chunk in itertools.product((0, 32, 64, 96), CHUNKS):
        assert moments_off(encoded(network, semantics, images, chunk, rows), one) < EXACT, (rows, chunk)


@pytest.mark.slow
@pytest.mark.parametrize("config", [{"pad_mode": "reflect"}, {"pad_mode": "constant", "resamp_with_conv": False}])
def test_strips_are_exact_with_other_layers(config):
    for semantics in ("frame", "whole"):
        network, images = encoder(semantics, ch_mult=(1, 2), temporal_compress_times=2, **config), pixels(13, 72, 40)
        one = encoded(network, semantics, images)
        for rows, chunk in itertools.product((32, 64), (4, 0)):
            assert moments_off(encoded(network, semantics, images, chunk, rows), one) < EXACT, (rows, chunk)


@pytest.mark.parametrize("semantics", ["frame", "whole"])
def test_strips_in_bf16_are_no_further_from_fp32_than_one_piece(semantics):
    network, images = encoder(semantics), pixels(17, 136, 72)
    exact = encoded(network, semantics, images)
    network = network.bfloat16()
    one, strips = (encoded(network, semantics, images, rows=rows, dtype=torch.bfloat16).float() for rows in (0, 32))
    assert 0 < rms_off(strips, exact) < 1.05 * rms_off(one, exact)


@pytest.mark.parametrize(("frames", "chunk", "rows"), [(5, 0, 32), pytest.param(17, 4, 64, marks=pytest.mark.slow)])
def test_strips_are_what_diffusers_encodes(vae, frames, chunk, rows):
    images = pixels(frames, 104, 48)
    x = torch.from_numpy(images).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = vae.model.encode(x).latent_dist.parameters
    network = open_checkpoint(vae.folder).load_encoder(dtype=torch.float32)
    assert moments_off(encoded(network, "diffusers", images, chunk, rows), expected) < AGREE


@pytest.mark.parametrize(("semantics", "chunk"), [("frame", 4), ("whole", 4), ("diffusers", 0)])
def test_strips_on_disk_are_those_in_memory(tmp_path, semantics, chunk):
    """Every byte, whatever waits where; and nothing is left in the store but what a next chunk would need."""
    network, images = encoder(semantics), pixels(13, 72, 40)
    in_memory = encoded(network, semantics, images, chunk, 32)
    for limit in (0, 10**6):
        with SpillFile(str(tmp_path)) as spill:
            store = Store(limit, 0, spill)
            assert torch.equal(encoded(network, semantics, images, chunk, 32, store), in_memory)
            assert spill.end > 10**6
            assert list(tmp_path.iterdir()) == []


def test_a_queue_gives_strips_with_their_neighbours_rows():
    """Two pictures wait in turn: no row comes from the other picture, and strips that are kept come again."""
    pictures = [torch.arange(20.0).view(1, 1, 1, 10, 2) + 100 * i for i in range(2)]
    queue = StripQueue(Store())
    for picture in pictures:
        for strip in picture.split(4, dim=3):
            queue.put(strip)
    for keep in (True, False):
        for picture in pictures:
            for first, last, bottom in ((0, 4, False), (4, 8, False), (8, 10, True)):
                band = queue.take(Halo(1, 2), bottom, keep)
                rows = torch.cat([piece for piece, _ in band.pieces()], dim=3)
                assert torch.equal(rows, picture[:, :, :, max(0, first - 1) : min(10, last + 2)])
                assert torch.equal(band.own, picture[:, :, :, first:last])
                inner = torch.cat([piece for piece, _ in band.inner().pieces()], dim=3)
                assert torch.equal(inner, picture[:, :, :, first : min(10, last + 1)])
    assert len(queue) == 0


def test_downsampling_takes_a_row_of_the_strip_below():
    torch.manual_seed(0)
    layer, x = DownSample3D(32, with_conv=True).eval().requires_grad_(False), torch.randn(1, 32, 1, 12, 8)
    whole, cache = layer(x), StreamCache(strip_rows=4)
    cache.cut(x, 4)
    strips = []
    for cache.strip, (first, last) in enumerate(((0, 5), (4, 9), (8, 12))):  # the loop's own state
        strips.append(layer(x[:, :, :, first:last], cache))
    assert moments_off(torch.cat([torch.cat(strips, dim=3)] * 2, dim=1), torch.cat([whole] * 2, dim=1)) < EXACT


def test_strips_that_a_network_cannot_take_are_refused():
    x = torch.zeros(1, 3, 1, 64, 32)
    with torch.inference_mode():
        with pytest.raises(ValueError, match="20 rows for a network that takes multiples of 32 rows"):
            encoder("frame")(x, StreamCache(strip_rows=20))
        with pytest.raises(ValueError, match="32 rows for a network that takes whole pictures"):
            encoder("frame", attn_resolutions=(32,))(x, StreamCache(strip_rows=32))
        with pytest.raises(ValueError, match="height is a multiple of 8 are cut into strips, got 61x32"):
            encoder("frame")(x[:, :, :, :61], StreamCache(strip_rows=32))
        odd = encoder("frame")(x[:, :, :, :61, :29], StreamCache(strip_rows=64))
        assert odd.shape[3:] == (7, 3)  # it is not cut


def test_gradients_need_one_piece():
    network = encoder("frame").requires_grad_(True)
    with pytest.raises(ValueError, match="no gradient"):
        network(torch.zeros(1, 3, 1, 64, 32), StreamCache(ends=True, strip_rows=32))


def test_what_the_tool_says_of_strips(tmp_path, movq):
    """Dry run, result and manifest say how many; the header does not, so that equal latents are equal files."""
    clip = clips.lossless(tmp_path / "clip.mkv", list(pixels(9, 104, 72)))
    one = encode_video(clip, tmp_path / "one", precision="fp32")
    assert (one.strips, one.spilled_bytes, one.remarks) == (1, 0, ())
    made = encode_video(clip, tmp_path / "made", precision="fp32", strip_rows=32)
    assert (made.strips, made.metadata) == (4, one.metadata)
    assert moments_off(open_latents(tmp_path / "made").latents, open_latents(tmp_path / "one").latents) < EXACT
    again = encode_video(clip, tmp_path / "again", precision="fp32", strip_rows=32)
    assert again.sha256 == made.sha256
    plan = movq("encode", clip, "-o", "a", "--strip-rows", "64", "--dry-run")
    assert "strips       2, of 64 rows" in plan.stdout
    little = movq(
        "encode", clip, "-o", "a.safetensors", "--memory-budget", "374MB", "--precision", "fp32", "--chunk-frames", 4
    )
    assert (
        "computed in 4 strips of 32 rows, as a whole picture needs about 386 MB where 374 MB may be used"
        in little.stderr
    )
    assert re.search(rf"; up to \d+\.\d MB of activations wait in {tmp_path}\n", little.stderr)
    assert "strips" not in str(open_latents(tmp_path / "a.safetensors").metadata.preprocessing)
    encode_batch(clip, tmp_path / "out", strip_rows=32, precision="fp32", threads=1, workers=0)
    (line,) = manifest(tmp_path / "out").values()
    assert (line["strips"], line["spilled_bytes"]) == (4, 0)
    assert (
        encode_batch(clip, tmp_path / "out", workers=0, precision="fp32", threads=1).made == []
    )  # strips are no change


@pytest.mark.parametrize(
    ("rows", "near"), [("0", "above 0"), ("16", "use 32"), ("100", "use 96 or 128"), ("x", "auto or")]
)
def test_a_height_that_no_strip_has_is_refused(tmp_path, movq, rows, near):
    clip = clips.lossless(tmp_path / "clip.mkv", clips.pictures(1))
    result = movq("encode", clip, "-o", "a", "--strip-rows", rows)
    assert (result.returncode, near in result.stderr) == (2, True), result.stderr


def test_weights_with_attention_see_the_whole_picture(tmp_path, make_weights):
    weights = str(make_weights(attn_resolutions=[8]))
    clip = clips.lossless(tmp_path / "clip.mkv", list(pixels(5, 104, 72)))
    with pytest.raises(MovqUsageError, match="small has attention, which sees the whole picture: leave it out"):
        encode_video(clip, tmp_path / "a", weights=weights, strip_rows=32)
    with pytest.raises(MovqError, match=r"104 needs about .* where 100 MB may be used; .* is enough"):
        encode_video(clip, tmp_path / "a", weights=weights, memory_budget=10**8)
    assert encode_video(clip, tmp_path / "a", weights=weights).strips == 1


def test_a_spill_file_on_a_full_disk_is_one_line(tmp_path):
    """A limit on file size stands in for the full disk."""
    clip = clips.lossless(tmp_path / "clip.mkv", list(pixels(9, 104, 72)))
    script = (
        "import resource, signal, sys\nfrom movq_cli.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\nmain()"
    )
    command = ["encode", str(clip), "-o", "a.safetensors", "--strip-rows", "32", "--memory-budget", "380MB"]
    result = subprocess.run(
        [sys.executable, "-c", script, *command, "--precision", "fp32"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1, result.stderr
    assert "file too large while activations were spilled; --spill-dir names another folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mkv"]
