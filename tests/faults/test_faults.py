"""A fault at every system call that writes, kills at random moments, full disks, two commands at once: some minutes.

`make test-faults`. strace causes the faults and records the order of calls. Most commands run in a process forked from
one that has imported torch already: the sweep covers the real command from its options to its exit code, in the process
that writes. Batches with workers are started as at the prompt, and so is everything that is killed at random.
"""

import ctypes
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from movq_cli import encode_batch, open_latents, read_frames

from ..helpers import clips
from ..helpers.batches import tree
from ..helpers.processes import group, wait_for
from . import hostile

pytestmark = pytest.mark.faults

KILLS = 200
SEED = 20
WRITING = "openat write writev pwrite64 sendfile copy_file_range fsync fdatasync ftruncate fallocate"
NAMING = "link linkat rename renameat renameat2 unlink unlinkat rmdir mkdir mkdirat flock close"
CALLS = [*WRITING.split(), *NAMING.split()]
ERRORS = "ENOSPC", "EIO", "EACCES"
NAMES = "linkat", "rename", "renameat2"
HIDDEN = re.compile(r"\.movq-[0-9a-f]{16}\.tmp(\.spool|\.old)?")
COMMANDS = {  # output: the command that makes it
    "a.safetensors": "encode IN.mp4 -o OUT --quiet",
    "a.mp4": "decode IN.safetensors -o OUT --quiet",
    "a.npy": "decode IN.safetensors -o OUT --quiet",
    "pictures": "decode IN.safetensors -o OUT --quiet",
    "a.png": "eval IN.mp4 --picture OUT --quiet",
    "weights.safetensors": "weights convert IN.weights.safetensors -o OUT",
}
TAR = ["--layout", "tar", "--tar-size", "60kB"]

fork = multiprocessing.get_context("forkserver")
fork.set_forkserver_preload(
    [__name__, "av.video.reformatter", "movq_cli.cli", "movq_cli.evaluate", "movq_cli.checkpoints.convert"]
)


@pytest.fixture(scope="module", autouse=True)
def _needs():
    assert shutil.which("strace"), "these tests need strace: apt install strace"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def forked(arguments, folder, out, pipe, named):
    """Run movq in the forked process, where it waits to be traced when it first touches `out`."""
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER, any
    os.setsid()
    for fd in 1, 2:
        os.dup2(os.open(f"{folder}/{fd}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o666), fd)
    if named:  # as on file systems without nameless files
        del os.O_TMPFILE
    waits = bool(out)

    def audit(event, of):
        nonlocal waits
        if waits and of and str(of[0]).startswith(out):
            waits = False
            pipe.send("here")
            pipe.recv()

    sys.addaudithook(audit)
    from movq_cli.cli import main

    sys.argv = ["movq", *arguments]
    main()


def begin(folder, *arguments, named=False, out="", strace=()):
    """Start a command. From its first touch of `out` on it is under strace, whose log is `folder`/log."""
    here, there = fork.Pipe()
    process = fork.Process(target=forked, args=([str(a) for a in arguments], str(folder), str(out), there, named))
    process.start()
    there.close()
    if not out:
        return process, None
    here.recv()
    command = ["strace", "-p", str(process.pid), "-y", "-s", "0", "-o", f"{folder}/log", *strace]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert "attached" in (said := tracer.stderr.readline()), said
    here.send("go")
    return process, tracer


def run(folder, *arguments, **more):
    """Run a command and return its exit code and the lines on stderr; none of its processes is left."""
    process, tracer = begin(folder, *arguments, **more)
    process.join(120)
    if tracer:
        tracer.communicate(timeout=30)
    wait_for(lambda: not group(process.pid), 10)
    return process.exitcode, (Path(folder) / "2").read_text().splitlines()


def calls_on(folder, out, *, thin=40):
    """Return (name, its number among this process's calls of that name, line) of the log's calls about `out`.

    If a name has more than `thin`, take the first, the last and some between.
    """
    found, counts = {}, {}
    for line in (folder / "log").read_text().splitlines():
        name = line.split("(")[0]
        counts[name] = counts.get(name, 0) + 1
        if str(out) in line and not re.match(r"write\([12]<", line):
            found.setdefault(name, []).append((name, counts[name], line))
    step = {name: 1 if len(of) <= thin else len(of) // 8 for name, of in found.items()}
    return [one for name, of in found.items() for i, one in enumerate(of) if i % step[name] == 0 or one is of[-1]]


def inject(folder, out, call, fault, *arguments, named=False, reset=lambda: None):
    """Run a command with a fault at this call and return (exit code, lines on stderr, the call's line).

    Calls to other processes may vary in number and shift the count, so neighbours are tried until the faulty call is
    about `out`.
    """
    name, first, _ = call
    for nth in (first, first, first + 1, first - 1, first + 2, first - 2, first + 3, first + 4):
        reset()
        strace = ["-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={nth}"]
        code, said = run(folder, *arguments, named=named, out=out, strace=strace)
        log = (folder / "log").read_text().splitlines()
        hit = [line for line in log if "INJECTED" in line] if "error" in fault else log[-2:-1] * (code < 0)
        if hit and (str(out) in hit[0] or "/proc/self/fd/" in hit[0]):
            return code, said, hit[0]
    raise AssertionError(f"{call} did not come again: {log}")


def put(out, files):
    """Make a folder hold these files and no others."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for name, data in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)


def refused_well(code, said, lines=1):
    """Check that an error is told in at most `lines` lines and is not a bug."""
    assert code in (0, 1), said
    assert all(line.startswith("movq: ") and "bug of movq" not in line for line in said), said
    assert code == 0 or 1 <= len(said) <= lines, said


@pytest.fixture
def stage(tmp_path, make_weights):
    """Make inputs, old and new, and the latents and weights of each."""
    for name, count in (("old", 4), ("new", 5)):
        clips.write(tmp_path / f"{name}.mp4", clips.pictures(count))
        assert run(tmp_path, "encode", tmp_path / f"{name}.mp4", "-o", tmp_path / f"{name}.safetensors")[0] == 0
        make_weights(f"{name}.weights.safetensors", metadata={"name": name})
    return tmp_path


@pytest.mark.parametrize("mode", ["new", "replaced", "named"])
@pytest.mark.parametrize("kind", COMMANDS)
def test_a_fault_at_every_call(stage, kind, mode):
    """Each call about the output fails once, and the process is killed once before it."""
    out = stage / "out"
    inputs = {path: path.read_bytes() for path in stage.iterdir() if path.is_file() and path.suffix}

    def seen():
        """Return the files in `out`; a new video as its number of frames, since H.264 of the same frames may differ."""
        files = tree(out)
        if kind == "a.mp4" and files.get(kind, before) not in (before, before.get(kind)):
            with read_frames(out / kind) as frames:
                files[kind] = b"%d frames" % len(list(frames))
        return files

    def words(source):
        given = COMMANDS[kind].replace("IN", str(stage / source)).replace("OUT", str(out / kind)).split()
        return given + ["--force"] * (mode != "new")

    before, states = {}, []
    for source in ("old", "new"):
        put(out, {})
        assert run(stage, *words(source), named=mode == "named")[0] == 0
        states.append(tree(out))
        after = seen()
    assert states[0] != states[1]
    before = {} if mode == "new" else states[0]
    put(out, before)
    traced = ["-e", "trace=" + ",".join(CALLS)]
    assert run(stage, *words("new"), named=mode == "named", out=out, strace=traced)[0] == 0
    calls = calls_on(stage, out)
    wrong = []
    for number, call in enumerate(calls):
        for fault in (f"error={ERRORS[number % 3]}", "signal=SIGKILL"):
            more = {"named": mode == "named", "reset": lambda: put(out, before)}
            code, said, line = inject(stage, out, call, fault, *words("new"), **more)
            left = seen()
            whole = {name: data for name, data in left.items() if not HIDDEN.fullmatch(name.split("/")[0])}
            try:
                if "error" in fault:
                    refused_well(code, said)
                    assert whole == after or (code == 1 and whole == before), (code, whole.keys())
                    assert left == whole or re.search(r"unlink|rmdir|\.old|\.tmp\", O_RDONLY", line), left.keys()
                    continue
                assert code == -signal.SIGKILL
                moved = {name.split("/", 1)[1]: data for name, data in left.items() if ".old/" in name}
                between = kind == "pictures" and moved == {name.split("/", 1)[1]: data for name, data in before.items()}
                assert whole in (before, after) or between, whole.keys()
                assert left == whole or mode == "named" or kind == "pictures" or "rename" in line, left.keys()
                if left != whole or not whole:
                    assert run(stage, *words("new"), named=mode == "named")[0] == 0
                    assert seen().items() >= after.items()
            except AssertionError as error:
                wrong.append(f"{fault} {call[0]} {call[1]}: {line[:150]}\n    {error}")
    print(f"\n{kind}, {mode}: {2 * len(calls)} faults")
    assert not wrong, "\n".join(wrong)
    assert inputs == {path: path.read_bytes() for path in inputs}
    if kind == "a.safetensors":
        for path in out.glob("*"):
            assert torch.isfinite(open_latents(path).latents).all()


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Make six short clips and encode them undisturbed, as files and as tars."""
    made = tmp_path_factory.mktemp("batch")
    (made / "in" / "deep").mkdir(parents=True)
    for i in range(6):
        clips.write(made / "in" / ("deep" if i % 2 else "") / f"{i}.mp4", clips.pictures(9 + i))
    encode_batch([made / "in"], made / "files")
    encode_batch([made / "in"], made / "tars", layout="tar", tar_size=60_000)
    return made


def members(path):
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar if info.name.endswith(".safetensors")}


def whole_batch(batch, out, hidden=False):
    """Check that files are whole and right, the manifest true, and nothing else there. Return the latents found."""
    wanted = {name: data for name, data in tree(batch / "files").items() if name.endswith(".safetensors")}
    found, manifest = {}, out / "manifest.jsonl"
    for path in [path for path in out.rglob("*") if path.is_file() and path != manifest]:
        name = str(path.relative_to(out))
        if path.suffix == ".tar":
            found |= {n.replace("%2E", ".", 1): data for n, data in members(path).items()}
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif name.endswith(".index.json"):
            json.loads(path.read_bytes())
        else:
            assert HIDDEN.fullmatch(path.name if hidden else ""), name
    assert found.items() <= wanted.items()
    lines = manifest.read_bytes().split(b"\n") if manifest.exists() else [b""]
    for line in map(json.loads, lines[:-1]):  # a kill may cut off the last line
        assert line["status"] != "done" or f"{line['id']}.safetensors" in found, line
    return found


@pytest.mark.parametrize("mode", ["packed", "described"])
def test_a_fault_at_every_call_of_a_batch_without_workers(batch, tmp_path, mode):
    """Files are packed into tars, or a caption in tars is edited; afterwards the same command completes the batch."""
    out, source = tmp_path / "out", tmp_path / "in"
    shutil.copytree(batch / "in", source)
    shutil.copytree(batch / ("tars" if mode == "described" else "files"), out)
    command = ["batch-encode", source, "-o", out, "--quiet", *TAR]
    if mode == "described":
        assert run(tmp_path, *command)[0] == 0  # the copies have new inodes
        (source / "deep" / "3.txt").write_text("edited")
    else:
        assert run(tmp_path, *command[:-4])[0] == 0
    before = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    latents = whole_batch(batch, out)
    code, said = run(tmp_path, *command, out=out, strace=["-e", "trace=" + ",".join(CALLS)])
    assert code == 0, said
    calls, after = calls_on(tmp_path, out, thin=12), tree(out)
    assert whole_batch(batch, out) == latents
    wrong = []
    for number, call in enumerate(calls):
        for fault in (f"error={ERRORS[number % 3]}", "signal=SIGKILL"):
            more = {"reset": lambda: put(out, before)}
            code, said, line = inject(tmp_path, out, call, fault, *command, **more)
            try:
                refused = re.search("unlink|rmdir", line) is not None
                assert whole_batch(batch, out, hidden=code < 0 or refused) == latents
                assert code < 0 if "KILL" in fault else refused_well(code, said, 2) is None
                assert run(tmp_path, *command)[0] == 0
                assert whole_batch(batch, out) == latents
                # Latents that could not be read are made again, and may go into another tar.
                assert tree(out) == after or ("error" in fault and ".safetensors" in line)
            except AssertionError as error:
                wrong.append(f"{fault} {call[0]} {call[1]}: {line[:150]}\n    {str(error)[:300]}")
    print(f"\nbatch, {mode}: {2 * len(calls)} faults")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("fault", ["error=EIO", "signal=SIGKILL"])
def test_a_fault_at_every_call_of_a_batch_with_a_worker(batch, tmp_path, fault):
    """Fault each process's N-th call of a kind, N = 1, 2, 3, ..., by path; calls on nameless files have no path."""
    source, runs = batch / "in" / "deep" / "1.mp4", 0
    for name in ("openat", "write", "rename", "fsync", "linkat"):
        for nth in itertools.count(1):
            out = tmp_path / f"{name}{nth}"
            out.mkdir()
            paths = [out, out / "manifest.jsonl", out / "1.mp4.safetensors"] * (name not in ("fsync", "linkat"))
            strace = ["strace", "-f", "-y", "-s", "0", "-o", tmp_path / "log"]
            strace += ["--seccomp-bpf"] * ("error" in fault)  # faster, but signals do not come through
            strace += [part for path in paths for part in ("-P", path)]
            strace += ["-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={nth}"]
            movq = [sys.executable, "-m", "movq_cli", "batch-encode", source, "-o", out, "--workers", "1", "--quiet"]
            result = subprocess.run([*strace, *movq], stderr=subprocess.PIPE, text=True)
            log, runs = (tmp_path / "log").read_text(), runs + 1
            if not re.search(r"INJECTED|= \?$", log, re.M):
                assert result.returncode == 0
                break
            if result.returncode != -signal.SIGKILL:
                refused_well(result.returncode, result.stderr.splitlines(), 3)
            single = {f"deep/{path.name}": path for path in out.glob("*.safetensors")}
            for path in single.values():
                assert path.read_bytes() == (batch / "files" / "deep" / path.name).read_bytes()
            left = {path.name for path in out.iterdir()} - {"manifest.jsonl", "1.mp4.safetensors"}
            assert not left or ("KILL" in fault and name == "rename" and all(map(HIDDEN.fullmatch, left))), left
            assert result.returncode != 0 or single
    print(f"\nbatch with a worker, {fault}: {runs} runs")


def killed(command, folder, dice, within, after=0.0):
    """Kill a command's whole process group at a random moment. Return True if it was still running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "movq_cli", *map(str, command)],
        cwd=folder,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with suppress(subprocess.TimeoutExpired):
        process.wait(dice.uniform(after, within))
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    wait_for(lambda: not group(process.pid), 10)
    return code == -signal.SIGKILL


@pytest.mark.parametrize("force", [False, True], ids=["new", "replaced"])
def test_encode_killed_at_random(stage, force):
    out, dice = stage / "out", random.Random(SEED)
    command = ["encode", stage / "new.mp4", "-o", out / "a.safetensors", "--quiet", "--force"]
    before = {"a.safetensors": (stage / "old.safetensors").read_bytes()} if force else {}
    after = {"a.safetensors": (stage / "new.safetensors").read_bytes()}
    put(out, before)
    started = time.monotonic()
    assert not killed(command, stage, dice, 100, 100)
    whole, kills, appeared = time.monotonic() - started, 0, 0
    assert tree(out) == after
    while kills < KILLS // 4:
        put(out, before)
        if killed(command, stage, dice, whole):
            kills += 1
            left = tree(out)
            hidden = {name for name in left if HIDDEN.fullmatch(name)}  # killed between its two names
            assert {name: left[name] for name in left.keys() - hidden} in (before, after), (SEED, kills)
            assert all(left[name] == after["a.safetensors"] for name in hidden), (SEED, kills)
            appeared += "a.safetensors" in left and left["a.safetensors"] == after["a.safetensors"]
    print(f"\nencode: {kills} kills within {whole:.1f} s, {appeared} after the output appeared")


@pytest.mark.parametrize("layout", ["files", "tars"])
def test_a_batch_killed_at_random_and_resumed(batch, tmp_path, layout):
    """After up to five kills a batch is resumed, and has the bytes of the undisturbed batch."""
    dice, kills, folders, appeared, whole = random.Random(SEED), 0, 0, 0, 0.0
    while kills < KILLS // 4:
        out = tmp_path / f"{folders}"
        command = ["batch-encode", batch / "in", "-o", out, "--quiet", *TAR * (layout == "tars")]
        if folders:
            for _ in range(5):
                before = {path: path.stat().st_size for path in out.rglob("*")}
                if killed(command, tmp_path, dice, whole, whole / 4):
                    kills += 1
                    try:
                        whole_batch(batch, out, hidden=True) if out.exists() else None
                    except AssertionError as error:
                        raise AssertionError(f"seed {SEED}, kill {kills}: {error}") from error
                    appeared += before != {path: path.stat().st_size for path in out.rglob("*")}
        started = time.monotonic()
        assert not killed(command, tmp_path, dice, 100, 100)
        whole, folders = whole or time.monotonic() - started, folders + 1
        assert tree(out) == tree(batch / layout), (SEED, kills)
    print(f"\nbatch, {layout}: {kills} kills within {whole:.1f} s, {appeared} left something new, {folders} folders")


@pytest.mark.parametrize("kind", ["a.safetensors", "a.mp4", "a.npy", "pictures", "batch"])
def test_a_full_disk(stage, kind):
    """The disk, mounted for the command alone, has 4 of 64 kB left; if that is not possible, file sizes are limited."""
    out, kept = stage / "out", stage / "kept"
    command = "batch-encode OLD NEW -o out --workers 1 --quiet" if kind == "batch" else COMMANDS[kind] + " --force"
    name = "out" if kind == "batch" else f"out/{kind}"
    words = [w.replace("IN", str(stage / "new")).replace("OUT", name) for w in command.split()]
    old = [w.replace("/new", "/old") for w in words if w != "NEW"]
    words, old = ([w.replace("NEW", "new.mp4").replace("OLD", "old.mp4") for w in of] for of in (words, old))
    movq = [sys.executable, "-m", "movq_cli"]
    mount = "mount -t tmpfs -o size=64k none out && "
    isolated = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    out.mkdir()
    if kind == "a.npy":  # too large itself
        old = ["decode", str(stage / "old.safetensors"), "-o", "out/a.mp4"]
    assert subprocess.run([*movq, *old], cwd=stage, capture_output=True).returncode == 0
    if kind == "a.npy":
        (out / "a.mp4").rename(out / "a.npy")
    before, inputs = tree(out), {path: path.read_bytes() for path in stage.glob("*.*")}
    shutil.copytree(out, kept)
    possible = subprocess.run([*isolated, mount + "true"], cwd=stage, capture_output=True).returncode == 0
    fill = "cp -r kept/. out && head -c 99999 /dev/zero 2>&- > out/fill; "
    fill += "truncate -s -4096 out/fill; " * (kind != "a.mp4")  # which needs less
    script = mount + fill if possible else "ulimit -f 2; "  # in blocks of 512 bytes
    script += 'rm -r kept; "$@"; code=$?; rm -f out/fill; cp -r out kept; exit $code'
    shell = isolated if possible else ["sh", "-c"]
    result = subprocess.run([*shell, script, "sh", *movq, *words], cwd=stage, capture_output=True, text=True)
    assert result.returncode == 1, result
    refused_well(1, result.stderr.splitlines(), 2 if kind == "batch" else 1)
    assert re.search("no space left|file too large", result.stderr)
    left = tree(kept)
    if kind == "batch":
        assert next(line["id"] for line in left.pop("manifest")) == "new.mp4"
        before.pop("manifest")
    assert left == before
    assert inputs == {path: path.read_bytes() for path in inputs}


@pytest.mark.parametrize("force", [False, True], ids=["new", "replaced"])
def test_two_at_once(stage, force):
    """One output appears whole. Without --force the later command is refused, unless it began after the other's end."""
    out, dice, ended = stage / "out", random.Random(SEED), []
    wanted = {(stage / f"{name}.safetensors").read_bytes(): name for name in ("old", "new")}
    for i in range(10):
        put(out, {})
        both = []
        for name in ("old", "new"):
            (stage / f"{name}{i}").mkdir()
            words = ["encode", stage / f"{name}.mp4", "-o", out / "a.safetensors", "--quiet", *["--force"] * force]
            both.append(begin(stage / f"{name}{i}", *words)[0])
            time.sleep(dice.choice([0, 0.02, 0.1, 0.3]))
        for process, name in zip(both, ("old", "new"), strict=True):
            process.join(60)
            refused_well(process.exitcode, (stage / f"{name}{i}" / "2").read_text().splitlines())
        codes = [process.exitcode for process in both]
        assert list(tree(out)) == ["a.safetensors"], i
        winner = wanted[(out / "a.safetensors").read_bytes()]
        assert codes == [0, 0] if force else sum(codes) == 1 and codes[winner == "new"] == 0, (codes, winner)
        ended.append(winner)
    print(f"\nof 10 at once: {ended.count('old')} of the first")


def in_order(log):
    """Check that data is on disk before it has a name, and names before the process ends. Return the names given."""
    unsynced, given, names, spool = set(), set(), [], set()
    for line in log.splitlines():
        call = line.split("(")[0]
        place = re.sub(r"\.old$", "", (re.findall(r"<(/[^>]*)>", line) or [""])[-1 if call == "openat" else 0])
        if call == "openat" and "0600)" in line:
            spool.add(place)  # never named
        elif call in ("write", "pwrite64") and place not in spool:
            unsynced.add(place)
        elif call == "fsync":
            unsynced.discard(place)
            given.discard(place)
        elif call in NAMES and not re.search(r"\.(old|tmp)$", line.split('"')[3]):
            assert not unsynced, (line, unsynced)
            names.append(line.split('"')[3])
            given.add(os.path.dirname(names[-1]))
    assert not unsynced | given, (unsynced, given)
    return names


@pytest.mark.parametrize("kind", [*COMMANDS, "tars"])
def test_synced_named_synced(stage, batch, kind):
    """Data goes to disk first, then the name, then the folder, then the process exits."""
    out = stage / "out"
    put(out, {})
    words = COMMANDS.get(kind, "").replace("IN", str(stage / "new")).replace("OUT", str(out / kind)).split()
    if kind == "tars":
        shutil.copytree(batch / "files", out, dirs_exist_ok=True)
        words = ["batch-encode", batch / "in", "-o", out, *TAR]
    traced = ["-e", "trace=openat,write,pwrite64,fsync," + ",".join(NAMES)]
    for more in ([], ["--force"]) if kind != "tars" else ([],):
        assert run(stage, *words, *more, out=out, strace=traced)[0] == 0
        lines = [
            line for line in (stage / "log").read_text().splitlines() if str(out) in line and "write(1<" not in line
        ]
        names = in_order("\n".join(lines))
        assert len(names) >= 4 if kind == "tars" else names == [str(out / kind)]


def test_workers_sync_name_and_sync(batch, tmp_path):
    out = tmp_path / "out"
    strace = ["strace", "-ff", "--seccomp-bpf", "-y", "-s", "0", "-o", tmp_path / "log"]
    strace += ["-e", "trace=openat,write,pwrite64,fsync," + ",".join(NAMES)]
    movq = [sys.executable, "-m", "movq_cli", "batch-encode", batch / "in" / "0.mp4", "-o", out, "--workers", "1"]
    subprocess.run([*strace, *movq], check=True, capture_output=True)
    names = []
    for log in tmp_path.glob("log.*"):
        names += in_order(
            "\n".join(
                line for line in log.read_text().splitlines() if f"<{out}" in line or re.match("rename|linkat", line)
            )
        )
    assert str(out / "0.mp4.safetensors") in names


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "avi"])
def test_cut_at_every_byte(tmp_path, suffix):
    """A cut file is refused or has all frames. The decoder runs in this process, not in one of its own for each cut."""
    import av.logging

    from movq_cli import MovqError, Selection
    from movq_cli.video.container import open_video
    from movq_cli.video.frames import Decoder

    def frames(path):
        with open_video(str(path)) as source:
            decoder = Decoder(source)
            return [decoder.rgb(shown.payload, (64, 48)).tobytes() for shown in decoder.frames(Selection())]

    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(suffix, "libx264")
    data, whole = hostile.made(suffix, 12, codec=codec), tmp_path / f"a.{suffix}"
    whole.write_bytes(data)
    expected = frames(whole)
    for size in range(1, len(data)):
        (tmp_path / f"cut.{suffix}").write_bytes(data[:size])
        with suppress(MovqError):
            assert frames(tmp_path / f"cut.{suffix}") == expected, size
    print(f"\n{suffix}: cut at {len(data) - 1} bytes")
