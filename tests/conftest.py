"""Shared fixtures: the command line as a real process, and weights files of any shape, made and filled here."""

import dataclasses
import functools
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from movq_cli import encode_batch
from movq_cli.checkpoints.checkpoint import embedded_weights
from movq_cli.model import AutoencoderConfig, Encoder3D

from .helpers import clips
from .helpers.models import SMALL
from .helpers.zygote import Zygote


@pytest.fixture(scope="session")
def zygote():
    """Yield the process that `movq` is forked from; each worker of xdist has one."""
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture
def movq(zygote, tmp_path):
    """Run `movq` as a process of its own, in an empty folder outside the checkout: `movq("encode", path, ...)`."""
    return functools.partial(zygote.run, cwd=tmp_path)


@pytest.fixture
def fresh_movq(tmp_path):
    """Run `movq` in a new interpreter, for tests of imports and of variables that are read during them."""

    def run(*arguments, **more):
        return subprocess.run(
            [sys.executable, "-m", "movq_cli", *map(str, arguments)],
            **{"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300} | more,
        )

    return run


@pytest.fixture
def make_weights(tmp_path):
    """Write a movq weights file of a small encoder with random weights; `change` edits its tensors in place."""

    def make(name="weights.safetensors", change=None, metadata=None, **config):
        torch.manual_seed(0)
        made = AutoencoderConfig(**SMALL | config)
        encoder = Encoder3D(**dataclasses.asdict(made))
        tensors = {f"encoder.{k}": v.contiguous() for k, v in encoder.state_dict().items()}
        if change:
            change(tensors)
        said = {"format": "movq-weights", "format_version": "1", "config": made.to_json(), "name": "small"}
        path = tmp_path / name
        save_file(tensors, path, metadata=said | (metadata or {}))
        return path

    return make


class Vae(NamedTuple):
    """A model of diffusers, by which movq is judged, and the folder it saved itself in."""

    model: torch.nn.Module
    folder: str


@pytest.fixture(scope="session")
def vae(tmp_path_factory):
    """Make a small AutoencoderKLCogVideoX of random weights; norm weights of 1 or biases of 0 could hide mistakes."""
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    model = AutoencoderKLCogVideoX(block_out_channels=(32, 64, 64, 128), layers_per_block=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder = str(tmp_path_factory.mktemp("model") / "vae")
    model.save_pretrained(folder)
    return Vae(model, folder)


@pytest.fixture
def embedded():
    return embedded_weights()


@pytest.fixture(scope="module")
def one_thread():
    """Compute on one thread: tensors are small, and on a busy machine threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Make a folder with three clips and a bad one in `in`, and the batch of them in `out`."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "in").mkdir()
    for name, count in (("a.mp4", 5), ("b.mp4", 6), ("c.mp4", 7)):
        clips.write(folder / "in" / name, clips.pictures(count))
    (folder / "in" / "bad.mp4").write_text("no video")
    result = encode_batch([folder / "in"], folder / "out", workers=1)  # without workers: the same bytes
    assert {line["id"] for line in result.made} == {"a.mp4", "b.mp4", "c.mp4", "bad.mp4"}
    return folder


@pytest.fixture
def small(finished, tmp_path):
    """Return (folder, run) of a batch of three clips and a bad one; run() resumes it and returns what was made."""

    def run(*sources, **options):
        result = encode_batch(sources or [tmp_path / "in"], tmp_path / "out", **{"workers": 0} | options)
        return {line["id"] for line in result.made}

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    assert run() == {"bad.mp4"}  # bad.mp4 has a new inode; videos are known by their contents
    assert run() == set()
    return tmp_path, run
