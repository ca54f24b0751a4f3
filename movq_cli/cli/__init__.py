"""The command line, `movq`. Each command has a module, which parses options, makes one library call, and prints.

stdout is for results, stderr for messages and progress. Exit codes: 0 success; 1 an input or the system failed;
2 usage; 3 a bug of movq; 128+n ended by signal n. torch is not imported before a command needs tensors.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from .._version import __version__
from ..errors import MovqError, MovqUsageError, MovqWarning
from ..files import os_reason
from . import batch, decode, encode, eval, export, info, weights
from .habits import slip
from .show import complain

app = typer.Typer(
    name="movq",
    help="Turn videos into latents with CogVideo's MoVQ encoder, and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("encode", epilog=encode.EXAMPLES)(encode.encode)
app.command("batch-encode", epilog=batch.EXAMPLES)(batch.batch_encode)
app.command("decode", epilog=decode.EXAMPLES)(decode.decode)
app.command("export", epilog=export.EXAMPLES)(export.export)
app.command("eval", epilog=eval.EXAMPLES)(eval.evaluate)
app.command("info", epilog=info.EXAMPLES)(info.info)
app.add_typer(weights.app, name="weights")


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ASKED_AGAIN = 4.0  # seconds after which the exception for a signal is raised again
_asked: list[int] = []  # the signals that `main` has received


class _Stopped(BaseException):
    """Raised when a signal asks the process to end, so that open files are cleaned up on the way out."""

    def __init__(self, number: int) -> None:
        self.number = number


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"movq {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback if movq itself crashes.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    pass  # `run` handles --debug, and _print_version --version


def run(argv: Sequence[str]) -> int:
    """Run one command in this process, as `movq ARGV...` would, and return its exit code.

    Signal handlers stay the caller's; Ctrl-C ends the command with exit code 130. With --debug, bugs and system errors
    are raised here instead of reported.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.simplefilter("always", MovqWarning)
        try:
            asked = [*argv[1:], "--help"] if argv[:1] == ["help"] else list(argv)
            code = app(asked, prog_name="movq", standalone_mode=False)
            if sys.stdout is not None:
                sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except MovqError as error:
            _end_if_stopped()
            complain(error)
            return error.exit_code
        except OSError as error:  # of standard output, or one that no command turns into a MovqError
            _end_if_stopped()
            if "--debug" in argv:
                raise
            complain(MovqError(os_reason(error), str(error.filename or "")))
            return 1
        except SystemExit as end:  # typer's, if standard output is a closed pipe
            return int(end.code or 0)
        except Exception as error:
            _end_if_stopped()
            if (usage := slip(error)) is not None:
                if type(error).__name__ != "NoArgsIsHelpError":  # which has printed the help
                    complain(MovqUsageError(usage))
                return MovqUsageError.exit_code
            if "--debug" in argv:
                raise
            complain(MovqError(f"a bug of movq: {type(error).__name__}: {error} (movq --debug ... shows where)"))
            return 3


def main() -> NoReturn:
    """Run the command line and end this process with its exit code, or with 128+n if signal n stops it."""
    for number in _SIGNALS:
        signal.signal(number, _stop)
    try:
        code = run(sys.argv[1:])
        if sys.stdout is not None:
            try:
                sys.stdout.flush()
            except OSError:  # `run` has reported it; a normal exit would flush and report again
                os._exit(code)
    except _Stopped as stopped:
        _end_stopped(stopped.number)
    sys.exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    _asked.append(number)
    signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
    # An exception may be lost in the middle of an import or where C calls Python, so it is raised again later.
    signal.signal(signal.SIGALRM, lambda *alarm: _raise(number))
    signal.setitimer(signal.ITIMER_REAL, _ASKED_AGAIN)
    raise _Stopped(number)


def _raise(number: int) -> NoReturn:
    raise _Stopped(number)


def _end_if_stopped() -> None:
    """End this process if a signal asked for it: its `_Stopped` may have been turned into another error."""
    if _asked:
        _end_stopped(_asked[0])


def _end_stopped(number: int) -> NoReturn:
    signal.setitimer(signal.ITIMER_REAL, 0)
    complain(MovqError(f"stopped by {signal.Signals(number).name}; nothing unfinished was left behind"))
    with suppress(OSError, AttributeError):
        sys.stdout.flush()
    os._exit(128 + number)  # does not wait for threads that are still reading


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    complain(f"warning: {message}")
