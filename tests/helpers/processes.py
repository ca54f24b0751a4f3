"""Find processes by /proc, and wait for them."""

import os
import time


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
