"""`gpo locate` on one trajectory: one of a run, one of a typed question, or one that is being written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from gpo.config.components import made
from gpo.config.options import resolve
from gpo.config.presets import model_path
from gpo.config.run import RunConfig
from gpo.diagnosis import diagnose
from gpo.errors import ConfigError, DataError
from gpo.report.clean import one_line
from gpo.report.reading import Searched, read_run
from gpo.report.show import success
from gpo.report.terminal import print_question, print_verdict, rows_of, table
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.storage.directory import RunDirectory
from gpo.types import Engine, Estimator, Problem, Task

VOTES = 16  # samples that stand in for a reference


def close_up(directory: Path | None, options: dict[str, str], console: Console | None = None) -> None:
    """Show one trajectory.

    Args:
        directory: a run directory, whose settings are taken; None if none was named.
        options: those of the command line.

    Raises:
        ConfigError: options that do not go together, or no such trajectory.
        DataError: no samples of a question agree on an answer, or a run cannot teach a critic.
    """
    console = console or Console()
    left = dict(options)
    show, question, answer, arm = (left.pop(name, None) for name in ("show", "question", "answer", "arm"))
    live = left.pop("watch", "false").lower() not in ("false", "no", "0")
    files = None if directory is None else RunDirectory(directory)
    if show is not None:
        if files is None or question is not None or live or left:
            raise ConfigError("--show takes a run directory and no other option but --arm: gpo locate RUN --show ID.")
        print_searched(console, find(read_run(files, arm).searched, show))
        return
    if question is None:
        raise ConfigError('--watch and --answer need a question: gpo locate RUN --watch --question "...".')
    if not question.strip():
        raise ConfigError("--question is empty.")
    if live and files is None:
        raise ConfigError(
            "--watch needs a run, from whose rollouts a critic learns the values, and none is named. "
            'Name one: gpo locate RUN --watch --question "..." (gpo rollout RUN makes one).'
        )
    config = resolve(left, None if files is None else files.config())
    problem = problem_of(files, question, answer)
    task: Task = made("task", config.task)
    if live and files is not None:
        from gpo.report.watch import watch

        watch(console, files, config, task, problem)
        return
    engine = made("engine", config.engine, model=model_path(config.model))
    if not problem.answer:
        problem = voted(console, config, task, engine, problem)
    found = diagnose(
        problem,
        task,
        engine,
        chosen_estimator(config, arm, left),
        seed=config.seed,
        segmenter=made("segmenter", config.segmenter),
        temperature=config.temperature,
        max_tokens=config.max_tokens,
    )
    print_question(console, problem)
    console.print(table(rows_of(found.steps, found.scores)))
    print_verdict(console, found.trajectory.score)
    console.print(f"{found.scores.tokens:,} tokens were sampled to search it. {found.remark}".strip(), highlight=False)


def chosen_estimator(config: RunConfig, arm: str | None, options: dict[str, str]) -> Estimator | None:
    """That of the arm, or the one that options name; None, the paper's search, if neither is given.

    The search of a run's arm may lean on other trajectories, of which there are none here.
    """
    if arm is None and not any(name.partition(".")[0] in ("estimator", "arms") for name in options):
        return None
    name = arm or "gpo"
    if name not in config.arms:
        raise ConfigError(f"There is no arm {name!r}. Arms: {', '.join(config.arms)}.")
    estimator: Estimator = made("estimator", config.arms[name], model=model_path(config.model))
    return estimator


def problem_of(files: RunDirectory | None, question: str, answer: str | None) -> Problem:
    """A problem of the run if `question` is its id, else a new one, without an answer if none is given."""
    known: list[Problem] = [] if files is None else [*(files.problems("train") or ()), *(files.problems("test") or ())]
    for problem in known:
        if problem.id == question:
            return problem if answer is None else replace(problem, answer=answer)
    return Problem("question", question, answer or "")


def find(searched: Sequence[Searched], name: str) -> Searched:
    """The trajectory with this id, or the only one whose id has it as a part.

    Raises:
        ConfigError: there is none, or more than one.
    """
    for item in searched:
        if item.trajectory.id == name:
            return item
    found = [item for item in searched if name in item.trajectory.id]
    if len(found) == 1:
        return found[0]
    some = ", ".join(item.trajectory.id for item in (found or searched)[:3])
    what = f"{len(found)} searched trajectories have" if found else "No searched trajectory has"
    raise ConfigError(f"{what} {name!r} in their id. Give one such as: {some}.")


def print_searched(console: Console, item: Searched) -> None:
    if item.scores is None:
        raise DataError("No arm of this run has searched a trajectory yet. gpo locate RUN does.")
    print_question(console, item.problem)
    console.print(f"trajectory {one_line(item.trajectory.id, 120)}", highlight=False, markup=False, style="dim")
    console.print(table(rows_of(item.steps, item.scores)))
    print_verdict(console, item.trajectory.score)
    if item.critical is not None and (fresh := success(item.fresh.get(item.critical, ()))).n:
        text = f"{fresh.n} rollouts sampled afterwards: {fresh.estimate:.2f} [{fresh.lower:.2f}, {fresh.upper:.2f}]"
        seen = item.scores.values[item.critical]
        console.print(f"Before the critical step the search saw {seen:.2f}; {text}.", highlight=False, markup=False)


def voted(console: Console, config: RunConfig, task: Task, engine: Engine, problem: Problem) -> Problem:
    """The problem with the answer that most of `VOTES` samples give.

    Raises:
        DataError: no sample gives an answer.
    """
    sampler = Sampler(
        engine,
        task,
        {problem.id: problem},
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        seed=config.seed,
        stream="vote",
    )
    [group] = sampler([question_start(problem, task, engine.tokenizer)], VOTES)
    votes = Counter(t.score.answer for t in group.trajectories if t.score.answer)
    if not votes:
        raise DataError("No sample gives an answer that can be read without a reference. Give one: --answer TEXT.")
    [(answer, count)] = votes.most_common(1)
    console.print(
        Text(f"No --answer is given. Taken as right: {one_line(answer, 100)}, which {count} of {VOTES} samples say.")
    )
    return replace(problem, answer=answer)
