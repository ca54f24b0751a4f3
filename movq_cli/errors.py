"""The one exception whose text is for the user, and what the process exits with.

Everything else that escapes is a bug of movq (exit 3). Nothing here prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MovqError(Exception):
    """Something the user gave was refused or failed: one line, naming what it is about and what to do.

    `about` is the file (or option) the reason is about; the command line prints `movq: ABOUT: REASON`.
    """

    exit_code = 1

    def __init__(self, reason: str, about: str = "") -> None:
        super().__init__(f"{about}: {reason}" if about else reason)
        self.reason = reason
        self.about = about


class MovqUsageError(MovqError):
    """The options cannot go together or cannot have these values, whatever the input is."""

    exit_code = 2


class MovqWarning(UserWarning):
    """Something the user should know about a result that was made all the same."""


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
