"""Start `movq` by forking a process that has imported torch once and has computed nothing with it.

A fork is a real process with its own pid, signals, descriptors, folder and environment; it costs 0.3 CPU-seconds, a new
interpreter 1.9. It imports nothing: tests of imports, and of variables that are read during them, need the latter.

`Zygote` is pytest's side. Run as a program, this file is the process that forks.
"""

import atexit
import gc
import io
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib import import_module


class Zygote:
    """The process that forks. It is not a fork of pytest: OpenMP fails in a fork of a process that has computed."""

    def __init__(self):
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # importing numpy would start threads
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for pytest
            )

    @property
    def pid(self):
        return self._process.pid

    def start(self, *argv, cwd, env=None, stdout=None, stderr=None, start_new_session=False):
        """Start `movq ARGV...` and return its Process, which keeps the outputs that were not given an open file."""
        kept = [None if given else tempfile.TemporaryFile("w+") for given in (stdout, stderr)]  # noqa: SIM115
        request = {
            "argv": list(map(str, argv)),
            "cwd": str(cwd),
            "env": dict(os.environ if env is None else env),
            "new_session": start_new_session,
        }
        mine, theirs = socket.socketpair()
        with open(os.devnull) as null, theirs:
            files = (null, stdout or kept[0], stderr or kept[1], theirs)
            socket.send_fds(self._control, [b"+"], [file if isinstance(file, int) else file.fileno() for file in files])
        return Process(mine, request, kept)

    def run(self, *argv, timeout=300, **options):
        """Run `movq ARGV...` and return a CompletedProcess with its outputs as text, as subprocess.run does."""
        process = self.start(*argv, **options)
        try:
            out, err = process.communicate(timeout)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def close(self):
        self._control.close()
        self._process.wait()


class Process:
    """A fork, with the part of subprocess.Popen's interface that the tests need."""

    def __init__(self, wire, request, outputs):
        self.args, self.returncode = ["movq", *request["argv"]], None
        self._wire, self._answers, self._outputs = wire, wire.makefile("rw"), outputs
        self._answers.write(json.dumps(request) + "\n")
        self._answers.flush()
        self.pid = int(self._answers.readline())

    def wait(self, timeout=None):
        """Return the exit code, or minus the number of the signal that ended it. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._wire], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = os.waitstatus_to_exitcode(int(self._answers.readline()))
        return self.returncode

    def poll(self):
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout=None):
        """Wait, and return the text of both outputs; None for an output that was given a file."""
        self.wait(timeout)
        for file in filter(None, self._outputs):
            file.seek(0)
        return tuple(file and file.read() for file in self._outputs)

    def send_signal(self, number):
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def send_group_signal(self, number):
        """Send a signal to the process group that it leads, unless it has ended already."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def serve(control):
    """Fork once for each request. Returns only in the forks, each set up as its request asks."""
    awake, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    running = {}
    while True:
        ready, _, _ = select.select([control, awake], [], [])
        if awake in ready:
            awake.recv(4096)
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    with running.pop(pid) as wire:
                        wire.send(b"%d\n" % status)
        if control not in ready:
            continue
        asked, descriptors, *_ = socket.recv_fds(control, 1, 4)
        if not asked:  # pytest has ended
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            sys.exit()
        *standard, wire = descriptors
        wire = socket.socket(fileno=wire)
        with wire.makefile() as lines:
            request = json.loads(lines.readline())
        if pid := os.fork():
            running[pid] = wire
            wire.send(b"%d\n" % pid)
            for descriptor in standard:
                os.close(descriptor)
            continue
        signal.set_wakeup_fd(-1)
        for open_socket in (control, awake, wake, wire, *running.values()):
            open_socket.close()
        return become(request, standard)


def become(request, standard):
    """Set up this fork as subprocess.Popen would have set up a new process."""
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["new_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None  # found by the old TMPDIR
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = ["movq", *request["argv"]]


def preload():
    """Import what the commands import, in the same way, and compute nothing."""
    from movq_cli.device import spare_page_faults

    spare_page_faults()  # before torch is imported
    import movq_cli
    from movq_cli.cli import run

    for module in pkgutil.walk_packages(movq_cli.__path__, "movq_cli."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        run(["--help"])  # typer and rich import some modules on first use
        run(["info", os.devnull])


if __name__ == "__main__":
    preload()
    gc.freeze()  # collecting garbage would write to memory that forks share, and so copy it
    serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        import_module("movq_cli.cli").main()
    except SystemExit as end:
        threading._shutdown()
        atexit._run_exitfuncs()
        os._exit(end.code)  # torch's own cleanup would take longer than most commands
