"""Codes end to end: weights with a quantiser store whole numbers, which decode, and which a token model reads."""

import dataclasses
import json
import random
import signal
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from movq_cli import (
    LatentDataset,
    MovqError,
    MovqUsageError,
    collate,
    decode_video,
    encode_batch,
    encode_video,
    evaluate_video,
    export_latents,
    open_latents,
    plan_encode,
    read_frames,
)
from movq_cli.checkpoints.checkpoint import open_checkpoint
from movq_cli.checkpoints.convert import convert_checkpoint
from movq_cli.cli import run
from movq_cli.model import AutoencoderConfig, Decoder3D, Encoder3D
from movq_cli.model.quantizers import build

from .helpers import clips
from .helpers.batches import manifest, tree
from .helpers.processes import encoding, group, wait_for

KINDS = {
    "vq": {"kind": "VectorQuantizer2", "n_e": 500, "e_dim": 4, "beta": 0.25},
    "fsq": {"kind": "FSQ", "levels": [8, 8, 8, 5, 5, 5], "dim": 4},
    "lfq": {"kind": "LFQ", "dim": 4, "codebook_size": 4, "num_codebooks": 2},
}


def networks(name, **config):
    """Return the modules of weights with a quantiser, random, and their config."""
    settings = dict(ch=32, ch_mult=(1, 2, 2, 2), num_res_blocks=1, out_ch=3, attn_resolutions=(), in_channels=3)
    made = AutoencoderConfig(**settings, resolution=256, z_channels=4, double_z=False, quantizer=KINDS[name], **config)
    torch.manual_seed(0)
    arguments = dataclasses.asdict(made)
    quantizer = build(made)
    if name == "vq":
        torch.nn.init.normal_(quantizer.embedding.weight)
    return made, Encoder3D(**arguments).eval(), Decoder3D(**arguments).eval(), quantizer.eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Write weights of each kind of quantiser. LFQ's constant is in its state dict, as published."""
    paths = {}
    for name in KINDS:
        config, *modules = networks(name)
        parts = zip(("encoder", "decoder", "quantize"), modules, strict=True)
        tensors = {f"{part}.{key}": value for part, module in parts for key, value in module.state_dict().items()}
        said = {"format": "movq-weights", "format_version": "1", "config": config.to_json(), "name": name}
        paths[name] = tmp_path_factory.mktemp(name) / f"{name}.safetensors"
        save_file(tensors, paths[name], said)
    return paths


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes")
    for i in range(3):
        clips.write(folder / f"{i}.mp4", clips.pictures(13, 64, 48)[i:], rate=8)
    return folder


def pixels(path):
    with read_frames(path) as frames:
        return torch.stack([torch.from_numpy(frame.image) for frame in frames]).permute(3, 0, 1, 2)[None] / 127.5 - 1


@pytest.mark.parametrize("name", KINDS)
def test_what_is_stored_and_decoded_is_what_the_modules_make(tmp_path, weights, sources, name):
    """Indices are those of quantize(encoder(x)) for any chunk, and the video is that of decoder(quantize(encoder(x)))."""
    config, encoder, decoder, quantizer = networks(name)
    with torch.no_grad():
        made = quantizer(encoder(pixels(sources / "0.mp4")))
        shown = ((decoder(made.quantised) + 1) * 127.5).round().clamp(0, 255)
    indices = made.indices.movedim(-1, 1) if quantizer.many else made.indices[:, None]
    how = {"weights": weights[name], "threads": 1, "force": True}
    for chunk in (4, 8, None):
        result = encode_video(sources / "0.mp4", tmp_path / "a.safetensors", chunk_frames=chunk, **how)
        latents = open_latents(tmp_path / "a.safetensors")
        assert (result.metadata.representation, result.dtype) == ("codes", "I32" if config.codes > 2**15 else "I16")
        assert tuple(latents.shape) == (1, config.codebooks, 4, 6, 8)
        assert torch.equal(latents.latents.long(), indices)
    assert load_file(tmp_path / "a.safetensors")["latents"].dtype == (torch.int32 if name == "fsq" else torch.int16)
    assert plan_encode(sources / "0.mp4", weights=weights[name]).latent_shape == latents.shape
    checkpoint = open_checkpoint(weights[name])
    with torch.no_grad():
        back = checkpoint.load_decoder()(checkpoint.load_quantizer().restore(latents.latents))
        torch.testing.assert_close(back, decoder(made.quantised), rtol=0, atol=1e-5)
    for chunk in (4, 8, None):
        decode_video(tmp_path / "a.safetensors", tmp_path / "a.npy", semantics="whole", chunk_frames=chunk, **how)
        decoded = torch.from_numpy(np.load(tmp_path / "a.npy")).permute(3, 0, 1, 2)[None].float()
        assert (decoded - shown).abs().max() <= 1
    encode_video(sources / "0.mp4", tmp_path / "mean.safetensors", save="mean", **how)
    with torch.no_grad():
        assert torch.allclose(
            open_latents(tmp_path / "mean.safetensors").latents, encoder(pixels(sources / "0.mp4")), atol=1e-5
        )


@pytest.mark.parametrize("layout", ["files", "tar"])
def test_a_batch_and_its_tokens(tmp_path, weights, sources, layout, capsys):
    out = tmp_path / "out"
    encode_batch(sources, out, weights=weights["lfq"], workers=0, layout=layout, first_frame="latent")
    encode_video(sources / "1.mp4", tmp_path / "one.safetensors", weights=weights["lfq"], threads=1)
    with pytest.raises(MovqError, match=r"0\.mp4 holds codes: LatentDataset\(codes=True\) gives them"):
        LatentDataset(out)
    data = LatentDataset(out, codes=True)
    codes = data[1]["latents"]
    assert (codes.dtype, codes.shape) == (torch.int64, (2, 4, 6, 8))
    assert torch.equal(codes, open_latents(tmp_path / "one.safetensors").latents[0].long())
    assert data[1]["first_frame_latents"].shape == (2, 1, 6, 8)
    assert torch.equal(data.slice(1, 1, 3)["latents"], codes[:, 1:3])
    assert collate([data[0], data[1]])["latents"].shape == (2, 2, 4, 6, 8)
    with pytest.raises(MovqError, match=r"holds codes, which no trainer of CogVideoX reads: encode with save=mean"):
        export_latents(out, tmp_path / "x", to="cogvideo-finetune", target="cogvideox-5b", any_weights=True)
    for options in ({"scale": 2.0}, {"dtype": "int8"}):
        with pytest.raises(MovqUsageError, match="is not for codes, which are written as they are"):
            export_latents(out, tmp_path / "npy", to="npy", **options)
    with pytest.raises(MovqUsageError, match="codes are whole numbers: leave scale and dtype out"):
        LatentDataset(out, codes=True, scale="cogvideox-5b")
    export_latents(out, tmp_path / "npy", to="npy")
    assert np.array_equal(np.load(tmp_path / "npy" / "1.mp4.npy"), codes.numpy())
    before = tree(out)
    assert encode_batch(sources, out, weights=weights["lfq"], workers=0, save="codes").made == []  # the default
    with pytest.raises(MovqError, match="made with save=moments; this command says save=mean"):
        encode_batch(sources, out, weights=weights["lfq"], workers=0, save="mean")
    assert tree(out) == before
    assert {(line["dtype"], line["format_version"]) for line in manifest(out).values()} == {("I16", "2")}
    assert run(["info", str(tmp_path / "one.safetensors")]) == 0
    assert "codes: 2 of 4 at each place" in capsys.readouterr().out


def test_scores(weights, sources):
    scores = evaluate_video(sources / "0.mp4", weights=weights["vq"], frames=5)
    assert scores.scores["psnr_mean"] > 0


def test_what_cannot_be(tmp_path, weights, sources):
    with pytest.raises(
        MovqUsageError, match=r"save: these weights have no quantiser; store_dtype=int8 makes latents small"
    ):
        encode_video(sources / "0.mp4", tmp_path / "a.safetensors", save="codes")
    with pytest.raises(MovqUsageError, match=r"store_dtype: these weights give codes; it goes with save=mean"):
        encode_video(sources / "0.mp4", tmp_path / "a.safetensors", weights=weights["vq"], store_dtype="int8")
    encode_video(sources / "0.mp4", tmp_path / "a.safetensors", weights=weights["vq"])
    with pytest.raises(MovqError, match="holds codes, not the mean"):
        open_latents(tmp_path / "a.safetensors").mean  # noqa: B018
    held = load_file(tmp_path / "a.safetensors")
    for code in (-1, 500):
        held["latents"][0, 0, 2, 3, 4] = code
        said = open_latents(tmp_path / "a.safetensors").metadata.to_strings("2")
        save_file(held, tmp_path / "lies.safetensors", said)
        with pytest.raises(
            MovqError, match=rf"lies\.safetensors: holds codes from .*{code}.*, of which its weights have 500"
        ):
            decode_video(tmp_path / "lies.safetensors", tmp_path / "lies.npy", weights=weights["vq"])
    tensors, config = load_file(weights["vq"]), networks("vq")[0].to_json()
    said = {"format": "movq-weights", "format_version": "1", "name": "bad"}
    for wrong, text in (
        ({"quantize.embedding.weight": torch.zeros(499, 4)}, r"has shape \[499, 4\], its config asks for \[500, 4\]"),
        ({"quantize.embedding.weight": None}, r"lacks quantize\.embedding\.weight"),
        ({"quantize.embedding.weight": torch.zeros(1, 4)}, r"has shape \[1, 4\], its config asks for \[500, 4\]"),
        ({"quantize.other": torch.zeros(1)}, r"has quantize\.other, which its config has no place for"),
    ):
        kept = {name: value for name, value in (tensors | wrong).items() if value is not None}
        save_file(kept, tmp_path / "bad.safetensors", said | {"config": config})
        with pytest.raises(MovqError, match=text):
            open_checkpoint(tmp_path / "bad.safetensors").load_quantizer()
    plain = config.replace('"quantizer":{"beta":0.25,"e_dim":4,"kind":"VectorQuantizer2","n_e":500},', "")
    save_file(tensors, tmp_path / "bad.safetensors", said | {"config": plain})
    with pytest.raises(
        MovqError, match=r"has quantize\.embedding\.weight, which belongs to neither encoder nor decoder"
    ):
        open_checkpoint(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    "quantizer",
    [
        {"kind": "VQ", "n_e": 8},
        {"kind": "VectorQuantizer2", "n_e": 8, "e_dim": 3, "beta": 1},
        {"kind": "FSQ", "levels": []},
        {"kind": "FSQ", "levels": [8, 8, 8], "dim": 5},
        {"kind": "LFQ", "dim": 40},
        {"kind": "LFQ", "dim": 10**9},
        {"kind": "LFQ", "dim": 4, "codebook_size": 4, "num_codebooks": 2, "keep_num_codebooks_dim": False},
        {"kind": "FSQ", "levels": 8},
        {"kind": "FSQ", "levels": [8.5, 8, 8, 8]},
        {"kind": "FSQ", "levels": [1201, 3, 3, 3]},
        {"kind": "FSQ", "levels": [8, 8, 8, 8], "num_codebooks": "1"},
        {"kind": "VectorQuantizer2", "n_e": 8, "e_dim": 4, "beta": "x"},
        {"kind": "VectorQuantizer2", "n_e": 8, "e_dim": 4, "beta": 1, "remap": "file"},
        "x",
        [1],
    ],
)
def test_configs_that_make_no_quantiser(quantizer):
    sizes = dict(ch=32, out_ch=3, in_channels=3, resolution=256, z_channels=4, num_res_blocks=1)
    with pytest.raises(ValueError, match="quantizer"):
        AutoencoderConfig(**sizes, attn_resolutions=(), quantizer=quantizer)


def test_files_that_are_not_what_the_manifest_says(tmp_path, weights, sources):
    """A line that calls floats codes, and headers whose config cannot be."""
    out = tmp_path / "out"
    encode_batch(sources, out, workers=0)
    lines = manifest(out).values()
    (out / "manifest.jsonl").write_text("".join(json.dumps(line | {"dtype": "I16"}) + "\n" for line in lines))
    with pytest.raises(MovqError, match="is not what the manifest says"):
        LatentDataset(out, codes=True)[0]
    (out / "manifest.jsonl").write_text(
        "".join(json.dumps(line | {"dtype": "I16"}) + "\n" + json.dumps(line) + "\n" for line in lines)
    )
    assert LatentDataset(out, scale=1.0)[0]["latents"].is_floating_point()  # of two lines the later counts
    encode_video(sources / "0.mp4", tmp_path / "a.safetensors", weights=weights["vq"])
    held, said = (
        load_file(tmp_path / "a.safetensors"),
        open_latents(tmp_path / "a.safetensors").metadata.to_strings("2"),
    )
    config = json.loads(said["config"])
    for wrong in (
        [],
        {},
        config | {"quantizer": "x"},
        config | {"quantizer": None},
        config | {"quantizer": {"kind": "FSQ", "levels": 8}},
    ):
        save_file(held, tmp_path / "lies.safetensors", said | {"config": json.dumps(wrong)})
        assert run(["info", str(tmp_path / "lies.safetensors")]) == 1


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("double_z", [False, True])
def test_checkpoints_with_a_codebook_are_converted(tmp_path, sources, suffix, double_z):
    """As MoVQ and VQGAN lay theirs out: the codebook is quantize.embedding.weight, and the rest has CogVideo's names."""
    config, *modules = networks("vq")
    if double_z:
        config = dataclasses.replace(config, double_z=True)
        modules[0] = Encoder3D(**dataclasses.asdict(config)).eval()
    parts = zip(("encoder", "decoder", "quantize"), modules, strict=True)
    state = {f"{part}.{key}": value for part, module in parts for key, value in module.state_dict().items()}

    def saved(name, **more):
        path = tmp_path / f"{name}{suffix}"
        held = {key: value.contiguous() for key, value in (state | more).items()}
        torch.save({"state_dict": held}, path) if suffix == ".pt" else save_file(held, path)
        return path

    made = convert_checkpoint(saved("vq"), tmp_path / "out.safetensors")
    assert (made.config.quantizer, made.config.double_z) == (KINDS["vq"], double_z)
    result = encode_video(
        sources / "0.mp4",
        tmp_path / "a.safetensors",
        weights=tmp_path / "out.safetensors",
        semantics="whole",
        threads=1,
    )
    with torch.no_grad():
        z = modules[0](pixels(sources / "0.mp4"))[:, :4]
        expected = modules[2](z).indices[:, None]
    assert torch.equal(open_latents(result.output_path).latents.long(), expected)
    for more, text in (
        ({"quant_conv.weight": torch.zeros(4, 4, 1, 1)}, r"has quant_conv\.weight: movq runs no layers between"),
        ({"post_quant_conv.bias": torch.zeros(4)}, r"has post_quant_conv\.bias: movq runs no layers between"),
        (
            {"quantize.embedding.weight": torch.zeros(500, 3)},
            r"gives [48] channels, which its codebook .* does not take",
        ),
        ({"quantize.proj.weight": torch.zeros(3)}, r"has quantize\.proj\.weight, which CogVideo's"),
    ):
        with pytest.raises(MovqError, match=text):
            convert_checkpoint(saved("bad", **more), tmp_path / "bad-out.safetensors")


def test_quantising_by_other_means_is_answered(tmp_path, sources, capsys):
    argv = ["encode", str(sources / "0.mp4"), "-o", str(tmp_path / "a.safetensors"), "--quantize", "fsq:8,8,8,5,5"]
    assert run(argv) == 2
    assert (
        "weights that hold a quantiser. For others, --store-dtype int8 makes latents small" in capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "codes"])
def test_forty_items_killed_at_random_and_resumed(zygote, tmp_path, weights, kind):
    (tmp_path / "in").mkdir()
    for i in range(40):
        clips.write(tmp_path / "in" / f"{i}.mp4", clips.pictures(5 + i % 9, 48, 32))
    options = ["--store-dtype", "int8"] if kind == "int8" else ["--weights", weights["vq"]]
    dice = random.Random(7)
    for layout in ("files", "tar"):
        command = ["batch-encode", tmp_path / "in", "-o", layout, "--layout", layout, *options]
        command += ["--tar-size", "60kB"] if layout == "tar" else []
        assert zygote.run(*command, "--workers", 1, cwd=tmp_path).returncode == 0
        (tmp_path / layout).rename(tmp_path / f"whole-{layout}")
        kills = 0
        for _ in range(4):
            process = zygote.start(*command, "--workers", 2, cwd=tmp_path, start_new_session=True)
            wait_for(lambda process=process: encoding(process.pid) or process.poll() is not None)
            time.sleep(dice.random())
            kills += process.poll() is None
            process.send_group_signal(signal.SIGKILL)
            process.wait()
            wait_for(lambda process=process: not group(process.pid), 5)
        assert kills
        assert zygote.run(*command, "--workers", 2, cwd=tmp_path).returncode == 0
        assert tree(tmp_path / layout) == tree(tmp_path / f"whole-{layout}")
