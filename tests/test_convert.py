"""`movq weights convert`: any checkpoint to a movq weights file, and PyTorch files whose code is never run."""

import os
import pickle
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from movq_cli import MovqError, MovqUsageError, MovqWarning
from movq_cli.checkpoints.checkpoint import open_checkpoint
from movq_cli.checkpoints.convert import convert_checkpoint

from .helpers.models import MODEL, VAE, cached, sat_state, small_vae

pytestmark = pytest.mark.usefixtures("one_thread")

HINT = "the scaling factor is unknown: 1.15258426 for CogVideoX-2B, 0.7 for 5B and 1.5; --scaling-factor records it"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = tmp_path_factory.mktemp("convert") / "CogVideoX-small"
    small_vae().save_pretrained(model / "vae")
    return model


def averaged(state):
    """Return averaged weights as CogVideo's LitEma keeps them: names without their dots, and two numbers of its own."""
    ema = {f"model_ema.{name.replace('.', '')}": tensor + 1 for name, tensor in state.items()}
    return ema | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)}


def losses():
    return {"loss.logvar": torch.zeros(1), "loss.perceptual_loss.lin0.weight": torch.zeros(2, 2)}


def save_pt(path, change=lambda state: state, wrap=lambda state: {"state_dict": state}, **how):
    torch.save(wrap(change(dict(sat_state()))), path, **how)
    return path


def prefixed(state, prefix="module._orig_mod."):
    return {prefix + name: tensor for name, tensor in state.items()}


def training_checkpoint(state):
    return state | losses() | averaged(state | losses())


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module", None])
def test_every_wrapper_of_a_pytorch_file(tmp_path, wrapper):
    path = save_pt(
        tmp_path / "3d-vae.pt",
        training_checkpoint,
        lambda state: {wrapper: state, "epoch": 3} if wrapper else state,
        _use_new_zipfile_serialization=wrapper != "model",
    )
    made = convert_checkpoint(path, tmp_path / "out.safetensors")
    tensors = load_file(made.path)
    assert tensors.keys() == sat_state().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in sat_state().items())
    assert (made.layout, made.semantics, made.name, made.config) == ("movq", "whole", "3d-vae", VAE)
    assert made.metadata["source"] == "3d-vae.pt"


def test_one_model_one_digest(saved, tmp_path, monkeypatch):
    """The digest is the same for every container that a model came in, and after a second conversion."""
    cached(tmp_path, saved)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    save_file(sat_state(), tmp_path / "sat.safetensors")
    digest = open_checkpoint(saved).digest
    of_diffusers = {"semantics": "diffusers", "scaling_factor": "0.7", "invert_scale_latents": "false"}
    of_sat = {"semantics": "whole", "scaling_factor": "", "invert_scale_latents": ""}
    for source, name, origin, said in (
        (saved, "CogVideoX-small", "CogVideoX-small", of_diffusers),
        (MODEL, MODEL, MODEL, of_diffusers),
        (save_pt(tmp_path / "3d-vae.pt"), "3d-vae", "3d-vae.pt", of_sat),
        (tmp_path / "sat.safetensors", "sat", "sat.safetensors", of_sat),
    ):
        made = convert_checkpoint(source, tmp_path / "once.safetensors", force=True)
        again = convert_checkpoint(tmp_path / "once.safetensors", tmp_path / "twice.safetensors", force=True)
        for checkpoint in (made, again):
            assert checkpoint.digest == digest
            assert checkpoint.metadata == {"name": name, "source": origin, "licence": "", "shift_factor": ""} | said
        assert (tmp_path / "once.safetensors").read_bytes() == (tmp_path / "twice.safetensors").read_bytes()
        for key, tensor in made.load_decoder().state_dict().items():
            assert torch.equal(tensor, sat_state()[f"decoder.{key}"])


def test_a_pytorch_file_of_diffusers_takes_the_config_beside_it(saved, tmp_path):
    shutil.copy(saved / "vae" / "config.json", tmp_path)
    torch.save(small_vae().state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    made = convert_checkpoint(tmp_path / "diffusion_pytorch_model.bin", tmp_path / "out.safetensors")
    assert made.digest == open_checkpoint(saved).digest
    assert (made.semantics, made.metadata["scaling_factor"]) == ("diffusers", "0.7")


def test_what_is_written(tmp_path):
    """The file is a plain safetensors file: sorted by name, dtypes kept, the same bytes from other containers."""
    state = {
        name: tensor.to(torch.bfloat16 if "conv1" in name else torch.float16) for name, tensor in sat_state().items()
    }
    torch.save(state, tmp_path / "3d-vae.pt")
    convert_checkpoint(tmp_path / "3d-vae.pt", tmp_path / "a.safetensors", licence="Apache-2.0", scaling_factor="0.70")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
        assert file.offset_keys() == sorted(state)
        for name, tensor in state.items():
            assert file.get_tensor(name).dtype == tensor.dtype
            assert torch.equal(file.get_tensor(name), tensor)
    assert (metadata["format"], metadata["format_version"]) == ("movq-weights", "1")
    assert (metadata["licence"], metadata["scaling_factor"]) == ("Apache-2.0", "0.70")
    shuffled = dict(reversed([(name, tensor.clone()) for name, tensor in state.items()]))
    os.mkdir(tmp_path / "b")
    torch.save({"model": shuffled, "loss": 1}, tmp_path / "b" / "3d-vae.pt")
    convert_checkpoint(
        tmp_path / "b" / "3d-vae.pt", tmp_path / "b.safetensors", licence="Apache-2.0", scaling_factor="0.70"
    )
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_averaged_weights(tmp_path):
    save_pt(tmp_path / "3d-vae.pt", training_checkpoint)
    made = convert_checkpoint(tmp_path / "3d-vae.pt", tmp_path / "ema.safetensors", ema=True, name="averaged")
    tensors = load_file(made.path)
    assert made.name == "averaged"
    assert tensors.keys() == sat_state().keys()
    assert all(torch.equal(tensors[name], tensor + 1) for name, tensor in sat_state().items())


def test_a_prefix_of_a_pytorch_file_is_taken_off(tmp_path):
    """Averaged weights are found under the prefix too, and what belongs to other networks need not be tensors."""
    path = save_pt(tmp_path / "3d-vae.pt", lambda state: prefixed(training_checkpoint(state)))
    save_pt(tmp_path / "plain.pt")
    digest = convert_checkpoint(tmp_path / "plain.pt", tmp_path / "plain.safetensors").digest
    assert convert_checkpoint(path, tmp_path / "a.safetensors").digest == digest
    averaged = load_file(convert_checkpoint(path, tmp_path / "b.safetensors", ema=True).path)
    assert all(torch.equal(averaged[name], tensor + 1) for name, tensor in sat_state().items())
    everything = {"model.diffusion_model.step": 3, "model.ids": torch.arange(4)}
    save_pt(path, lambda state: prefixed(state, "first_stage_model.") | everything)
    with pytest.warns(
        MovqWarning, match=r"with other networks \(model\): only the tensors under first_stage_model. are taken"
    ):
        assert convert_checkpoint(path, tmp_path / "c.safetensors").digest == digest


def lacking(state):
    del state["model_ema.encoderconv_inconvweight"]
    return state


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state, r"has no averaged weights \(ema\)"),
        (lambda state: lacking(training_checkpoint(state)), "has no averaged encoder.conv_in.conv.weight"),
        (
            lambda state: training_checkpoint(state) | {"model_ema.other": torch.zeros(1)},
            "has model_ema.other, averages of",
        ),
    ],
)
def test_averaged_weights_that_are_not_all_there(tmp_path, change, reason):
    path = save_pt(tmp_path / "3d-vae.pt", change)
    with pytest.raises(MovqError, match=reason):
        convert_checkpoint(path, tmp_path / "out.safetensors", ema=True)
    assert os.listdir(tmp_path) == ["3d-vae.pt"]


def test_only_pytorch_files_have_averages(saved, tmp_path):
    with pytest.raises(MovqError, match="only PyTorch files do"):
        convert_checkpoint(saved, tmp_path / "out.safetensors", ema=True)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def evil_zip(folder):
    torch.save({"state_dict": dict(sat_state()), "hook": Evil(folder / "ran")}, folder / "evil.pt")


def evil_pickle(folder):
    (folder / "evil.pt").write_bytes(pickle.dumps(Evil(folder / "ran"), protocol=2))


def cut(folder):
    whole = save_pt(folder / "cut.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])


def cut_old(folder):
    whole = save_pt(folder / "cut.pt", _use_new_zipfile_serialization=False).read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])


def text(folder):
    (folder / "text.pt").write_text("no weights\n" * 9)


def no_pickle(folder):
    (folder / "odd.pt").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02\xff.")


def empty(folder):
    (folder / "empty.pt").touch()


def a_list(folder):
    torch.save([torch.zeros(1)], folder / "list.pt")


def numbers(folder):
    torch.save({"state_dict": {"encoder.x": 3}}, folder / "numbers.pt")


def other_model(folder):
    torch.save({"fc.weight": torch.zeros(2, 2)}, folder / "other.pt")


def whole_numbers(folder):
    save_pt(folder / "int.pt", lambda state: state | {"encoder.norm_out.bias": torch.zeros(128, dtype=torch.int32)})


def no_numbers(folder):
    save_pt(folder / "meta.pt", lambda state: state | {"encoder.norm_out.bias": torch.zeros(128, device="meta")})


def nan(folder):
    save_pt(folder / "nan.pt", lambda state: state | {"decoder.conv_out.conv.bias": torch.tensor([0, torch.nan, 0])})


def misshapen(folder):
    save_pt(folder / "shape.pt", lambda state: state | {"decoder.mid.block_1.conv1.conv.bias": torch.zeros(3)})


def nan_safetensors(folder):
    save_file(sat_state() | {"encoder.conv_in.conv.bias": torch.full((32,), torch.inf)}, folder / "nan.safetensors")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (evil_zip, r"asks for posix.mkdir, which is code and not run"),
        (evil_pickle, r"asks for posix.mkdir, which is code and not run"),
        (cut, "is not a whole PyTorch file"),
        (cut_old, "is not a whole PyTorch file"),
        (no_pickle, "is not a whole PyTorch file"),
        (text, "is not a safetensors file"),
        (empty, "is not a safetensors file"),
        (a_list, "holds a list, not tensors by name"),
        (numbers, "has encoder.x, which are no tensors"),
        (other_model, "holds neither movq weights nor a CogVideoX autoencoder"),
        (whole_numbers, "tensor encoder.norm_out.bias is torch.int32"),
        (no_numbers, "tensor encoder.norm_out.bias is torch.float32 on meta"),
        (nan, "tensor decoder.conv_out.conv.bias has values that are not finite"),
        (misshapen, r"tensor decoder.mid.block_1.conv1.conv.bias has shape \[3\], its config asks for \[128\]"),
        (nan_safetensors, "tensor encoder.conv_in.conv.bias has values that are not finite"),
    ],
)
def test_refused_in_one_line_with_nothing_written(tmp_path, write, reason):
    write(tmp_path)
    before = os.listdir(tmp_path)
    (name,) = before
    with pytest.raises(MovqError, match=reason) as caught:
        convert_checkpoint(tmp_path / name, tmp_path / "out.safetensors")
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice would run the file's code
    assert os.listdir(tmp_path) == before


def test_refusals_of_the_command_line(movq, tmp_path):
    evil_zip(tmp_path)
    cut(tmp_path)
    before = sorted(os.listdir(tmp_path))
    for arguments, code in (
        (["evil.pt", "-o", "out.safetensors"], 1),
        (["cut.pt", "-o", "out.safetensors"], 1),
        (["evil.pt", "-o", "out.safetensors", "--scaling-factor", "many"], 2),
    ):
        result = movq("weights", "convert", *arguments)
        assert (result.returncode, result.stdout) == (code, "")
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("movq: ")
        assert sorted(os.listdir(tmp_path)) == before


def test_outputs_that_cannot_be(saved, tmp_path):
    path = save_pt(tmp_path / "3d-vae.pt")
    (tmp_path / "link.safetensors").symlink_to(saved / "vae" / "config.json")
    (tmp_path / "old.safetensors").write_bytes(b"precious")
    vae = saved / "vae" / "diffusion_pytorch_model.safetensors"
    for source, output, reason in (
        (path, path, "is the same file as the input"),
        (saved, vae, "is the same file as the input"),
        (saved, tmp_path / "link.safetensors", "is the same file as the input"),
    ):
        with pytest.raises(MovqError, match=reason):
            convert_checkpoint(source, output, force=True)
    with pytest.raises(MovqError, match="exists; force=True overwrites it"):
        convert_checkpoint(path, tmp_path / "old.safetensors")
    assert (tmp_path / "old.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize("value", ["", "nan", "inf", "0", "-1", "0.7x"])
def test_scaling_factors_that_cannot_be(tmp_path, value):
    with pytest.raises(MovqUsageError, match=f"scaling_factor: must be a number above 0, got {value!r}"):
        convert_checkpoint(tmp_path / "any.pt", tmp_path / "out.safetensors", scaling_factor=value)
    with pytest.raises(MovqUsageError, match="name: must be plain text"):
        convert_checkpoint(tmp_path / "any.pt", tmp_path / "out.safetensors", name="a\udcff")


def test_the_result_line(movq, saved, tmp_path):
    save_pt(tmp_path / "3d-vae.pt")
    numbers = sum(p.numel() for p in small_vae().parameters()) / 1e6
    line = f"{{}}: {{}}, {len(sat_state())} tensors, {numbers:.1f} M parameters, F32, digest {open_checkpoint(saved).digest}\n"
    result = movq("weights", "convert", "3d-vae.pt", "-o", "out.safetensors")
    assert (result.returncode, result.stdout) == (0, line.format("out.safetensors", "3d-vae"))
    assert result.stderr == f"movq: out.safetensors: {HINT}\n"
    result = movq(
        "weights", "convert", saved, "-o", "out.safetensors", "--force", "--name", "mine", "--licence", "CC0-1.0"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == line.format("out.safetensors", "mine")
    said = open_checkpoint(tmp_path / "out.safetensors").metadata
    assert (said["name"], said["licence"], said["scaling_factor"]) == ("mine", "CC0-1.0", "0.7")


@pytest.mark.slow
def test_memory_is_flat(tmp_path):
    """Tensors that are not needed are not read: here 300 MB of a loss."""
    weight = torch.randn(3_000_000)
    save_pt(tmp_path / "3d-vae.pt", lambda state: state | {"loss.big": weight.repeat(25)})
    script = (
        "import re, sys\n"
        "from movq_cli.checkpoints.convert import convert_checkpoint\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024\n"
        "before = peak()\n"
        "convert_checkpoint(sys.argv[1], sys.argv[2])\n"
        "print(peak() - before)"
    )
    command = [sys.executable, "-c", script, tmp_path / "3d-vae.pt", tmp_path / "out.safetensors"]
    grown = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(grown.stdout) < 150


def test_help_names_no_torch():
    script = (
        "import sys\nfrom movq_cli.cli import main\nsys.argv = ['movq', 'weights', 'convert', '--help']\n"
        "try: main()\nexcept SystemExit as e: assert not e.code, e.code\n"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    for option in ("--force", "--ema", "--name", "--licence", "--scaling-factor"):
        assert re.search(rf"{option}\b", shown)


def test_shared_numbers_are_written_out_and_bombs_refused(tmp_path):
    """A stride of 0 lets a file of a few bytes promise any number of values."""
    bomb = {"encoder.conv_in.conv.weight": torch.zeros(1).expand(10**7)}
    torch.save(bomb, tmp_path / "bomb.pt")
    with pytest.raises(MovqError, match="far larger than the file"):
        convert_checkpoint(tmp_path / "bomb.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
