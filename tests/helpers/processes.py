"""Find processes by /proc, wait for them, and run movq in little memory."""

import os
import subprocess
import sys
import time

_LIMITED = """
import resource, sys
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
import atexit
atexit.register(lambda: print(next(line for line in open("/proc/self/status") if line.startswith("VmPeak")), file=sys.stderr))
sys.argv[1:2] = []
from movq_cli.cli import main
main()
"""


def children(pid):
    """Return the processes that a process has started and not waited for."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def command(pid):
    """Return the words of a process's command line; none if there is no such process."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def forkers(pid=None):
    """Return the processes that fork decoders for a process (default: this one): one, or none yet."""
    return [child for child in children(pid or os.getpid()) if b"movq_cli.forks" in command(child)]


def decoders(pid=None):
    """Return the decoding processes of a process (default: this one)."""
    return [decoder for forker in forkers(pid) for decoder in children(forker)]


def wait_for(what, seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if result := what():
            return result
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def encoding(pid):
    """Return the workers that are encoding a video: those with a decoding process."""
    return [worker for worker in children(pid) if decoders(worker)]


def group(pgid):
    """Return the processes of a group that are alive."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, _, of = file.read().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of) == pgid and state != "Z":
            found.append(int(name))
    return found


def relays():
    """Return (relay, worker) of each Ray process that passes messages on to a worker which is encoding."""
    found = [int(name) for name in os.listdir("/proc") if name.isdigit() and b"ray::Relay" in b"".join(command(name))]
    return [(relay, worker) for relay in found for worker in children(relay) if decoders(worker)]


def run_limited(folder, limit, *words):
    """Run movq, in fp32 on one thread, with so many bytes of addresses (0: no limit). Return the process and its peak."""
    one_arena = os.environ | {"MALLOC_ARENA_MAX": "1"}  # else the threads reserve varying amounts of addresses
    command = [sys.executable, "-c", _LIMITED, str(limit), *words, "--precision", "fp32", "--threads", "1"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=one_arena)
    return result, 1024 * int(result.stderr.split()[-2])
