"""Workers that die, hang or swell, interrupted batches, and what is shown meanwhile: real processes and signals."""

import fcntl
import json
import os
import pty
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from movq_cli import MovqError, encode_batch, open_latents

from .helpers import clips
from .helpers.batches import manifest, tree
from .helpers.processes import children, decoders, encoding, forkers, group, wait_for
from .helpers.tolerance import AGREE, moments_off


@pytest.fixture(scope="session")
def start(zygote):
    """Start `movq batch-encode` as the leader of a process group: `start(folder, "in", "-o", "out")`."""
    return lambda cwd, *argv, **more: zygote.start("batch-encode", *argv, cwd=cwd, start_new_session=True, **more)


def start_fresh(cwd, *arguments, **more):
    """Start `movq batch-encode` in a new interpreter, for tests of how a process ends."""
    return subprocess.Popen(
        [sys.executable, "-m", "movq_cli", "batch-encode", *map(str, arguments)],
        cwd=cwd,
        start_new_session=True,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more,
    )


def opened(pid):
    """Return the files that a process has open."""
    try:
        return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write clips that take a second or two each, and a bad one."""
    made = tmp_path_factory.mktemp("clips")
    (made / "in" / "deep").mkdir(parents=True)
    for i in range(6):
        clips.write(made / "in" / ("deep" if i % 2 else "") / f"{i}.mp4", clips.pictures(25 + i, 160, 128))
    (made / "in" / "bad.mp4").write_text("no video")
    return made


@pytest.fixture(scope="module")
def undisturbed(start, folder):
    process = start(folder, "in", "-o", "undisturbed", "--workers", 2)
    _, talk = process.communicate(timeout=120)
    assert process.returncode == 1, talk
    return tree(folder / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, "died (SIGSEGV)"),
        (signal.SIGKILL, "was killed (SIGKILL)"),
        (signal.SIGSTOP, "no progress for 3 s"),
    ],
)
def test_a_worker_that_dies_or_hangs_costs_one_attempt_at_one_file(
    start, folder, undisturbed, tmp_path, number, reason
):
    process = start(folder, "in", "-o", tmp_path / "out", "--workers", 2, "--timeout", 3)
    victim = wait_for(lambda: encoding(process.pid))[0]
    os.kill(victim, number)
    _, talk = process.communicate(timeout=120)
    assert process.returncode == 1
    lines = manifest(tmp_path / "out")
    assert {name for name, line in lines.items() if line["status"] == "failed"} == {"bad.mp4"}, talk
    again = [line for line in lines.values() if line.get("warnings")]
    assert len(again) == 1, (talk, lines)
    assert again[0]["warnings"][0].startswith("made at attempt 2; at the first: ")
    assert reason in again[0]["warnings"][0]
    assert again[0]["chunk_frames"] == (4 if number == signal.SIGKILL else 8)
    if number != signal.SIGKILL:  # SIGKILL may mean a lack of memory: its second attempt has smaller chunks
        again[0]["warnings"] = []
    wait_for(lambda: not group(process.pid), 5)
    made, wanted = tree(tmp_path / "out"), dict(undisturbed)
    made.pop("manifest"), wanted.pop("manifest")
    if number == signal.SIGKILL:  # its chunks were smaller
        name = again[0]["output"]
        latents = [open_latents(path / name).latents.float() for path in (tmp_path / "out", folder / "undisturbed")]
        assert moments_off(*latents) < AGREE
        assert len(made.pop(name)) == len(wanted.pop(name))
    assert made == wanted


@pytest.mark.slow
def test_what_kills_every_worker_is_failed_after_two_attempts_and_tried_again_later(start, folder, tmp_path):
    clips.write(tmp_path / "a.mp4", clips.pictures(400, 160, 128))
    clips.write(tmp_path / "b.mp4", clips.pictures(5))
    process = start(tmp_path, "a.mp4", "b.mp4", "-o", "out", "--workers", 1)
    killed = set()
    while len(killed) < 2:
        workers = wait_for(lambda: [w for w in encoding(process.pid) if w not in killed])
        path = tmp_path / "out" / "manifest.jsonl"
        lines = path.read_text() if path.exists() else ""
        if killed and "b.mp4" not in lines:
            continue  # b is tried before a's second attempt
        os.kill(workers[0], signal.SIGSEGV)
        killed.add(workers[0])
    _, talk = process.communicate(timeout=60)
    line = manifest(tmp_path / "out")["a.mp4"]
    assert (process.returncode, line["status"], line["cause"]) == (1, "failed", "crash"), talk
    assert line["reason"] == "its process died (SIGSEGV) (attempt 2; at the first: its process died (SIGSEGV))"
    assert manifest(tmp_path / "out")["b.mp4"]["status"] == "done"
    result = encode_batch([tmp_path / "a.mp4", tmp_path / "b.mp4"], tmp_path / "out")
    assert [made["id"] for made in result.made] == ["a.mp4"]
    assert result.made[0]["status"] == "done"


@pytest.mark.slow
def test_a_worker_that_leaks_is_replaced(start, tmp_path):
    """The worker hoards 900 MB in a thread once the second output exists, when the memory of the first is known.

    The thread is begun by Python's own start-up, in workers only.
    """
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, threading, time\n"
        "def leak():\n"
        "    global hoard\n"
        "    while not os.path.exists('out/1.mp4.safetensors'): time.sleep(0.01)\n"
        "    if not os.path.exists('leaked'):\n"
        "        open('leaked', 'w').close()\n"
        "        hoard = b'x' * (900 << 20)\n"
        "if 'movq_cli.batch.worker' in sys.orig_argv: threading.Thread(target=leak, daemon=True).start()\n"
    )
    names = [f"{i}.mp4" for i in range(8)]
    for number, name in enumerate(names):
        clips.write(tmp_path / name, clips.pictures(30 + number, 160, 128)[number:])
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = start(tmp_path, *names, "-o", "out", "--workers", 1, "--memory-budget", "1.5GB", env=environment)
    seen = set()
    while process.poll() is None:
        seen |= set(encoding(process.pid))
        time.sleep(0.02)
    assert process.returncode == 0, process.communicate()
    assert (tmp_path / "leaked").exists()
    assert len(seen) == 2
    assert all(line["status"] == "done" and not line["warnings"][1:] for line in manifest(tmp_path / "out").values())


@pytest.mark.slow
def test_what_needs_more_than_its_share_of_memory_is_made_when_there_is_more(tmp_path):
    clips.write(tmp_path / "0.mp4", clips.pictures(5, 704, 568))
    clips.write(tmp_path / "1.mp4", clips.pictures(5))
    clips.write(tmp_path / "2.mp4", clips.pictures(5, 1408, 1136))
    names = [tmp_path / f"{i}.mp4" for i in range(3)]
    in_one_piece = dict(strip_rows=1152, precision="fp32", memory_budget=2 * 10**9)
    result = encode_batch(names, tmp_path / "out", workers=2, **in_one_piece)
    large, small, huge = result.lines
    assert [line["status"] for line in result.lines] == ["done"] * 3
    first = "made at attempt 2; at the first: a chunk of 4 .* where 1.0 GB may be used; .*"
    assert re.fullmatch(first, large["warnings"][-1])
    assert small["warnings"] == []
    assert re.match("made at attempt 3; at the first: a chunk of 4 frames of 1408x1136 needs", huge["warnings"][-1])
    assert (large["strips"], small["strips"], huge["strips"]) == (1, 1, 36)
    little = encode_batch(names, tmp_path / "little", workers=1, memory_budget=10**8)
    assert [(line["status"], line["cause"]) for line in little.lines] == [("failed", "memory")] * 3


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_the_result_is_the_same(start, folder, undisturbed, tmp_path):
    moments = random.Random(7)
    for _ in range(3):
        process = start(folder, "in", "-o", tmp_path / "out", "--workers", 2)
        time.sleep(moments.uniform(1.0, 5.0))
        process.send_group_signal(signal.SIGKILL)
        process.communicate()
        wait_for(lambda pgid=process.pid: not group(pgid), 5)
        for path in (tmp_path / "out").rglob("*.safetensors"):
            open_latents(path)
    process = start(folder, "in", "-o", tmp_path / "out", "--workers", 2)
    process.communicate(timeout=120)
    assert tree(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_workers_end_with_the_batch_even_when_stopped(start, tmp_path):
    clip = clips.write(tmp_path / "a.mp4", clips.pictures(1000, 160, 128))
    shutil.copy(clip, tmp_path / "b.mp4")
    process = start(tmp_path, "a.mp4", "b.mp4", "-o", "out", "--workers", 2)
    workers = wait_for(lambda: encoding(process.pid))  # the other one may still be starting
    os.kill(workers[0], signal.SIGSTOP)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not group(process.pid), 5)
    assert not list((tmp_path / "out").rglob(".movq*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_what_is_left_and_how_to_go_on(folder, undisturbed, tmp_path, number):
    process = start_fresh(folder, "in", "-o", tmp_path / "out", "--workers", 1)
    wait_for(lambda: (tmp_path / "out" / "manifest.jsonl").exists())
    time.sleep(0.1)
    started = time.perf_counter()
    os.killpg(process.pid, number)
    out, talk = process.communicate(timeout=30)
    assert time.perf_counter() - started < 5
    assert process.returncode == 128 + number
    wait_for(lambda: not group(process.pid), 5)
    said = re.search(r"(\d) of 7 items ended, (\d) left: the same command goes on with them", talk)
    assert said, talk
    assert int(said[1]) + int(said[2]) == 7
    assert f"stopped by {number.name}" in talk
    assert out == ""
    assert "Traceback" not in talk
    process = start_fresh(folder, "in", "-o", tmp_path / "out", "--workers", 2)
    process.communicate(timeout=120)
    assert tree(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_interrupted_while_it_reads_a_large_video_it_does_not_wait(tmp_path):
    clips.write(tmp_path / "a.mp4", clips.pictures(5))
    start_fresh(tmp_path, "a.mp4", "-o", "out").communicate(timeout=60)
    lines = manifest(tmp_path / "out")
    os.truncate(tmp_path / "a.mp4", 40 << 30)
    lines["a.mp4"]["source"][0] = 40 << 30  # as if that had been its size: only reading tells the difference
    (tmp_path / "out" / "manifest.jsonl").write_text(json.dumps(lines["a.mp4"]) + "\n")
    process = start_fresh(tmp_path, "a.mp4", "-o", "out")
    wait_for(lambda: str(tmp_path / "a.mp4") in opened(process.pid))
    started = time.perf_counter()
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert time.perf_counter() - started < 5
    assert process.returncode == 130


def test_two_batches_on_one_folder_the_second_is_refused(start, folder, tmp_path):
    first = start(folder, "in", "-o", tmp_path / "out", "--workers", 1)
    wait_for(lambda: encoding(first.pid))
    with pytest.raises(MovqError, match="another movq batch-encode is at work"):
        encode_batch([folder / "in"], tmp_path / "out")
    first.kill()
    first.communicate()


@pytest.mark.slow
def test_a_full_disk_stops_the_batch_and_loses_nothing(tmp_path):
    """The disk, mounted for the command alone, has 700 kB: one clip of 330 kB fits, and needs that space twice."""
    for number in (0, 1, 3, 4, 5, 6, 7, 8, 9):
        clips.write(tmp_path / f"{number}.mp4", clips.pictures(17 + number, 256, 256)[number:])
    clips.write(tmp_path / "2 small.mp4", clips.pictures(5))
    (tmp_path / "out").mkdir()
    command = (
        "mount -t tmpfs -o size=700k none out && "
        f"{sys.executable} -m movq_cli batch-encode *.mp4 -o out --workers 1 --store-dtype bf16; code=$?; "
        "ls -A out; cat out/manifest.jsonl; exit $code"
    )
    isolated = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command]
    result = subprocess.run(isolated, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1, result
    assert re.search("out: stopped: no space left on device; [234] items left: the same command goes on", result.stderr)
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert all(line["cause"] == "disk" for line in lines[6:])  # the items that the worker held when it was stopped
    assert [(line["id"][0], line["status"], line.get("cause")) for line in lines[:6]] == [
        ("0", "done", None),
        ("1", "failed", "disk"),
        ("2", "done", None),
        ("3", "failed", "disk"),
        ("4", "failed", "disk"),
        ("5", "failed", "disk"),
    ]
    assert ".movq" not in result.stdout


@pytest.mark.slow
def test_weights_or_options_that_no_item_can_be_encoded_with_are_said_once(folder, tmp_path, movq, make_weights):
    def poison(tensors):
        tensors["encoder.conv_in.conv.bias"][0] = float("nan")

    result = movq("batch-encode", folder / "in", "-o", "out", "--weights", make_weights(change=poison))
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "not finite" in result.stderr
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
    for arguments, code in (
        ([folder / "in"], 2),
        (["-o", "out"], 2),
        ([folder / "in", "-o", "out", "--workers", "-1"], 2),
        ([folder / "in", "-o", "out", "--max-failures", "1x"], 2),
        ([folder / "in", "-o", "out", "--precision", "fp16", "--device", "cpu"], 2),
        (["missing", "-o", "out"], 1),
        ([folder / "in" / "0.mp4", "-o", folder / "in" / "0.mp4"], 1),
    ):
        result = movq("batch-encode", *arguments)
        assert result.returncode == code, (arguments, result)
        assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_terminal_shows_a_bar_and_a_line_per_worker(start, folder, tmp_path):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = start(folder, "in", "-o", tmp_path / "out", "--workers", 2, stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
    process.communicate(timeout=60)
    text = shown.decode()
    assert re.search(r"\d of 7 items", text)
    assert "frames/s" in text
    assert "of video" in text
    assert re.search(r" 1: \d\.mp4: \d+ of \d+ frames", text)
    assert re.search(r" 2: \d\.mp4: \d+ of \d+ frames", text)
    assert "bad.mp4: is not a video" in text


def test_failures_within_bounds_are_no_failure(tmp_path, movq):
    (tmp_path / "in").mkdir()
    for i in range(6):
        clips.write(tmp_path / "in" / f"{i}.mp4", clips.pictures(5))
    (tmp_path / "in" / "bad.mp4").write_text("no video")
    for most, code in (("1", 0), ("20%", 0), ("0", 1), ("10%", 1)):
        result = movq("batch-encode", "in", "-o", "out", "--workers", 0, "--max-failures", most)
        assert result.returncode == code, most


def test_a_list_with_spans_and_captions(tmp_path):
    clips.write(tmp_path / "a.mp4", clips.pictures(20))
    clips.write(tmp_path / "b.mp4", clips.pictures(7))
    rows = [
        {"path": "a.mp4", "id": "one", "caption": "a cat", "score": 0.5},
        {"path": "a.mp4", "start": 0.2, "duration": 0.2, "caption": "its tail"},
        {"path": "b.mp4"},
    ]

    def run(**options):
        (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return encode_batch([], tmp_path / "out", lists=[tmp_path / "list.jsonl"], workers=0, **options)

    run()
    lines = manifest(tmp_path / "out")
    assert {name: (line["frames"], line.get("caption"), line.get("extra")) for name, line in lines.items()} == {
        "one": (20, "a cat", {"score": 0.5}),
        "a.mp4_0.2-0.2": (5, "its tail", None),
        "b.mp4": (7, None, None),
    }
    assert open_latents(tmp_path / "out" / "a.mp4_0.2-0.2.safetensors").frame_indices.tolist() == [5, 6, 7, 8, 9]
    rows[0]["caption"] = "another cat"
    rows[1]["note"] = "edited"
    del rows[2]
    result = run()
    assert result.made == []
    lines = manifest(tmp_path / "out")
    assert lines["one"]["caption"] == "another cat"
    assert lines["a.mp4_0.2-0.2"]["extra"] == {"note": "edited"}
    assert "b.mp4" in lines
    rows[1]["duration"] = 0.4
    assert [line["id"] for line in run().made] == ["a.mp4_0.2-0.4"]


def test_videos_with_fewer_frames_than_asked_for_are_short_not_failed(tmp_path, movq):
    clips.write(tmp_path / "a.mp4", clips.pictures(20))
    clips.write(tmp_path / "b.mp4", clips.pictures(7))
    command = ("batch-encode", "a.mp4", "b.mp4", "-o", "out", "--frames", 9, "--workers", 0)
    result = movq(*command)
    assert result.returncode == 0
    assert "1 done, 1 skipped (short) of 2 items" in result.stdout
    lines = manifest(tmp_path / "out")
    assert [lines["b.mp4"][name] for name in ("status", "cause", "reason")] == [
        "skipped",
        "short",
        "has 7 of the 9 frames asked for",
    ]
    assert not (tmp_path / "out" / "b.mp4.safetensors").exists()
    assert "nothing new" in movq(*command).stdout


@pytest.fixture
def two(start, tmp_path):
    """Start a batch that encodes a.mp4 with b.mp4 opened ahead: (batch, worker, forker, decoders of a and of b)."""
    clips.write(tmp_path / "a.mp4", clips.pictures(400, 160, 128))
    clips.write(tmp_path / "b.mp4", clips.pictures(60, 160, 128))
    process = start(tmp_path, "a.mp4", "b.mp4", "-o", "out", "--workers", 1, "--timeout", 4)
    [worker] = wait_for(lambda: children(process.pid))
    names = {str(tmp_path / name) for name in ("a.mp4", "b.mp4")}
    wait_for(lambda: names <= {name for decoder in decoders(worker) for name in opened(decoder)})
    [forker] = forkers(worker)
    yield process, worker, forker, *sorted(decoders(worker))
    process.kill()
    process.communicate()


def ended(process, folder):
    """Return the batch's lines by id, after checking that all are done and that no process or other file is left."""
    _, talk = process.communicate(timeout=120)
    assert process.returncode == 0, talk
    wait_for(lambda: not group(process.pid), 5)
    lines = manifest(folder / "out")
    assert {line["status"] for line in lines.values()} == {"done"}, talk
    written = {"README.md", "manifest.jsonl", "run.json", "a.mp4.safetensors", "b.mp4.safetensors"}
    assert set(os.listdir(folder / "out")) == written
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGSTOP])
def test_the_decoder_of_an_item_opened_ahead_is_that_items_affair(two, tmp_path, number):
    process, *_, ahead = two
    os.kill(ahead, number)
    lines = ended(process, tmp_path)
    assert not lines["a.mp4"]["warnings"]
    assert lines["b.mp4"]["warnings"][0].startswith("made at attempt 2; at the first: ")
    assert ("crashed" if number == signal.SIGSEGV else "no progress for 4 s") in lines["b.mp4"]["warnings"][0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGSTOP])
def test_an_item_opened_ahead_does_not_pay_for_the_one_before(two, tmp_path, number):
    process, worker, *_ = two
    os.kill(worker, number)
    lines = ended(process, tmp_path)
    assert lines["a.mp4"]["warnings"][0].startswith("made at attempt 2; at the first: ")
    assert not lines["b.mp4"]["warnings"]


@pytest.mark.slow
def test_what_forks_decoders_may_be_killed(two, tmp_path):
    process, _, forker, *_ = two
    os.kill(forker, signal.SIGKILL)
    lines = ended(process, tmp_path)
    assert all("the decoder crashed on it" in line["warnings"][0] for line in lines.values())


@pytest.mark.slow
def test_nothing_is_left_when_a_batch_is_killed_with_an_item_opened_ahead(two, tmp_path):
    process, _, _, first, ahead = two
    for decoder in (first, ahead):
        os.kill(decoder, signal.SIGSTOP)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not group(process.pid), 5)
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.slow
def test_a_bug_costs_its_own_item_wherever_it_is(start, tmp_path):
    """The bugs are in opening b, computing c and finishing d; the items before and after are not affected."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "def broken(kind, name, victim, path):\n"
        "    usual = getattr(kind, name)\n"
        "    def method(self, *arguments, **options):\n"
        "        if victim in str(path(self, arguments)): 1 / 0\n"
        "        return usual(self, *arguments, **options)\n"
        "    setattr(kind, name, method)\n"
        "if 'movq_cli.batch.worker' in sys.orig_argv:\n"
        "    from movq_cli.encode import VideoEncoder\n"
        "    from movq_cli.encoding import Encoding\n"
        "    broken(VideoEncoder, 'begin', 'b.mp4', lambda self, arguments: arguments[0])\n"
        "    broken(Encoding, 'compute', 'c.mp4', lambda self, arguments: self.source)\n"
        "    broken(Encoding, 'finish', 'd.mp4', lambda self, arguments: self.source)\n"
    )
    for number, name in enumerate("abcde"):
        clips.write(tmp_path / f"{name}.mp4", clips.pictures(10 + number)[number:])
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    names = [f"{name}.mp4" for name in "abcde"]
    process = start(tmp_path, *names, "-o", "out", "--workers", 1, env=environment)
    _, talk = process.communicate(timeout=120)
    lines = manifest(tmp_path / "out")
    assert process.returncode == 1, talk
    for name in "bcd":
        assert lines[f"{name}.mp4"]["reason"].startswith("a bug of movq: ZeroDivisionError: division by zero"), talk
        assert "(attempt 2; at the first: a bug of movq" in lines[f"{name}.mp4"]["reason"]
    for name in "ae":
        assert lines[f"{name}.mp4"]["status"] == "done"
        assert not lines[f"{name}.mp4"]["warnings"]
    assert {name for name in os.listdir(tmp_path / "out")} == {
        "a.mp4.safetensors",
        "e.mp4.safetensors",
        "README.md",
        "manifest.jsonl",
        "run.json",
    }
