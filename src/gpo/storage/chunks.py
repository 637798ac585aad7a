"""JSON lines of dataclasses, appended in chunks, so that a kill at any moment loses nothing finished."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic

from gpo.errors import DataError
from gpo.storage.codec import T, _plain, from_json, to_json
from gpo.storage.files import _dumps


class Chunks(Generic[T]):
    """An append-only file of rows of one dataclass. It has no length, so that an empty one is not falsy.

    Raises:
        DataError: at any reading, when a line is not a row; the message names file and line.
    """

    def __init__(self, path: Path, kind: type[T]) -> None:
        self.path = path
        self.kind = kind
        self._written: int | None = None  # complete chunks, known once something was appended

    def append(self, rows: Sequence[T]) -> None:
        """Write one chunk durably: after this returns it survives a kill; before, it leaves no trace."""
        if not rows:
            raise ValueError("A chunk has at least one row.")
        if self._written is None:
            self._written = self._cut()
        lines = [
            _dumps({"chunk": self._written, "left": len(rows) - i, **to_json(row)}) for i, row in enumerate(rows, 1)
        ]
        with self.path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self._written += 1

    def read(self) -> list[T]:
        """The rows of all complete chunks."""
        return [row for chunk in self.chunks() for row in chunk]

    def chunks(self) -> Iterator[list[T]]:
        """The rows of each complete chunk, in order."""
        for rows, _ in self._scan():
            yield rows

    def _scan(self) -> Iterator[tuple[list[T], int]]:
        """Each complete chunk with the byte offset of its end."""
        if not self.path.exists():
            return
        rows: list[T] = []
        number = offset = 0
        with self.path.open("rb") as file:
            for line_number, line in enumerate(file, 1):
                offset += len(line)
                if not line.endswith(b"\n"):
                    return
                row, chunk, left = self._parse(line, line_number)
                if chunk != number:
                    raise DataError(f"{self.path}:{line_number}: chunk {chunk} where {number} was expected.{_REMAKE}")
                rows.append(row)
                if left == 0:
                    yield rows, offset
                    rows, number = [], number + 1

    def _parse(self, line: bytes, line_number: int) -> tuple[T, int, int]:
        try:
            data = _plain(json.loads(line), "The line", dict)
            chunk, left = (_plain(data.pop(key, None), key, int) for key in ("chunk", "left"))
            return from_json(self.kind, data), chunk, left
        except ValueError as error:
            raise DataError(
                f"{self.path}:{line_number}: not a row of {self.kind.__name__}: {error}{_REMAKE}"
            ) from error

    def _cut(self) -> int:
        """Cut what an unfinished chunk left; the number of complete chunks."""
        ends = [end for _, end in self._scan()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            os.truncate(self.path, ends[-1] if ends else 0)
        return len(ends)


_REMAKE = " Delete this line and all after it to have them made again."
