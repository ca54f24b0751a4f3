"""What processes there are, by /proc."""

import os


def children(pid):
    """The processes that a process has started and not waited for."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def command(pid):
    """A process's command line, words apart; empty if there is no such process."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def forkers(pid=None):
    """The processes that fork decoders for a process (this one): one, or none yet."""
    return [child for child in children(pid or os.getpid()) if b"movq_cli.forks" in command(child)]


def decoders(pid=None):
    """The decoding processes of a process (this one)."""
    return [decoder for forker in forkers(pid) for decoder in children(forker)]
