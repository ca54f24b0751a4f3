"""Weights files: identity, and every way they can be wrong."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from movq_cli import MovqError
from movq_cli.checkpoints.checkpoint import EMBEDDED, FORMER, open_checkpoint

from .helpers.tolerance import off


def test_the_embedded_weights(embedded):
    checkpoint = open_checkpoint()
    assert checkpoint.path == str(embedded)
    assert checkpoint.name == EMBEDDED
    assert (
        f"{EMBEDDED}: sha256 {checkpoint.digest}" in (embedded.parent / "README.md").read_text()
    )  # a name keeps its digest
    assert checkpoint.digest not in FORMER
    assert embedded.stat().st_size <= 21e6
    assert checkpoint.config.norm_scope == "frame"
    assert (checkpoint.config.temporal_factor, checkpoint.config.spatial_factor) == (4, 8)
    assert (checkpoint.layout, checkpoint.semantics, checkpoint.files) == ("movq", "frame", (str(embedded),))
    loaded = {"encoder": checkpoint.load_encoder(dtype=torch.float32), "decoder": checkpoint.load_decoder()}
    assert not any(p.requires_grad or network.training for network in loaded.values() for p in network.parameters())
    for name, tensor in load_file(embedded).items():
        part, key = name.split(".", 1)
        assert torch.equal(loaded[part].state_dict()[key].float(), tensor.float())


def test_the_embedded_weights_make_an_autoencoder():
    """Encoder and decoder together restore the picture, which is how weights are judged."""
    checkpoint = open_checkpoint()
    encoder, decoder = (load(dtype=torch.float32) for load in (checkpoint.load_encoder, checkpoint.load_decoder))
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    picture = torch.stack([x, y, (x * y)])[None, :, None] * 0.7
    with torch.no_grad():
        back = decoder(encoder(picture)[:, :16])
    psnr = 10 * torch.log10(4 / (back - picture).pow(2).mean())
    assert psnr > 25  # the lowest PSNR of the model card's pictures is 23.3, of a city


def test_digest_is_what_the_format_says(make_weights):
    """The digest is computed here again with safetensors' own reader."""
    path = make_weights()
    digest = hashlib.sha256()
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        del config["dropout"], config["resolution"]
        digest.update(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"\n{name} F32 {list(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert open_checkpoint(path).digest == digest.hexdigest()


def test_digest_is_of_the_model_alone(make_weights):
    digest = open_checkpoint(make_weights()).digest
    assert open_checkpoint(make_weights("b.safetensors", metadata={"name": "other"}, resolution=32)).digest == digest

    def touch(tensors):
        tensors["encoder.conv_in.conv.bias"][0] += 1e-6

    assert open_checkpoint(make_weights("c.safetensors", touch)).digest != digest
    assert open_checkpoint(make_weights("d.safetensors", pad_mode="constant")).digest != digest


def drop(tensors):
    del tensors["encoder.mid.block_1.conv1.conv.bias"]


def add(tensors):
    tensors["encoder.extra"] = torch.zeros(3)


def stranger(tensors):
    tensors["loss.logvar"] = torch.zeros(3)


def transpose(tensors):
    tensors["encoder.conv_in.conv.weight"] = tensors["encoder.conv_in.conv.weight"].transpose(0, 1).contiguous()


def nan(tensors):
    tensors["encoder.norm_out.weight"][3] = float("nan")


def whole_numbers(tensors):
    tensors["encoder.conv_in.conv.bias"] = torch.zeros(32, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (drop, "lacks encoder.mid.block_1.conv1.conv.bias"),
        (add, "has encoder.extra, which its config has no place for"),
        (stranger, "has loss.logvar, which belongs to neither"),
        (transpose, r"conv_in.conv.weight has shape \[3, 32, 3, 3, 3\], its config asks for \[32, 3, 3, 3, 3\]"),
        (nan, "norm_out.weight has values that are not finite"),
        (whole_numbers, "dtype I32"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_tensors_that_do_not_fit(make_weights, change, reason):
    with pytest.raises(MovqError, match=reason):
        open_checkpoint(make_weights(change=change)).load_encoder()


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"format_version": "2"}, "format_version '2'; this movq reads 1"),
        ({"config": "{"}, "config cannot be used"),
        ({"config": "[]"}, "not a JSON object"),
        ({"config": "[" * 100_000}, "nested too deeply"),
        ({"config": '{"ch": 32}'}, "config lacks"),
        ({"config": '{"ch": 32, "ch": 64}'}, "names 'ch' twice"),
        ({"config": " " * (1 << 21)}, "bytes long"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_headers_that_do_not_fit(make_weights, metadata, reason):
    with pytest.raises(MovqError, match=reason):
        open_checkpoint(make_weights(metadata=metadata))


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"ch": 64}, "its config asks for"),
        ({"num_res_blocks": 10**9}, "its config asks for 4000000000 blocks, it has "),
        ({"ch": 32 * 10**12}, "its config makes no network"),
        ({"ch": 32 * 10**30}, "its config makes no network"),
    ],
    ids=str,
)
def test_a_config_that_lies(make_weights, lie, reason):
    """A config is also refused if the network it describes could not be built."""
    config = json.loads(open_checkpoint(make_weights()).config.to_json()) | lie
    with pytest.raises(MovqError, match=reason) as caught:
        open_checkpoint(make_weights(metadata={"config": json.dumps(config)})).load_encoder()
    assert "\n" not in str(caught.value)


def test_cut_file(make_weights):
    path = make_weights()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MovqError, match="safetensors"):
        open_checkpoint(path)


def test_layout_changes_speed_not_numbers(make_weights):
    path = make_weights()
    encoder = open_checkpoint(path).load_encoder(dtype=torch.float64)
    x = torch.randn(1, 3, 5, 32, 32, dtype=torch.float64)
    before = encoder(x)
    for parameter in encoder.parameters():
        parameter.data = parameter.data.contiguous()
    assert off(encoder(x), before) < 1e-11


def test_stored_half_precision_is_computed_as_asked(make_weights, tmp_path):
    path = make_weights()
    tensors = {k: v.half() for k, v in load_file(path).items()}
    with safe_open(path, "pt") as file:
        save_file(tensors, tmp_path / "half.safetensors", metadata=file.metadata())
    encoder = open_checkpoint(tmp_path / "half.safetensors").load_encoder(dtype=torch.bfloat16)
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
