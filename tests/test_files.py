"""Files that are whole or absent."""

import os
import signal
import stat
import subprocess
import sys

import pytest

from movq_cli import MovqError
from movq_cli.files import WholeFile, sweep
from movq_cli.headers import header_bytes, read_header


def test_nothing_until_commit_and_nothing_without(tmp_path):
    with WholeFile(tmp_path / "a") as file:
        file.write(b"half")
        assert os.listdir(tmp_path) == []
    assert os.listdir(tmp_path) == []
    with pytest.raises(KeyError), WholeFile(tmp_path / "a") as file:  # noqa: PT012
        file.write(b"half")
        raise KeyError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("named", [False, True], ids=["nameless", "named"])
def test_commit(tmp_path, monkeypatch, named):
    """Files are also whole or absent on file systems without nameless files."""
    if named:
        monkeypatch.delattr(os, "O_TMPFILE")
    old = os.umask(0o027)
    try:
        with WholeFile(tmp_path / "a") as file:
            fd = file.spool()
            os.write(fd, b"spooled")
            os.close(fd)
            file.write(b"whole")
            file.commit()
    finally:
        os.umask(old)
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    with pytest.raises(MovqError, match="exists; force=True"):
        WholeFile(tmp_path / "a")
    with WholeFile(tmp_path / "a", force=True) as file:
        file.write(b"new")
        assert (tmp_path / "a").read_bytes() == b"whole"
        file.commit()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_that_came_meanwhile_is_not_overwritten(tmp_path):
    with WholeFile(tmp_path / "a") as file:
        file.write(b"ours")
        (tmp_path / "a").write_bytes(b"theirs")
        with pytest.raises(MovqError, match="exists"):
            file.commit()
    assert (tmp_path / "a").read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a"]


def test_synced_then_named_then_the_folder_synced(tmp_path):
    """strace shows the order of system calls."""
    log = tmp_path / "log"
    for force, named in ((False, ["linkat"]), (True, ["linkat", "rename"])):
        script = f"from movq_cli.files import WholeFile\nwith WholeFile({str(tmp_path / 'a')!r}, force={force}) as f:\n"
        script += "    f.write(b'x')\n    f.commit()"
        calls = "trace=fsync,link,linkat,rename,renameat,renameat2"
        try:
            subprocess.run(["strace", "-f", "-qq", "-e", calls, "-o", log, sys.executable, "-c", script], check=True)
        except FileNotFoundError:
            pytest.skip("needs strace")
        names = [line.split(maxsplit=1)[1].split("(")[0] for line in log.read_text().splitlines() if "(" in line]
        assert names == ["fsync", *named, "fsync"]


def test_of_two_that_end_at_once_one_is_refused(tmp_path):
    """The second one ends while the first is about to name its file."""
    with WholeFile(tmp_path / "a") as first, WholeFile(tmp_path / "a") as second:
        first.write(b"first")
        second.write(b"second")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(MovqError, match="exists"):  # noqa: PT012
            patch.setattr("os.link", lambda *a, of=os.link, **k: (patch.undo(), second.commit(), of(*a, **k)))
            first.commit()
    assert (tmp_path / "a").read_bytes() == b"second"


def test_sigkill_leaves_nothing(tmp_path):
    script = (
        "import os\nfrom movq_cli.files import WholeFile\n"
        f"f = WholeFile({str(tmp_path / 'a')!r}); f.spool(); f.write(b'x' * 9999); os.kill(os.getpid(), 9)"
    )
    result = subprocess.run([sys.executable, "-c", script])
    assert result.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_line(tmp_path):
    """A limit on file size stands in for the full disk: the write fails halfway."""
    script = (
        "import resource, signal\nfrom movq_cli.files import WholeFile\nfrom movq_cli import MovqError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"try:\n    with WholeFile({str(tmp_path / 'a')!r}) as f: f.write(b'x' * 9999)\n"
        "except MovqError as e: print(e)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == f"{tmp_path / 'a'}: file too large\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no/folder", "does not exist; create it first"),
        ("", "is a folder"),
        ("pipe", "not a regular file"),
        ("x" * 300, "name is too long"),
        ("file/a", "not a folder"),
    ],
)
def test_paths_that_cannot_be_written(tmp_path, path, reason):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    with pytest.raises(MovqError, match=reason):
        WholeFile(tmp_path / path, force=True)


def test_headers_that_lie_are_refused(tmp_path):
    good = header_bytes({"a": ("F32", (2, 3))}, {"b": "2", "a": "1"})
    path = tmp_path / "a.safetensors"
    path.write_bytes(good + bytes(24))
    header = read_header(path)
    assert header.tensors["a"].shape == (2, 3)
    assert list(header.metadata) == ["a", "b"]
    assert len(good) % 8 == 0
    bad = [
        b"",
        good,
        good + bytes(20),
        good + bytes(30),
        b"\xff" * 8 + good[8:],
        good[:8] + b"{" + b"[" * (len(good) - 9),
        good.replace(b'"F32"', b'"F3X"') + bytes(24),
        good.replace(b"[0,24]", b"[8,24]") + bytes(24),
    ]
    for data in bad:
        path.write_bytes(data)
        with pytest.raises(MovqError, match="safetensors"):
            read_header(path)


def test_sweep_removes_what_the_dead_left_and_nothing_of_the_living(tmp_path, monkeypatch):
    monkeypatch.delattr("os.O_TMPFILE")  # as on file systems without nameless files
    left = tmp_path / "sub" / f".movq-{'0' * 16}.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half a file")
    others = [tmp_path / name for name in (".movq-notes.tmp", "a.tmp", ".hidden")]
    for other in others:
        other.write_bytes(b"mine")
    with WholeFile(tmp_path / "sub" / "out") as file:
        file.write(b"still at it")
        sweep(tmp_path)
        assert not left.exists()
        file.commit()
    assert (tmp_path / "sub" / "out").read_bytes() == b"still at it"
    assert all(other.read_bytes() == b"mine" for other in others)
