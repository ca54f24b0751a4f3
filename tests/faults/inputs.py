"""Files from strangers, one by one through the real command, under strace: good ones, bad ones, and ones that lie.

python -m tests.faults.inputs [--jobs 2] [--only PART OF A KIND OR NAME]

Each file is in a folder of its own, with decoys if it names other files; what is expected follows from movq's promises.
Each run is checked: its exit code, what it prints and where, that the folder is as before except for the output, that
only the files that were named are opened in it, and that there are no connections.
"""

import argparse
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .hostile import KINDS, LISTENER

SECONDS = 120
OPENED = re.compile(r'\b(?:open|openat|openat2|creat)\((?:(?:AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"([^"]*)"(.*)')
PROGRAM = re.compile(r'\bexecve\("([^"]*)"')
WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND")
STRACE = shutil.which("strace")
MAKING = threading.Lock()


def traced(log):
    if not STRACE:
        return []
    help_text = subprocess.run([STRACE, "--help"], capture_output=True, text=True).stdout
    calls = "trace=open,openat,openat2,creat,socket,connect,execve"
    fast = ["--seccomp-bpf"] if "--seccomp-bpf" in help_text else []
    return [STRACE, "-f", *fast, "-qq", "-xx", "-y", "-e", calls, "-o", str(log)]


def decoded(text):
    return os.fsdecode(bytes.fromhex(text.replace("\\x", "")))


def state(folder):
    """Map everything in a folder to its kind and mode, and files also to their mtime and bytes."""
    found = {}
    for below, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(below, name)
            what = os.lstat(path)
            data, when = None, what.st_mtime_ns
            if stat.S_ISDIR(what.st_mode):
                when = None
            elif stat.S_ISREG(what.st_mode) and os.access(path, os.R_OK):
                data = Path(path).read_bytes()
            found[os.path.relpath(path, folder)] = (what.st_mode, when, data)
    return found


class Run:
    """The run of one case in a folder of its own; `wrong` lists what was not as promised."""

    def __init__(self, case, root, number):
        self.case, self.root = case, root
        self.folder, self.temporary = root / f"{number}", root / f"{number}.tmp"
        self.log = root / f"{number}.log"
        self.wrong, self.opened, self.connections, self.left, self.tracebacks = [], 0, 0, 0, 0
        words = case.command.split()
        self.output = words[words.index("-o") + 1] if "-o" in words else None
        self.words = [*words, case.name]
        self.folder.mkdir()
        self.temporary.mkdir()
        try:
            with MAKING:
                for name, make in (*case.decoys.items(), (case.name, case.make)):
                    make(self.folder / name)
        except Exception as error:
            self.wrong.append(f"cannot be made: {error!r}")
        named = {w for w in self.words if w in os.listdir(self.folder)}
        self.named = {os.path.normpath(self.folder / name) for name in (*named, case.name, *case.also)}

    def go(self):
        before = state(self.folder)
        command = [sys.executable, "-P", "-m", "movq_cli", *self.words]
        env = os.environ | {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                [*traced(self.log), *command],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            self.wrong.append(f"not over after {SECONDS} s")
            return self
        out, err = (os.fsdecode(text) for text in (done.stdout, done.stderr))
        self.check_talk(done.returncode, out, err)
        self.check_folder(before, state(self.folder), done.returncode)
        if STRACE:
            self.check_trace()
        if self.wrong:
            self.wrong.append(f"stdout {out[:400]!r}, stderr {err[:400]!r}")
        shutil.rmtree(self.folder)
        return self

    def expect(self, holds, what):
        if not holds:
            self.wrong.append(what)

    def check_talk(self, code, out, err):
        case = self.case
        self.expect(code == case.code, f"exit code {code}, not {case.code}")
        self.tracebacks += "Traceback" in out + err
        self.expect("Traceback" not in out + err, "a traceback")
        raw = sorted({c for c in out + err if not c.isprintable() and c != "\n"})
        self.expect(not raw, f"prints {raw}")
        where = err if case.code else out
        for fact in case.says:
            self.expect(re.search(fact, where), f"does not say {fact!r}")
        if case.code:
            self.expect(out == "", "a refusal with something on stdout")
        if case.code == 1:
            about = case.name if case.about is None else case.about
            shown = "".join(
                c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in about
            )
            self.expect(err.count("\n") == 1 and err.endswith("\n"), "not one line")
            self.expect(err.startswith(f"movq: {shown}"), f"is not about {shown!r}")
        elif case.code == 0:
            self.expect(all(line.startswith("movq: ") for line in err.splitlines()), "other talk on stderr")
            self.expect(re.search(case.warns, err) if case.warns else err == "", f"warnings other than {case.warns!r}")

    def check_folder(self, before, after, code):
        if self.output and self.case.code == 0:
            self.expect(self.output in after, "no output")
            after = {name: what for name, what in after.items() if name.split("/")[0] != self.output}
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        changed += os.listdir(self.temporary)
        self.left += len(changed)
        self.expect(not changed, f"changed or left behind: {changed}")

    def check_trace(self):
        output = os.path.normpath(self.folder / (self.output or "."))
        for line in self.log.read_text().splitlines():
            if re.search(r"\bsocket\(AF_INET|\bconnect\(", line):
                self.connections += 1
                self.wrong.append(f"a connection: {line[:200]}")
            if (program := PROGRAM.search(line)) and decoded(program[1]) != sys.executable:
                self.wrong.append(f"runs {decoded(program[1])}")
            if not (found := OPENED.search(line)):
                continue
            place, name, how = found.groups()
            path = os.path.normpath(os.path.join(self.folder, decoded(place or ""), decoded(name)))
            if not path.startswith(f"{self.root}/") or path.startswith(str(self.temporary)):
                continue
            mine = self.output and (
                path == output or path.startswith((f"{output}/", f"{os.path.dirname(output)}/.movq-"))
            )
            if (
                mine
                or (self.output and path == os.path.dirname(output))
                or (path in self.named and not WRITING.search(how))
            ):
                continue
            self.opened += 1
            self.wrong.append(f"opens {path} {how[:60]}")
        self.log.unlink()


def knocks():
    """Return how many have tried to connect to the listener."""
    LISTENER.setblocking(False)
    count = 0
    while True:
        try:
            LISTENER.accept()[0].close()
            count += 1
        except BlockingIOError:
            return count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    started = time.monotonic()
    chosen = [case for kind in KINDS for case in kind() if arguments.only in f"{case.kind} {case.name}"]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        root = Path(os.path.realpath(folder))
        runs = list(pool.map(lambda numbered: Run(numbered[1], root, numbered[0]).go(), enumerate(chosen)))
    table = defaultdict(lambda: [0, 0, 0])
    for run in runs:
        for row in (run.case.kind, "all"):
            table[row] = [n + m for n, m in zip(table[row], (1, run.case.code == 0, run.case.code != 0), strict=True)]
    print(f"| {'kind':<22} | inputs | good | refused |\n|{'-' * 24}|--------|------|---------|")
    total = table.pop("all")
    for kind, counts in (*table.items(), ("all", total)):
        print("| {:<22} | {:>6} | {:>4} | {:>7} |".format(kind, *counts))
    heard, bad = knocks(), [run for run in runs if run.wrong]
    print(
        f"tracebacks {sum(r.tracebacks for r in runs)}, files changed or left behind {sum(r.left for r in runs)}, "
        + f"connections {sum(r.connections for r in runs) if STRACE else 'not traced'}, heard by the listener {heard}, "
        + f"files opened besides the named {sum(r.opened for r in runs) if STRACE else 'not traced'}; "
        + f"not as expected {len(bad)}; {time.monotonic() - started:.0f} s"
    )
    for run in bad:
        print(f"\n{run.case.kind}: {run.case.name!r} by {run.case.command!r}", *run.wrong, sep="\n  ")
    sys.exit(bool(bad or heard))


if __name__ == "__main__":
    main()
