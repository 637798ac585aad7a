"""`gpo traces RUN --file FILE`: solutions that somebody else wrote, as the trajectories of a run, ready to be searched.

A row is JSON with the question (`question` or `input`), the reference answer (`target` or `answer`), and the solution
as `steps`, a list of texts, or as `response`, a text that the run's segmenter cuts. The first is the form of
BIG-Bench-Mistake (arXiv 2311.08516), whose steps are lines. The run's model estimates what each step is worth: how
often the model itself would get from there to the right answer. Such a run has no budget to keep: it is searched, not
sampled or trained further, and `traces.json` in it says so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpo.config.components import made
from gpo.config.help import entries
from gpo.config.options import resolve, split, take_data_folder
from gpo.config.parse import parse
from gpo.config.presets import BEFORE_QUESTIONS, READER, with_task
from gpo.contracts import Engine, Task
from gpo.errors import ConfigError, DataError
from gpo.experiment.run import Run
from gpo.rollout.prompting import question_start
from gpo.rollout.scoring import checked_score
from gpo.rollout.segmenters import Newline, Segmenter
from gpo.rollout.thought import THINK, Thought, visible
from gpo.storage.files import write_json
from gpo.tasks.data import Row, read_rows
from gpo.tasks.grading import solution_answer
from gpo.types import Completion, Group, Problem, Trajectory

UNLIMITED = 1e9  # times the tokens of the traces: the search of a run of traces has no budget to keep


USAGE = """Usage: gpo traces RUN --file FILE [--OPTION VALUE]...

Make solutions that somebody else wrote the trajectories of a new run. Then:
gpo locate RUN. Other options are those of gpo run, such as --model and
--estimator.
"""
OPTIONS = {
    "--file FILE": "JSON lines with a question, steps or response, and answer",
    "--limit N": "only the first so many rows",
    "--before TEXT": "stands in front of every question",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Raises:
        ConfigError: an unknown option, or the run directory has other contents.
        DataError: the file cannot be read, or a row is of another form.
    """
    names, options = split(sys.argv[1:] if arguments is None else arguments)
    if "help" in options:
        print("\n".join([USAGE, *entries(OPTIONS)]))
        return 0
    if len(names) != 1:
        raise ConfigError(f"gpo traces takes one directory, got {len(names)}: {' '.join(names)}.")
    take_data_folder(options)
    if (source := options.pop("file", None)) is None:
        raise ConfigError("gpo traces needs --file FILE: JSON lines with a question, steps or response, and answer.")
    limit = parse(int | None, options.pop("limit", "none"), "--limit")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}, expected at least 1.")
    file, before = Path(source), options.pop("before", None)
    rows = read_rows(file)[:limit]
    before = BEFORE_QUESTIONS.get(file.stem, "") if before is None else before
    trajectories = take(names[0], rows, file.stem, options, before)
    right = sum(t.score.right for t in trajectories)
    left_out = f", {more} longer than the model's context left out" if (more := len(rows) - len(trajectories)) else ""
    print(f"{len(trajectories)} traces, {right} right{left_out}. Search them: gpo locate {names[0]}")
    return 0


def take(
    directory: str | Path, rows: Sequence[Row], name: str, options: dict[str, str] | None = None, before: str = ""
) -> list[Trajectory]:
    """Make a run whose rollouts are the traces.

    Args:
        rows: with columns question or input, steps or response, and target or answer.
        name: of the file; ids are such as `NAME/17`, with the number of the row.
        options: of the run, as texts.
        before: stands in front of every question.

    Raises:
        ConfigError: the directory is that of another run.
        DataError: a row is of another form, or the model's context holds none of the traces.
    """
    given = with_task({"arms": "gpo", "rollouts": "1", "model": READER} | (options or {}))
    config = resolve(given)
    config = replace(config, problems=len(rows), test_problems=0, budget=UNLIMITED, locate_share=0.999)
    run = Run(directory, config)
    if run.files.rollouts.path.exists():
        raise ConfigError(f"{directory} has trajectories already. Choose another directory.")
    problems = [
        Problem(
            f"{name}/{number}",
            before + column(row, "question", "input"),
            solution_answer(column(row, "target", "answer")),
            {"subtask": name},
        )
        for number, row in enumerate(rows)
    ]
    solutions = [row.texts("steps") if "steps" in row.fields else column(row, "steps", "response") for row in rows]
    segmenter: Segmenter = made("segmenter", config.segmenter)
    engine = run.engine()
    found = as_trajectories(problems, solutions, run.task, engine, temperature=config.temperature, segmenter=segmenter)
    trajectories = [trajectory for trajectory in found if trajectory is not None]
    if not trajectories:
        raise DataError(f"The model's context of {engine.context_length} tokens holds none of the {len(rows)} traces.")
    # Before the rollouts: nobody else shall take them for those of a run with a budget.
    kept = {trajectory.id for trajectory in trajectories}
    run.given = {"train": [problem for problem in problems if problem.id in kept], "test": []}
    with run.held():
        write_json(run.files.traces, {"source": name, "rows": len(rows), "traces": len(trajectories)})
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


def as_trajectories(
    problems: Sequence[Problem],
    solutions_P: Sequence[Sequence[str] | str],
    task: Task,
    engine: Engine,
    *,
    temperature: float = 1.0,
    room: int = 0,
    segmenter: Segmenter | None = None,
) -> list[Trajectory | None]:
    """Written solutions as if the model had sampled them: steps are lines, and a solution ends where they end.

    The log-probabilities are those that the model gives to them.

    Args:
        solutions_P: the steps of each, or its text, which the segmenter cuts (by default into lines).
        room: tokens of the context that must be left beside each, for other solutions.

    Returns:
        None for each that the context does not hold.
    """
    cut: Segmenter = segmenter or Newline()
    thought = Thought(engine.tokenizer)
    made: list[Trajectory | None] = []
    for problem, solution in zip(problems, solutions_P, strict=True):
        start = question_start(problem, task, engine.tokenizer)
        steps = [solution.strip()] if isinstance(solution, str) else list(solution)
        written = "\n".join(steps)
        if steps and thought.begun(start.prompt_ids):  # in the prompt already
            steps[0] = steps[0].removeprefix(THINK).removeprefix("\n")
        if len(steps) > 1 and not visible(steps[0]):
            steps[:2] = ["\n".join(filter(None, steps[:2]))]
        ids, ends = encode(steps, engine)
        fits = len(start.prompt_ids) + len(ids) + room <= engine.context_length
        completion = Completion(ids, "\n".join(steps), "stop")
        made.append(
            Trajectory(problem.id, start, completion, checked_score(task, problem, written), ends) if fits else None
        )
    kept = [trajectory for trajectory in made if trajectory is not None]
    nats = iter(
        engine.logprobs(
            [t.start.prompt_ids for t in kept], [t.completion.token_ids for t in kept], temperature=temperature
        )
    )
    told = [t and replace(t, completion=replace(t.completion, logprobs=next(nats))) for t in made]
    return [
        replace(t, step_ends=cut(t.response_ids, engine.tokenizer, t.completion.logprobs))
        if t is not None and isinstance(solution, str)
        else t
        for t, solution in zip(told, solutions_P, strict=True)
    ]


def encode(steps: Sequence[str], engine: Engine) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens (T,) of a solution, the end of the response included, and where each step ends (K,)."""
    ids: list[int] = []
    ends: list[int] = []
    for number, step in enumerate(steps, 1):
        ids += engine.tokenizer.encode(step + "\n" * (number < len(steps)), add_special_tokens=False)
        ends.append(len(ids))
    stop = end_of_response(engine)
    return (*ids, stop), (*ends[:-1], len(ids) + 1)


def end_of_response(engine: Engine) -> int:
    """The token that ends a written response: the tokenizer's end of sequence where the engine stops at it.

    Raises:
        ConfigError: the engine stops at no token.
    """
    if not engine.stop_ids:
        raise ConfigError("The engine has no token that ends a response. Give a tokenizer with an eos_token.")
    eos: int | None = engine.tokenizer.eos_token_id
    return eos if eos is not None and eos in engine.stop_ids else min(engine.stop_ids)
