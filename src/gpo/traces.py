"""`gpo traces RUN --file FILE`: solutions that somebody else wrote, as the trajectories of a run, ready to be searched.

A row is JSON with the question (`question` or `input`), the reference answer (`target` or `answer`), and the solution
as `steps`, a list of texts. That is the form of BIG-Bench-Mistake (arXiv 2311.08516), whose steps are lines. The run's
model estimates what each step is worth: how often the model itself would get from there to the right answer.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpo.config import resolve, split
from gpo.errors import ConfigError, DataError
from gpo.prompting import question_start
from gpo.run import Run
from gpo.tasks.data import Row, read_rows
from gpo.types import Completion, Group, Problem, Task, Trajectory

PLENTY = 1e9  # a search of traces has no budget to keep
BEFORE = {  # what the published BBH questions begin with and the rows of BIG-Bench-Mistake do not have
    "dyck_languages": "Complete the rest of the sequence, making sure that the parentheses are closed properly. Input: "
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Raises:
        ConfigError: an unknown option, or the run directory has other contents.
        DataError: the file cannot be read, or a row is of another form.
    """
    parser = argparse.ArgumentParser(
        prog="gpo traces",
        description="Make solutions that somebody else wrote the trajectories of a new run. Then: gpo locate RUN.",
        epilog="Other options are those of gpo run, such as --model and --estimator.",
    )
    parser.add_argument("run", help="a run directory, which is made")
    parser.add_argument("--file", type=Path, required=True, help="JSON lines with a question, steps and an answer")
    parser.add_argument("--limit", type=int, help="only the first so many rows")
    parser.add_argument("--before", help="text in front of every question")
    known, rest = parser.parse_known_args(arguments)
    names, options = split(rest)
    if names:
        raise ConfigError(f"gpo traces takes one directory; {' '.join(names)} is too much.")
    rows = read_rows(known.file)[: known.limit]
    before = BEFORE.get(known.file.stem, "") if known.before is None else known.before
    trajectories = take(known.run, rows, known.file.stem, options, before)
    right = sum(t.score.right for t in trajectories)
    print(f"{len(trajectories)} traces, {right} right. Search them: gpo locate {known.run}")
    return 0


def take(
    directory: str | Path, rows: Sequence[Row], name: str, options: dict[str, str] | None = None, before: str = ""
) -> list[Trajectory]:
    """Make a run whose rollouts are the traces.

    Args:
        rows: with columns question or input, steps, and target or answer.
        name: of the file; ids are such as `NAME/17`, with the number of the row.
        options: of the run, as texts.
        before: stands in front of every question.

    Raises:
        ConfigError: the directory is that of another run.
        DataError: a row is of another form.
    """
    given = {"arms": "gpo", "rollouts": "1"} | (options or {})
    config = resolve(given)
    run = Run(directory, replace(config, problems=len(rows), budget=PLENTY, locate_share=0.999))
    if run.files.rollouts.path.exists():
        raise ConfigError(f"{directory} has trajectories already. Choose another directory.")
    problems = [
        Problem(
            f"{name}/{number}",
            before + column(row, "question", "input"),
            column(row, "target", "answer"),
            {"subtask": name},
        )
        for number, row in enumerate(rows)
    ]
    tokenizer = run.engine().tokenizer
    trajectories = [
        as_trajectory(problem, row.texts("steps"), run.task, tokenizer)
        for problem, row in zip(problems, rows, strict=True)
    ]
    run.files.write_problems({"train": problems, "test": []})
    run.files.rollouts.append([Group(t.start, (t,)) for t in trajectories])
    return trajectories


def column(row: Row, *names: str) -> str:
    """The first of these columns that a row has.

    Raises:
        DataError: it has none.
    """
    for name in names:
        if row.fields.get(name) is not None:
            return row.text(name)
    raise DataError(f"{row.where}: expected a column {' or '.join(names)}, got {', '.join(map(str, row.fields))}.")


def as_trajectory(problem: Problem, steps: Sequence[str], task: Task, tokenizer: Any) -> Trajectory:
    """A written solution as if the model had sampled it: its steps are lines, and it ends where they end."""
    ids: list[int] = []
    ends: list[int] = []
    for number, step in enumerate(steps, 1):
        ids += tokenizer.encode(step + "\n" * (number < len(steps)), add_special_tokens=False)
        ends.append(len(ids))
    ids.append(tokenizer.eos_token_id)
    ends[-1] += 1
    text = "\n".join(steps)
    return Trajectory(
        id=problem.id,
        start=question_start(problem, task, tokenizer),
        completion=Completion(tuple(ids), text, "stop"),
        score=task.score(problem, text),
        step_ends=tuple(ends),
    )
