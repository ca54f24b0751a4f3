"""The streaming contract of every layer that streams: chunks give the whole clip's result, and see no future frames."""

import pytest
import torch

from movq_cli.codec import to_frames, to_input, to_pixels, to_planes
from movq_cli.model import CausalConv3d, Decoder3D, DownSample3D, Encoder3D, ResnetBlock3D, StreamCache, Upsample3D
from movq_cli.model.causal import fold_frames, unfold_frames

from .helpers import published
from .helpers.models import GOOD
from .helpers.tolerance import AGREE, SAME, off

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def tiny(**changes):
    arguments = GOOD | {"norm_scope": "frame"}
    return Encoder3D(**(arguments | changes)).double().eval()


class Stream:
    """A layer under test, called on a whole clip or on chunks; a cache says whether a chunk is the first."""

    def __init__(self, name, layer, channels, spare=lambda n: n):
        self.name, self.layer, self.channels, self.spare = name, layer.double().eval(), channels, spare

    def __repr__(self):
        return self.name

    def chunks(self, x, lengths):
        cache, out = StreamCache(), []
        for i, piece in enumerate(x.split(lengths, dim=2)):
            cache.first = i == 0
            if isinstance(self.layer, ResnetBlock3D):
                out.append(self.layer(piece, None, cache))
            else:
                out.append(self.layer(piece, cache))
        return torch.cat(out, dim=2)


def layers():
    for mode in ("first", "constant", "reflect"):
        for dilation in (1, 2):
            conv = CausalConv3d(4, 8, 3, mode, dilation=dilation)
            yield Stream(f"conv-{mode}-dilation{dilation}", conv, 4)
        yield Stream(f"conv-{mode}-tuple", CausalConv3d(4, 8, (4, 1, 3), mode), 4)
        yield Stream(f"conv-{mode}-1", CausalConv3d(4, 8, 1, mode), 4)
        block = ResnetBlock3D(
            in_channels=32, out_channels=64, dropout=0.0, temb_channels=0, pad_mode=mode, norm_scope="frame"
        )
        yield Stream(f"resnet-{mode}", block, 32)
    block = ResnetBlock3D(
        in_channels=32, out_channels=64, conv_shortcut=True, dropout=0.0, temb_channels=0, norm_scope="frame"
    )
    yield Stream("resnet-conv_shortcut", block, 32)
    yield Stream("down", DownSample3D(32, True, compress_time=True), 32)
    yield Stream("down-average", DownSample3D(32, False, compress_time=True), 32)
    yield Stream("down-space", DownSample3D(32, True), 32)
    yield Stream("up", Upsample3D(32, True, compress_time=True), 32)


@pytest.mark.parametrize("lengths", [(5, 2, 2, 4), (7, 6), (9, 4), (13,)], ids=str)
@pytest.mark.parametrize("stream", list(layers()), ids=str)
def test_chunks_are_the_whole_clip(stream, lengths):
    x = torch.randn(2, stream.channels, 13, 8, 8, dtype=torch.float64)
    assert off(stream.chunks(x, lengths), stream.layer(x)) < SAME


@pytest.mark.parametrize("mode", ["first", "constant"])
def test_short_chunks_use_older_cache(mode):
    """Chunks may be shorter than the past that a convolution remembers."""
    stream = Stream("conv", CausalConv3d(4, 8, (5, 3, 3), mode), 4)
    x = torch.randn(1, 4, 9, 8, 8, dtype=torch.float64)
    assert off(stream.chunks(x, [1] * 9), stream.layer(x)) < SAME


def test_stride_in_time():
    conv = Stream("conv", CausalConv3d(4, 8, 3, "first", stride=2), 4)
    x = torch.randn(1, 4, 8, 8, 8, dtype=torch.float64)
    assert conv.layer(x).shape[2] == 4
    assert off(conv.chunks(x, [2, 4, 2]), conv.layer(x)) < SAME
    with pytest.raises(ValueError, match="multiple of the stride"):
        conv.chunks(x, [3, 5])
    with pytest.raises(ValueError, match="stride"):
        CausalConv3d(4, 8, 1, stride=2)


def test_constant_padding_is_zeros_in_the_past_and_reflect_mirrors():
    """Padding is compared with torch's own, applied by hand."""
    x = torch.randn(1, 4, 5, 8, 8, dtype=torch.float64)
    for mode in ("constant", "reflect"):
        layer = CausalConv3d(4, 8, 3, mode).double()
        past = torch.zeros_like(x[:, :, :2]) if mode == "constant" else x[:, :, [2, 1]]
        by_hand = torch.nn.functional.conv3d(
            torch.nn.functional.pad(torch.cat([past, x], 2), (1, 1, 1, 1)), layer.conv.weight, layer.conv.bias
        )
        assert off(layer(x), by_hand) < SAME
    short = CausalConv3d(4, 8, 3, "reflect").double()
    with_zero = torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, [1, 0, 1]]], 2)
    by_hand = torch.nn.functional.conv3d(
        torch.nn.functional.pad(with_zero, (1, 1, 1, 1)), short.conv.weight, short.conv.bias
    )
    assert off(short(x[:, :, :2]), by_hand) < SAME


@pytest.mark.parametrize("lengths", [(5, 4, 4, 4), (9, 8), (13, 4), (17,)], ids=str)
@pytest.mark.parametrize("mode", ["first", "constant", "reflect"])
def test_encoder_chunks_are_the_whole_clip(mode, lengths):
    encoder = tiny(pad_mode=mode, attn_resolutions=[16])
    x = torch.randn(1, 3, 17, 16, 16, dtype=torch.float64)
    if mode == "reflect" and lengths[0] < 9:
        with pytest.raises(ValueError, match="reflect"):
            stream(encoder, x, lengths)
        return
    assert off(stream(encoder, x, lengths), encoder(x)) < SAME


@pytest.mark.parametrize("lengths", [(5, 4, 8), (17,)], ids=str)
def test_a_last_chunk_keeps_nothing_and_changes_nothing(lengths):
    encoder, cache, out = tiny(), StreamCache(), []
    x = torch.randn(1, 3, 17, 16, 16, dtype=torch.float64)
    *before, last = x.split(lengths, dim=2)
    for piece in before:
        out.append(encoder(piece, cache))
        assert len(cache.past) == sum(isinstance(m, CausalConv3d) for m in encoder.modules())
    cache.end()
    out.append(encoder(last, cache))
    assert not cache.past
    assert off(torch.cat(out, 2), encoder(x)) < SAME
    with pytest.raises(ValueError, match="ended"):
        encoder(x[:, :, 1:5], cache)


def stream(encoder, x, lengths):
    cache = StreamCache()
    return torch.cat([encoder(piece, cache) for piece in x.split(lengths, dim=2)], dim=2)


@pytest.mark.parametrize("lengths", [(5, 4, 4, 4), (9, 8), (5, 12), (17,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_whole_norm_window_may_be_cut_into_chunks(lengths, dtype):
    """Statistics accumulated over the chunks of a window equal those of the window in one piece."""
    encoder = tiny(norm_scope="whole", attn_resolutions=[16]).to(dtype)
    x = torch.randn(2, 3, 17, 16, 16, dtype=dtype)
    pieces = list(encoder.encode_window(x.split(lengths, dim=2), StreamCache()))
    assert off(torch.cat(pieces, 2), encoder(x)) < (AGREE if dtype == torch.float32 else SAME)


def test_a_window_of_several_chunks_has_no_gradient():
    encoder, x = tiny(norm_scope="whole"), torch.randn(1, 3, 9, 16, 16, dtype=torch.float64)
    with torch.enable_grad(), pytest.raises(ValueError, match="no gradient"):
        list(encoder.encode_window(x.split((5, 4), dim=2), StreamCache()))


def test_frame_norms_are_strictly_causal_and_whole_norms_are_not():
    x = torch.randn(1, 3, 17, 16, 16, dtype=torch.float64)
    spoiled = x.clone()
    spoiled[:, :, 9:] = float("nan")
    frame = tiny()
    assert torch.equal(frame(spoiled)[:, :, :3], frame(x)[:, :, :3])
    assert frame(spoiled)[:, :, 3:].isnan().all()
    assert tiny(norm_scope="whole")(spoiled).isnan().all()


@pytest.mark.parametrize("frames", range(1, 14))
def test_any_length_is_floored_and_ends_the_stream(frames):
    encoder = tiny()
    x = torch.randn(1, 3, frames, 16, 16, dtype=torch.float64)
    whole = encoder(x)
    assert whole.shape == (1, 8, 1 + (frames - 1) // 4, 4, 4)
    cache = StreamCache()
    first = encoder(x[:, :, :1], cache)
    rest = [encoder(x[:, :, 1:], cache)] if frames > 1 else []
    assert off(torch.cat([first, *rest], 2), whole) < SAME
    if (frames - 1) % 4:
        with pytest.raises(ValueError, match="stream ended"):
            encoder(x, cache)


def test_an_exception_spoils_the_stream():
    encoder, cache = tiny(), StreamCache()
    encoder(torch.randn(1, 3, 5, 16, 16, dtype=torch.float64), cache)
    with pytest.raises(ValueError, match="at least 4, got 3x32"):
        encoder(torch.randn(1, 3, 4, 3, 32, dtype=torch.float64), cache)
    with pytest.raises(ValueError, match="spoiled"):
        encoder(torch.randn(1, 3, 4, 16, 16, dtype=torch.float64), cache)


def test_two_streams_do_not_meet():
    encoder = tiny()
    x, y = torch.randn(2, 1, 3, 9, 16, 16, dtype=torch.float64)
    one, two = StreamCache(), StreamCache()
    parts = [[], []]
    for piece in (slice(0, 5), slice(5, 9)):
        parts[0].append(encoder(x[:, :, piece], one))
        parts[1].append(encoder(y[:, :, piece], two))
    assert off(torch.cat(parts[0], 2), encoder(x)) < SAME
    assert off(torch.cat(parts[1], 2), encoder(y)) < SAME


@pytest.mark.slow
def test_documented_example():
    """CogVideo's example: (1, 3, 16, 256, 256) becomes (1, 8, 4, 32, 32); with a quarter of its channels, for speed."""
    encoder = Encoder3D(
        ch=32,
        out_ch=3,
        ch_mult=(1, 2, 4, 4),
        num_res_blocks=2,
        attn_resolutions=[],
        in_channels=3,
        resolution=256,
        z_channels=4,
    )
    assert encoder(torch.zeros(1, 3, 16, 256, 256)).shape == (1, 8, 4, 32, 32)


@pytest.mark.parametrize(("scope", "with_conv"), [("whole", True), ("frame", True), ("whole", False)])
def test_odd_heights_and_widths_are_floored_as_published(scope, with_conv):
    """As in the published module, whatever is odd at each of its levels; in one piece, in chunks, and for training."""
    encoder = tiny(norm_scope=scope, ch_mult=(1, 1, 2, 2), resamp_with_conv=with_conv)
    for height, width in ((37, 43), (15, 8), (8, 23)):
        x = torch.randn(1, 3, 5, height, width, dtype=torch.float64)
        theirs = published.encode(encoder, x)
        assert theirs.shape == (1, 8, 2, height // 8, width // 8)
        assert off(encoder(x), theirs) < SAME
        chunks = list(encoder.encode_window(x.split([1, 4], dim=2), StreamCache()))
        assert off(torch.cat(chunks, 2), theirs) < SAME
        with torch.enable_grad():
            assert off(encoder(x).detach(), theirs) < SAME


def test_the_networks_are_called_as_published():
    """CogVideo's first stage passes its flag of context parallelism to both networks, which ignore it."""
    encoder = tiny(norm_scope="whole")
    decoder = Decoder3D(**GOOD).double().eval()
    x, z = torch.randn(1, 3, 5, 16, 16, dtype=torch.float64), torch.randn(1, 4, 2, 4, 4, dtype=torch.float64)
    for flag in (True, False):
        assert torch.equal(encoder(x, use_cp=flag), encoder(x))
        assert torch.equal(decoder(z, use_cp=flag), decoder(z))


def test_gradients_are_those_of_the_published_operations():
    encoder = tiny(norm_scope="whole", attn_resolutions=[16])
    x = torch.randn(1, 3, 5, 16, 16, dtype=torch.float64)
    grads = []
    for forward in (encoder, lambda v: published.encode(encoder, v)):
        with torch.enable_grad():
            encoder.zero_grad()
            forward(x).pow(2).sum().backward()
        grads.append({n: p.grad.clone() for n, p in encoder.named_parameters()})
    for name, grad in grads[1].items():
        # A norm takes away the mean, so the gradient of a bias in front of it is only rounding.
        assert (grads[0][name] - grad).abs().max() < 1e-9 * max(grad.abs().max(), 1e-3), name


def test_axes_move_without_a_copy():
    """Frames fold and unfold as views in channels-last memory, which all activations have."""
    x = torch.randn(2, 8, 3, 4, 6).contiguous(memory_format=torch.channels_last_3d)
    frames = fold_frames(x)
    assert frames.shape == (6, 8, 4, 6)
    assert frames.data_ptr() == x.data_ptr()
    assert torch.equal(frames[4], x[1, :, 1])
    again = unfold_frames(frames, 2)
    assert again.data_ptr() == x.data_ptr()
    assert again.stride() == x.stride()
    with torch.inference_mode():
        lent = StreamCache().lend((2, 8, 3, 4, 6), x)
    assert lent.is_contiguous(memory_format=torch.channels_last_3d)


def test_pixels_and_latents_move_without_a_copy_of_their_own():
    pixels = torch.randint(0, 256, (3, 4, 6, 3), dtype=torch.uint8)
    x = to_input(to_planes(pixels), torch.float32)
    assert x.shape == (1, 3, 3, 4, 6)
    assert x.is_contiguous(memory_format=torch.channels_last_3d)  # the layout that pixels have in memory
    assert torch.equal(to_frames(to_pixels(x)), pixels)
