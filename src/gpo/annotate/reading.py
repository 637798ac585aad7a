"""Annotations that were made elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from gpo.annotate.marks import Mark
from gpo.errors import DataError
from gpo.storage.files import lines_of
from gpo.types import Trajectory


def read_marks(path: Path) -> list[Mark]:
    """Other people's annotations: JSON lines such as {"item": TRAJECTORY_ID, "annotator": "Ann", "step": 3}.

    A step of null says that none stands out. The last line of an annotator on an item counts.

    Raises:
        DataError: there is no such file, or a line is not of that form.
    """
    marks: dict[tuple[str, str], Mark] = {}
    for number, line in _lines(path):
        try:
            row = json.loads(line)
            step = row["step"]
            if not (step is None or (isinstance(step, int) and not isinstance(step, bool))):
                raise TypeError(f"step is {step!r}")
            item, annotator = str(row["item"]), str(row["annotator"])
            marks[item, annotator] = Mark(item, annotator, "none" if step is None else "step", step)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            expected = '{"item": TRAJECTORY_ID, "annotator": NAME, "step": NUMBER OR null}'
            raise DataError(f"{path}:{number}: not an annotation ({error!r}). Expected {expected}.") from error
    return list(marks.values())


def read_mistakes(path: Path, trajectories: Iterable[Trajectory]) -> list[Mark]:
    """The marked mistakes of BIG-Bench-Mistake, for the trajectories of a run that are its traces, found by their text.

    Source: arXiv 2311.08516; a row has `steps`, and `mistake_index` (0-based, null for no mistake).

    Raises:
        DataError: no such file, a line of another form, or no trajectory of the run is one of the traces.
    """
    by_text = {_squeezed(trajectory.completion.text): trajectory.id for trajectory in trajectories}
    marks = []
    for number, line in _lines(path):
        try:
            row = json.loads(line)
            item = by_text.get(_squeezed("\n".join(row["steps"])))
            step = row["mistake_index"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not a trace of BIG-Bench-Mistake ({error!r}).") from error
        if item is not None:
            marks.append(Mark(item, path.stem, "none" if step is None else "step", step))
    if not marks:
        raise DataError(f"No trajectory of this run is a trace of {path}. Search those traces first.")
    return marks


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    return [(number, line) for number, line in enumerate(lines_of(path), 1) if line.strip()]


def _squeezed(text: str) -> str:
    return " ".join(text.split())
