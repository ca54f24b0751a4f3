"""Results do not depend on what a caller has set torch to or on its version; without a usable torch there is one line.

Settings of torch belong to the whole process, and some cannot be reset: each test that sets one forks.
"""

import os
import pickle
import subprocess
import sys
import tomllib
import traceback
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from movq_cli import MovqError, encode_video
from movq_cli.device import choose_precision, computing
from movq_cli.errors import OLDEST_TORCH, require_torch
from movq_cli.model import convolution

from .helpers import clips

BACKENDS = torch.backends

CALLERS = {
    "nothing": lambda: None,
    "all tf32": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "all bf16": lambda: setattr(BACKENDS, "fp32_precision", "bf16"),
    "all ieee": lambda: setattr(BACKENDS, "fp32_precision", "ieee"),
    "cuda tf32": lambda: setattr(BACKENDS.cudnn, "fp32_precision", "tf32"),
    "cuda ieee": lambda: setattr(BACKENDS.cudnn, "fp32_precision", "ieee"),
    "cuda matmul tf32": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "cuda conv tf32": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "tf32"),
    "cuda conv ieee": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
    "oneDNN bf16": lambda: setattr(BACKENDS.mkldnn, "fp32_precision", "bf16"),
    "oneDNN's own bf16": lambda: BACKENDS.mkldnn.set_flags(_fp32_precision="bf16"),
    "oneDNN conv bf16": lambda: setattr(BACKENDS.mkldnn.conv, "fp32_precision", "bf16"),
    "oneDNN matmul tf32": lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "tf32"),
    "old allow_tf32": lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
    "old allow_tf32 of cuDNN": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "old high": lambda: torch.set_float32_matmul_precision("high"),
    "old medium": lambda: torch.set_float32_matmul_precision("medium"),
    "old and new": lambda: (torch.set_float32_matmul_precision("high"), setattr(BACKENDS, "fp32_precision", "bf16")),
}

has_fp32_precision = pytest.mark.skipif(not hasattr(BACKENDS, "fp32_precision"), reason="torch before 2.9")


FP32_SETTINGS = [BACKENDS, BACKENDS.cudnn, BACKENDS.cuda.matmul, BACKENDS.mkldnn]
if hasattr(BACKENDS, "fp32_precision"):
    FP32_SETTINGS += [BACKENDS.cudnn.conv, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.rnn]


def settings():
    """Return every setting of the new interface, and those of the old one that can be read."""
    return [setting.fp32_precision for setting in FP32_SETTINGS] + [
        readable(lambda: BACKENDS.cuda.matmul.allow_tf32),
        readable(lambda: BACKENDS.cudnn.allow_tf32),
        readable(torch.get_float32_matmul_precision),
        BACKENDS.cudnn.benchmark,
        torch.get_num_threads(),
    ]


def readable(get):
    try:
        return get()
    except RuntimeError:
        return "mixed"


def settings_to_come():
    """Return the settings now, and after each change that shows which of them follow another one."""
    seen = [settings()]
    for precision in ("tf32", "ieee", "none"):
        BACKENDS.fp32_precision = precision
        seen.append(settings())
    BACKENDS.cudnn.fp32_precision = "none"
    BACKENDS.mkldnn.set_flags(_fp32_precision="none")
    return [*seen, settings()]


def in_a_fork(work):
    """Return what `work` returns in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)  # a fork does not have its parent's threads
            result = True, work()
        except BaseException:
            result = False, traceback.format_exc()
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        worked, result = pickle.load(pipe)
    os.waitpid(child, 0)
    assert worked, result
    return result


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clips.write(tmp_path_factory.mktemp("device") / "clip.mp4", clips.pictures(5, 32, 32))


@pytest.fixture(scope="module")
def latents(clip, tmp_path_factory):
    """Return the bytes of the clip's latents, made with torch's settings untouched."""
    output = tmp_path_factory.mktemp("device") / "plain.safetensors"
    in_a_fork(lambda: encode_video(clip, output, precision="fp32", threads=1).output_path)
    return output.read_bytes()


@has_fp32_precision
@pytest.mark.parametrize(
    "caller",
    [
        "all tf32",
        "cuda matmul tf32",
        "cuda conv ieee",
        "oneDNN bf16",
        "oneDNN conv bf16",
        "old allow_tf32",
        "old medium",
    ],
)
def test_fp32_is_the_same_whatever_a_caller_has_set(caller, clip, latents, tmp_path):
    output = tmp_path / "out.safetensors"

    def encode():
        CALLERS[caller]()
        before = settings()
        encode_video(clip, output, precision="fp32", threads=1)
        assert settings() == before

    in_a_fork(encode)
    assert output.read_bytes() == latents


@has_fp32_precision
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("precision", ["tf32", "fp32", "bf16"])
def test_tf32_is_on_for_tf32_alone_and_all_is_put_back(caller, precision):
    def compute():
        CALLERS[caller]()
        BACKENDS.cudnn.benchmark = True
        before = settings()
        with suppress(ZeroDivisionError), computing(precision, 2):
            precisions = {setting.fp32_precision for setting in FP32_SETTINGS}
            seen = precisions, BACKENDS.cudnn.benchmark, torch.get_num_threads()
            raise ZeroDivisionError
        assert settings() == before
        return seen, settings_to_come()

    def leave_alone():
        CALLERS[caller]()
        BACKENDS.cudnn.benchmark = True
        return settings_to_come()

    kind = "tf32" if precision == "tf32" else "ieee"
    assert in_a_fork(compute) == (({kind}, False, 2), in_a_fork(leave_alone))


@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
@pytest.mark.parametrize("cudnn", [False, True])
def test_torch_before_2_9_has_the_old_interface(matmul, cudnn, monkeypatch):
    monkeypatch.setattr("movq_cli.device._has_fp32_precision", lambda: False)

    def inside(precision):
        torch.set_float32_matmul_precision(matmul)
        BACKENDS.cudnn.allow_tf32 = cudnn
        with suppress(ZeroDivisionError), computing(precision, None):
            seen = torch.get_float32_matmul_precision(), BACKENDS.cudnn.allow_tf32
            raise ZeroDivisionError
        assert (torch.get_float32_matmul_precision(), BACKENDS.cudnn.allow_tf32) == (matmul, cudnn)
        return seen

    assert in_a_fork(lambda: inside("tf32")) == ("high", True)
    assert in_a_fork(lambda: inside("fp32")) == ("highest", False)


@pytest.mark.parametrize("bf16", [False, True])
def test_what_auto_computes_in_is_the_same_on_every_cpu(bf16, monkeypatch):
    monkeypatch.setattr(convolution, "cpu_computes_bf16", lambda: bf16)
    assert choose_precision("auto", torch.device("cpu")) == "fp32"
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"


def test_a_torch_that_does_not_tell_what_the_cpu_has(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert convolution.cpu_computes_bf16() is False
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert convolution.cpu_computes_bf16() is True


@pytest.fixture(params=["missing", "2.3.0+cpu"])
def other_torch(request, tmp_path):
    """Return an environment whose torch is missing or old, and what movq says about it."""
    folder = tmp_path / "packages"
    (folder / "torch").mkdir(parents=True)
    if request.param == "missing":
        (folder / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
        said = "torch is not installed; run: pip install 'torch>=2.6'"
    else:
        (folder / "torch" / "__init__.py").write_text(f"__version__ = {request.param!r}")
        (folder / f"torch-{request.param}.dist-info").mkdir()
        text = f"Metadata-Version: 2.1\nName: torch\nVersion: {request.param}\n"
        (folder / f"torch-{request.param}.dist-info" / "METADATA").write_text(text)
        said = f"torch {request.param} is too old: movq needs 2.6 or newer; run: pip install -U torch"
    return os.environ | {"PYTHONPATH": str(folder)}, said


@pytest.mark.slow
def test_commands_say_in_one_line_that_torch_is_missing_or_old(other_torch, clip, latents, tmp_path, embedded):
    environment, said = other_torch
    (tmp_path / "latents.safetensors").write_bytes(latents)

    def movq(*arguments):
        command = [sys.executable, "-m", "movq_cli", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    for command in (
        ("encode", clip, "-o", "a.safetensors", "-q"),
        ("decode", "latents.safetensors", "-o", "a.mp4", "-q"),
        ("batch-encode", clip, "-o", "out", "-q"),
        ("eval", clip, clip, "-q"),
        ("weights", "convert", embedded, "-o", "b.safetensors"),
    ):
        ended = movq(*command)
        assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"movq: {said}\n"), command
    ended = movq("info", clip, embedded, "latents.safetensors")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"packages", "latents.safetensors"}


def test_python_too(other_torch, clip):
    environment, said = other_torch
    script = f"import movq_cli\ntry: movq_cli.plan_encode({str(clip)!r})\nexcept movq_cli.MovqError as e: print(e)"
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (ended.stdout.strip(), ended.stderr) == (said, "")


@pytest.mark.parametrize("version", ["2.6.0", "2.10.1", "2.13.0+cpu", "3.0", "2.7.0a0+git1234", "unknown"])
def test_versions_that_are_new_enough_or_cannot_be_told(version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    require_torch()


@pytest.mark.parametrize("version", ["2.5.9", "1.13.1", "2.0"])
def test_versions_that_are_too_old(version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(MovqError, match="is too old"):
        require_torch()


def test_the_oldest_torch_is_that_of_the_package():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert f"torch>={'.'.join(map(str, OLDEST_TORCH))}" in project["dependencies"]
