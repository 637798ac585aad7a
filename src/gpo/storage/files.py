"""The run directory: JSON lines of dataclasses, written so that a kill at any moment loses nothing finished.

Rows are appended in *chunks*, the unit of work that is made and kept as a whole. Each row carries `chunk`, its
chunk's number, and `left`, how many rows of that chunk follow it; a chunk counts once its row with `left` 0 is there.
What a kill leaves of an unfinished chunk is not read, and is cut before the next one is appended.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpo.errors import ConfigError, DataError
from gpo.storage.codec import to_json


def _dumps(data: Any, **options: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False, **options) + "\n"


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error


def write_json(path: Path, data: Any) -> None:
    """Write a readable JSON file, whole or not at all."""
    write_text(path, _dumps(to_json(data), indent=2))


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Write JSON lines, whole or not at all."""
    write_text(path, "".join(_dumps(to_json(row)) for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to make a file or a directory at; it takes the place of `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    _remove(partial)
    yield partial
    for file in [partial, *partial.rglob("*")]:
        _sync(file)
    if path.is_dir():
        _remove(path)
    partial.replace(path)
    _sync(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory for this process. The system lets go of it when the process dies, however it dies.

    Raises:
        ConfigError: another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"Another process works in {directory}. Wait for it to end, or choose another run directory."
            ) from None
        yield
