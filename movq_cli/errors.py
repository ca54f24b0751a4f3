"""The exceptions whose text is for the user, and their exit codes.

    MovqError                      refused; the same again will fail again; exit code 1
    ├── MovqUsageError             options that are invalid or do not go together; exit code 2
    ├── MovqTooShortError  °       a video has fewer frames than were asked for
    ├── MovqTooSmallError  °       a video has a smaller picture than was asked for
    ├── MovqCrashError      *      a process of movq died
    ├── MovqHangError       *      a process of movq gave no sign of life
    ├── MovqMemoryError     *      there was not enough memory
    │   └── MovqOutOfMemoryError   it ran out while something was computed that was thought to fit
    └── MovqOutputError     *      an output cannot be written where it should go
        └── MovqDiskError   *      no output can be written there: no space, or the disk failed

    MovqWarning                    a result was made all the same

* may not happen another time, with the same input and options. ° a choice: a batch skips the video. Any other exception
that escapes is a bug of movq (exit code 3), except OSError (exit code 1). Nothing here prints.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_OPTION = re.compile("\x0e(\\w+)(?: ([^\x0f]*))?\x0f")
_FLAGS = {"lists": "--list", "buckets": "--bucket", "columns": "--column", "target": "--for", "from_layout": "--from"}


def option(name: str, value: object = "") -> str:
    """Return an option's name, marked, for use in a message.

    In Python it reads `tail`, `tail=drop` or `force=True`; on the command line `--tail`, `--tail drop` or `--force`.
    """
    return f"\x0e{name} {value}\x0f" if value != "" else f"\x0e{name}\x0f"


def flag(name: str) -> str:
    """Return the command-line flag of the option with this name."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def show_flags(text: str) -> str:
    """Return a text with its options named as on the command line."""
    return _OPTION.sub(
        lambda found: " ".join(filter(None, (flag(found[1]), "" if found[2] == "True" else found[2]))), text
    )


def show_names(text: str) -> str:
    """Return a text with its options named as in Python."""
    return _OPTION.sub(lambda found: f"{found[1]}={found[2]}" if found[2] else found[1], text)


class MovqError(Exception):
    """Something the user gave was refused or failed. The text is one line that names it and says what to do.

    `about` is the file that the reason is about; `option` is the name of the option, if it is about one. Reasons name
    other options by the function `option`: `reason` has their names in Python, `reason_with_flags` those of the command
    line, which prints `movq: ABOUT: REASON`.
    """

    exit_code = 1
    cause = "refused"
    """The kind of error, for `to_dict`. Unless its class is in PASSING, the same again will fail again."""

    def __init__(self, reason: str, about: str = "", *, option: str = "") -> None:
        self.marked = reason
        self.reason = show_names(reason)
        self.about = about
        self.option = option
        super().__init__(_joined(about, option, self.reason))

    @property
    def reason_with_flags(self) -> str:
        """The reason, with options named as on the command line."""
        return show_flags(self.marked)

    @property
    def with_flags(self) -> str:
        """The whole line as the command line prints it."""
        return _joined(self.about, flag(self.option) if self.option else "", self.reason_with_flags)

    def named(self, about: str) -> MovqError:
        """Return the same error; if it names neither file nor option, it is about the file `about`."""
        return self if self.about or self.option else type(self)(self.marked, about)

    def bare(self) -> MovqError:
        """Return a copy to keep, without a file, and without a traceback, which would keep local variables alive."""
        return type(self)(self.marked, option=self.option)

    def to_dict(self) -> dict[str, str]:
        """Return values from which `from_dict` makes the same error in another process."""
        return {"reason": self.marked, "about": self.about, "option": self.option, "cause": self.cause}

    @staticmethod
    def from_dict(values: Mapping[str, str]) -> MovqError:
        """Return the error that `to_dict` was called on."""
        kinds = {kind.cause: kind for kind in (MovqUsageError, *CHOSEN, *PASSING)}
        return kinds.get(values["cause"], MovqError)(values["reason"], values["about"], option=values["option"])


def _joined(about: str, option: str, reason: str) -> str:
    """Return `FILE: REASON`, or else `--tail: REASON`, or else `REASON`, depending on what is known."""
    return ": ".join(filter(None, (about or option, reason)))


class MovqUsageError(MovqError):
    """The options do not go together or have invalid values, for any input."""

    exit_code = 2
    cause = "usage"


class MovqTooShortError(MovqError):
    """A video has fewer frames than were asked for, and the options do not accept that."""

    cause = "short"


class MovqTooSmallError(MovqError):
    """A video has a smaller picture than was asked for, and the options do not allow enlarging it."""

    cause = "small"


class MovqCrashError(MovqError):
    """A process of movq died while it was at work."""

    cause = "crash"


class MovqHangError(MovqError):
    """A process of movq gave no sign of life for too long."""

    cause = "hang"


class MovqMemoryError(MovqError):
    """There was not enough memory."""

    cause = "memory"


class MovqOutOfMemoryError(MovqMemoryError):
    """Memory ran out while something was computed that was thought to fit."""


class MovqOutputError(MovqError):
    """An output, or another file needed to make it, cannot be written where it should go."""

    cause = "output"


class MovqDiskError(MovqOutputError):
    """No output can be written there, for lack of space or because the disk failed."""

    cause = "disk"


CHOSEN = (MovqTooShortError, MovqTooSmallError)
"""The errors of videos that the options leave out: in a batch they are skipped, and did not fail."""

LASTING_CAUSES = (MovqError.cause, *(kind.cause for kind in CHOSEN))
"""The causes that the same input and options meet every time."""

PASSING = (MovqCrashError, MovqHangError, MovqMemoryError, MovqOutputError, MovqDiskError)
"""The errors that may not happen another time, with the same input and options."""


class MovqWarning(UserWarning):
    """Something the user should know about a result that was made all the same."""


OLDEST_TORCH = 2, 6


def require_torch() -> None:
    """Raise MovqError if torch is missing or older than OLDEST_TORCH, without importing it."""
    from importlib import metadata, util  # takes 20 ms, which commands without tensors save

    oldest = ".".join(map(str, OLDEST_TORCH))
    if util.find_spec("torch") is None:
        raise MovqError(f"torch is not installed; run: pip install 'torch>={oldest}'")
    try:
        version = sys.modules["torch"].__version__ if "torch" in sys.modules else metadata.version("torch")
    except metadata.PackageNotFoundError:
        return  # a build without metadata: its version is known only after an import
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) < OLDEST_TORCH:
        raise MovqError(f"torch {version} is too old: movq needs {oldest} or newer; run: pip install -U torch")


@contextmanager
def about(name: str) -> Iterator[None]:
    """Inside the `with`, make errors that name neither file nor option be about `name`."""
    try:
        yield
    except MovqError as error:
        if error.about or error.option:
            raise
        raise error.named(name) from error


def printable(text: str) -> str:
    """Return `text` with control characters and undecodable bytes escaped: no file name can control a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
