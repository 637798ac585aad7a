"""The one way to write: whole files beside their place and renamed, lines appended.

Nothing is written through a symbolic link: a run directory may come from somebody else, and its links lead anywhere.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gpo.errors import ConfigError, DataError
from gpo.storage.codec import to_json
from gpo.storage.disk import told

# Below a run or evaluation directory.
FOLDERS = (
    *("arms", "arms/*", "arms/*/rounds", "arms/*/rounds/*", "arms/*/checkpoints"),
    *("evaluation", "plots", "harness", "harness/*", "images", "states"),
)

# Of files that others may read. It can be asked for only by changing it, which is not for several threads.
_UMASK = os.umask(0o077)
os.umask(_UMASK)

_held: dict[Path, Callable[[], None]] = {}  # directories of this process, each with what complains once it is gone


@contextmanager
def holding(directory: Path, check: Callable[[], None]) -> Iterator[None]:
    """Before anything is written below a directory ask `check`, which raises if it is no longer the one that it was.

    A run that was removed or unmounted is so not made anew with what is written next.
    """
    place = directory.absolute()
    _held[place] = check
    try:
        yield
    except OSError:  # of whatever met the gap first
        check()
        raise
    finally:
        del _held[place]


def holds(directory: Path) -> bool:
    """Whether this process is `holding` a directory."""
    return directory.absolute() in _held


def _ask_holder(path: Path) -> None:
    place = path.absolute()
    for folder in (place, *place.parents) if _held else ():
        if folder in _held:
            _held[folder]()


def dump(data: Any, **options: Any) -> bytes:
    """JSON in UTF-8 with a newline. Half of a surrogate pair, which UTF-8 has no bytes for, is written as an escape."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, **options) + "\n"
    return text.encode("utf-8", "backslashreplace")  # such as \ud83d, which is JSON's own way to write it


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines.

    Raises:
        DataError: there is no such file, or a line is no object or is cut off; the message names it.
    """
    rows = []
    for number, line in enumerate(lines_of(path), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict) or not line.endswith(b"\n"):
            raise DataError(f"{path}:{number}: cut off, or no JSON object.")
        rows.append(row)
    return rows


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """The objects among the lines of a file that may be damaged or cut by a kill; none if there is no file."""
    rows = []
    for line in lines_of(path) if path.exists() else []:
        with suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def lines_of(path: Path) -> list[bytes]:
    """The lines of a file with their ends. Only a line feed ends one: a text may hold other separators, such as U+2028.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return list(file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def write_json(path: Path, data: Any) -> None:
    """Write a readable JSON file, whole or not at all."""
    write_bytes(path, dump(to_json(data), indent=2))


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Write JSON lines, whole or not at all."""
    write_bytes(path, b"".join(dump(to_json(row)) for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def refuse_folder(path: Path, option: str) -> None:
    """Raises: ConfigError if a file is to be written where a folder is; nothing was done for it yet then."""
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder. Name a file.")


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A path beside `path` to make a file or a directory at; it takes the place of `path` when the block ends well.

    A directory that is there makes way as a whole first: a kill leaves it, or the new one, and no half.

    Args:
        shared: other processes may write the same just now.

    Raises:
        DataError: it cannot be written there, `path` is a symbolic link, or the run that it is in is gone; the message
            names it.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if shared else f"{path.name}.partial")
    old = path.with_name(f"{path.name}.old.partial")
    _ask_holder(path)
    with told(path):
        refuse_link(path)
        make_folder(path.parent)
        _remove(partial)
        _put_back(old, path)
        try:
            yield partial
            _ask_holder(path)
            _let_others_read(partial)
            _sync_all(partial)
            if path.is_dir():
                if not partial.is_dir():  # a name that was given by mistake is no reason to remove a folder
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
                path.rename(old)
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                _remove(partial)
                _put_back(old, path)
            raise
        _sync(path.parent)
        if old.is_dir():
            _remove(old)


def append(path: Path, content: bytes) -> None:
    """Write at the end of a file, durably: all of it, or nothing if that fails.

    Raises:
        DataError: it cannot be written, or `path` is a symbolic link; the message names it.
    """
    _ask_holder(path)
    with told(path):
        refuse_link(path)
        make_folder(path.parent)
        new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        try:
            size, left = os.fstat(descriptor).st_size, memoryview(content)
            try:
                while left:
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        if new:
            _sync(path.parent)


def append_row(path: Path, row: Any) -> None:
    """Write a JSON line at the end of a file, on a line of its own even where a kill has cut the last one."""
    with told(path), suppress(FileNotFoundError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read() not in (b"", b"\n"):
            append(path, b"\n")
    append(path, dump(to_json(row)))


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, each of which is still there after a loss of power."""
    if not folder.is_dir():
        _ask_holder(folder)
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def refuse_link(path: Path) -> None:
    """Raises: DataError for a symbolic link."""
    if path.is_symlink():
        raise DataError(
            f"{path} is a symbolic link to {os.readlink(path)!r}, and nothing is written through one. "
            "Remove it, or put the file itself in its place."
        )


def refuse_linked_folders(directory: Path) -> None:
    """Raises: DataError if one of the folders below a run directory that are written into is a symbolic link."""
    for pattern in FOLDERS:
        for folder in directory.glob(pattern):
            refuse_link(folder)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, if it is there.

    Raises:
        DataError: it cannot be removed; the message names it.
    """
    with told(path):
        _remove(path)


def sync(path: Path) -> None:
    """Bring a file, or a folder with all that is in it, to the disk under its name.

    Raises:
        DataError: the disk fails; the message names it.
    """
    with told(path):
        _sync_all(path)
        _sync(path.parent)


def _sync_all(path: Path) -> None:
    for each in [path, *path.rglob("*")]:
        _sync(each)


def _let_others_read(path: Path) -> None:
    """Give files that a library has made for this user alone, such as safetensors, the mode that any other one has."""
    for each in [path, *path.rglob("*")]:
        mode = each.lstat().st_mode
        if stat.S_ISREG(mode) and not mode & 0o077:
            with suppress(PermissionError):  # on a file system that has no modes
                each.chmod(stat.S_IMODE(mode) | 0o666 & ~_UMASK)


def _put_back(old: Path, path: Path) -> None:
    """Undo what was left half way of a directory that was to make way."""
    if old.is_dir() and not old.is_symlink() and not os.path.lexists(path):
        old.rename(path)
    elif os.path.lexists(old):
        _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
