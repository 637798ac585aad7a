"""A directory held by one process at a time, on file systems with locks and on those without."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from gpo.errors import ConfigError, DataError, TryLater
from gpo.storage.disk import told
from gpo.storage.files import holding, holds, make_folder, refuse_link, refuse_linked_folders

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
WAIT = "Wait for it to end, or choose another run directory."
MOMENT = 0.05  # seconds for which one who only asks whether a directory is held may hold it
SETTLED = 0.2  # seconds in which two that take over the same name see each other


class Held(ConfigError, TryLater):
    """A directory that another process works in, or this one in another place."""


def is_held(directory: Path) -> bool:
    """Whether another process works in a directory just now."""
    if not (directory / ".lock").exists():
        return False
    try:
        with locked(directory):
            return False
    except Held:
        return True


@dataclass(frozen=True)
class Lock:
    """A directory that is held; called, it complains once the directory is no longer there, or is another one.

    Raises:
        DataError: it is so.
    """

    descriptor: int  # of a file in it; the directory is held for as long as any process has this open
    path: Path

    def __call__(self) -> None:
        try:
            same = os.path.samestat(os.fstat(self.descriptor), self.path.stat())
        except OSError:
            same = False
        if not same:
            raise DataError(
                f"{self.path.parent} was removed or moved while this process worked in it. Put it back where it was "
                "and give the same command again; without it, the command starts anew."
            )


@contextmanager
def locked(directory: Path) -> Iterator[Lock]:
    """Hold a directory for this process. The system lets go of it when the process dies, however it dies.

    All that writes whole files or appends below it asks first whether the directory is still there.

    Raises:
        Held: another process holds it, or this one already.
        DataError: it cannot be written, or a folder in it is a symbolic link.
    """
    lock = directory / ".lock"
    with told(lock):
        make_folder(directory)
        refuse_link(lock)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    check = Lock(descriptor, lock)
    with os.fdopen(descriptor, "r+"), _lock(descriptor, directory), holding(directory, check):
        refuse_linked_folders(directory)
        yield check


@contextmanager
def joined(directory: Path, descriptor: int) -> Iterator[Lock]:
    """Work in a directory that the process which started this one holds, with the descriptor that it has handed down.

    So the directory stays held until the last of them is gone.
    """
    os.set_inheritable(descriptor, False)
    check = Lock(descriptor, directory / ".lock")
    with holding(directory, check):
        yield check


def _lock(descriptor: int, directory: Path) -> AbstractContextManager[None]:
    try:
        _take(descriptor)
    except BlockingIOError:
        raise Held(f"{_who(directory)} works in {directory}. {WAIT}") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return _named(directory)
    return nullcontext()


def _who(directory: Path) -> str:
    return "Another Run or thread of this process" if holds(directory) else "Another process"


def _take(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(MOMENT)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def _named(directory: Path) -> Iterator[None]:
    """Hold a directory of a file system without locks by a file that says who does.

    Raises:
        Held: somebody else does who may be alive.
    """
    path = directory / ".held"
    own = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "began": time.time_ns()})
    if path.exists() and _is_dead(path):
        path.unlink(missing_ok=True)
    if not _write_new(path, own):
        raise Held(
            f"{_who(directory)} works in {directory}: {path} says so, since its file system has no locks. {WAIT} "
            "If it is gone, delete that file."
        )
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _write_new(path: Path, text: str) -> bool:
    """Whether the file was not there and holds this text now, and not that of another who did the same."""
    with told(path):
        refuse_link(path)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        time.sleep(SETTLED)
        return path.read_text(encoding="utf-8") == text


def _is_dead(path: Path) -> bool:
    """Whether who wrote its name there was of this machine, and is no more."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["host"] == socket.gethostname():
            try:
                os.kill(int(known["pid"]), 0)
            except ProcessLookupError:
                return True
    return False
