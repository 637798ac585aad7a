"""Preference pairs as a data set for any trainer: Parquet files with a card, read by `datasets.load_dataset`.

Two forms of the same pairs: `pairs` (prompt, chosen, rejected) and `unpaired` (prompt, completion, label), in the
standard text columns of TRL, with our token ids and the provenance of every row beside them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from heapq import heappop, heappush, heapreplace
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from gpo.errors import ConfigError, DataError
from gpo.images.tokens import has_images
from gpo.preferences.pairs import to_row
from gpo.storage.directory import RunDirectory
from gpo.storage.files import replacing
from gpo.types import Pair, PrefixIn

if TYPE_CHECKING:
    from datasets import Dataset

Item = TypeVar("Item")
Form = Literal["pairs", "unpaired"]
Side = Literal["chosen", "rejected"]
ROWS = 1_000  # of a data set that are made at once
FORMS: tuple[Form, ...] = ("pairs", "unpaired")

PROVENANCE = {  # Arrow types: a column that is null in every row of one arm must still fit that of another
    **dict.fromkeys(("model", "arm", "estimator", "parent", "chosen_id", "rejected_id", "completion_id"), "string"),
    **dict.fromkeys(
        ("boundary", "reset_boundary", "critical_step", "prefix_tokens", "round", "seed", "pairing_seed"), "int64"
    ),
    "values": "list<double>",
}


def unpaired_rows(pairs: Sequence[Pair], prefix_in: PrefixIn = "prompt", seed: int = 0) -> Iterator[dict[str, Any]]:
    """Two labelled rows of each pair, in the order of `interleave`."""
    sides: list[tuple[int, Side]] = [(i, side) for i in range(len(pairs)) for side in ("chosen", "rejected")]
    order = interleave(
        sides,
        Random(seed),
        problem=lambda item: pairs[item[0]].problem_id,
        start=lambda item: (pairs[item[0]].problem_id, *pairs[item[0]].prompt_ids, *pairs[item[0]].prefix_ids),
    )
    for i, side in order:
        row = to_row(pairs[i], prefix_in)
        texts = {name: row.pop(name) for name in ("chosen", "rejected")}
        ids = {name: row.pop(f"{name}_ids") for name in ("chosen", "rejected")}
        names = {name: row["provenance"].pop(f"{name}_id", None) for name in ("chosen", "rejected")}
        yield row | {
            "completion": texts[side],
            "label": side == "chosen",
            "completion_ids": ids[side],
            "provenance": row["provenance"] | {"completion_id": names[side]},
        }


def interleave(
    rows: Sequence[Item], random: Random, *, problem: Callable[[Item], Any], start: Callable[[Item], Any]
) -> list[Item]:
    """The rows in a random order that keeps siblings apart.

    Those of one problem are about evenly far from each other, and no two of one start are neighbours, unless a start
    has more than half of all rows.
    """
    by_problem: dict[Any, list[Item]] = {}
    for row in random.sample(rows, len(rows)):
        by_problem.setdefault(problem(row), []).append(row)
    placed = []
    for siblings in by_problem.values():
        offset = random.random()
        placed += [((i + offset) / len(siblings), row) for i, row in enumerate(siblings)]
    return apart([row for _, row in sorted(placed, key=lambda item: item[0])], start)


def apart(rows: Sequence[Item], key: Callable[[Item], Any]) -> list[Item]:
    """The rows, moved as little as it takes that no neighbours have the same key, where that is possible."""
    waiting: dict[Any, deque[tuple[int, Item]]] = {}
    for place, row in enumerate(rows):
        waiting.setdefault(key(row), deque()).append((place, row))
    first = [(queue[0][0], name) for name, queue in enumerate(waiting.values())]  # the next row of each key
    queues = list(waiting.values())
    placed: list[tuple[int, Item]] = []  # with the number of its key
    while first:
        _, name = heappop(first)
        if placed and placed[-1][0] == name:
            if not first:
                heappush(first, (0, name))
                break
            _, name = heapreplace(first, (queues[name][0][0], name))
        placed.append((name, queues[name].popleft()[1]))
        if queues[name]:
            heappush(first, (queues[name][0][0], name))
    if not first:
        return [row for _, row in placed]
    # What is left is all alike: each goes back to where it has no sibling beside it, the last such place first.
    [(_, name)] = first
    left, found = deque(row for _, row in queues[name]), list[Item]()
    for i in range(len(placed), -1, -1):
        if left and all(k < 0 or k >= len(placed) or placed[k][0] != name for k in (i - 1, i)):
            found.append(left.popleft())
        if i:
            found.append(placed[i - 1][1])
    return [*reversed(found), *left]


def to_table(rows: Sequence[Mapping[str, Any]], schema: Any = None) -> Any:
    """A pyarrow table of rows of one form; columns have the same types whatever the rows hold."""
    import pyarrow as pa

    if rows and schema is None:
        schema = schema_of(rows[0], [row["provenance"] for row in rows], any(has_images(r["prompt_ids"]) for r in rows))
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def schema_of(first: Mapping[str, Any], provenances: Sequence[Mapping[str, Any]], images: bool) -> Any:
    """The types of the columns of a form, of which one row says the names."""
    import pyarrow as pa

    # Ids of images are above those of text, for which 32 bits do.
    text, ids = pa.string(), pa.list_(pa.int64() if images else pa.int32())
    known = {"list<double>": pa.list_(pa.float64()), "string": text, "int64": pa.int64()}
    no_column = ("chosen_id", "rejected_id") if "label" in first else ()
    names = dict.fromkeys([*first["provenance"], *(name for each in provenances for name in each)])
    provenance = [
        (name, known[PROVENANCE[name]])
        if name in PROVENANCE
        else (name, pa.array([each.get(name) for each in provenances]).type)
        for name in names
        if name not in no_column
    ]
    texts = ("problem_id", "prompt", "chosen", "rejected", "completion", "prefix", "prefix_in")
    columns = dict.fromkeys(texts, text)
    columns |= {f"{name}_ids": ids for name in ("prompt", "prefix", "chosen", "rejected", "completion")}
    columns |= {"label": pa.bool_()}
    if provenance:  # Parquet has no empty columns
        columns["provenance"] = pa.struct(provenance)
    return pa.schema([(name, columns[name]) for name in first if name in columns])


def form_rows(pairs: Sequence[Pair], prefix_in: PrefixIn, form: Form, seed: int) -> Iterator[dict[str, Any]]:
    """What a data set of a form holds."""
    if form == "unpaired":
        return unpaired_rows(pairs, prefix_in, seed)
    return (to_row(pair, prefix_in) for pair in pairs)


def write_dataset(
    pairs: Sequence[Pair],
    directory: Path,
    prefix_in: PrefixIn = "prompt",
    *,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder with both forms and their card; it is there in whole or not at all.

    Args:
        about: what the card says of the origin, by name.
    """
    with replacing(directory) as partial:
        partial.mkdir()
        for form in FORMS if pairs else ():
            _write_form(pairs, prefix_in, form, seed, partial / f"{form}.parquet")
        contents = {path.stem: sha256(path.read_bytes()).hexdigest() for path in partial.glob("*.parquet")}
        (partial / "README.md").write_text(card(pairs, prefix_in, about or {}, contents), encoding="utf-8")


def _write_form(pairs: Sequence[Pair], prefix_in: PrefixIn, form: Form, seed: int, path: Path) -> None:
    """A part at a time: rows are several times as large in memory as in the file."""
    from pyarrow import parquet

    rows = form_rows(pairs, prefix_in, form, seed)
    first = next(rows)
    images = any(has_images(pair.prompt_ids) for pair in pairs)
    schema = schema_of(first, [pair.provenance for pair in pairs], images)
    rows = chain([first], rows)
    with parquet.ParquetWriter(path, schema) as file:
        while part := list(islice(rows, ROWS)):
            file.write_table(to_table(part, schema))


def load_pairs(run: Path | str, arm: str, form: Form = "pairs", number: int = 1) -> Dataset:
    """The preference pairs of one arm of a run, as `gpo build` has written them.

    Args:
        form: `pairs` (prompt, chosen, rejected), or `unpaired` (prompt, completion, label), as KTO takes them.
        number: of the round, from 1.

    Raises:
        ConfigError: no such run, arm or form.
        DataError: they are not built yet, or there is none.
    """
    files = RunDirectory(Path(run))
    files.check_arm(arm)
    if form not in FORMS:
        raise ConfigError(f"form is {form!r}, expected one of {', '.join(FORMS)}.")
    folder = files.dataset(arm, number)
    if not folder.is_dir():
        raise DataError(f"There is no data set at {folder}. Write it with: gpo build {files.path} --arm {arm}")
    if not (folder / f"{form}.parquet").is_file():
        raise DataError(
            f"The arm {arm!r} has no pair: no start had both a right and a wrong continuation. Sample more from each "
            "start, raise the temperature, or choose problems that the model solves sometimes."
        )
    from datasets import Dataset
    from pyarrow import parquet

    return Dataset(parquet.read_table(folder / f"{form}.parquet"))


SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

CARD = """\
---
pretty_name: {title}
task_categories:
- text-generation
tags:
- preference
- trl
- gpo
size_categories:
- {size}
{configs}---

# {title}

{count} preference pairs over {problems} problems and {starts} starts. Both continuations of a pair begin at the same
place of a response, one ends in a right answer and one does not; {after} pairs begin behind a prefix of the response,
the others at the question. Written by GPO (Guided Pivotal Optimization).

| | |
|---|---|
{about}

## Columns

- `prompt`, `chosen`, `rejected`: text, the standard preference columns of TRL (configuration `pairs`).
- `prompt`, `completion`, `label`: text, the columns that KTO takes, two rows a pair, rows of one start kept apart
  (configuration `unpaired`).
- `prompt_ids`, `prefix_ids`: token ids of the question as the model was given it, and of the prefix that both share.
- `chosen_ids`, `rejected_ids`, `completion_ids`: sampled token ids behind the prefix.
- `problem_id`; `prefix`, its text; `prefix_in`, where the text columns have it: here {where}.
- `provenance`: `model`, `estimator`, `arm`; `seed` of sampling, `pairing_seed`; `prefix_tokens`; `chosen_id` and
  `rejected_id`, the trajectories; `parent`, the one that the prefix was cut from, and `boundary`, behind how many
  of its steps; what the search said of the parent: `values` (success probability at each boundary, null where
  unknown), `critical_step`, `reset_boundary`.

The text of `prompt` has its special tokens in it. An end of sequence is in the ids only, and only if it was sampled: a
trainer that tokenises the text and appends one also ends what was cut off.

```python
from datasets import load_dataset
pairs = load_dataset("FOLDER", "pairs", split="train")
```
"""


def card(pairs: Sequence[Pair], prefix_in: PrefixIn, about: Mapping[str, Any], contents: Mapping[str, str] = {}) -> str:
    """The data-set card, with the YAML header that hubs read; without pairs it names no files.

    Args:
        contents: what tells the file of each form from any other: `datasets` keeps what it has loaded by the folder's
            name and this header, and takes another folder of that name for the same.
    """
    listed = "".join(
        f"- config_name: {form}\n{'  default: true' + chr(10) if form == 'pairs' else ''}"
        f"{f'  description: {contents[form]}' + chr(10) if form in contents else ''}"
        f"  data_files:\n  - split: train\n    path: {form}.parquet\n"
        for form in FORMS
    )
    starts = {(pair.problem_id, pair.prompt_ids, pair.prefix_ids) for pair in pairs}
    return CARD.format(
        title=" ".join(["Preference pairs", *(f"({about[key]})" for key in ("arm",) if key in about)]),
        size=next((name for limit, name in SIZES if len(pairs) < limit), "1M<n<10M"),
        configs=f"configs:\n{listed}" if pairs else "",
        count=len(pairs),
        problems=len({pair.problem_id for pair in pairs}),
        starts=len(starts),
        after=sum(bool(pair.prefix_ids) for pair in pairs),
        about="\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in about.items()) or "| | |",
        where="in `prompt`" if prefix_in == "prompt" else "at the head of both completions",
    )
