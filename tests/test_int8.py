"""Latents in int8: a scale for each channel of each latent, the same whatever the chunks, read as floats without being told."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from movq_cli import (
    LatentDataset,
    MovqError,
    MovqUsageError,
    decode_video,
    encode_batch,
    encode_video,
    export_latents,
    open_latents,
    plan_encode,
)
from movq_cli.cli import run
from movq_cli.export import decode_exported
from movq_cli.latents import LatentsWriter

from .helpers import clips
from .helpers.batches import manifest, tree
from .helpers.latents import LATENTS, metadata, times_and_indices


def write(path, latents, chunks):
    with LatentsWriter(path, int8=True) as writer:
        for piece in latents.split(chunks, dim=2):
            writer.append(piece)
        writer.finish(metadata(), *times_and_indices())
        writer.commit()
    return path


def rounded(latents):
    """Return latents as int8 keeps them, by NumPy: x = n * s, where 127 s is the largest of a channel and latent."""
    x = latents.numpy().astype(np.float64)
    scale = np.abs(x).max(axis=(3, 4), keepdims=True).astype(np.float32) / np.float32(127)
    steps = np.where(scale > 0, scale, 1)
    return np.rint((x / steps).astype(np.float32)).astype(np.int8), scale[0, :, :, 0, 0]


def test_numbers_and_scales_whatever_the_chunks(tmp_path):
    latents = LATENTS * torch.arange(4).view(1, 1, 4, 1, 1)  # the first latent is all zeros
    whole = write(tmp_path / "a.safetensors", latents, [4])
    assert write(tmp_path / "b.safetensors", latents, [1, 2, 1]).read_bytes() == whole.read_bytes()
    held = load_file(whole)
    numbers, scale = rounded(latents)
    assert held["latents"].dtype == torch.int8
    assert np.array_equal(held["latents"].numpy(), numbers)
    assert np.array_equal(held["latents_scale"].numpy(), scale)
    opened = open_latents(whole)
    assert opened.dtype == "I8"
    assert torch.equal(opened.latents, held["latents"] * held["latents_scale"][None, :, :, None, None])
    assert bool(((opened.latents - latents).abs() <= held["latents_scale"][None, :, :, None, None] * 0.5001).all())
    assert torch.equal(opened.read(1, 3), opened.latents[:, :, 1:3])
    assert torch.equal(opened.mean, opened.latents[:, :4])
    for channel, (mean, std, low, high) in enumerate(opened.channel_stats()):
        x = opened.latents[0, channel].double()
        assert (mean, std, low, high) == (float(x.mean()), float(x.std(correction=0)), float(x.min()), float(x.max()))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0])
def test_scales_that_cannot_be_are_refused(tmp_path, sources, scale):
    path = write(tmp_path / "a.safetensors", LATENTS, [4])
    tensors = load_file(path)
    tensors["latents_scale"][2, 1] = scale
    save_file(tensors, path, metadata().to_strings("2"))
    with pytest.raises(MovqError, match="scales that are negative or not finite"):
        open_latents(path).latents  # noqa: B018
    with pytest.raises(MovqError, match="scales that are negative or not finite"):
        open_latents(path).read(0, 2)
    out = encoded(sources, tmp_path / "out")
    output = out / "0.mp4.safetensors"
    data = bytearray(output.read_bytes())
    at = data.index(load_file(output)["latents_scale"].numpy().tobytes())
    data[at : at + 4] = np.float32(scale).tobytes()
    output.write_bytes(data)
    with pytest.raises(MovqError, match="scales that are negative or not finite"):
        LatentDataset(out)[0]


@pytest.mark.parametrize("wrong", ["version", "floats", "no scale", "shape"])
def test_files_that_do_not_agree_with_their_version_are_refused(tmp_path, wrong):
    path = write(tmp_path / "a.safetensors", LATENTS, [4])
    tensors, said = load_file(path), metadata().to_strings("1" if wrong == "version" else "2")
    if wrong == "floats":
        tensors["latents"] = tensors["latents"].float()
    if wrong == "no scale":
        del tensors["latents_scale"]
    if wrong == "shape":
        tensors["latents_scale"] = tensors["latents_scale"][:, 1:].contiguous()
    save_file(tensors, path, said)
    with pytest.raises(MovqError, match=r"format_version|latents_scale"):
        open_latents(path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    for i in range(3):
        clips.write(folder / f"{i}.mp4", clips.pictures(9, 64, 48)[i:], rate=8)
    return folder


def encoded(sources, out, **options):
    encode_batch(sources, out, **({"workers": 0, "store_dtype": "int8"} | options))
    return out


def test_encode_decode_and_info(tmp_path, sources, capsys):
    options = {"first_frame": "latent", "threads": 1}
    for dtype in ("fp32", "int8"):
        encode_video(sources / "0.mp4", tmp_path / f"{dtype}.safetensors", store_dtype=dtype, **options)
    encode_video(sources / "0.mp4", tmp_path / "chunks.safetensors", store_dtype="int8", chunk_frames=4, threads=1)
    exact, stored = (open_latents(tmp_path / f"{dtype}.safetensors") for dtype in ("fp32", "int8"))
    assert np.array_equal(load_file(stored.path)["latents"].numpy(), rounded(exact.latents)[0])
    assert torch.equal(open_latents(tmp_path / "chunks.safetensors").latents, stored.latents)
    assert open_latents(tmp_path / "int8.first_frame.safetensors").dtype == "I8"
    assert plan_encode(sources / "0.mp4", store_dtype="int8").output_bytes == stored.latents.numel()
    for dtype in ("fp32", "int8"):
        decode_video(tmp_path / f"{dtype}.safetensors", tmp_path / f"{dtype}.npy", threads=1)
    difference = np.load(tmp_path / "fp32.npy").astype(float) - np.load(tmp_path / "int8.npy")
    assert np.sqrt((difference**2).mean()) < 1  # of 255 levels
    assert run(["info", "--stats", stored.path]) == 0
    assert "32 x 3 x 6 x 8 I8" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["files", "tar"])
def test_a_batch_is_read_as_floats(tmp_path, sources, layout):
    folder = encoded(sources, tmp_path / "out", layout=layout, first_frame="latent")
    one = tmp_path / "one.safetensors"
    encode_video(sources / "1.mp4", one, store_dtype="int8", threads=1)
    data = LatentDataset(folder, scale=1.0, draw=False)
    latents = open_latents(one).latents[0]
    sample = data[1]
    assert sample["latents"].dtype == torch.float32
    assert torch.equal(sample["latents"], latents[:16])
    assert torch.equal(data.slice(1, 1, 2)["latents"], latents[:16, 1:2])
    assert sample["first_frame_latents"].shape == (16, 1, 6, 8)
    drawn = LatentDataset(folder, scale=1.0)
    torch.manual_seed(0)
    noise = torch.randn(16, 3, 6, 8)
    torch.manual_seed(0)
    expected = latents[:16] + (latents[16:].clamp(-30, 20) / 2).exp() * noise
    assert torch.allclose(drawn[1]["latents"], expected, atol=1e-6)


def test_it_is_not_mixed_with_floats(tmp_path, sources):
    folder = encoded(sources, tmp_path / "out", store_dtype="bf16")
    before = tree(folder)
    with pytest.raises(MovqError, match=re.escape("made with store_dtype=bf16; this command says store_dtype=int8")):
        encoded(sources, folder)
    assert tree(folder) == before
    assert {line["dtype"] for line in manifest(encoded(sources, folder, replace=True)).values()} == {"I8"}
    assert {line["format_version"] for line in manifest(folder).values()} == {"2"}
    with pytest.raises(MovqError, match=r"made with store_dtype=int8; this command says store_dtype=auto"):
        encoded(sources, folder, store_dtype="auto")
    assert encode_batch(sources, folder, workers=0, store_dtype="int8").made == []


def test_exports(tmp_path, sources):
    folder = encoded(sources, tmp_path / "out", first_frame="latent")
    exact = encoded(sources, tmp_path / "exact", store_dtype="fp32")
    latents = open_latents(folder / "0.mp4.safetensors").latents[0].numpy()
    export_latents(folder, tmp_path / "floats", to="npy")
    assert np.array_equal(np.load(tmp_path / "floats" / "0.mp4.npy"), latents)
    for made in (folder, exact):
        export_latents(made, tmp_path / made.name / "npy", to="npy", dtype="int8")
        numbers, scale = (np.load(tmp_path / made.name / "npy" / f"0.mp4{suffix}") for suffix in (".npy", ".scale.npy"))
        assert (numbers.dtype, scale.dtype) == (np.int8, np.float32)
        assert np.allclose(numbers * scale[..., None, None], latents, rtol=1e-6, atol=0)
    assert (tmp_path / "out" / "npy" / "0.mp4.first_frame.scale.npy").exists()
    decode_video(folder / "0.mp4.safetensors", tmp_path / "a.npy", threads=1)
    decode_exported(tmp_path / "out" / "npy" / "0.mp4.npy", tmp_path / "b.npy", "npy", threads=1)
    assert np.abs(np.load(tmp_path / "a.npy").astype(int) - np.load(tmp_path / "b.npy")).max() <= 1
    (tmp_path / "out" / "npy" / "0.mp4.scale.npy").unlink()
    with pytest.raises(MovqError, match=r"its scales are not beside it, in 0\.mp4\.scale\.npy"):
        decode_exported(tmp_path / "out" / "npy" / "0.mp4.npy", tmp_path / "b.npy", "npy", force=True)
    with pytest.raises(MovqUsageError, match="int8 is for npy: no trainer reads it"):
        export_latents(
            folder, tmp_path / "c", to="cogvideo-finetune", dtype="int8", target="cogvideox-5b", any_weights=True
        )


def test_eval_says_what_it_costs(sources, capsys):
    assert run(["eval", str(sources / "0.mp4"), "--against", "--store-dtype int8", "--json"]) == 0
    (video,) = json.loads(capsys.readouterr().out)["videos"]
    against = video["against"]
    assert 0 < against["difference"]["mean"]["rms"] < 0.015
    assert abs(against["psnr_mean"] - video["psnr_mean"]) < 0.05
    assert against["picture_psnr"] > 48
    assert against["latents_bytes"] < 0.4 * video["latents_bytes"]
