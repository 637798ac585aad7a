"""Where rows come from: a path, the folder in GPO_DATA, or the Hugging Face hub at a pinned commit.

The folder in GPO_DATA has this layout: `bbh/SUBTASK.json`, `gsm8k/train.jsonl`, `gsm8k/test.jsonl`, `math500.jsonl`,
`aime/aime24.jsonl`, `aime/aime25.jsonl`, `mmlu_stem.jsonl`. A file that is not there comes from the hub.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any, get_args

from gpo.errors import ConfigError, DataError
from gpo.storage.hub import data_hub
from gpo.types import Message, Split

SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data set, and where it stands for error messages."""

    where: str
    fields: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """Raises: DataError if the row has no value in that column."""
        value = self.fields.get(name)
        if value is None:
            known = ", ".join(map(repr, self.fields)) or "none"
            raise DataError(f"{self.where}: no value in column {name!r}. Columns with this row: {known}.")
        return value

    def text(self, name: str) -> str:
        """A column as text; numbers are written out.

        Raises:
            DataError: the column is missing, empty, or neither text nor a number.
        """
        value = self.get(name)
        odd = isinstance(value, (list, dict, bool)) or (isinstance(value, float) and not isfinite(value))
        if odd or not str(value).strip() or "\0" in str(value):
            raise DataError(f"{self.where}: column {name!r} must be text or a number, got {str(value)[:80]!r}.")
        text = str(value)
        stray = re.search("[\ud800-\udfff]", text)
        if stray:
            raise DataError(
                f"{self.where}: column {name!r} has half of a character, {stray[0]!r} at {stray.start()}, which no "
                "file can hold. Remove it or write the whole character."
            )
        return text

    def texts(self, name: str) -> list[str]:
        """A column that holds a list.

        Raises:
            DataError: the column is missing, empty, or no list.
        """
        value = self.get(name)
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise DataError(f"{self.where}: column {name!r} must be a list, got {str(value)[:80]!r}.")
        items = [str(item) for item in value]
        if not items:
            raise DataError(f"{self.where}: column {name!r} is an empty list.")
        return items


@dataclass(frozen=True, slots=True)
class Hub:
    """A split of a data set on the Hugging Face hub, at one commit."""

    repo: str
    revision: str  # commit
    split: str
    config: str | None = None

    def rows(self) -> list[Row]:
        """Raises: DataError if the hub does not have it, or does not answer and its local cache has no copy."""
        from datasets import load_dataset

        with data_hub() as unreachable:
            try:
                table = load_dataset(self.repo, self.config, split=self.split, revision=self.revision)
            # datasets, huggingface_hub, requests, httpx and pyarrow all raise their own errors here.
            except Exception as error:
                said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
                reason = f"{unreachable}, and there is no copy in the local cache" if unreachable else said
                raise DataError(f"Cannot load {self.repo} (split {self.split!r}) from the hub: {reason}") from error
        return [Row(f"{self.repo} {self.split}, row {i}", row) for i, row in enumerate(table)]


def load_rows(local: Sequence[str], hub: Hub | Sequence[Hub], path: str | None = None) -> list[Row]:
    """The rows of one split.

    Args:
        local: where the split may be below a data folder, most usual place first.
        hub: what to load where there is no such file; several are joined.
        path: a file, or a folder with one of `local`; nothing else is looked at then.

    Raises:
        DataError: nothing has it; the message says what to do.
    """
    if path is not None:
        file = find(Path(path).expanduser(), local)
        if file is None:
            raise DataError(f"No data at {path!s}: expected a file, or a folder with {' or '.join(local)}.")
        return read_rows(file)
    folder = os.environ.get("GPO_DATA")
    file = find(Path(folder).expanduser(), local) if folder else None
    if file is not None:
        return read_rows(file)
    sources = [hub] if isinstance(hub, Hub) else hub
    where = f"GPO_DATA ({folder}) has no {' or '.join(local)}" if folder else "GPO_DATA is not set"
    advice = f"Set GPO_DATA to a folder with {local[0]}, or give the task a `path`, or allow access to the hub."
    try:
        return [row for source in sources for row in source.rows()]
    except DataError as error:
        raise DataError(f"{error}; and {where}. {advice}") from error


def find(base: Path, local: Sequence[str]) -> Path | None:
    """`base` itself if it is a file, else the first of `local` below it, by relative path or by bare name."""
    if base.is_file():
        return base
    candidates = [base / name for name in local] + [base / Path(name).name for name in local]
    return next((file for file in candidates if file.is_file()), None)


def read_rows(path: Path) -> list[Row]:
    """The rows of a .jsonl, .json, .csv or .parquet file.

    A .json file is a list of rows, or an object whose `examples` is one.

    Raises:
        DataError: the file cannot be read, or a row is malformed; the message names file and line.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"Cannot read {path}: a data file ends with {', '.join(readers)}, got {path.suffix!r}.")
    try:
        rows = list(reader(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    if not rows:
        raise DataError(f"{path} has no rows.")
    return rows


def _row(where: str, value: object) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row must be an object with named columns, got {str(value)[:80]!r}.")
    return Row(where, value)


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not a JSON object ({error}).") from error
            yield _row(where, value)


def _json(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}).") from error
    rows = value.get("examples") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of rows, or an object whose `examples` is one.")
    for number, row in enumerate(rows):
        yield _row(f"{path}, row {number}", row)


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: expected {len(reader.fieldnames or ())} columns as in the first line.")
                yield Row(where, row)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        table = read_table(path)
    except ArrowException as error:
        raise DataError(f"{path}: not a parquet file ({error}).") from error
    for number, row in enumerate(table.to_pylist()):
        yield Row(f"{path}, row {number}", row)


def refuse_training(task: str, split: Split, allowed: bool) -> None:
    """Stops a split that the benchmark does not have, unless training on the test questions is allowed.

    Raises:
        DataError: `split` is not `test`, and not allowed.
    """
    if split != "test" and not allowed:
        raise DataError(
            f"{task} has no {split!r} split; its published questions are there to measure with. Train on another task, "
            "or set allow_test_training to use the test questions all the same."
        )


def split_by(number: int) -> Split:
    """The split of a question with this hash: half of all are for training, a quarter each for the others."""
    splits: tuple[Split, ...] = ("train", *SPLITS)
    return splits[number % 4]


def hold_out(task: str, rows: Sequence[Row], split: Split, dev_size: int) -> list[tuple[int, Row]]:
    """The rows of a published file that belong to a split, with their numbers in it.

    The last `dev_size` of the training file make `dev`; `test` has a file of its own.

    Raises:
        ConfigError: `dev_size` leaves no row to train on, or none for `dev`.
    """
    numbered = list(enumerate(rows))
    if split == "test":
        return numbered
    if not 0 < dev_size < len(rows):
        raise ConfigError(f"{task}: dev_size must be from 1 to {len(rows) - 1}, got {dev_size}.")
    return numbered[-dev_size:] if split == "dev" else numbered[:-dev_size]


def names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Names given as a sequence, or as one string with commas between them."""
    items = value.split(",") if isinstance(value, str) else value
    return tuple(item.strip() for item in items if item.strip())


def conversation(
    question: str,
    instruction: str = "",
    examples: Sequence[tuple[str, str]] = (),
    images: Sequence[object] = (),
    *,
    system: str = "",
    earlier: Sequence[Message] = (),
) -> list[Message]:
    """A question as chat turns, worked examples (question, response) first, the instruction with every question.

    Args:
        images: of the question, paths or images of Pillow; they come before its text.
        system: the turn of the system, before all others, unless the earlier turns begin with another one.
        earlier: turns of the conversation that the question goes on with, behind the examples.
    """
    own = [turn for turn in earlier[:1] if turn["role"] == "system"]
    turns: list[Message] = own or ([{"role": "system", "content": system}] if system else [])
    for asked, response in examples:
        turns.append({"role": "user", "content": _instructed(asked, instruction)})
        turns.append({"role": "assistant", "content": response})
    turns += earlier[len(own) :]
    text = _instructed(question, instruction)
    shown = [{"type": "image", "image": image} for image in images]
    turns.append({"role": "user", "content": [*shown, {"type": "text", "text": text}] if shown else text})
    return turns


def _instructed(question: str, instruction: str) -> str:
    return f"{question}\n\n{instruction}" if instruction else question


@lru_cache(maxsize=64)
def worked_examples(path: str | None) -> tuple[tuple[str, str], ...]:
    """The worked examples of a file with columns `question` and `response`; none without a file."""
    if path is None:
        return ()
    return tuple((row.text("question"), row.text("response")) for row in read_rows(Path(path).expanduser()))
