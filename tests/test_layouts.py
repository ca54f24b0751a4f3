"""Other people's checkpoints, read in place, judged by diffusers itself and by CogVideo's own renaming script."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from movq_cli import MovqError, MovqWarning, encode_video, open_latents
from movq_cli.checkpoints.checkpoint import open_checkpoint
from movq_cli.checkpoints.configs import diffusers_config
from movq_cli.checkpoints.convert import convert_checkpoint
from movq_cli.checkpoints.folders import INDEX, SINGLE
from movq_cli.checkpoints.layouts import describe, to_diffusers

from .helpers import clips
from .helpers.latents import LATENTS, write_latents
from .helpers.models import MODEL, VAE, cached, of_diffusers, published_name, sat_state, shapes_of, small_vae
from .helpers.tolerance import AGREE, off

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save a whole model: model_index.json, a vae folder, and another vae folder whose weights are in shards."""
    model = tmp_path_factory.mktemp("layouts") / "CogVideoX-small"
    small_vae().save_pretrained(model / "vae")
    small_vae().save_pretrained(model.parent / "sharded" / "vae", max_shard_size="5MB")
    (model / "model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}')
    (model / "transformer").mkdir()
    save_file({"x": torch.zeros(1)}, model / "transformer" / SINGLE)
    assert len(list((model.parent / "sharded" / "vae").glob("*-of-*.safetensors"))) > 2
    return model


@pytest.fixture
def vae(saved, tmp_path):
    """Copy a vae folder that a test may spoil."""
    return shutil.copytree(saved / "vae", tmp_path / "model" / "vae")


@pytest.fixture
def sharded(saved, tmp_path):
    return shutil.copytree(saved.parent / "sharded" / "vae", tmp_path / "model" / "vae")


def rewrite(path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


@pytest.mark.parametrize("levels", [3, 4])
def test_every_name_both_ways(levels):
    """Names match at the published size, and with a level less, where the decoder counts levels from the other end."""
    widths = (128, 256, 256, 512)[:levels]
    with torch.device("meta"):
        vae = of_diffusers(
            block_out_channels=widths,
            down_block_types=("CogVideoXDownBlock3D",) * levels,
            up_block_types=("CogVideoXUpBlock3D",) * levels,
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    described = describe(shapes, None)
    assert described.layout == "diffusers"
    assert described.config == dataclasses.replace(
        VAE, ch=128, ch_mult=(1, 2, 2, 4)[:levels], num_res_blocks=3, z_channels=16, zq_ch=16
    )
    ours = shapes_of(described.config)
    assert len(ours) == len(shapes)
    assert levels < 4 or len(ours) == 128 + 308
    assert described.names == {name: published_name(name, levels) for name in ours}
    assert {name: shapes[stored] for name, stored in described.names.items()} == ours
    assert {name: to_diffusers(name, described.config) for name in ours} == described.names
    assert describe(ours, None).names == {name: name for name in ours}
    assert describe(ours, None).config == described.config


def test_what_each_kind_of_checkpoint_says(saved, tmp_path, monkeypatch):
    """Folder, whole model, shards, bare file and id: one model, one digest, every tensor diffusers' own."""
    snapshot = cached(tmp_path / "hub", saved)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    alone = shutil.copy(saved / "vae" / SINGLE, tmp_path / "alone.safetensors")
    save_file(sat_state(), tmp_path / "3d-vae.safetensors")
    shards = sorted((saved.parent / "sharded" / "vae").glob("*.safetensors"))
    config, weights = "config.json", SINGLE
    kinds = {
        saved / "vae": ("CogVideoX-small", [saved / "vae" / weights, saved / "vae" / config]),
        saved: ("CogVideoX-small", [saved / "vae" / weights, saved / "vae" / config]),
        saved / "vae" / weights: (
            "diffusion_pytorch_model",
            [saved / "vae" / weights, saved / "vae" / config],
        ),
        shards[0].parent: ("sharded", [*shards, shards[0].parent / INDEX, shards[0].parent / config]),
        MODEL: (MODEL, [snapshot / weights, snapshot / config]),
        alone: ("alone", [alone]),
        tmp_path / "3d-vae.safetensors": ("3d-vae", [tmp_path / "3d-vae.safetensors"]),
    }
    theirs, digests = small_vae().state_dict(), set()
    for opened, (name, files) in kinds.items():
        checkpoint = open_checkpoint(opened)
        assert checkpoint.name == name
        assert checkpoint.files == tuple(map(str, files))
        assert checkpoint.config == VAE
        sat = name == "3d-vae"
        assert (checkpoint.layout, checkpoint.semantics) == (("sat", "whole") if sat else ("diffusers", "diffusers"))
        said = ("", "", "") if len(files) == 1 else ("0.7", "", "false")
        keys = ("scaling_factor", "shift_factor", "invert_scale_latents")
        assert tuple(checkpoint.metadata[key] for key in keys) == said
        assert checkpoint.metadata["licence"] == ""
        for part, network in (("encoder", checkpoint.load_encoder()), ("decoder", checkpoint.load_decoder())):
            state = network.state_dict()
            assert len(state) == sum(stored.startswith(part) for stored in theirs)
            for key, tensor in state.items():
                assert torch.equal(tensor, theirs[published_name(f"{part}.{key}")]), key
        digests.add(checkpoint.digest)
    assert len(digests) == 1


def test_the_numbers_of_diffusers(saved):
    """Nine frames are one window of diffusers' encoder, three latents one window of its decoder."""
    checkpoint = open_checkpoint(saved)
    torch.manual_seed(1)
    x, z = torch.rand(1, 3, 9, 32, 32) * 2 - 1, torch.randn(1, 4, 3, 4, 4)
    with torch.no_grad():
        assert off(checkpoint.load_encoder()(x), small_vae().encode(x).latent_dist.parameters) < AGREE
        assert off(checkpoint.load_decoder()(z), small_vae().decode(z).sample) < AGREE


def test_paths_come_before_ids(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for model in ("org/folder", "org/file"):
        cached(tmp_path / "hub", saved, model)
        assert open_checkpoint(model).name == model
    (tmp_path / "org" / "folder").mkdir(parents=True)
    save_file(sat_state(), tmp_path / "org" / "file")
    with pytest.raises(MovqError, match=f"^org/folder: has no {SINGLE}"):
        open_checkpoint("org/folder")
    assert open_checkpoint("org/file").name == "file"


@pytest.fixture(params=["hub", "no hub"])
def with_and_without_the_hub(request, monkeypatch):
    """Run a test with huggingface_hub, which finds files in its cache itself, and as if it were not installed."""
    if request.param == "no hub":
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)


@pytest.mark.usefixtures("with_and_without_the_hub")
@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"HF_HUB_CACHE": "a", "HUGGINGFACE_HUB_CACHE": "b", "HF_HOME": "c", "XDG_CACHE_HOME": "d"}, "a"),
        ({"HUGGINGFACE_HUB_CACHE": "b", "HF_HOME": "c", "XDG_CACHE_HOME": "d"}, "b"),
        ({"HF_HOME": "c", "XDG_CACHE_HOME": "d"}, "c/hub"),
        ({"XDG_CACHE_HOME": "d"}, "d/huggingface/hub"),
        ({}, "home/.cache/huggingface/hub"),
        ({"HF_HOME": "~/e"}, "home/e/hub"),
    ],
    ids=str,
)
def test_where_the_cache_is(saved, tmp_path, monkeypatch, variables, place):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value if value[0] == "~" else str(tmp_path / value))
    with pytest.raises(MovqError, match=f"cache {re.escape(str(tmp_path / place))}; to fetch it"):
        open_checkpoint(MODEL)
    snapshot = cached(tmp_path / place, saved)
    assert open_checkpoint(MODEL).path == str(snapshot)


@pytest.mark.usefixtures("with_and_without_the_hub")
@pytest.mark.parametrize("what", ["nothing", "ref", "snapshot", "weights", "commit"])
def test_an_id_that_is_not_all_there(saved, tmp_path, monkeypatch, what):
    """The message names the command that fetches the files, also after a download of other files or one cut short."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = cached(tmp_path, saved)
    if what == "nothing":
        shutil.rmtree(tmp_path / "models--zai-org--CogVideoX-2b")
    elif what == "ref":
        (snapshot.parents[2] / "refs" / "main").unlink()
    elif what == "snapshot":
        shutil.rmtree(snapshot)
    elif what == "weights":
        (snapshot.parents[2] / "blobs" / "1").unlink()
    else:
        (snapshot.parents[2] / "refs" / "main").write_text("../snapshots/0123abc")
    with pytest.raises(MovqError) as caught:
        open_checkpoint(MODEL)
    assert str(caught.value).endswith('hf download zai-org/CogVideoX-2b --include "vae/*"')
    assert str(caught.value).startswith(f"{MODEL}: no such file or folder")


@pytest.mark.parametrize(
    "text", ["weights.safetensors", "a/b.safetensors", "a/b.pt", "a/b.mp4", "a/b/c", "/a/b", "./a", "a"]
)
def test_what_is_no_id(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MovqError, match=f"^{re.escape(text)}: no such file or folder$"):
        open_checkpoint(text)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"act_fn": "gelu"}, 'act_fn "gelu"'),
        ({"norm_num_groups": 16}, "norm_num_groups 16; movq's network has 32"),
        ({"norm_eps": 1e-5}, "norm_eps 1e-05; movq's network has 1e-06"),
        ({"use_quant_conv": True}, "use_quant_conv true"),
        ({"use_post_quant_conv": True}, "use_post_quant_conv true"),
        ({"block_out_channels": [32, 48, 64, 128]}, "not multiples of the first"),
        ({"block_out_channels": []}, "not a list of whole numbers above 0"),
        ({"block_out_channels": [0, 0]}, "not a list of whole numbers above 0"),
        ({"block_out_channels": "many"}, "not a list of whole numbers above 0"),
        ({"down_block_types": ["CogVideoXDownBlock3D"] * 3}, "at each of 4 levels"),
        ({"down_block_types": ["DownEncoderBlock2D"] * 4}, "DownEncoderBlock2D"),
        ({"up_block_types": None}, "up_block_types null"),
        ({"latents_mean": 0.0}, "latents_mean 0.0, which is not a list of numbers"),
        ({"latents_std": ["1"]}, r'latents_std \["1"\], which is not a list of numbers'),
        ({"temporal_compression_ratio": 3}, "power of two"),
        ({"temporal_compression_ratio": "4"}, "power of two"),
        ({"layers_per_block": 1.5}, "num_res_blocks must be a whole number"),
        ({"layers_per_block": 10**9}, "its config asks for 4000000000 blocks"),
        ({"latent_channels": None}, "z_channels must be a whole number"),
        ({"scaling_factor": "much"}, 'scaling_factor "much", which is not a number'),
        ({"shift_factor": True}, "shift_factor true, which is not a number"),
        ({"invert_scale_latents": 1}, "invert_scale_latents 1, neither true nor false"),
    ],
    ids=str,
)
def test_configs_of_diffusers_that_are_not_ours(vae, change, reason):
    rewrite(vae / "config.json", **change)
    with pytest.raises(MovqError, match=reason) as caught:
        open_checkpoint(vae)
    assert str(caught.value).startswith(str(vae))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ("{" + " " * (1 << 20) + "}", "more than 1048576 bytes"),
        ('{"act_fn": "gelu", "act_fn": "silu"}', "names 'act_fn' twice"),
        ('{"scaling_factor": NaN}', "has the number NaN"),
        ('{"scaling_factor": 1e999}', "not a number"),
        ('{"layers_per_block": %s}' % ("9" * 5000), "cannot be used"),
        ("\xff", "cannot be used"),
    ],
    ids=lambda v: v[:30],
)
def test_damaged_json(vae, text, reason):
    (vae / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(MovqError, match=reason) as caught:
        open_checkpoint(vae)
    assert caught.value.about == str(vae / "config.json")


def test_what_cannot_change_a_latent_is_ignored(vae):
    before = open_checkpoint(vae).digest
    changes = {"sample_height": 96, "force_upcast": False, "_diffusers_version": "9", "latents_mean": None, "new": {}}
    rewrite(vae / "config.json", **changes, temporal_compression_ratio=4.0)
    assert open_checkpoint(vae).digest == before


def test_scaling_is_carried_as_the_config_says(vae):
    rewrite(vae / "config.json", scaling_factor=1.15258426, shift_factor=-2, invert_scale_latents=True)
    said = open_checkpoint(vae).metadata
    assert (said["scaling_factor"], said["shift_factor"], said["invert_scale_latents"]) == ("1.15258426", "-2", "true")
    rewrite(vae / "config.json", scaling_factor=..., shift_factor=None, invert_scale_latents=...)
    said = open_checkpoint(vae).metadata
    assert (said["scaling_factor"], said["shift_factor"], said["invert_scale_latents"]) == ("", "", "")


LISTS = {"latents_mean": [0, -0.25, 1e-3, 2.5], "latents_std": [1.5, 1.25, 1.0, 0.1]}


def test_lists_of_means_and_deviations_are_recorded_and_not_applied(vae, tmp_path, movq):
    """As MfM-Pipeline-8B's config has them. diffusers does not apply them for this class; here neither numbers move."""
    clips.write(tmp_path / "a.mp4", clips.pictures(5))
    plain = encode_video(tmp_path / "a.mp4", tmp_path / "plain.safetensors", weights=vae)
    digest = open_checkpoint(vae).digest
    rewrite(vae / "config.json", **LISTS)
    folder = open_checkpoint(vae)
    made = convert_checkpoint(vae, tmp_path / "converted.safetensors")
    for checkpoint in (folder, made, convert_checkpoint(made.path, tmp_path / "twice.safetensors")):
        assert checkpoint.digest == digest
        assert {key: json.loads(checkpoint.metadata[key]) for key in LISTS} == LISTS
    for weights in (vae, made.path):
        result = encode_video(tmp_path / "a.mp4", tmp_path / "a.safetensors", weights=weights, force=True)
        latents = open_latents(result.output_path)
        assert (latents.metadata.latents_mean, latents.metadata.latents_std) == tuple(LISTS.values())
        numbers, before = load_file(result.output_path), load_file(plain.output_path)
        assert all(torch.equal(numbers[name], tensor) for name, tensor in before.items())
    for path in (vae, made.path, result.output_path):
        said = json.loads(movq("info", "--json", path).stdout)
        assert {key: said[key] for key in LISTS} == LISTS
        assert "latents_mean, latents_std (not applied)" in movq("info", path).stdout
    with safe_open(plain.output_path, "pt") as file:
        assert not file.metadata().keys() & LISTS.keys()  # headers without lists are as they were


@pytest.mark.parametrize("text", ["", "[", "3", '["a"]', "[NaN]", "[" * 100_000])
def test_lists_of_movq_weights_that_are_none(make_weights, text):
    with pytest.raises(MovqError, match=r"has latents_mean .*, which is not a list of numbers"):
        open_checkpoint(make_weights(metadata={"latents_mean": text}))


@pytest.mark.parametrize(
    "other",
    [
        {"_class_name": "AutoencoderKLWan", "z_dim": 16},
        {"architectures": ["T5EncoderModel"], "model_type": "t5", "layers_per_block": "many"},
        {"model_type": "llama"},
    ],
    ids=str,
)
def test_a_config_of_another_model_is_passed_over(vae, other):
    """A flat folder where the files of several models lie together, of which one wrote config.json last."""
    before = open_checkpoint(vae)
    (vae / "config.json").write_text(json.dumps(other))
    for path in (vae, vae / SINGLE):
        with pytest.warns(
            MovqWarning, match=r"^the weights' config.json is another model's, \"\w+\": it is passed over, and shapes"
        ):
            checkpoint = open_checkpoint(path)
        assert (checkpoint.digest, checkpoint.config) == (before.digest, before.config)
        assert checkpoint.metadata["scaling_factor"] == ""
        assert str(vae / "config.json") not in checkpoint.files
    edit(vae / SINGLE, lambda tensors: tensors.pop("encoder.conv_out.conv.weight"))
    with pytest.warns(MovqWarning), pytest.raises(MovqError, match=r"lacks encoder.conv_out.conv.weight"):
        open_checkpoint(vae)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "vae.", "first_stage_model.", "module._orig_mod.", "model.first_stage_model."]
)
@pytest.mark.parametrize("kind", ["diffusers", "sat"])
def test_a_common_prefix_is_taken_off(tmp_path, prefix, kind):
    """As DDP, torch.compile, pipelines and their wrappers in one another save; the digest is the plain model's."""
    state = small_vae().state_dict() if kind == "diffusers" else sat_state()
    save_file(state, tmp_path / "plain.safetensors")
    save_file({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "wrapped.safetensors")
    plain, wrapped = (open_checkpoint(tmp_path / f"{name}.safetensors") for name in ("plain", "wrapped"))
    assert (wrapped.digest, wrapped.layout, wrapped.config) == (plain.digest, kind, plain.config)
    assert all(map(torch.equal, wrapped.load_encoder().parameters(), plain.load_encoder().parameters()))


def test_an_all_in_one_file(tmp_path):
    """The tensors of other networks are left out, whatever their dtype, and the user is told."""
    others = {
        "model.diffusion_model.x.weight": torch.zeros(2),
        "conditioner.embedders.0.position_ids": torch.arange(3),
        "scale": torch.zeros(1, dtype=torch.float8_e4m3fn),
    }
    save_file({f"vae.{name}": tensor for name, tensor in sat_state().items()} | others, tmp_path / "all.safetensors")
    save_file(sat_state(), tmp_path / "plain.safetensors")
    told = r"come with other networks \(conditioner, model, scale\): only the tensors under vae. are taken"
    with pytest.warns(MovqWarning, match=told):
        checkpoint = open_checkpoint(tmp_path / "all.safetensors")
    assert checkpoint.digest == open_checkpoint(tmp_path / "plain.safetensors").digest


def test_prefixes_that_do_not_help(tmp_path):
    """Unknown names are given as the file has them; of two autoencoders none is taken."""
    state = {f"vae.{name}": tensor for name, tensor in sat_state().items()}
    for more, reason in (
        ({"vae.encoder.mid.attn_1.q.weight": torch.zeros(1)}, "has vae.encoder.mid.attn_1.q.weight, which CogVideo's"),
        (
            {name.replace("vae.", "ema."): tensor + 1 for name, tensor in state.items()},
            r"holds several autoencoders, under ema\., vae\.: ",
        ),
        ({name: tensor + 1 for name, tensor in sat_state().items()}, "has vae.decoder"),
    ):
        save_file(state | more, tmp_path / "vae.safetensors")
        with pytest.raises(MovqError, match=reason):
            open_checkpoint(tmp_path / "vae.safetensors")
    save_file(dict(zip("edcba", torch.zeros(5, 1), strict=True)), tmp_path / "odd.safetensors")
    with pytest.raises(MovqError, match=r"or CogVideo's names; its tensors are a, b, c and 2 more$"):
        open_checkpoint(tmp_path / "odd.safetensors")


def test_a_config_that_lies(vae):
    rewrite(vae / "config.json", layers_per_block=2)
    with pytest.raises(
        MovqError, match=r"lacks encoder.down.0.block.1.conv1.conv.bias, .* and 29 more, which its config"
    ):
        open_checkpoint(vae).load_encoder()


def edit(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    "name",
    [
        "loss.logvar",
        "encoder.down_blocks.0.resnets.0.norm3.weight",
        "encoder.down_blocks.0.resnets.00.norm1.weight",
        "encoder.down_blocks.٠.resnets.0.norm1.weight",
        "encoder.down_blocks.0.resnets.0.norm1.norm_layer.weight",
        "encoder.down_blocks.0.downsamplers.1.conv.weight",
        "encoder.down.0.block.0.norm1.weight",
        "encoder.mid_block.resnets.2.norm1.norm_layer.weight",
        "decoder.up_blocks.4.resnets.0.conv1.conv.weight",
        "decoder.up_blocks.0.resnets.0.conv1.conv.weight.extra",
        "encoderXnorm_out.weight",
        "quant_conv.weight",
        "x\nencoder.norm_out.weight",
    ],
)
def test_unknown_names_of_diffusers_are_named(vae, name):
    edit(vae / SINGLE, lambda tensors: tensors.update({name: torch.zeros(1)}))
    with pytest.raises(MovqError, match=re.escape(f"has {name}, which diffusers' CogVideoX autoencoder has not")):
        open_checkpoint(vae)


@pytest.mark.parametrize(
    "name",
    [
        "loss.logvar",
        "encoder.mid.attn_1.q.weight",
        "encoder.down.0.block.00.norm1.weight",
        "encoder.norm_out.weight.extra",
    ],
)
def test_unknown_names_of_cogvideo_are_named(tmp_path, name):
    save_file(sat_state() | {name: torch.zeros(1)}, tmp_path / "vae.safetensors")
    with pytest.raises(MovqError, match=f"has {name}, which CogVideo's CogVideoX autoencoder has not"):
        open_checkpoint(tmp_path / "vae.safetensors")


def test_attention_has_no_counterpart():
    assert to_diffusers("decoder.up.3.block.0.norm1.conv_y.conv.bias", VAE).startswith("decoder.up_blocks.0.resnets.0")
    for name in ("encoder.down.0.attn.0.q.weight", "decoder.up.4.upsample.conv.bias", "loss"):
        with pytest.raises(MovqError, match=f"{name} has no counterpart"):
            to_diffusers(name, VAE)


def test_diffusers_builds_the_same_network():
    from diffusers import AutoencoderKLCogVideoX

    config = dataclasses.replace(
        VAE, ch_mult=(1, 3, 2), num_res_blocks=2, in_channels=1, out_ch=2, z_channels=6, zq_ch=6
    )
    with torch.device("meta"):
        vae = AutoencoderKLCogVideoX.from_config(diffusers_config(config))
    shapes = {to_diffusers(name, config): shape for name, shape in shapes_of(config).items()}
    assert {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()} == shapes
    assert vae.config.temporal_compression_ratio == 4
    for change in ({"norm_scope": "frame"}, {"pad_mode": "reflect"}, {"attn_resolutions": (32,)}, {"zq_ch": 2}):
        with pytest.raises(MovqError, match=f"AutoencoderKLCogVideoX cannot have {next(iter(change))} "):
            diffusers_config(dataclasses.replace(config, **change))


def test_attention_and_other_sizes_are_inferred():
    """Resolutions are given as if the picture had 256 pixels; the encoder alone tells nothing about a decoder."""
    config = dataclasses.replace(
        VAE,
        ch_mult=(1, 1, 3),
        num_res_blocks=2,
        attn_resolutions=(256, 64),
        in_channels=1,
        out_ch=5,
        z_channels=6,
        zq_ch=2,
    )
    shapes = shapes_of(config)
    assert describe(shapes, None).config == config
    encoder = {name: shape for name, shape in shapes.items() if name.startswith("encoder.")}
    assert describe(encoder, None).config == dataclasses.replace(config, out_ch=1, zq_ch=6)


CONVS = ["encoder.conv_in.conv.weight", *(f"encoder.down.{i}.block.0.conv1.conv.weight" for i in range(4))]


def without(prefix):
    return lambda shapes: [shapes.pop(name) for name in list(shapes) if name.startswith(prefix)]


def becomes(name, *shape):
    return lambda shapes: shapes.update({name: shape})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("encoder."), "lacks encoder.conv_in.conv.weight"),
        (without("encoder.conv_out.conv.weight"), "lacks encoder.conv_out.conv.weight"),
        (without("encoder.down"), "lacks encoder.down.0.block.0"),
        (without("encoder.down.1"), "lacks blocks: every level of encoder.down has as many, here are 0: 0; 2: 0; 3: 0"),
        (
            without("encoder.down.3.block.0"),
            "has an encoder of 3 levels of 1 blocks, and a decoder not of 3 levels of 2",
        ),
        (without("decoder.up.2.block.1"), "lacks blocks: every level of decoder.up"),
        (becomes("encoder.conv_in.conv.weight", 32, 3), "which is no 3-D convolution's"),
        (becomes("encoder.conv_in.conv.weight", 0, 3, 3, 3, 3), "which is no 3-D convolution's"),
        (becomes("encoder.conv_in.conv.weight", 24, 3, 3, 3, 3), "not multiples of 24"),
        (lambda shapes: shapes.update(dict.fromkeys(CONVS, (48, 3, 3, 3, 3))), "multiple of 32 channels"),
        (becomes("encoder.conv_out.conv.weight", 9, 128, 3, 3, 3), "9 channels, which are not mean and log variance"),
        (becomes("encoder.down.999.block.0.conv1.conv.weight", 1, 1, 1, 1, 1), "has encoder.down.999"),
    ],
)
def test_shapes_that_make_no_network(change, reason):
    shapes = shapes_of(VAE)
    change(shapes)
    with pytest.raises(MovqError, match=reason):
        describe(shapes, None)


def test_inferred_and_still_not_fitting(tmp_path):
    """The fault is in a place that the config is not inferred from."""
    path = tmp_path / "vae.safetensors"
    for key, change, reason in (
        ("encoder.down.1.downsample.conv.bias", None, "lacks encoder.down.1.downsample.conv.bias"),
        (
            "encoder.mid.block_1.norm1.weight",
            torch.ones(4),
            r"norm1.weight has shape \[4\], its config asks for \[128\]",
        ),
        ("encoder.norm_out.bias", torch.full((128,), torch.inf), "norm_out.bias has values that are not finite"),
        ("encoder.norm_out.bias", torch.ones(128, dtype=torch.int64), "has dtype I64"),
    ):
        state = sat_state() | ({} if change is None else {key: change})
        save_file({name: state[name] for name in state if change is not None or name != key}, path)
        with pytest.raises(MovqError, match=reason):
            open_checkpoint(path).load_encoder()


def test_no_decoder(tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_file({name: tensor for name, tensor in sat_state().items() if name.startswith("encoder.")}, path)
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.parameters) == {"encoder"}
    checkpoint.load_encoder()
    with pytest.raises(MovqError, match=r"encoder.safetensors: has no decoder"):
        checkpoint.load_decoder()


def move(placed, shards):
    placed[next(key for key, file in placed.items() if file == shards[0])] = shards[1]


def forget(placed, shards):
    del placed[next(key for key, file in placed.items() if file == shards[0])]


def invent(placed, shards):
    placed["encoder.more"] = shards[0]


def climb(placed, shards):
    placed[next(iter(placed))] = f"../vae/{shards[0]}"


def number(placed, shards):
    placed[next(iter(placed))] = 3


def empty(placed, shards):
    placed.clear()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (move, "which the index does not place there"),
        (forget, "which the index does not place there"),
        (invent, "lacks encoder.more, which its index places in its files"),
        (climb, "names '../vae/diffusion_pytorch_model-0.*', which is not a file of the same folder"),
        (number, "names 3, which is not a file of the same folder"),
        (empty, "has no weight_map"),
    ],
)
def test_an_index_that_lies(sharded, change, reason):
    index = json.loads((sharded / INDEX).read_text())
    change(index["weight_map"], sorted(set(index["weight_map"].values())))
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(MovqError, match=reason):
        open_checkpoint(sharded)


def test_a_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*-of-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(MovqError, match=f"lacks {shard.name}, which its index names"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("kind", ["zip", "pickle"])
@pytest.mark.parametrize("name", ["3d-vae.pt", "vae.safetensors"])
def test_pytorch_files_are_refused_by_content(tmp_path, movq, kind, name):
    torch.save(sat_state(), tmp_path / name, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(MovqError, match=r"which can hold code; `movq weights convert FILE -o OUT.safetensors` makes"):
        open_checkpoint(tmp_path / name)
    assert "is a PyTorch file" in movq("info", name).stderr


def test_safetensors_by_another_name(tmp_path):
    save_file(sat_state(), tmp_path / "vae.pt")
    assert open_checkpoint(tmp_path / "vae.pt").layout == "sat"


def test_semantics_of_movq_weights(make_weights):
    for scope, said, semantics in (
        ("frame", "", "frame"),
        ("frame", "whole", "frame"),
        ("whole", "", "whole"),
        ("whole", "diffusers", "diffusers"),
    ):
        path = make_weights(norm_scope=scope, metadata={"semantics": said})
        assert open_checkpoint(path).semantics == semantics
    for said in ("frame", "tiled"):
        with pytest.raises(MovqError, match=f"has semantics '{said}'"):
            open_checkpoint(make_weights(norm_scope="whole", metadata={"semantics": said}))


def test_info(movq, saved, tmp_path):
    cached(tmp_path / "hub", saved)
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub")}
    save_file(sat_state(), tmp_path / "3d-vae.safetensors")
    result = movq("info", "--json", saved, MODEL, "3d-vae.safetensors", env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    folder, model, sat = json.loads(result.stdout)
    assert (folder["name"], model["name"], sat["name"]) == ("CogVideoX-small", MODEL, "3d-vae")
    assert folder["digest"] == model["digest"] == sat["digest"] == open_checkpoint(saved).digest
    assert (folder["layout"], sat["layout"]) == ("diffusers", "sat")
    assert (folder["semantics"], sat["semantics"]) == ("diffusers", "whole")
    assert (folder["scaling_factor"], folder["shift_factor"], folder["invert_scale_latents"]) == ("0.7", "", "false")
    assert folder["tensors"] == len(small_vae().state_dict())
    assert sum(folder["parameters"].values()) == sum(p.numel() for p in small_vae().parameters())
    assert folder["config"]["ch_mult"] == [1, 2, 2, 4]
    assert folder["bytes"] == sum(file.stat().st_size for file in (saved / "vae").iterdir())
    for path, parts in (
        (
            saved,
            ("format        diffusers", "0.7", "over the whole clip, semantics diffusers", "licence       unknown"),
        ),
        ("3d-vae.safetensors", ("CogVideo names", "unknown: 1.15258426 for CogVideoX-2B, 0.7 for 5B and 1.5")),
    ):
        shown = movq("info", path).stdout
        for part in parts:
            assert part in shown


def test_info_refusals(movq, vae, tmp_path):
    save_file({"model.layers.0.weight": torch.zeros(2)}, tmp_path / "llama.safetensors")
    (vae / SINGLE).write_bytes((vae / SINGLE).read_bytes()[:-1])
    for path, reason in (
        ("llama.safetensors", "holds neither movq weights nor a CogVideoX autoencoder"),
        (vae, "is not a safetensors file"),
        ("no-such/model", "hf download no-such/model --include"),
    ):
        result = movq("info", path)
        assert (result.returncode, result.stdout) == (1, "")
        assert len(result.stderr.splitlines()) == 1
        assert reason in result.stderr


def test_a_folder_that_holds_latents_stays_one(movq, vae, tmp_path):
    write_latents(vae / "clip.safetensors", LATENTS)
    assert json.loads(movq("info", "--json", vae).stdout)["kind"] == "folder"


def test_no_torch_to_describe_weights(saved, tmp_path):
    save_file(sat_state(), tmp_path / "3d-vae.safetensors")
    script = (
        "import sys\nfrom movq_cli.cli import main\n"
        f"sys.argv = ['movq', 'info', {str(saved)!r}, {str(tmp_path / '3d-vae.safetensors')!r}]\n"
        "try: main()\nexcept SystemExit as e: assert not e.code, e.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
