"""`gpo locate` on one trajectory: one of a run, one of a typed question, or one that is being written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.text import Text

from gpo.config.components import describe_component, made
from gpo.config.models import resolve_model, search_of
from gpo.config.options import resolve
from gpo.config.presets import with_task
from gpo.config.run import RunConfig
from gpo.config.trust import refuse_strangers
from gpo.contracts import Engine, Estimator, Task
from gpo.diagnosis import diagnose, outcome
from gpo.errors import ConfigError, DataError
from gpo.report.clean import counted, one_line
from gpo.report.console import Console, say
from gpo.report.reading import Searched, read_run
from gpo.report.sampling import SamplingDisplay
from gpo.report.terminal import print_question, print_verdict, rows_of, table
from gpo.rollout.pace import Paced
from gpo.rollout.prompting import Conclusions, question_start, text_of
from gpo.rollout.sampler import Sampler
from gpo.storage.directory import RunDirectory
from gpo.types import Group, Problem

VOTES = 16  # samples that stand in for a reference
LEAST = 0.25  # share of them that must agree, which more than half of those with an answer must as well
SHOWN = 5  # answers whose votes are told
GRADING = {  # how tasks that a typed question may get without having been named read an answer
    "question": "as mathematics, or as words where the right one has neither digit nor sign",
    "reasoner": "by the form of the right one, as in BBH",
}


def close_up(directory: Path | None, options: dict[str, str], console: Console | None = None) -> None:
    """Show one trajectory.

    Args:
        directory: a run directory, whose settings are taken; None if none was named.
        options: those of the command line.

    Raises:
        ConfigError: options that do not go together, or no such trajectory.
        DataError: no majority of samples agrees on an answer, or a run cannot teach a critic.
    """
    console = console or Console()
    left = dict(options)
    show, question, answer, arm = (left.pop(name, None) for name in ("show", "question", "answer", "arm"))
    live = left.pop("watch", "false").lower() not in ("false", "no", "0")
    files = None if directory is None else RunDirectory(directory)
    if files is not None:
        refuse_strangers(files.path, files.config_or_none(), options.values())
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
    if files is None:
        left = with_task(left)
    config = resolve(left, None if files is None else files.config())
    problem = problem_of(files, question, answer)
    task: Task = made("task", config.task)
    console.print(Text(rules(config, task, problem)))
    if live and files is not None:
        from gpo.report.watch import watch

        watch(console, files, config, task, problem)
        return
    with console.status(Text("The model is loaded")):
        engine: Engine = made("engine", config.engine, model=resolve_model(config).source)
    with SamplingDisplay(console) as display:
        if not problem.answer:
            problem = voted(console, config, task, engine, problem, display)
        found = diagnose(
            problem,
            task,
            engine,
            chosen_estimator(config, arm, left, Conclusions(task, {problem.id: problem}, engine.tokenizer)),
            seed=config.seed,
            segmenter=made("segmenter", config.segmenter),
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            on_sample=display,
        )
    print_question(console, problem)
    console.print(table(rows_of(found.steps, found.scores, confirmed=bool(found.confirmed))))
    print_verdict(console, found.trajectory)
    if found.scores.critical_step is None:
        console.print("No step stands out.")
    cut = outcome(found.trajectory) == "cut off"
    room = f"The response was cut off at {counted(config.max_tokens, 'token')}: raise --max_tokens." if cut else ""
    for line in (room, found.remark, display.summary):
        if line:
            say(console, line)


def rules(config: RunConfig, task: Task, problem: Problem) -> str:
    """How the question is put and how answers are graded."""
    name = describe_component("task", config.task)["name"]
    added = text_of(task.prompt(problem)[-1]).replace(problem.question, "", 1).strip()
    put = f"followed by: {one_line(added, 300)}" if added else "put as it is, without an instruction."
    stop = "" if put.endswith((".", "…")) else "."
    grading = GRADING.get(name, "by the rules of this task")
    return f"Task {one_line(name, 60)}: the question is {put}{stop} Answers are read {grading}."


def chosen_estimator(
    config: RunConfig, arm: str | None, options: dict[str, str], conclusion: Conclusions
) -> Estimator | None:
    """That of the arm, or the one that options name; None, the default of `diagnose`, if neither is given.

    The search of a run's arm may lean on other trajectories, of which there are none here.
    """
    if arm is None and not any(name.partition(".")[0] in ("estimator", "arms") for name in options):
        return None
    name = arm or "gpo"
    if name not in config.arms:
        raise ConfigError(f"There is no arm {name!r}. Arms: {', '.join(config.arms)}.")
    estimator: Estimator = search_of(config, name, conclusion=conclusion)
    return estimator


def problem_of(files: RunDirectory | None, question: str, answer: str | None) -> Problem:
    """A problem of the run if `question` is its id, else a new one, without an answer if none is given."""
    known: list[Problem] = [] if files is None else [*(files.problems("train") or ()), *(files.problems("test") or ())]
    for problem in known:
        if problem.id == question:
            return problem if answer is None else replace(problem, answer=answer)
    if "/" in question and (near := [problem.id for problem in known if question in problem.id]):
        raise ConfigError(
            f"--question {question!r} is a part of ids of the run. Give a whole one: {', '.join(near[:3])}."
        )
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
    say(console, f"trajectory {one_line(item.trajectory.id, 120)}", style="dim")
    console.print(table(rows_of(item.steps, item.scores)))
    print_verdict(console, item.trajectory)
    if item.critical is not None and (fresh := item.fresh_value(item.critical)).n:
        value = f"{fresh.estimate:.2f} [{fresh.lower:.2f}, {fresh.upper:.2f}]"
        text = f"{counted(fresh.n, 'rollout')} sampled afterwards: {value}"
        seen = item.scores.values[item.critical]
        say(console, f"Before the critical step the search saw {seen:.2f}; {text}.")


def voted(
    console: Console, config: RunConfig, task: Task, engine: Engine, problem: Problem, display: SamplingDisplay
) -> Problem:
    """The problem with the answer that most of `VOTES` samples give.

    Raises:
        DataError: none is a majority: that of more than half of the samples with an answer, and of `LEAST` of all.
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
    display("votes", 0, 0)
    sample = Paced(sampler, lambda rollouts, tokens: display("votes", rollouts, tokens))
    [group] = sample([question_start(problem, task, engine.tokenizer)], VOTES)
    if not group.trajectories:
        raise DataError("The question leaves no room for a response; ask a shorter one.")
    votes = Counter(t.score.answer for t in group.trajectories if t.score.answer)
    answer, count = votes.most_common(1)[0] if votes else ("", 0)
    if 2 * count <= votes.total() or count < LEAST * len(group.trajectories):
        room = f" With --max_tokens above {config.max_tokens} fewer are cut off." if cut_off(group) else ""
        raise DataError(
            "No --answer is given, and no answer has a majority that could stand in for it "
            f"({told(group, votes)}). Give the right answer: --answer TEXT.{room}"
        )
    console.print(Text(f"No --answer is given. Taken as right: {one_line(answer, 100)} ({told(group, votes)})."))
    return replace(problem, answer=answer)


def cut_off(group: Group) -> list[int]:
    """The lengths in tokens of the responses that came to no answer before they ran out of tokens."""
    return [len(t.response_ids) for t in group.trajectories if outcome(t) == "cut off"]


def told(group: Group, votes: Counter[str]) -> str:
    """The votes, such as `3: 2 of 16, 72: 1 of 16, no answer: 9, cut off at 512 tokens: 4`."""
    parts = [f"{one_line(answer, 40)}: {n} of {len(group.trajectories)}" for answer, n in votes.most_common(SHOWN)]
    others = votes.total() - sum(n for _, n in votes.most_common(SHOWN))
    cut = cut_off(group)
    failed = sum(t.score.verdict == "failed" and not t.score.answer for t in group.trajectories)
    none = len(group.trajectories) - votes.total() - len(cut) - failed
    counts = {
        "other answers": others,
        "no answer": none,
        f"cut off at {counted(max(cut, default=0), 'token')}": len(cut),
        "not graded": failed,
    }
    return ", ".join([*parts, *(f"{what}: {n}" for what, n in counts.items() if n)])
