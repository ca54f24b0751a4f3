"""The process that decoders are forked from: what it is, and what happens to the others when one of them ends."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from movq_cli import MovqError, read_frames
from movq_cli.video import decoders as decoders_module

from .helpers import clips
from .helpers.clips import CITY
from .helpers.processes import command, decoders, forkers, wait_for


@pytest.fixture
def forker():
    """Return the process that this process's decoders are forked from."""
    with read_frames(CITY) as reader:
        next(reader)
    (found,) = forkers()
    return found


def alive(pid):
    return os.path.exists(f"/proc/{pid}")


def test_it_has_one_thread_and_no_torch(forker):
    assert len(os.listdir(f"/proc/{forker}/task")) == 1
    maps = Path(f"/proc/{forker}/maps").read_text()
    assert "libavcodec" in maps
    assert "libtorch" not in maps


def test_decoders_have_none_of_each_others_descriptors(forker):
    with read_frames(CITY, ahead=2) as first, read_frames(CITY, ahead=2) as second:
        next(first), next(second)
        both = []
        for decoder in (pid for pid in decoders() if any(command(pid))):  # an earlier test's zombie has no command line
            paths = [f"/proc/{decoder}/fd/{fd}" for fd in os.listdir(f"/proc/{decoder}/fd")]
            both.append({os.stat(path).st_ino: os.readlink(path) for path in paths})
        kinds = [sorted(name.split(":")[0] for name in opened.values()) for opened in both]
        assert kinds == [sorted(["/dev/null", "/memfd", str(CITY), "pipe", "pipe"])] * 2
        shared = both[0].keys() & both[1].keys()
        assert {both[0][inode] for inode in shared} == {"/dev/null", str(CITY)}


def test_another_takes_the_place_of_one_that_was_killed(forker):
    os.kill(forker, signal.SIGKILL)
    wait_for(lambda: Path(f"/proc/{forker}/stat").read_text().split()[2] == "Z")
    with read_frames(CITY) as reader:
        next(reader)
        (other,) = forkers()
        assert other != forker


def test_its_end_amid_a_video_is_an_error_of_that_video(forker):
    with read_frames(CITY, ahead=2) as reader:
        next(reader)
        (decoder,) = decoders()
        os.kill(forker, signal.SIGKILL)
        with pytest.raises(MovqError, match=r"city.mp4: the decoder crashed on it \(SIGKILL"):
            list(reader)
        wait_for(lambda: not alive(decoder))
    with read_frames(CITY, ahead=2) as reader:
        assert len([*reader]) == 120


@pytest.mark.parametrize("stopped", [False, True])
def test_it_and_its_decoders_end_with_their_owner(tmp_path, stopped):
    code = (
        "import sys, time; from movq_cli import read_frames; reader = read_frames(sys.argv[1], ahead=2); next(reader)\n"
        "print('read', flush=True); time.sleep(100)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, CITY], stdout=subprocess.PIPE)
    assert owner.stdout.readline() == b"read\n"
    (forker,), (decoder,) = forkers(owner.pid), decoders(owner.pid)
    if stopped:
        os.kill(decoder, signal.SIGSTOP)
        os.kill(forker, signal.SIGSTOP)
    owner.kill()
    owner.communicate()
    wait_for(lambda: not alive(forker) and not alive(decoder), 5)


def test_a_fork_of_its_owner_has_one_of_its_own(forker):
    with read_frames(CITY, ahead=2) as inherited:
        next(inherited)
        pid = os.fork()
        if pid == 0:
            try:
                with read_frames(CITY, ahead=2) as reader:
                    next(reader)
                    own = forkers()
                    inherited.close()
                    left = sum(1 for _ in reader)
                os._exit(0 if len(own) == 1 and own != [forker] and left == 119 else 1)
            finally:
                os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0
        assert sum(1 for _ in inherited) == 119
    assert forkers() == [forker]


def test_threads_may_read_at_once():
    found = []

    def read():
        with read_frames(CITY) as reader:
            found.append(sum(1 for _ in reader))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [120] * 6
    assert not decoders()


def test_decoders_of_one_that_is_gone_are_not_asked_of_another(forker):
    with read_frames(CITY, ahead=2) as first, read_frames(CITY, ahead=2) as second:
        next(first), next(second)
        os.kill(forker, signal.SIGKILL)
        with pytest.raises(MovqError):
            list(first)  # now the pids of both decoders are known
        with read_frames(CITY, ahead=2) as third:
            next(third)
            second.close()
            first.close()
            assert sum(1 for _ in third) == 119


def test_one_that_hangs_is_an_error_of_the_video(monkeypatch):
    monkeypatch.setattr("movq_cli.video.decoders.HANG_SECONDS", 1.0)
    monkeypatch.setattr("movq_cli.forks._PATIENCE_SECONDS", 3.0)
    decoders_module._decoders.close()
    with read_frames(CITY, ahead=2) as reader:
        next(reader)
        (forker,), (decoder,) = forkers(), decoders()
        os.kill(decoder, signal.SIGSTOP)
        os.kill(forker, signal.SIGSTOP)
        with pytest.raises(MovqError, match="decoder hung"):
            list(reader)
    wait_for(lambda: not alive(forker) and not alive(decoder), 5)
    monkeypatch.undo()
    decoders_module._decoders.close()
    with read_frames(CITY) as reader:
        assert sum(1 for _ in reader) == 120


def test_a_relative_path_begins_where_the_caller_is(forker, tmp_path, monkeypatch):
    clips.write(tmp_path / "a.mp4", clips.pictures(3))
    monkeypatch.chdir(tmp_path)
    with read_frames("a.mp4") as reader:
        assert sum(1 for _ in reader) == 3
    (tmp_path / "in").mkdir()
    clips.write(tmp_path / "in" / "a.mp4", clips.pictures(5))
    monkeypatch.chdir(tmp_path / "in")
    with read_frames("a.mp4") as reader:
        assert sum(1 for _ in reader) == 5


def test_what_cannot_be_imported_is_said(tmp_path):
    (tmp_path / "av").mkdir()
    (tmp_path / "av" / "__init__.py").write_text("raise ImportError('broken')")
    code = "import sys; from movq_cli import read_frames; next(read_frames(sys.argv[1]))"
    result = subprocess.run(
        [sys.executable, "-c", code, CITY],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "ImportError: broken" in result.stderr
