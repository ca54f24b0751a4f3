"""The exceptions whose text is for the user, and what the process exits with.

    MovqError                      refused; the same again will fail again; exit code 1
    ├── MovqUsageError             options that cannot be, or not together; exit code 2
    ├── MovqTooShortError          a video has fewer frames than were asked for
    ├── MovqCrashError      *      a process of movq died
    ├── MovqHangError       *      a process of movq gave no sign of life
    ├── MovqMemoryError     *      there was not enough memory
    │   └── MovqOutOfMemoryError   it ran out while something was computed that was thought to fit
    └── MovqOutputError     *      an output cannot be written where it should go
        └── MovqDiskError   *      no output can be written there: no space, or the disk failed

    MovqWarning                    a result was made all the same

* may go better another time, with the same input and options. Everything else that escapes is a bug of movq (exit code 3).
Nothing here prints.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_OPTION = re.compile("\x0e(\\w+)(?: ([^\x0f]*))?\x0f")
_FLAGS = {"lists": "--list", "buckets": "--bucket"}


def option(name: str, value: object = "") -> str:
    """Return how a message names an option.

    Python reads `tail`, `tail=drop` or `force=True`, the command line `--tail`, `--tail drop` or `--force`.
    """
    return f"\x0e{name} {value}\x0f" if value != "" else f"\x0e{name}\x0f"


def flag(name: str) -> str:
    """Return the flag of the command line that sets the option of this name."""
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
    """Something the user gave was refused or failed: one line, naming what it is about and what to do.

    `about` is the file that the reason is about, `option` the name of the option if it is about one. Reasons name other options
    by the function `option`: `reason` has their names in Python, `reason_with_flags` those of the command line, which prints
    `movq: ABOUT: REASON`.
    """

    exit_code = 1
    cause = "refused"
    """Refused: the same again will fail again. Of the subclasses below: it may have been the moment."""

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
        """Return the same error, about a file if it names nothing itself."""
        return self if self.about or self.option else type(self)(self.marked, about)

    def bare(self) -> MovqError:
        """Return the same error, to keep: it names no file, and has no traceback, which holds on to all that led to it."""
        return type(self)(self.marked, option=self.option)

    def to_dict(self) -> dict[str, str]:
        """Return what another process makes the same error of, by `from_dict`."""
        return {"reason": self.marked, "about": self.about, "option": self.option, "cause": self.cause}

    @staticmethod
    def from_dict(values: Mapping[str, str]) -> MovqError:
        """Return the error of `to_dict`."""
        kinds = {kind.cause: kind for kind in (MovqUsageError, MovqTooShortError, *PASSING)}
        return kinds.get(values["cause"], MovqError)(values["reason"], values["about"], option=values["option"])


def _joined(about: str, option: str, reason: str) -> str:
    """An option of a file, or whatever else there is of them: `FILE: REASON`, `--tail: REASON`."""
    return ": ".join(filter(None, (about or option, reason)))


class MovqUsageError(MovqError):
    """The options cannot go together or cannot have these values, whatever the input is."""

    exit_code = 2
    cause = "usage"


class MovqTooShortError(MovqError):
    """A video has fewer frames than were asked for, where that was not to be taken."""

    cause = "short"


class MovqCrashError(MovqError):
    """A process of movq died of what it was doing."""

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
    """An output, or what it needs beside it, cannot be written where it should go."""

    cause = "output"


class MovqDiskError(MovqOutputError):
    """No output can be written there, for lack of space or because the disk failed."""

    cause = "disk"


PASSING = (MovqCrashError, MovqHangError, MovqMemoryError, MovqOutputError, MovqDiskError)
"""What may go better another time, with the same input and options."""


class MovqWarning(UserWarning):
    """Something the user should know about a result that was made all the same."""


OLDEST_TORCH = 2, 6


def require_torch() -> None:
    """Raise MovqError where torch is missing or older than OLDEST_TORCH. Imports nothing of it."""
    from importlib import metadata, util  # 20 ms that commands without tensors need not spend

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
    """Inside, a MovqError that names nothing is about `name`."""
    try:
        yield
    except MovqError as error:
        if error.about or error.option:
            raise
        raise error.named(name) from error


def printable(text: str) -> str:
    """`text` with control characters and undecodable bytes escaped, so that no file name can write to a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
