"""The JSON lines of a training's metrics. Each row says its update; an update that is done again replaces its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from gpo.storage.disk import told
from gpo.storage.files import append


def begin_rows(path: Path, update: int) -> None:
    """Cut the rows of this update and later ones, which an earlier try has left, and a row that a kill has cut off."""
    if not path.exists():
        return
    kept = 0
    with told(path), path.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n") or not _is_before(line, update):
                break
            kept += len(line)
        file.truncate(kept)


def write_rows(path: Path, rows: Iterable[Mapping[str, float]]) -> None:
    """Append rows; they are on the disk when this returns."""
    append(path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def _is_before(line: bytes, update: int) -> bool:
    try:
        return bool(json.loads(line)["update"] < update)
    except (ValueError, KeyError, TypeError):
        return False
