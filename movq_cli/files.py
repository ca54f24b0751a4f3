"""Files that are whole or absent. Every output is written as one of them; only the manifest grows line by line."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from .errors import MovqDiskError, MovqError, MovqOutputError, option

BLOCK = 1 << 20
"""Bytes moved at a time when a whole file is read or copied."""

MAX_NAME = 255
"""The longest file name, in bytes, that every file system in use takes."""

_MARK_DIGITS = 10


class FileIdentity(NamedTuple):
    """The size in bytes, modification time and inode of a file.

    While they are the same, the file counts as unchanged, without being read.
    """

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileIdentity:
        """Return the identity of a file from the result of `os.stat`."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


def require_file(path: str | os.PathLike[str]) -> os.stat_result:
    """Return the stat of a regular file that can be read.

    Raises MovqError for anything else: reading devices and pipes would hang.
    """
    name = os.fspath(path)
    try:
        found = os.stat(name)
    except (OSError, ValueError) as error:
        raise MovqError(os_reason(error), name) from None
    if stat.S_ISDIR(found.st_mode):
        raise MovqError("is a folder, not a file", name)
    if not stat.S_ISREG(found.st_mode):
        raise MovqError("is not a regular file", name)
    if not os.access(name, os.R_OK):
        raise MovqError("permission denied", name)
    return found


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the hex SHA-256 digest of a file. Raises MovqError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MovqError(os_reason(error), os.fspath(path)) from None


def short(digest: str) -> str:
    """Return the first 16 characters of a hex digest, as much as people compare."""
    return digest[:16]


def mark_of(*of: str) -> str:
    """Return a mark, a digest of `of`, that tells a name from the same name of another item."""
    return "~" + hashlib.sha256(b"\0".join(map(os.fsencode, of))).hexdigest()[:_MARK_DIGITS]


def short_name(part: str, mark: str, suffix: str) -> str:
    """Return a name, shortened if it is too long, and then marked, so that long names with one beginning stay apart."""
    room = MAX_NAME - len(suffix)
    if len(os.fsencode(part + mark)) > room:
        mark = mark or mark_of(part)
        part = os.fsencode(part)[: room - len(mark)].decode(errors="ignore")
    return part + mark + suffix


class WholeFile:
    """A file that appears under its name all at once, synced to disk, or not at all.

    `with WholeFile(path) as file: file.write(...); file.commit()`. Without a commit, nothing stays behind. If the file
    system allows it, the file has no name until then, so that not even SIGKILL leaves a trace, except at the moment
    when a new file replaces an old one. The constructor raises MovqError, before any work is done, for a path that
    exists (unless `force`) or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        self.path = os.fspath(path)
        self._force = force
        self._folder, name = os.path.split(self.path)
        self._folder = self._folder or "."
        self._temp = _temporary_name(self._folder)
        self._named = False
        if not name or name in (".", ".."):
            raise MovqOutputError("is a folder; name a file", self.path)
        with _errors_about(self.path):
            if os.path.lexists(self.path):
                self._refuse_existing()
            self._fd = self._open()

    def _refuse_existing(self) -> None:
        mode = os.lstat(self.path).st_mode
        if stat.S_ISDIR(mode):
            raise MovqOutputError("is a folder; name a file", self.path)
        if not stat.S_ISREG(mode):
            raise MovqOutputError("exists and is not a regular file", self.path)
        if not self._force:
            raise MovqOutputError(f"exists; {option('force', True)} overwrites it", self.path)

    def _open(self) -> int:
        _refuse_long_name(self.path, self._folder)
        fd, self._named = self._create(self._temp, 0o666)
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(fd, fcntl.LOCK_SH)  # tells `sweep` that the file is in use
        return fd

    def spool(self) -> int:
        """Return the descriptor of another file in the same folder, without a name. The caller closes it."""
        with _errors_about(self.path):
            name = f"{self._temp}.spool"
            fd, named = self._create(name, 0o600)
            if named:
                os.unlink(name)
            return fd

    def _create(self, name: str, mode: int) -> tuple[int, bool]:
        """Create a file in the folder. Return its descriptor, and True if it got the name, as it cannot do without."""
        flags = os.O_RDWR | os.O_CLOEXEC
        if hasattr(os, "O_TMPFILE"):
            try:
                return os.open(self._folder, os.O_TMPFILE | flags, mode), False
            except OSError as error:
                # _NO_TMPFILE: the folder is missing or cannot have nameless files. The next open tells which.
                if error.errno not in _NO_TMPFILE:
                    raise
        return os.open(name, os.O_CREAT | os.O_EXCL | flags, mode), True

    def write(self, data: bytes | memoryview) -> None:
        """Append data to the file. Raises MovqError."""
        with _errors_about(self.path):
            write_all(self._fd, data)

    @property
    def place(self) -> str:
        """A path that is valid until the commit, for libraries that open the files they write."""
        return self._temp if self._named else f"/proc/self/fd/{self._fd}"

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._fd).st_size

    def commit(self) -> None:
        """Give the file its name: sync the data, name the file, then sync the folder. Raises MovqError."""
        with _errors_about(self.path):
            os.fsync(self._fd)
            if self._force:
                self._replace()
            else:
                self._appear()
            sync(self._folder)

    def _appear(self) -> None:
        """Take the name. Raises MovqError if another file has it by now."""
        try:
            if not self._named:
                self._link(self.path)
                return
            os.link(self._temp, self.path)
        except FileExistsError:
            self._refuse_existing()
        except OSError as error:
            if not self._named or error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(self.path):
                self._refuse_existing()
            self._replace()
        else:
            with suppress(OSError):  # `__exit__` will try again
                os.unlink(self._temp)
                self._named = False

    def _replace(self) -> None:
        if not self._named:
            self._named = True  # set first, as a signal may come in between
            self._link(self._temp)
        os.rename(self._temp, self.path)
        self._named = False

    def _link(self, name: str) -> None:
        """Name the nameless file, by linkat of its descriptor. `src_dir_fd` makes Python follow the link in /proc."""
        os.link(f"/proc/self/fd/{self._fd}", name, src_dir_fd=self._fd, follow_symlinks=True)

    def __enter__(self) -> WholeFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what was committed is on disk, and the rest is not wanted
            os.close(self._fd)
        if self._named:
            with suppress(OSError):
                os.unlink(self._temp)


class WholeFolder:
    """A folder of files that appears under its name all at once, synced to disk, or not at all.

    `with WholeFolder(path, names) as folder: folder.write(name, data); folder.commit()`. Without a commit, nothing
    stays behind. Until then the folder has a hidden name next to `path`, and SIGKILL leaves it behind. With `force`, an
    older folder is replaced if it holds only files whose names match `names`. The constructor raises MovqError, before
    any work is done, for a path that exists (unless `force`) or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], names: re.Pattern[str], *, force: bool = False) -> None:
        self.path = os.fspath(path).rstrip(os.sep)
        self._names, self._force = names, force
        parent, name = os.path.split(self.path)
        self._parent = parent or "."
        self._temp = _temporary_name(self._parent)
        self._old = f"{self._temp}.old"
        if name in ("", ".", ".."):
            raise MovqError("is not a name for a new folder", os.fspath(path))
        with _errors_about(self.path):
            if os.path.lexists(self.path):
                self._refuse_existing()
            _refuse_long_name(self.path, self._parent)
            os.mkdir(self._temp)

    def _refuse_existing(self) -> None:
        if not stat.S_ISDIR(os.lstat(self.path).st_mode):
            raise MovqError("exists and is not a folder", self.path)
        if not self._force:
            raise MovqError(f"exists; {option('force', True)} overwrites it", self.path)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise MovqError("permission denied", self.path)
        with os.scandir(self.path) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False) or not self._names.fullmatch(entry.name):
                    raise MovqError(f"holds something else ({entry.name}); name another folder", self.path)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write one new file of the folder. Raises MovqError."""
        with _errors_about(self.path):
            fd = os.open(os.path.join(self._temp, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
            try:
                write_all(fd, data)
            finally:
                os.close(fd)

    def commit(self) -> None:
        """Give the folder its name: sync its files and the folder, name it, then sync the folder around it."""
        with _errors_about(self.path):
            for name in os.listdir(self._temp):
                sync(os.path.join(self._temp, name))
            sync(self._temp)
            if os.path.lexists(self.path):
                self._refuse_existing()
                if not _exchange(self._temp, self.path):
                    os.rename(self.path, self._old)
                    os.rename(self._temp, self.path)
            else:
                os.rename(self._temp, self.path)
            sync(self._parent)

    def __enter__(self) -> WholeFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.path.lexists(self._old) and not os.path.lexists(self.path):  # stopped between the two renames
            os.rename(self._old, self.path)
        for left in (self._temp, self._old):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _errors_about(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(error, path) from error


def write_error(error: OSError, path: str) -> MovqError:
    """Return the MovqError to raise for a system error while a file is written."""
    kind = MovqDiskError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS) else MovqOutputError
    folder = os.path.dirname(path)
    if isinstance(error, FileNotFoundError) and folder and not os.path.exists(folder):
        return kind(f"the folder {folder} does not exist; create it first", path)
    return kind(os_reason(error), path)


_TEMPORARY = re.compile(r"\.movq-[0-9a-f]{16}\.tmp(\.spool)?")


def _temporary_name(folder: str) -> str:
    return os.path.join(folder, f".movq-{secrets.token_hex(8)}.tmp")


def sweep(folder: str) -> None:
    """Remove unfinished files of killed processes from a folder and all folders below."""
    for below, _, names in os.walk(folder):
        for name in filter(_TEMPORARY.fullmatch, names):
            with suppress(OSError):  # it has become whole, or a process is still writing it
                fd = os.open(os.path.join(below, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(os.path.join(below, name))
                finally:
                    os.close(fd)


def _refuse_long_name(path: str, folder: str) -> None:
    if len(os.fsencode(os.path.basename(path))) > os.pathconf(folder, "PC_NAME_MAX"):
        raise MovqOutputError("the name is too long for this file system", path)


def sync(path: str) -> None:
    """Sync the data of a file, or the names in a folder, to disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def refuse_inputs(output: str | os.PathLike[str], *inputs: str | os.PathLike[str]) -> None:
    """Raise MovqError if an output is the same file as one of the inputs, also by a link."""
    for path in inputs:
        if os.path.exists(output) and os.path.exists(path) and os.path.samefile(output, path):
            raise MovqError(f"is the same file as the input {os.fspath(path)}", os.fspath(output))


def _exchange(one: str, other: str) -> bool:
    """Exchange two names in one step, and return True; False if Linux or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of fcntl.h and stdio.h
    return renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


_NO_LINKS = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK}
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.ENOTDIR, errno.EINVAL}


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data` at the descriptor's position; os.write may write less."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]


def os_reason(error: OSError | ValueError) -> str:
    """Return a system error as the reason of a MovqError."""
    known: dict[type[Exception], str] = {
        FileNotFoundError: "no such file or folder",
        PermissionError: "permission denied",
        NotADirectoryError: "a part of the path is not a folder",
    }
    if type(error) in known:
        return known[type(error)]
    return (getattr(error, "strerror", None) or str(error)).lower()


def file_name(path: str | os.PathLike[str]) -> str:
    """Return the base name of a path as text for JSON, as `text_of` does."""
    return text_of(Path(path).name)


def text_of(path: str) -> str:
    r"""Return a path as text for JSON: bytes that are not UTF-8 become escapes such as \xff."""
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
