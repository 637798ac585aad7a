"""JSON lines of dataclasses, appended in chunks, so that a kill at any moment loses nothing finished.

A *chunk* is the unit of work that is made and kept as a whole. Each row carries `chunk`, its chunk's number, and
`left`, how many rows of that chunk follow it; a chunk counts once its row with `left` 0 is there. What a kill leaves of
an unfinished chunk is not read, and is cut before the next one is appended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from gpo.errors import DataError
from gpo.storage.codec import T, from_json, plain, to_json
from gpo.storage.disk import told
from gpo.storage.files import append, dump, refuse_link

S = TypeVar("S")
REMAKE = "Delete this line and all after it to have them made again."


class Chunks(Generic[T]):
    """An append-only file of rows of one dataclass. It has no length, so that an empty one is not falsy.

    The file is parsed once, and again only if somebody else has changed it.

    Raises:
        DataError: at any reading, when a line is not a row, or a row of a chunk is not there; the message names file
            and line.
    """

    def __init__(self, path: Path, kind: type[T]) -> None:
        self.path = path
        self.kind = kind
        self._chunks: list[list[T]] = []  # complete ones
        self._end = 0  # bytes of them
        self._seen: tuple[int, ...] | None = None  # the file when it was parsed or written; None before
        self._summaries: dict[Hashable, tuple[tuple[int, ...], Any]] = {}  # and the file of each

    def append(self, rows: Sequence[T]) -> list[T]:
        """Write one chunk durably: after this returns it survives a kill; before, it leaves no trace.

        Returns:
            The rows as another process would read them.

        Raises:
            DataError: the file cannot be written, or is a symbolic link.
        """
        if not rows:
            raise ValueError("A chunk has at least one row.")
        if self._end and not self.path.exists():
            raise DataError(f"{self.path} was removed while it was written. Put it back, or start anew.")
        self._load()
        refuse_link(self.path)
        data = [to_json(row) for row in rows]
        number, last = len(self._chunks), len(rows) - 1
        lines = [dump({"chunk": number, "left": last - i, **row}) for i, row in enumerate(data)]
        if self.path.exists():  # cut what an unfinished chunk left
            with told(self.path):
                os.truncate(self.path, self._end)
        append(self.path, b"".join(lines))
        self._chunks.append([from_json(self.kind, row) for row in data])
        self._end += sum(map(len, lines))
        self._seen = self._stamp()
        return list(self._chunks[-1])

    def read(self) -> list[T]:
        """The rows of all complete chunks."""
        return [row for chunk in self.chunks() for row in chunk]

    def summary(self, of: Callable[[list[T]], S]) -> S:
        """What a function says of the rows: asked once, as long as the file stays as it is.

        Rows that nobody has read before are not kept in memory on its account.
        """
        stamp, held = self._stamp(), self._seen is not None
        known: tuple[tuple[int, ...], S] | None = self._summaries.get(of)
        if known is None or known[0] != stamp:
            known = self._summaries[of] = (stamp, of(self.read()))
            if not held and stamp:
                self.forget()
        return known[1]

    def forget(self) -> None:
        """Keep no rows in memory until they are read again; summaries stay."""
        self._chunks, self._seen = [], None

    def chunks(self) -> Iterator[list[T]]:
        """The rows of each complete chunk, in order."""
        self._load()
        return (list(chunk) for chunk in self._chunks)

    def _load(self) -> None:
        """Parse the file, unless it is as it was when that was done last."""
        stamp = self._stamp()
        if self._seen is None or stamp != self._seen:
            found = list(self._parse())
            self._chunks = [rows for rows, _ in found]
            self._end = found[-1][1] if found else 0
            self._seen = stamp

    def _stamp(self) -> tuple[int, ...]:
        """What changes when the file does; () where there is none."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return ()
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _parse(self) -> Iterator[tuple[list[T], int]]:
        """Each complete chunk with the byte offset of its end."""
        if not self.path.exists():
            return
        rows: list[T] = []
        number = offset = 0
        expected: int | None = None  # `left` of the next row; None where a chunk begins
        with self.path.open("rb") as file:
            for line_number, line in enumerate(file, 1):
                offset += len(line)
                if not line.endswith(b"\n"):
                    return
                row, chunk, left = self._parse_line(line, line_number)
                if chunk != number:
                    self._complain(line_number, f"chunk {chunk} where {number} was expected")
                if left < 0 or left != (left if expected is None else expected):
                    self._complain(line_number, f"left is {left}, expected {max(0, expected or 0)}: a row is missing")
                rows.append(row)
                expected = left - 1
                if left == 0:
                    yield rows, offset
                    rows, number, expected = [], number + 1, None

    def _parse_line(self, line: bytes, line_number: int) -> tuple[T, int, int]:
        try:
            data = plain(json.loads(line), "The line", dict)
            chunk, left = (plain(data.pop(key, None), key, int) for key in ("chunk", "left"))
            return from_json(self.kind, data), chunk, left
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self.path}:{line_number}: not a row of {self.kind.__name__}: {error} {REMAKE}"
            ) from error

    def _complain(self, line_number: int, what: str) -> None:
        raise DataError(f"{self.path}:{line_number}: {what}. {REMAKE}")
