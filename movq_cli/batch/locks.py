"""Locks of a batch's folder, so that no two batches write to it at once, and the marks of shards that are not finished."""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import MovqError, MovqWarning
from ..files import os_reason, sync, write_error
from ..values import Shard
from .manifest import manifest_name, unfinished_name


@contextmanager
def only_one(folder: str, shard: Shard | None = None) -> Iterator[None]:
    """Lock a folder against other batches; shards of one batch may share it. The lock ends with the process.

    A shard is marked as unfinished until `finish_shard`. Raises MovqError if the folder cannot be opened or is locked.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MovqError(os_reason(error), folder) from None
    try:
        how, taken = fcntl.LOCK_EX, "another movq batch-encode is at work in it"
        _lock(fd, how if shard is None else fcntl.LOCK_SH, folder, taken)
        if shard is None:
            yield
            return
        mark = _mark(folder, shard)
        try:
            yield
        except MovqError:
            if not os.path.exists(os.path.join(folder, manifest_name(shard))):  # the shard was refused before it began
                finish_shard(folder, shard)
            raise
        finally:
            os.close(mark)
    finally:
        os.close(fd)


def _mark(folder: str, shard: Shard) -> int:
    """Create and lock the mark of a shard, and return its descriptor. The mark is on disk."""
    path = unfinished_name(folder, shard)
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            sync(folder)
        except OSError as error:
            raise write_error(error, path) from None
        try:
            _lock(
                fd, fcntl.LOCK_EX, folder, f"another movq batch-encode is at work on shard {shard.index}/{shard.count}"
            )
            if os.fstat(fd).st_nlink:
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its owner finished, and deleted it after it was opened here


def finish_shard(folder: str, shard: Shard) -> None:
    """Delete the mark of a shard that is done. Call it inside `only_one`."""
    os.unlink(unfinished_name(folder, shard))


def _lock(fd: int, how: int, folder: str, taken: str) -> None:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MovqError(taken, folder) from None
    except OSError as error:  # the file system cannot lock
        warnings.warn(MovqWarning(f"{folder}: cannot be locked ({os_reason(error)})"), stacklevel=3)
