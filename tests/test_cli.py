"""The command line, as real processes: what is printed where, exit codes, refusals, signals."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from movq_cli import __version__, open_latents
from movq_cli.checkpoints.checkpoint import EMBEDDED
from movq_cli.cli import run

from .faults.nasty import bad_files
from .helpers import clips
from .helpers.clips import CITY
from .helpers.processes import wait_for


@pytest.fixture
def clip(tmp_path):
    return clips.write(tmp_path / "clip.mp4", clips.pictures(10))


def listing(folder):
    return sorted(os.listdir(folder))


def test_encode_then_info(movq, tmp_path, clip):
    result = movq("encode", clip, "-o", "out.safetensors")
    assert result.returncode == 0
    assert result.stdout.startswith("out.safetensors: 32 x 4 x 6 x 8 ")
    assert result.stdout.count("\n") == 1
    for part in (
        "times smaller than raw RGB",
        "the source)",
        "10 frames (the last one repeated 3 times), 64x48",
        "frames/s",
    ):
        assert part in result.stdout
    assert "no public diffusion model reads" in result.stderr
    info = movq("info", "out.safetensors", "clip.mp4", ".")
    assert info.returncode == 0
    for part in (
        "latents: moments",
        EMBEDDED,
        "10 frames (the last one repeated 3 times)",
        "h264 in mov",
        "1 file, 10 frames",
    ):
        assert part in info.stdout


def test_info_json(movq, tmp_path, clip, embedded):
    movq("encode", clip, "-o", "out.safetensors")
    one = json.loads(movq("info", "--json", "--stats", "out.safetensors").stdout)
    assert one["shape"] == [1, 32, 4, 6, 8]
    assert len(one["stats"]) == 32
    assert one["frames_padded"] == 3
    many = json.loads(movq("info", "--json", "clip.mp4", embedded, ".").stdout)
    assert [m["kind"] for m in many] == ["video", "weights", "folder"]
    assert many[0]["latents"]["shape"] == [1, 32, 4, 6, 8]
    assert many[1]["parameters"] == {"encoder": 3860096, "decoder": 6475715}
    assert many[2]["frames"] == 10


def test_dry_run_does_nothing(movq, tmp_path, clip):
    before = listing(tmp_path)
    result = movq("encode", clip, "-o", "out.safetensors", "--dry-run", "--chunk-frames", "4")
    assert result.returncode == 0
    for part in ("1 x 32 x 4 x 6 x 8", "3, of 4 frames", "peak memory", "output size"):
        assert part in result.stdout
    assert listing(tmp_path) == before


def test_dry_run_refuses_what_encode_would(movq, tmp_path, clip):
    (tmp_path / "old.safetensors").write_bytes(b"precious")
    for output, reason in (
        ("old.safetensors", "exists; --force"),
        ("no/folder/a", "does not exist"),
        (clip, "same file"),
    ):
        refused(movq("encode", clip, "-o", output, "--dry-run"), output, reason)
    refused(movq("encode", clip, "-o", "a", "--dry-run", "--memory-budget", "1MB"), clip, "needs about")


def test_a_folder_passes_over_what_is_no_latents_and_reports_what_is_damaged(movq, tmp_path, clip, make_weights):
    make_weights()
    movq("encode", clip, "-o", "good.safetensors", "-q")
    assert movq("info", ".").returncode == 0
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-9])
    for json_flag in ([], ["--json"]):
        result = movq("info", ".", *json_flag)
        assert result.returncode == 1
        assert "good.safetensors" in result.stdout
        assert result.stderr.startswith("movq: ./cut.safetensors: is not a safetensors file")


def test_standard_output_on_a_full_disk(tmp_path, clip):
    """A new interpreter is needed: it flushes standard output once more as it ends."""
    for arguments in (["info", clip], ["info", "--json", clip], ["--help"]):
        with open("/dev/full", "w") as full:
            command = [sys.executable, "-m", "movq_cli", *map(str, arguments)]
            result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        assert result.returncode == 1, result
        assert result.stderr == "movq: no space left on device\n", arguments


def test_quiet_prints_the_result_alone(movq, clip):
    result = movq("encode", clip, "-o", "out.safetensors", "-q")
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1


def test_version_and_help(movq):
    assert movq("--version").stdout == f"movq {__version__}\n"
    for arguments in (["--help"], ["encode", "--help"], ["info", "-h"]):
        result = movq(*arguments)
        assert result.returncode == 0
        assert "Usage" in result.stdout


def test_usage_errors_exit_2(movq, clip):
    for arguments in (
        ["encode", clip, clip],
        ["encode", clip, "-o", "a", "--fps", "fast"],
        ["encode", clip, "-o", "a", "--chunk-frames", "6"],
        ["encode", clip, "-o", "a", "--tail", "loop"],
        ["encode", clip, "-o", "a", "--height", "4", "--short-side", "4"],
        ["encode", clip, "-o", "a", "--memory-budget", "much"],
        ["encode", clip, "-o", "a", "--device", "cpu", "--precision", "fp16"],
        ["frobnicate"],
    ):
        result = movq(*arguments)
        assert result.returncode == 2, (arguments, result)
        assert result.stdout == ""
        assert "Traceback" not in result.stderr


def refused(result, name, reason=""):
    assert result.returncode == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith(f"movq: {name}"), lines
    assert reason in lines[0]


@pytest.mark.slow
def test_bad_inputs_are_one_line_and_leave_nothing(movq, tmp_path):
    reasons = bad_files(tmp_path)
    whole = Path(CITY).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    reasons["cut.mp4"] = ""
    before = listing(tmp_path)
    for name, reason in reasons.items():
        refused(movq("encode", name, "-o", "out.safetensors", "-q", "--short-side", "40", "--upscale"), name, reason)
        if name not in ("folder", "cut.mp4"):  # info says that the folder has no latents; cut.mp4's header is whole
            refused(movq("info", name), name)
    assert listing(tmp_path) == before


def test_outputs_that_cannot_be_are_refused_at_once(movq, tmp_path, clip):
    (tmp_path / "old.safetensors").write_bytes(b"precious")
    for output, reason in (
        ("old.safetensors", "exists; --force"),
        ("no/such/folder/a", "does not exist; create it first"),
        ("/dev/null", "not a regular file"),
        ("/proc/a", ""),
    ):
        started = time.perf_counter()
        refused(movq("encode", clip, "-o", output, "-q"), output, reason)
        assert time.perf_counter() - started < 5
    assert (tmp_path / "old.safetensors").read_bytes() == b"precious"
    result = movq("encode", clip, "-o", "old.safetensors", "-q", "--force")
    assert result.returncode == 0
    assert open_latents(tmp_path / "old.safetensors").metadata.frames == 10


def test_bad_weights_are_one_line_and_leave_nothing(movq, tmp_path, clip, make_weights):
    import torch

    def nan(tensors):
        tensors["encoder.conv_in.conv.bias"][:] = float("nan")

    def shape(tensors):
        tensors["encoder.conv_in.conv.bias"] = torch.zeros(7)

    make_weights("nan.safetensors", nan)
    make_weights("shape.safetensors", shape)
    (tmp_path / "text.safetensors").write_text("hello")
    before = listing(tmp_path)
    for name in ("nan.safetensors", "shape.safetensors", "text.safetensors", "missing.safetensors", "clip.mp4"):
        refused(movq("encode", clip, "-o", "out.safetensors", "--weights", name), name)
    assert listing(tmp_path) == before


def test_one_bad_path_does_not_hide_the_others(movq, clip):
    result = movq("info", "missing", clip)
    assert result.returncode == 1
    assert "h264" in result.stdout
    assert result.stderr == "movq: missing: no such file or folder\n"


NAMES = ["-dash.mp4", "a:b.mp4", "http:x.mp4", "new\nline.mp4", "\x1b[31mred.mp4", "ünï.mp4", "x" * 251 + ".mp4"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_any_file_name_works_and_none_writes_to_the_terminal(movq, tmp_path, clip, name):
    os.rename(clip, tmp_path / name)
    result = movq("encode", "-q", "-o", "out.safetensors", "--", name)
    assert result.returncode == 0, result.stderr
    assert open_latents(tmp_path / "out.safetensors").metadata.source_name == name
    shown = movq("info", "out.safetensors", "--", name)
    assert "\x1b[31m" not in shown.stdout
    (tmp_path / name).write_bytes(b"")
    result = movq("encode", "-q", "-o", "b.safetensors", "--", name)
    assert "\x1b" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_fork_does_what_a_new_interpreter_does(movq, fresh_movq, tmp_path, clip):
    """Most tests run forks of a process that has imported everything; exit codes, files and output are the same."""
    for command, out in ((movq, "fork.safetensors"), (fresh_movq, "fresh.safetensors")):
        assert command("encode", clip, "-o", out, "-q").returncode == 0
    assert (tmp_path / "fork.safetensors").read_bytes() == (tmp_path / "fresh.safetensors").read_bytes()
    for arguments in (
        ["info", "fork.safetensors", "."],
        ["encode", clip, clip],
        ["info", "missing"],
        ["info", "--help"],
    ):
        fork, fresh = movq(*arguments), fresh_movq(*arguments)
        assert (fork.returncode, fork.stdout, fork.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr), arguments


def test_names_that_are_not_utf8(fresh_movq, tmp_path, clip):
    name = os.fsdecode(b"\xff\xfe.mp4")
    os.rename(clip, tmp_path / name)
    result = fresh_movq("encode", name, "-o", "out.safetensors", "-q")
    assert result.returncode == 0, result.stderr
    assert open_latents(tmp_path / "out.safetensors").metadata.source_name == "\\xff\\xfe.mp4"


def catches(pid, number):
    """Return True if a process has a handler for a signal. Python itself has one only for SIGINT."""
    with open(f"/proc/{pid}/status") as status:
        caught = next(int(line.split()[1], 16) for line in status if line.startswith("SigCgt"))
    return bool(caught >> number - 1 & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("after", [0.4, 3.0])
def test_signals_leave_nothing(zygote, tmp_path, number, after):
    """A new interpreter is importing after 0.4 s and encoding after 3 s; a fork is 2 s faster."""
    command = ("encode", CITY, "-o", "out.safetensors", "-q")
    if after < 1:
        process = subprocess.Popen(
            [sys.executable, "-m", "movq_cli", *command],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_for(lambda: catches(process.pid, signal.SIGTERM))  # on a busy machine 0.4 s may be too short
    else:
        process = zygote.start(*command, cwd=tmp_path, start_new_session=True)
        after -= 2
    time.sleep(after)
    os.killpg(process.pid, number)
    started = time.perf_counter()
    _, talk = process.communicate(timeout=30)
    assert time.perf_counter() - started < 5
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    assert listing(tmp_path) == []
    assert "Traceback" not in talk


@pytest.fixture
def unchanged():
    """Check that `run` leaves the settings of the whole process as they were."""

    def settings():
        return (
            [signal.getsignal(number) for number in signal.valid_signals()],
            warnings.showwarning,
            warnings.filters[:],
        )

    before = settings()
    yield
    assert settings() == before


def test_run_returns_the_exit_code_and_prints_what_the_command_prints(unchanged, clip, capsys):
    for arguments, code, out, err in (
        (["info", str(clip)], 0, "h264 in mov", ""),
        (["info", "missing"], 1, "", "movq: missing: no such file or folder\n"),
        (["batch-encode", str(clip), "-o", "out", "--workers", "-1"], 2, "", "movq: --workers: must be "),
        (["frobnicate"], 2, "", "frobnicate"),
    ):
        assert run(arguments) == code, arguments
        printed = capsys.readouterr()
        assert (out in printed.out, err in printed.err) == (True, True), printed
        assert (bool(printed.out), bool(printed.err)) == (bool(out), bool(err))
        assert code == 0 or arguments[0] == "frobnicate" or printed.err.count("\n") == 1


def test_run_reports_a_bug_in_one_line_or_raises_it_for_debugging(unchanged, capsys, monkeypatch):
    def fail(*arguments, **options):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("movq_cli.cli.app", fail)
    assert run(["info"]) == 3
    assert capsys.readouterr().err.startswith("movq: a bug of movq: ZeroDivisionError: division by zero (")
    with pytest.raises(ZeroDivisionError):
        run(["--debug", "info"])


@pytest.mark.slow
def test_no_torch_where_no_tensors_are(tmp_path, clip, movq):
    movq("encode", clip, "-o", "out.safetensors", "-q")
    for arguments in (
        ["--help"],
        ["encode", "--help"],
        ["info", "out.safetensors"],
        ["info", str(clip)],
        ["info", "."],
    ):
        script = (
            f"import sys; sys.argv = ['movq', *{arguments!r}]\n"
            "from movq_cli.cli import main\n"
            "try: main()\nexcept SystemExit as e: assert not e.code, e.code\n"
            "assert 'torch' not in sys.modules and 'av' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


def test_importing_the_package_imports_no_torch():
    script = "import movq_cli, movq_cli.model, movq_cli.plan, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
