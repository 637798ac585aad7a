"""What annotators marked: an SQLite file that a kill at any moment leaves whole.

A mark is appended and never changed; taking one back sets `undone`. The last mark of an annotator on an item that was
not taken back is the one that counts.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpo.errors import DataError
from gpo.storage.files import refuse_link

Kind = Literal["step", "none", "skip"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS annotators (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, secret TEXT UNIQUE NOT NULL, joined REAL NOT NULL,
    invited INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS marks (
    id INTEGER PRIMARY KEY, annotator INTEGER NOT NULL REFERENCES annotators (id), item TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('step', 'none', 'skip')), step INTEGER, comment TEXT NOT NULL,
    marked REAL NOT NULL, undone INTEGER NOT NULL DEFAULT 0, CHECK ((kind = 'step') = (step IS NOT NULL))
);
CREATE INDEX IF NOT EXISTS marks_of ON marks (annotator, item) WHERE NOT undone;
"""


@dataclass(frozen=True, slots=True)
class Mark:
    """The verdict of one annotator on one item."""

    item: str  # trajectory id, or the id of an attention check
    annotator: str
    kind: Kind  # none: no step stands out; skip: no verdict
    step: int | None  # 0-based
    comment: str = ""


def hashed(secret: str) -> str:
    """What is stored of a secret: who reads the file cannot sign in with it."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Marks:
    """The marks of a run. Every call opens its own connection, so that threads need not share one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as database:
            database.executescript("PRAGMA journal_mode = WAL;" + SCHEMA)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on disk when the block ends.

        Raises:
            DataError: the file cannot be used; the message names it.
        """
        refuse_link(self.path)
        try:
            with closing(sqlite3.connect(self.path, timeout=30)) as database:
                database.execute("PRAGMA synchronous = FULL")
                with database:
                    yield database
        except sqlite3.Error as error:
            raise DataError(
                f"{self.path} cannot be used: {error}. If it is damaged, move it away to begin anew."
            ) from error

    def fact(self, name: str, default: str) -> str:
        """A value that is kept from its first use on, such as the key that signs forms."""
        with self._open() as database:
            database.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, default))
            [(value,)] = database.execute("SELECT value FROM facts WHERE name = ?", (name,))
        return str(value)

    def join(self, name: str, *, invited: bool = False) -> str:
        """Add an annotator; the secret that identifies them from now on."""
        secret = secrets.token_urlsafe(24)
        with self._open() as database:
            database.execute(
                "INSERT INTO annotators (name, secret, joined, invited) VALUES (?, ?, ?, ?)",
                (name, hashed(secret), time.time(), invited),
            )
        return secret

    def invited(self) -> bool:
        """Whether personal links were made: then nobody joins without one."""
        with self._open() as database:
            return database.execute("SELECT 1 FROM annotators WHERE invited").fetchone() is not None

    def annotator(self, secret: str) -> int | None:
        """The number of the annotator with this secret."""
        with self._open() as database:
            row = database.execute("SELECT id FROM annotators WHERE secret = ?", (hashed(secret),)).fetchone()
        return None if row is None else int(row[0])

    def add(self, annotator: int, item: str, kind: Kind, step: int | None, comment: str) -> None:
        """Append a mark. The same mark twice, as from a double click, counts once because the last one counts."""
        with self._open() as database:
            database.execute(
                "INSERT INTO marks (annotator, item, kind, step, comment, marked) VALUES (?, ?, ?, ?, ?, ?)",
                (annotator, item, kind, step, comment, time.time()),
            )

    def undo(self, annotator: int) -> str | None:
        """Take back the item that this annotator marked last; its id, None if there is none."""
        with self._open() as database:
            row = database.execute(
                "SELECT item FROM marks WHERE annotator = ? AND NOT undone ORDER BY id DESC LIMIT 1", (annotator,)
            ).fetchone()
            if row is None:
                return None
            database.execute("UPDATE marks SET undone = 1 WHERE annotator = ? AND item = ?", (annotator, row[0]))
        return str(row[0])

    def keep_checks(self, checks: Mapping[str, int]) -> None:
        """Remember which step each attention check asks for, for those who read the marks."""
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", [(k, str(v)) for k, v in checks.items()])

    def checks(self) -> dict[str, int]:
        """What `keep_checks` was given."""
        with self._open() as database:
            rows = database.execute("SELECT name, value FROM facts WHERE name LIKE 'check:%'")
            return {str(name): int(value) for name, value in rows}

    def done(self, annotator: int) -> set[str]:
        """The items that this annotator has marked or skipped."""
        with self._open() as database:
            rows = database.execute("SELECT item FROM marks WHERE annotator = ? AND NOT undone", (annotator,))
            return {str(item) for (item,) in rows}

    def all(self) -> list[Mark]:
        """The marks that count, by annotator and in the order that they were made."""
        query = """
            SELECT item, annotators.id || ':' || name, kind, step, comment FROM marks
            JOIN annotators ON annotators.id = annotator
            WHERE marks.id IN (SELECT max(id) FROM marks WHERE NOT undone GROUP BY annotator, item) ORDER BY marks.id
        """
        with self._open() as database:
            return [Mark(*row) for row in database.execute(query)]
