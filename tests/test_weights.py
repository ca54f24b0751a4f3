"""Making the embedded weights: the training networks against movq's own, the batches, and runs that are killed."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from movq_cli import decode_video, encode_video
from movq_cli.checkpoints.checkpoint import open_checkpoint
from movq_cli.model import AutoencoderConfig, Decoder3D, Encoder3D

from .helpers import clips
from .helpers.models import SMALL

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "weights"))

import batches  # noqa: E402
import data  # noqa: E402
import judge  # noqa: E402
import network  # noqa: E402
import sources  # noqa: E402


def channels_last(x):
    return x.permute(0, 2, 3, 4, 1)


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_training_computes_what_movq_computes(frames):
    torch.manual_seed(0)
    config = SMALL | {"ch_mult": (1, 2, 2), "temporal_compress_times": 4}
    encoder, decoder = Encoder3D(**config), Decoder3D(**config)
    x = torch.rand(2, 3, frames, 24, 16) * 2 - 1
    moments = network.encode(encoder, channels_last(x))
    z = moments.detach()[..., :4]
    y = network.decode(decoder, z)
    theirs = encoder(x)
    again = decoder(z.permute(0, 4, 1, 2, 3))
    assert torch.allclose(moments, channels_last(theirs), atol=1e-4)
    assert torch.allclose(y, channels_last(again), atol=1e-4)
    gradients = []
    for result in ((moments, y), (channels_last(theirs), channels_last(again))):
        both = [*encoder.parameters(), *decoder.parameters()]
        gradients.append(torch.autograd.grad(sum(part.square().sum() for part in result), both))
    largest = max(gradient.norm() for gradient in gradients[1])
    for ours, movqs in zip(*gradients, strict=True):
        assert (ours - movqs).norm() <= 1e-4 * movqs.norm() + 1e-5 * largest


def test_a_batch_depends_on_its_step_and_the_seed_alone():
    footage = batches.Footage.made_up(torch.device("cpu"))

    def batch(step, seed=0):
        return batches.batch(footage, step, seed=seed, clips=2, frames=5, side=32)

    first = batch(7)
    assert first.shape == (2, 5, 32, 32, 3)
    assert first.min() >= -1
    assert first.max() <= 1
    batch(8)
    assert torch.equal(batch(7), first)
    assert not torch.equal(batch(8), first)
    assert not torch.equal(batch(7, seed=1), first)


def jpeg(picture):
    out = io.BytesIO()
    with av.open(out, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuvj444p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj444p")))
        container.mux(stream.encode())
    return out.getvalue()


def test_pictures_are_found_in_files_of_other_kinds():
    one, other = jpeg(clips.picture(300, 260)), jpeg(clips.picture(280, 250, 9))
    assert sources.jpegs_inside(b"\xff\xd8\xff nothing" + one + b"between" + other + b"\xff\xd8\xff\xe0") == [
        one,
        other,
    ]
    webp = b"RIFF" + (12).to_bytes(4, "little") + b"WEBPVP8 0123"
    assert sources.webps_inside(b"ab" + webp + b"cd" + webp) == [webp, webp]


def test_large_pictures_are_taken_in_quarters_too(tmp_path):
    source = sources.Source("x", "here", "x", "*", "CC0", "nobody", pictures=sources.whole)
    sizes = [picture.shape for picture in data.pictures_of(source, jpeg(clips.picture(1600, 1500)))]
    assert sizes == [(1500, 1600, 3)] + [(750, 800, 3)] * 4
    assert data.pictures_of(source, jpeg(clips.picture(300, 200))) == []
    data.write_picture(clips.picture(1000, 768), tmp_path / "a.jpg")
    with av.open(tmp_path / "a.jpg") as written:
        found = next(written.decode(video=0)).to_ndarray(format="rgb24")
    assert found.shape == (384, 500, 3)
    assert abs(found.mean() - clips.picture(1000, 768).mean()) < 1


def test_what_cannot_be_fetched_is_said_and_left_out(tmp_path, monkeypatch, capsys):
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    clips.write(unpacked / "a.mp4", clips.pictures(12, 640, 400))
    listed = [
        sources.Source("gone", "tool-that-is-not-there", "gone==1", "*", "CC0", "nobody"),
        sources.Source("here", "folder", "here==1", "*.mp4", "CC0", "somebody", keep=(2, 4)),
    ]

    def fetch(client, package, folder):
        return unpacked if client == "folder" else data._run([client], folder)

    monkeypatch.setattr(data, "SOURCES", listed)
    monkeypatch.setattr(data, "JUDGES", [sources.Judge("nothing", "tool-that-is-not-there", "gone==1", "*")])
    monkeypatch.setattr(data, "fetch", fetch)
    data.prepare(tmp_path / "made")
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["gone==1: left out, there is no tool-that-is-not-there here", "gone: left out"]
    assert said[2:] == ["here: 3 clips, 6 frames", "nothing: left out"]
    for run in range(3):  # the first two frames of every four
        with av.open(tmp_path / "made" / "clips" / f"here-0-{run:03}.mp4") as video:
            frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert [frame.shape for frame in frames] == [(288, 460, 3)] * 2
        same = [np.abs(frames[0].astype(int) - shrunk(clips.picture(640, 400, 3 * i))).mean() for i in range(12)]
        assert np.argmin(same) == 4 * run
    assert "| CC0 | somebody |" in (tmp_path / "made" / "LICENCES.md").read_text()
    monkeypatch.setattr(data, "SOURCES", listed[:1])
    with pytest.raises(SystemExit, match="nothing to train on"):
        data.prepare(tmp_path / "made")


def shrunk(picture):
    return data._shrunk(picture, data.SIDE, even=True).to_ndarray(format="rgb24").astype(int)


def test_frames_are_judged_by_what_makes_them_hard():
    frames = np.zeros((33, 16, 16, 3), np.uint8)
    frames[14:] = 200  # a cut within the fourth latent of four frames, 13 to 16
    assert judge.group_frames(frames) == {
        "first": [0],
        "cuts": [13, 14, 15, 16, 17],
        "motion": [*range(1, 13), *range(18, 33)],
    }


def test_codecs_without_a_network_keep_what_they_can():
    still = torch.full((1, 3, 9, 32, 32), 0.3)
    assert torch.allclose(judge.bicubic(still), still, atol=1e-5)
    footage = batches.Footage.made_up(torch.device("cpu"))
    codec = judge.linear(footage, batches=3)
    x = batches.batch(footage, 0, seed=9, clips=1, frames=9, side=64).permute(0, 4, 1, 2, 3)
    kept = codec(x)
    assert (kept - x).square().mean() < 0.25 * x.var()
    assert torch.allclose(codec(kept), kept, atol=1e-4)  # it is a projection
    for way in (codec, judge.bicubic):
        assert way(x[:, :, :1]).shape == (1, 3, 1, 64, 64)
    held = judge.hold_every_fourth(lambda x: x)(torch.arange(9.0).view(1, 1, 9, 1, 1))
    assert held.flatten().tolist() == [0, 0, 0, 0, 4, 4, 4, 4, 8]


def numbers(folder):
    """Return the log of a run without its times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["fsq:8,8,8,5,5", "vq:256"])
def test_a_quantiser_is_trained_with_the_networks(tmp_path, quantizer):
    script = [sys.executable, ROOT / "weights" / "train.py", tmp_path, "--smoke", "--quantizer"]
    subprocess.run([*script, quantizer], check=True, timeout=300)
    squares = [line["squares"] for line in numbers(tmp_path) if "loss" in line and line["frames"] > 1]
    assert np.mean(squares[-5:]) < np.mean(squares[:5])
    made = open_checkpoint(tmp_path / "movq-tiny-4x8x8-new.safetensors")
    assert made.config.codes == (2560 * 5 if quantizer.startswith("fsq") else 256)
    clips.write(tmp_path / "a.mp4", clips.pictures(5))
    result = encode_video(tmp_path / "a.mp4", tmp_path / "a.safetensors", weights=made.path)
    assert (result.metadata.representation, result.dtype) == ("codes", "I16")
    assert decode_video(result.output_path, tmp_path / "a.npy", weights=made.path).frames == 5
    wrong = subprocess.run([*script, "pq:8"], capture_output=True, text=True)
    assert "--quantizer: must be like vq:1024 or fsq:8,8,8,5,5, got pq:8" in wrong.stderr


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_with_the_same_numbers(tmp_path):
    def command(folder):
        return [sys.executable, ROOT / "weights" / "train.py", tmp_path / folder, "--smoke", "--save-every", "10"]

    subprocess.run(command("whole"), check=True, timeout=300)
    killed = subprocess.Popen(command("killed"))
    log = tmp_path / "killed" / "log.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 15:
        assert killed.poll() is None
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    subprocess.run(command("killed"), check=True, timeout=300)
    whole = numbers(tmp_path / "whole")
    assert numbers(tmp_path / "killed") == whole
    losses = [line["loss"] for line in whole if "loss" in line and line["frames"] > 1]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    made = [open_checkpoint(tmp_path / folder / "movq-tiny-4x8x8-new.safetensors") for folder in ("whole", "killed")]
    assert made[0].digest == made[1].digest
    assert made[0].config == AutoencoderConfig(**vars(open_checkpoint().config))
    assert float(made[0].metadata["scaling_factor"]) > 0
    assert "<polyline" in (tmp_path / "killed" / "curve.svg").read_text()
