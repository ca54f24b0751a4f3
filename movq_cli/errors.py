"""The one exception whose text is for the user, and what the process exits with.

Everything else that escapes is a bug of movq (exit 3). Nothing here prints.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class MovqError(Exception):
    """Something the user gave was refused or failed: one line, naming what it is about and what to do.

    `about` is the file (or option) the reason is about; the command line prints `movq: ABOUT: REASON`.
    """

    exit_code = 1
    cause = "refused"
    """Refused: the same again will fail again. Of the subclasses below: it may have been the moment."""

    def __init__(self, reason: str, about: str = "") -> None:
        super().__init__(f"{about}: {reason}" if about else reason)
        self.reason = reason
        self.about = about

    def to_dict(self) -> dict[str, str]:
        """For another process, whose `from_dict` makes the same error of it."""
        return {"reason": self.reason, "about": self.about, "cause": self.cause}

    @staticmethod
    def from_dict(values: Mapping[str, str], about: str = "") -> MovqError:
        """`about` is for one that names nothing."""
        kinds = {kind.cause: kind for kind in (MovqUsageError, MovqShort, *PASSING)}
        return kinds.get(values["cause"], MovqError)(values["reason"], values["about"] or about)


class MovqUsageError(MovqError):
    """The options cannot go together or cannot have these values, whatever the input is."""

    exit_code = 2
    cause = "usage"


class MovqShort(MovqError):
    """A video has fewer frames than were asked for, where that was not to be taken."""

    cause = "short"


class MovqCrash(MovqError):
    """A process of movq died of what it was doing."""

    cause = "crash"


class MovqHang(MovqError):
    """A process of movq gave no sign of life for too long."""

    cause = "hang"


class MovqMemoryError(MovqError):
    """There was not enough memory."""

    cause = "memory"


class MovqOutOfMemory(MovqMemoryError):
    """Memory ran out while something was computed that was thought to fit."""


class MovqOutputError(MovqError):
    """An output, or what it needs beside it, cannot be written where it should go."""

    cause = "output"


class MovqDiskError(MovqOutputError):
    """No output can be written there, for lack of space or because the disk failed."""

    cause = "disk"


PASSING = (MovqCrash, MovqHang, MovqMemoryError, MovqOutputError, MovqDiskError)
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
        if error.about:
            raise
        raise type(error)(error.reason, name) from error


def printable(text: str) -> str:
    """`text` with control characters and undecodable bytes escaped, so that no file name can write to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
