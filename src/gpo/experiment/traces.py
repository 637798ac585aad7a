"""`gpo traces RUN --file FILE`: solutions that somebody else wrote, as the trajectories of a run, ready to be searched.

A row is JSON with the question (`question` or `input`), the reference answer (`target` or `answer`), and the solution
as `steps`, a list of texts. That is the form of BIG-Bench-Mistake (arXiv 2311.08516), whose steps are lines. The run's
model estimates what each step is worth: how often the model itself would get from there to the right answer. It is
`reader` by default, the embedded reasoner trained on to go on from solutions that somebody else began.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpo.config.options import resolve, split
from gpo.errors import ConfigError, DataError
from gpo.experiment.run import Run
from gpo.rollout.prompting import question_start
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
    left_out = f", {more} longer than the model's context left out" if (more := len(rows) - len(trajectories)) else ""
    print(f"{len(trajectories)} traces, {right} right{left_out}. Search them: gpo locate {known.run}")
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
        DataError: a row is of another form, or the model's context holds none of the traces.
    """
    given = {"arms": "gpo", "rollouts": "1", "model": "reader"} | (options or {})
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
    engine = run.engine()
    made = [
        as_trajectory(problem, row.texts("steps"), run.task, engine, temperature=config.temperature)
        for problem, row in zip(problems, rows, strict=True)
    ]
    trajectories = [trajectory for trajectory in made if trajectory is not None]
    if not trajectories:
        raise DataError(f"The model's context of {engine.context_length} tokens holds none of the {len(rows)} traces.")
    kept = {trajectory.id for trajectory in trajectories}
    run.files.write_problems({"train": [problem for problem in problems if problem.id in kept], "test": []})
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


def as_trajectory(
    problem: Problem, steps: Sequence[str], task: Task, engine: Any, *, temperature: float = 1.0, room: int = 0
) -> Trajectory | None:
    """A written solution as if the model had sampled it: its steps are lines, and it ends where they end.

    The log-probabilities are those that the model gives to it; None of an engine that holds no model.

    Args:
        room: tokens of the context that must be left beside it, for other solutions.

    Returns:
        None if the context does not hold it.
    """
    tokenizer = engine.tokenizer
    start = question_start(problem, task, tokenizer)
    ids: list[int] = []
    ends: list[int] = []
    for number, step in enumerate(steps, 1):
        ids += tokenizer.encode(step + "\n" * (number < len(steps)), add_special_tokens=False)
        ends.append(len(ids))
    ids.append(tokenizer.eos_token_id)
    ends[-1] += 1
    if len(start.prompt_ids) + len(ids) + room > engine.context_length:
        return None
    text = "\n".join(steps)
    model = getattr(engine, "model", None)
    logprobs = None if model is None else log_probabilities(model, start.prompt_ids, ids, temperature)
    return Trajectory(
        id=problem.id,
        start=start,
        completion=Completion(tuple(ids), text, "stop", logprobs=logprobs),
        score=task.score(problem, text),
        step_ends=tuple(ends),
    )


def log_probabilities(
    model: Any, prompt_ids: Sequence[int], ids: Sequence[int], temperature: float
) -> tuple[float, ...]:
    """(T,) nats: what a causal language model gives to the tokens `ids` after a prompt."""
    import torch

    whole = torch.tensor([[*prompt_ids, *ids]], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=whole).logits[0, len(prompt_ids) - 1 : -1].float() / temperature
    found = logits.log_softmax(-1).gather(-1, whole[0, len(prompt_ids) :, None])
    return tuple(found[:, 0].tolist())
