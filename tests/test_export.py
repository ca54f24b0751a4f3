"""Exports, read back by lines written from each trainer's own loading code, at the commit that is named."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from movq_cli import (
    LatentDataset,
    MovqError,
    MovqUsageError,
    Picture,
    Selection,
    decode_video,
    encode_batch,
    encode_video,
    export_latents,
    open_latents,
    read_frames,
)
from movq_cli.cli import run
from movq_cli.export import decode_exported
from movq_cli.posterior import draw_latents

from .helpers import clips
from .helpers.models import of_diffusers

CAPTIONS = {"a": "A cat,\nin the rain.", "b": "A dog.", "c.v2": "A cat, in the rain."}


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    model = of_diffusers(
        block_out_channels=(32, 32, 32, 32), layers_per_block=1, latent_channels=16, scaling_factor=0.7
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for i, (name, caption) in enumerate(CAPTIONS.items()):
        clips.write(folder / f"{name}.mp4", clips.pictures(13, 48, 32)[i:], rate=8)
        (folder / f"{name}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module", params=["files", "tar"])
def batch(request, tmp_path_factory, vae, sources):
    folder = tmp_path_factory.mktemp("batch")
    encode_batch(
        sources, folder, weights=vae, target="cogvideox-5b", frames=9, buckets="9x32x48", precision="fp32",
        layout=request.param, workers=0,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def embeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeds")
    for caption in CAPTIONS.values():
        digest = hashlib.sha256(" ".join(caption.split()).encode()).hexdigest()
        torch.manual_seed(len(caption))
        save_file({"prompt_embeds": torch.randn(1, 226, 4096)}, folder / f"{digest}.safetensors")
    return folder


@pytest.fixture(scope="module")
def moments(tmp_path_factory, vae, sources):
    """The moments of each clip, encoded one by one."""
    made = {}
    for name in CAPTIONS:
        path = tmp_path_factory.mktemp("one") / "x.safetensors"
        encode_video(
            sources / f"{name}.mp4",
            path,
            weights=vae,
            target="cogvideox-5b",
            frames=9,
            height=32,
            width=48,
            precision="fp32",
            threads=1,
        )
        made[name] = open_latents(path)
    return made


def statuses(result):
    return {line["id"].removesuffix(".mp4"): line["status"] for line in result.lines}


def test_cogvideo_finetune(tmp_path, batch, moments):
    """zai-org/CogVideo, finetune/datasets/t2v_dataset.py and utils.py, at 7a1af715: BaseT2VDataset.__getitem__."""
    result = export_latents(batch, tmp_path, to="cogvideo-finetune", seed=3)
    assert set(statuses(result).values()) == {"done"}
    prompts = [
        line.strip() for line in (tmp_path / "prompt.txt").read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    videos = [
        tmp_path / line.strip()
        for line in (tmp_path / "videos.txt").read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    assert len(prompts) == len(videos) == 3
    assert all(path.is_file() for path in videos)
    cache = tmp_path / "cache" / "video_latent" / "cogvideox-t2v" / "9x32x48"
    stacked = []
    for prompt, video in zip(prompts, videos, strict=True):
        encoded = load_file(cache / (video.stem + ".safetensors"))["encoded_video"]
        assert prompt == " ".join(CAPTIONS[video.stem].split())
        assert (encoded.dtype, encoded.shape) == (torch.bfloat16, (16, 3, 4, 6))
        latents = moments[video.stem]
        m = latents.metadata
        sample = draw_latents(latents.latents, 0, seed=3, source_sha256=m.source_sha256, first_index=0)[0]
        assert torch.equal(encoded, (sample * 0.7).to(torch.bfloat16))
        stacked.append(encoded)
    torch.stack(stacked)
    assert "--model_name cogvideox-t2v --train_resolution 9x32x48" in result.usage


def test_cogvideox_factory(tmp_path, batch, embeds, moments, sources):
    """a-r-r-o-w/cogvideox-factory, training/cogvideox/dataset.py, at 223add1a: VideoDataset with load_tensors."""
    result = export_latents(batch, tmp_path, to="cogvideox-factory", prompt_embeds=embeds)
    assert set(statuses(result).values()) == {"done"}
    prompts = (tmp_path / "prompts.txt").read_text(encoding="utf-8").splitlines()
    paths = [tmp_path / line.strip() for line in (tmp_path / "videos.txt").read_text(encoding="utf-8").splitlines()]
    assert len(prompts) == len(paths) == 3
    for path in paths:
        file = path.name.split(".")[0] + ".pt"
        latents = torch.load(tmp_path / "video_latents" / file, map_location="cpu", weights_only=True)
        embedded = torch.load(tmp_path / "prompt_embeds" / file, map_location="cpu", weights_only=True)
        name = next(name for name in CAPTIONS if name.split(".")[0] == path.name.split(".")[0])
        assert torch.equal(latents, moments[name].latents[0])
        assert latents.shape == (32, 3, 4, 6)
        assert embedded.shape == (226, 4096)
    assert "--frame_buckets 9 --height_buckets 32 --width_buckets 48" in result.usage


def test_finetrainers(tmp_path, batch, embeds, moments):
    """a-r-r-o-w/finetrainers, finetrainers/data/precomputation.py and models/cogvideox, at f476c371."""
    export_latents(batch, tmp_path, to="finetrainers", prompt_embeds=embeds)
    folder = tmp_path / "finetrainers-precomputed-data"
    assert len(list(folder.glob("latent-*.pt"))) == len(list(folder.glob("condition-*.pt"))) == 3
    for i, name in enumerate(sorted(CAPTIONS)):
        latents = torch.load(folder / f"latent-{i}.pt", map_location="cpu", weights_only=True)["latents"]
        condition = torch.load(folder / f"condition-{i}.pt", map_location="cpu", weights_only=True)
        mean, logvar = latents.chunk(2, dim=2)
        theirs = moments[name].latents.transpose(1, 2)
        assert torch.equal(mean, theirs[:, :, :16])
        assert torch.equal(logvar, theirs[:, :, 16:])
        assert condition["encoder_hidden_states"].shape == (1, 226, 4096)


@pytest.fixture(scope="module")
def pictured(tmp_path_factory, vae, sources):
    """A batch for image-to-video, of clips that begin late in their videos."""
    folder = tmp_path_factory.mktemp("pictured")
    encode_batch(
        sources, folder, weights=vae, target="cogvideox-5b-i2v", start="0.125", frames=9, buckets="9x32x32", precision="fp32",
        workers=0,
    )  # fmt: skip
    return folder


def test_first_frames_for_cogvideo_finetune(tmp_path, pictured):
    """zai-org/CogVideo, finetune/datasets/i2v_dataset.py and utils.py, at 7a1af715: load_images, load_images_from_videos."""
    result = export_latents(pictured, tmp_path, to="cogvideo-finetune")
    assert set(statuses(result).values()) == {"done"}
    lists = {name: (tmp_path / name).read_text().splitlines() for name in ("images.txt", "videos.txt", "prompt.txt")}
    assert len({len(lines) for lines in lists.values()}) == 1
    for image, video in zip(lists["images.txt"], lists["videos.txt"], strict=True):
        # Where no list is named, it looks for this file before it reads the video.
        assert tmp_path / image == (tmp_path / video).parent.parent / "first_frames" / f"{(tmp_path / video).stem}.png"
        with read_frames(tmp_path / image) as frames:
            (frame,) = (frame.image for frame in frames)
        selection, picture = Selection(start="0.125", frames=1, fps=8), Picture(height=32, width=32)
        with read_frames(tmp_path / video, selection, picture) as frames:
            assert np.array_equal(next(frames).image, frame)
    assert "--model_name cogvideox-i2v" in result.usage
    assert result.usage.endswith("--image_column images.txt")
    assert export_latents(pictured, tmp_path, to="cogvideo-finetune").kept == 3


def test_first_frames_for_cogvideox_factory(tmp_path, pictured, embeds):
    """a-r-r-o-w/cogvideox-factory, training/cogvideox/dataset.py, at 223add1a: image_latents with load_tensors."""
    export_latents(pictured, tmp_path, to="cogvideox-factory", prompt_embeds=embeds)
    names = [Path(line).name.split(".")[0] for line in (tmp_path / "videos.txt").read_text().splitlines()]
    assert len(names) == 3
    for name, path in zip(names, sorted(pictured.glob("*.first_frame.safetensors")), strict=True):
        images = torch.load(tmp_path / "image_latents" / f"{name}.pt", map_location="cpu", weights_only=True)
        assert images.shape == (32, 1, 4, 4)
        assert torch.equal(images, load_file(path)["latents"][0])


def test_npy(tmp_path, batch, moments):
    export_latents(batch, tmp_path / "raw", to="npy")
    export_latents(batch, tmp_path / "scaled", to="npy", scale="cogvideox-2b", seed=1)
    for name, latents in moments.items():
        raw, scaled = (
            np.load(path) for path in sorted(tmp_path.glob(f"*/{name}*.npy"), key=lambda path: path.parent.name)
        )
        assert np.array_equal(raw, latents.latents[0].float().numpy())
        m = latents.metadata
        sample = draw_latents(latents.latents, 0, seed=1, source_sha256=m.source_sha256, first_index=0)[0]
        assert np.allclose(scaled, (sample * 1.15258426).numpy())


def test_it_is_resumed_and_follows_the_batch(tmp_path, vae, sources):
    """Files that are up to date stay, those of items that are gone are removed, and a deleted one is made again."""
    mine = tmp_path / "in"
    shutil.copytree(sources, mine)
    options = dict(weights=vae, target="cogvideox-5b", buckets="9x32x48", precision="fp32", workers=0)
    encode_batch(mine, tmp_path / "batch", **options)
    out = tmp_path / "out"
    export_latents(tmp_path / "batch", out, to="cogvideo-finetune")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*.safetensors")}
    assert len(before) == 3
    again = export_latents(tmp_path / "batch", out, to="cogvideo-finetune")
    assert again.kept == 3
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*.safetensors")}
    (next(iter(before))).unlink()
    assert export_latents(tmp_path / "batch", out, to="cogvideo-finetune").kept == 2
    for path in mine.glob("b.*"):
        path.unlink()
    encode_batch(mine, tmp_path / "batch", **options)
    result = export_latents(tmp_path / "batch", out, to="cogvideo-finetune")
    assert {Path(path).stem for path in result.removed} == {"b"}
    assert not (out / "videos" / "b.mp4").is_symlink()
    assert sorted(path.stem for path in out.rglob("*.safetensors")) == ["a", "c.v2"]
    lines = [json.loads(text) for text in (out / "export.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["done", "done", "done"]  # the first for what all share


def test_a_killed_export_goes_on(tmp_path, batch):
    """Its manifest ends in the middle of a line, and a file of the next item is there already."""
    whole = export_latents(batch, tmp_path / "whole", to="npy")
    out = tmp_path / "out"
    export_latents(batch, out, to="npy")
    manifest = out / "export.jsonl"
    shared, first, second, _ = manifest.read_text().splitlines()
    begun = json.dumps({**json.loads(second), "status": "begun"})
    manifest.write_text(f"{shared}\n{first}\n{begun}\n{first[:40]}")
    (out / next(iter(json.loads(second)["files"]))).write_bytes(b"half")
    next(path for path in out.glob("c*.npy")).unlink()
    result = export_latents(batch, out, to="npy")
    assert result.kept == 1
    assert statuses(result) == statuses(whole)
    for path in (tmp_path / "whole").glob("*.npy"):
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_a_dry_run_writes_nothing_and_files_of_others_stay(tmp_path, batch):
    result = export_latents(batch, tmp_path / "out", to="npy", dry_run=True)
    assert set(statuses(result).values()) == {"done"}
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    name = next(iter(export_latents(batch, tmp_path / "names", to="npy").lines[0]["files"]))
    (tmp_path / "mine" / name).write_text("mine")
    with pytest.raises(MovqError, match="exists; force=True overwrites it"):
        export_latents(batch, tmp_path / "mine", to="npy")
    assert (tmp_path / "mine" / name).read_text() == "mine"


# -- traps


def refused(folder, out, **options):
    (reason,) = {line["reason"] for line in export_latents(folder, out, **options).lines if line["status"] == "refused"}
    return reason


def encoded(sources, out, vae, **options):
    encode_batch(
        sources, out, **({"weights": vae, "short_side": 32, "frames": 9, "precision": "fp32", "workers": 0} | options)
    )
    return out


def test_sets_that_a_trainer_cannot_read_are_refused(tmp_path, batch, vae, sources, embeds):
    with pytest.raises(MovqUsageError, match="name a layout: cogvideo-finetune, finetrainers"):
        export_latents(batch, tmp_path / "x")
    with pytest.raises(
        MovqUsageError, match=r"prompt_embeds: finetrainers needs text embeddings; examples/embed_prompts.py"
    ):
        export_latents(batch, tmp_path / "x", to="finetrainers")
    with pytest.raises(MovqUsageError, match="its trainer scales"):
        export_latents(batch, tmp_path / "x", to="finetrainers", prompt_embeds=embeds, scale="0.7")
    with pytest.raises(MovqUsageError, match=r"takes latents in pairs, and a.mp4 has 3: encode 5 or 13 frames"):
        export_latents(batch, tmp_path / "x", to="cogvideox-factory", prompt_embeds=embeds, target="cogvideox1.5-5b")
    assert not (tmp_path / "x").exists()
    mine = tmp_path / "in"
    shutil.copytree(sources, mine)
    clips.write(mine / "tall.mp4", clips.pictures(9, 32, 48))
    (mine / "tall.txt").write_text("Tall.")
    mixed = encoded(mine, tmp_path / "mixed", vae)
    with pytest.raises(MovqUsageError, match="name the model to train"):
        export_latents(mixed, tmp_path / "x", to="cogvideo-finetune")
    with pytest.raises(MovqError, match=r"2 shapes, and the trainer stacks them: .*shape=9x48x32 exports those"):
        export_latents(mixed, tmp_path / "x", to="cogvideo-finetune", target="cogvideox-5b")
    result = export_latents(mixed, tmp_path / "one", to="cogvideo-finetune", target="cogvideox-5b", shape="9x32x48")
    assert statuses(result) == {"a": "done", "b": "done", "c.v2": "done", "tall": "left out"}
    with pytest.raises(MovqUsageError, match=r"no item is 9x32x32; there are 9x32x48 \(3\), 9x48x32 \(1\)"):
        export_latents(mixed, tmp_path / "none", to="npy", shape="9x32x32")
    with pytest.raises(MovqError, match="is the folder of a batch"):
        export_latents(mixed, mixed, to="npy")


def test_items_that_a_trainer_cannot_read_are_refused(tmp_path, vae, sources):
    mine = tmp_path / "in"
    shutil.copytree(sources, mine)
    (mine / "b.txt").unlink()
    target = {"to": "cogvideo-finetune", "target": "cogvideox-5b"}
    made = encoded(mine, tmp_path / "made", vae)
    result = export_latents(made, tmp_path / "out", **target)
    assert statuses(result) == {"a": "done", "b": "refused", "c.v2": "done"}
    assert refused(made, tmp_path / "out", **target) == "has no caption"
    assert len((tmp_path / "out" / "videos.txt").read_text().splitlines()) == 2
    assert (
        run(["export", str(made), "-o", str(tmp_path / "out"), "--to", "cogvideo-finetune", "--for", "cogvideox-5b"])
        == 1
    )
    lines = (tmp_path / "out" / "export.jsonl").read_text()
    assert "\\u000" not in lines  # marks of options
    odd = encoded(sources, tmp_path / "odd", vae, short_side=24)
    assert refused(odd, tmp_path / "o", **target).startswith("has latents of 3x5, of which the transformer would leave")
    assert refused(odd, tmp_path / "o", **target).endswith("encode with --multiple 16")
    mean = encoded(sources, tmp_path / "mean", vae, save="mean")
    assert refused(mean, tmp_path / "m", **target) == "holds no moments, which are drawn from: encode it without --save"
    for path in mine.glob("*.mp4"):
        path.unlink()
    assert "the trainer asks that it exists" in "".join(
        line.get("reason", "") for line in export_latents(made, tmp_path / "gone", **target).lines
    )


def test_names_that_a_trainer_takes_for_one_are_refused(tmp_path, vae, sources, embeds):
    for name in ("x.1", "x.2"):
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copy(sources / "a.mp4", tmp_path / "in" / name / f"{name}.mp4")
        shutil.copy(sources / "a.txt", tmp_path / "in" / name / f"{name}.txt")
    made = encoded(tmp_path / "in", tmp_path / "made", vae)
    with pytest.raises(MovqError, match="would both be called x, by which the trainer tells items apart"):
        export_latents(made, tmp_path / "f", to="cogvideox-factory", prompt_embeds=embeds)
    assert set(statuses(export_latents(made, tmp_path / "n", to="npy")).values()) == {"done"}
    for suffix in ("mp4", "txt"):
        shutil.move(tmp_path / "in" / "x.2" / f"x.2.{suffix}", tmp_path / "in" / "x.2" / f"x.1.{suffix}")
    again = encoded(tmp_path / "in", tmp_path / "again", vae)
    with pytest.raises(MovqError, match=r"would both be called x\.1"):
        export_latents(again, tmp_path / "c", to="cogvideo-finetune", target="cogvideox-5b")


def test_embedded_weights_are_of_another_family(tmp_path, sources):
    encode_batch(sources, tmp_path / "made", short_side=32, frames=9, workers=0)
    options = {"to": "cogvideo-finetune", "target": "cogvideox-5b"}
    with pytest.raises(MovqError, match=r"which no model of CogVideoX's family reads: .*any_weights=True exports them"):
        export_latents(tmp_path / "made", tmp_path / "out", **options)
    result = export_latents(tmp_path / "made", tmp_path / "out", **options, any_weights=True)
    assert set(statuses(result).values()) == {"done"}
    assert "no model of CogVideoX's family reads" in result.warnings[0]
    assert export_latents(tmp_path / "made", tmp_path / "npy", to="npy").warnings == ()


# -- for a model


def test_a_target_sets_what_is_left_open(tmp_path, vae, sources, capsys):
    out = tmp_path / "a.safetensors"
    asked = [str(sources / "a.mp4"), "-o", str(out), "--weights", str(vae), "--for", "cogvideox-2b", "--height", "32"]
    assert run(["encode", *asked, "--frames", "9", "--width", "48"]) == 0
    said = capsys.readouterr().err
    assert (
        "for cogvideox-2b: 9 frames at 8 per second, multiples of 16, stored in fp16, scaling factor 1.15258426" in said
    )
    latents = open_latents(out)
    assert (latents.dtype, latents.metadata.scaling_factor, latents.shape) == ("F16", "1.15258426", (1, 32, 3, 4, 6))
    assert latents.metadata.preprocessing["prepared_for"] == "cogvideox-2b"
    assert latents.metadata.fps == 8
    assert run(["encode", *asked, "--frames", "9", "--width", "48", "--scaling-factor", "0.5", "--force"]) == 0
    assert open_latents(out).metadata.scaling_factor == "0.5"
    with pytest.raises(MovqUsageError, match=r"must be one of cogvideox-2b, cogvideox-5b"):
        encode_video(sources / "a.mp4", out, target="cogvideox", force=True)
    with pytest.raises(MovqError, match=r'to fetch it: hf download zai-org/CogVideoX1.5-5B --include "vae/'):
        encode_video(sources / "a.mp4", out, target="cogvideox1.5-5b", force=True)


def test_files_and_links_of_others_stay(tmp_path, vae, sources):
    """A usual folder of data: links to videos, and prompts that somebody wrote."""
    root = tmp_path / "root"
    (root / "videos").mkdir(parents=True)
    for path in sources.iterdir():
        (root / "videos" / path.name).symlink_to(path)
    made = encoded(root / "videos", tmp_path / "made", vae)
    (root / "prompt.txt").write_text("mine")
    options = {"to": "cogvideo-finetune", "target": "cogvideox-5b"}
    with pytest.raises(MovqError, match="exists; force=True overwrites it"):
        export_latents(made, root, **options)
    assert (root / "prompt.txt").read_text() == "mine"
    assert os.readlink(root / "videos" / "a.mp4") == str(sources / "a.mp4")
    assert not (root / "cache").exists()
    real = tmp_path / "real"
    shutil.copytree(sources, real / "videos")
    result = export_latents(encoded(real / "videos", tmp_path / "made2", vae), real, **options)
    assert set(statuses(result).values()) == {"done"}
    assert not any(path.is_symlink() for path in (real / "videos").iterdir())


def test_numbers_belong_to_the_item_that_was_written_last(tmp_path, vae, sources, embeds):
    """An export that was killed after it had given an item the number of another."""
    mine, out = tmp_path / "in", tmp_path / "out"
    mine.mkdir()
    for name in ("b.mp4", "b.txt", "c.v2.mp4", "c.v2.txt"):
        shutil.copy(sources / name, mine)
    options = {"to": "finetrainers", "prompt_embeds": embeds}
    made = encoded(mine, tmp_path / "made", vae)
    export_latents(made, out, **options)
    right = {path.name: path.read_bytes() for path in out.rglob("*.pt")}
    shutil.copy(sources / "a.mp4", mine)
    shutil.copy(sources / "a.txt", mine)
    encoded(mine, made, vae)

    def killed(done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_latents(made, out, **options, progress=killed)
    assert {path.name: path.read_bytes() for path in out.rglob("*.pt")} != right
    for path in mine.glob("a.*"):
        path.unlink()
    encoded(mine, made, vae)
    result = export_latents(made, out, **options)
    assert result.kept == 1
    assert {path.name: path.read_bytes() for path in out.rglob("*.pt")} == right


def test_what_a_model_needs_is_asked_of_the_batch(tmp_path, vae, sources, embeds):
    made = encoded(sources, tmp_path / "made", vae)
    for layout, kind in (("cogvideox-factory", "latent"), ("cogvideo-finetune", "png")):
        options = {"to": layout, "prompt_embeds": embeds, "target": "cogvideox-5b-i2v"}
        assert refused(made, tmp_path / layout, **options) == (
            f"has no first frame ({kind}): the same batch-encode with --first-frame {kind} adds it, and encodes nothing again"
        )
    with pytest.raises(
        MovqUsageError, match="cogvideox-5b-i2v takes images, and this trainer trains CogVideoX from text"
    ):
        export_latents(made, tmp_path / "t", to="finetrainers", prompt_embeds=embeds, target="cogvideox-5b-i2v")
    result = export_latents(made, tmp_path / "c", to="cogvideo-finetune", target="cogvideox-2b")
    assert result.lines[0]["made_from"]["scale"] == 1.15258426
    assert "the headers say the scaling factor 0.7; cogvideox-2b's 1.15258426 is used" in result.warnings
    with pytest.raises(MovqError, match=r"holds an export of \.\./made to cogvideo-finetune: name another folder"):
        export_latents(made, tmp_path / "c", to="npy")
    spans = encoded(sources, tmp_path / "spans", vae, frames=5, pick="slide:5")
    result = export_latents(spans, tmp_path / "s", to="cogvideo-finetune", target="cogvideox-5b")
    reasons = [line.get("reason", "") for line in result.lines]
    assert all("takes 1 + a multiple of 8" in reason for reason in reasons)
    data = bytearray((spans / "a.mp4_0-5.safetensors").read_bytes())
    data[-1] ^= 1
    (spans / "a.mp4_0-5.safetensors").write_bytes(data)
    assert "is damaged" in refused(spans, tmp_path / "n", to="npy")


def test_embeddings_of_one_prompt_are_shared_and_the_trainers_own_stay(tmp_path, vae, sources, embeds):
    """Two clips have the same caption, and the trainer has made the embeddings of the third."""
    made = encoded(sources, tmp_path / "made", vae)
    options = {"to": "cogvideo-finetune", "target": "cogvideox-5b", "prompt_embeds": embeds}
    theirs = tmp_path / "out" / "cache" / "prompt_embeddings" / f"{hashlib.sha256(b'A dog.').hexdigest()}.safetensors"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    assert export_latents(made, tmp_path / "out", **options).kept == 0
    assert export_latents(made, tmp_path / "out", **options).kept == 3
    assert theirs.read_bytes() == b"theirs"
    (other,) = set(theirs.parent.iterdir()) - {theirs}
    assert load_file(other)["prompt_embedding"].shape == (226, 4096)


def test_two_exports_at_once(tmp_path, batch):
    def second(done, total):
        with pytest.raises(MovqError, match="another export is writing to it"):
            export_latents(batch, tmp_path / "out", to="npy")

    export_latents(batch, tmp_path / "out", to="npy", progress=second)


def test_new_embeddings_are_exported_and_must_be_alike(tmp_path, vae, sources, embeds):
    mine = tmp_path / "embeds"
    shutil.copytree(embeds, mine)
    made = encoded(sources, tmp_path / "made", vae)
    options = {"to": "finetrainers", "prompt_embeds": mine}
    assert export_latents(made, tmp_path / "out", **options).kept == 0
    assert export_latents(made, tmp_path / "out", **options).kept == 3
    for path in mine.iterdir():
        save_file({"prompt_embeds": torch.zeros(226, 4096)}, path)
    assert export_latents(made, tmp_path / "out", **options).kept == 0
    save_file({"prompt_embeds": torch.zeros(7, 13)}, mine / f"{hashlib.sha256(b'A dog.').hexdigest()}.safetensors")
    assert "has embeddings of [7, 13] where [226, 4096], like those before it," in refused(
        made, tmp_path / "out", **options
    )


# -- and back


@pytest.mark.parametrize("layout", ["cogvideo-finetune", "finetrainers", "cogvideox-factory", "npy"])
def test_what_was_exported_is_decoded_as_the_original(tmp_path, vae, batch, embeds, moments, layout):
    """At most one level of 255 differs: a draw is decoded from the draw."""
    options = {} if layout in ("cogvideo-finetune", "npy") else {"prompt_embeds": embeds}
    if layout == "cogvideo-finetune":
        options |= {"dtype": "fp32", "seed": 2}
    result = export_latents(batch, tmp_path / "out", to=layout, **options)
    line = next(line for line in result.lines if line["id"] == "a.mp4")
    file = tmp_path / "out" / next(path for path in line["files"] if "condition" not in path and "embed" not in path)
    decode_exported(file, tmp_path / "back.npy", layout, weights=vae, target="cogvideox-5b", precision="fp32")
    path = Path(moments["a"].path)
    decode_video(
        path,
        tmp_path / "right.npy",
        weights=vae,
        precision="fp32",
        threads=1,
        **({"draw": True, "seed": 2} if "seed" in options else {}),
    )
    back, right = (np.load(tmp_path / f"{name}.npy").astype(int) for name in ("back", "right"))
    assert back.shape == right.shape
    # The batch stores bf16, as the target asks; its own rounding is in both.
    assert abs(back - right).max() <= 1


def test_wrong_scales_axes_and_layouts_are_named(tmp_path, vae, batch, capsys):
    export_latents(batch, tmp_path / "out", to="cogvideo-finetune", dtype="fp32")
    file = next((tmp_path / "out").rglob("a.safetensors"))
    latents = load_file(file)["encoded_video"]
    right = latents / latents.std()
    save_file({"encoded_video": right}, file)
    arguments = [
        "decode",
        str(file),
        "-o",
        str(tmp_path / "x.npy"),
        "--from",
        "cogvideo-finetune",
        "--weights",
        str(vae),
        "--force",
    ]
    assert run(arguments) == 0
    assert "is the scale right" not in capsys.readouterr().err
    save_file({"encoded_video": right * 5}, file)
    assert run(arguments) == 0
    assert "a standard deviation of 7.14, where those of" in capsys.readouterr().err
    assert run([*arguments, "--scale", "3.5"]) == 0
    assert "is the scale right" not in capsys.readouterr().err
    save_file({"encoded_video": right.transpose(0, 1).contiguous()}, file)
    assert run(arguments) == 1
    assert (
        "has an array of [3, 16, 4, 6] torch.float32, where (16 or 32, T, H, W) is expected: 16 channels come first"
        in (capsys.readouterr().err)
    )
    for layout in ("finetrainers", "cogvideox-factory", "npy"):
        with pytest.raises(MovqError, match=r"holds no tensor of latents|is not an array"):
            decode_exported(file, tmp_path / "y.npy", layout, weights=vae)
    assert run(["decode", str(file), "--scale", "2"]) == 2
    capsys.readouterr()
    export_latents(batch, tmp_path / "n", to="npy")
    array = next((tmp_path / "n").rglob("a*.npy"))
    assert run(["decode", str(array), "-o", str(tmp_path / "z.npy"), "--from", "npy", "--weights", str(vae)]) == 0


def test_info_says_what_exported_files_seem_to_be(tmp_path, batch, embeds, capsys):
    export_latents(batch, tmp_path / "c", to="cogvideo-finetune")
    export_latents(batch, tmp_path / "n", to="npy")
    export_latents(batch, tmp_path / "f", to="cogvideox-factory", prompt_embeds=embeds)
    file = next((tmp_path / "c").rglob("a.safetensors"))
    assert run(["info", str(file), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    latents = load_file(file)["encoded_video"].float()
    assert (said["kind"], said["layout"], said["shape"]) == ("exported", "cogvideo-finetune", [16, 3, 4, 6])
    assert said["std"] == pytest.approx(float(latents.std()), rel=1e-2)
    array = next((tmp_path / "n").rglob("a*.npy"))
    assert run(["info", str(file), str(array)]) == 0
    out = capsys.readouterr().out
    assert "encoded_video" in out
    assert "moments" in out
    assert run(["info", str(tmp_path / "f" / "video_latents" / "a.pt")]) == 1
    assert "movq decode FILE --from LAYOUT" in capsys.readouterr().err


# -- what trainers do with them


def test_info_of_an_exports_folder(tmp_path, vae, sources, capsys):
    mine = tmp_path / "in"
    shutil.copytree(sources, mine)
    (mine / "b.txt").unlink()
    made = encoded(mine, tmp_path / "made", vae)
    export_latents(made, tmp_path / "data", to="cogvideo-finetune", target="cogvideox-5b")
    file = next((tmp_path / "data").rglob("a.safetensors"))
    file.write_bytes(b"cut")
    (tmp_path / "data" / "prompt.txt").unlink()
    (mine / "a.mp4").unlink()
    assert run(["info", str(tmp_path / "data")]) == 0
    shown = capsys.readouterr().out
    assert "export of 3 items to cogvideo-finetune: 2 done, 1 refused" in shown
    assert "../made" in shown
    assert "3 outputs missing that the manifest has" in shown
    assert "has no caption" in shown
    assert run(["info", "--json", str(tmp_path / "data")]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["counts"] == {"done": 2, "refused": 1}
    assert values["missing"] == [os.path.relpath(file, tmp_path / "data"), "prompt.txt", "videos/a.mp4"]
    (tmp_path / "data" / "export.jsonl").write_text("{}\n")
    assert run(["info", str(tmp_path / "data")]) == 1
    assert "is not of an export of movq" in capsys.readouterr().err


def test_what_a_batch_says_of_a_target(tmp_path, vae, sources, capsys):
    """Everything that --for sets is printed, and that clips have shapes that are exported apart."""
    mine = tmp_path / "in"
    shutil.copytree(sources, mine)
    clips.write(mine / "tall.mp4", clips.pictures(9, 32, 48), rate=8)
    options = ["--weights", str(vae), "--bucket", "9x32x48", "--bucket", "9x48x32", "--workers", "0"]
    assert run(["batch-encode", str(mine), "-o", str(tmp_path / "out"), "--for", "cogvideox-5b-i2v", *options]) == 0
    said = capsys.readouterr().err
    assert "multiples of 16, stored in bf16, scaling factor 0.7, first frames (png, latent), weights" in said
    assert "9x32x48 (3 clips), 9x48x32 (1 clip): CogVideo's finetuning takes clips of one shape" in said


def losses(latents, captions):
    """Train a small transformer with CogVideoX's patches of 2x2 for three steps, with fixed noise. Return the losses."""
    from diffusers import CogVideoXTransformer3DModel

    torch.manual_seed(0)
    frames, height, width = latents.shape[2:]
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=16, out_channels=16, time_embed_dim=8, text_embed_dim=8,
        num_layers=2, sample_width=width, sample_height=height, sample_frames=1 + (frames - 1) * 4, max_text_seq_length=226,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = latents.transpose(1, 2)  # frames in front of channels, as the transformer takes them
    found = []
    for step in range(3):
        noise, t = torch.randn_like(x), torch.full((len(x),), 300 * (step + 1))
        signal = 1 - t[:, None, None, None, None] / 1000
        noisy = signal.sqrt() * x + (1 - signal).sqrt() * noise
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * x
        predicted = model(noisy, captions[:, :, :8], t, return_dict=False)[0]
        assert predicted.shape == velocity.shape
        loss = (predicted - velocity).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_a_transformer_learns_the_same_from_exports_the_data_set_and_pixels(tmp_path, vae, sources, embeds):
    """Means, so that no draw differs; pixels are encoded by diffusers' own autoencoder."""
    from diffusers import AutoencoderKLCogVideoX

    options = {"frames": 9, "height": 32, "width": 48, "multiple": 16}
    made = encoded(sources, tmp_path / "made", vae, short_side=None, **options)
    export_latents(made, tmp_path / "out", to="cogvideox-factory", prompt_embeds=embeds)
    dataset = LatentDataset(made, draw=False)
    names = [dataset.row(i)["id"].removesuffix(".mp4") for i in range(3)]
    kept = [
        torch.load(tmp_path / "out" / "video_latents" / f"{name.split('.')[0]}.pt", weights_only=True) for name in names
    ]
    captions = torch.stack(
        [
            torch.load(tmp_path / "out" / "prompt_embeds" / f"{name.split('.')[0]}.pt", weights_only=True)
            for name in names
        ]
    )
    theirs = AutoencoderKLCogVideoX.from_pretrained(vae)
    pixels = []
    for name in names:
        with read_frames(sources / f"{name}.mp4", Selection(frames=9), Picture(height=32, width=48)) as reader:
            pixels.append(np.stack([frame.image for frame in reader]))
    x = torch.from_numpy(np.stack(pixels)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.no_grad():
        from_pixels = torch.cat([theirs.encode(clip[None]).latent_dist.mode() for clip in x]) * 0.7
    exported = losses(torch.stack(kept).chunk(2, dim=1)[0] * 0.7, captions)
    assert exported == pytest.approx(losses(torch.stack([dataset[i]["latents"] for i in range(3)]), captions), abs=1e-4)
    assert exported == pytest.approx(losses(from_pixels, captions), abs=1e-4)
    assert len(set(exported)) == 3
