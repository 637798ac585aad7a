"""What a run found: accuracy of the models, paired differences, tokens. Read from the run directory alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpo.errors import DataError
from gpo.experiment.budget import subtask
from gpo.statistics import Interval, bootstrap_mean, paired_difference
from gpo.storage.directory import BASE, RunDirectory
from gpo.storage.files import write_json, write_text
from gpo.types import Group, Verdict, tokens_of

STAGES = ("rollout", "locate", "reset")
SOURCES = {"bbh": "real BBH questions", "generated": "generated, not real ones: no data folder and no hub was found"}
VERDICTS: tuple[Verdict, ...] = ("right", "wrong", "ungradable", "failed")


@dataclass(frozen=True, slots=True)
class ModelResults:
    """One evaluated model. Intervals are 95%, by bootstrap over questions."""

    name: str
    overall: Interval
    subtasks: dict[str, Interval]
    against: dict[str, Interval]  # accuracy minus that of another model on the same questions
    verdicts: dict[str, int]  # of all samples
    tokens: int  # sampled in evaluation, which is no part of the budget


@dataclass(frozen=True, slots=True)
class ArmResults:
    """What an arm did for its model."""

    name: str
    estimator: str
    tokens: dict[str, int]  # sampled, by stage; the first rollouts count for every arm
    budget: int
    located: int  # trajectories searched
    critical: int  # of them with a critical step
    reset_starts: int
    pairs: int | None  # None before they are built


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that the tables and plots of a run say."""

    task: str
    model: str
    test_questions: str  # where they come from
    questions: int
    samples: int  # of each question and model
    arms: tuple[ArmResults, ...]
    models: tuple[ModelResults, ...]  # base first; those evaluated so far


def summarize(files: RunDirectory) -> Results:
    """Compute the results of what a run directory holds so far."""
    config = files.config()
    arms = list(config["arms"])
    first = files.rollouts.read()
    evaluated = {name: groups for name in (BASE, *arms) if (groups := files.evaluation(name).read())}
    problems = {problem.id: problem for problem in files.problems("test") or ()}
    questions = min((len(groups) for groups in evaluated.values()), default=0)
    evaluated = {name: groups[:questions] for name, groups in evaluated.items()}
    subtasks: dict[str, list[int]] = {}
    for i, group in enumerate(next(iter(evaluated.values()), [])):
        if group.start.problem_id not in problems:
            raise DataError(f"{files.path}: evaluated problem {group.start.problem_id!r} is not in problems.jsonl.")
        subtasks.setdefault(subtask(problems[group.start.problem_id]), []).append(i)
    references = [name for name in (BASE, arms[0]) if name in evaluated]
    sources = {str(problem.metadata.get("source", "")) for problem in problems.values()}
    budget = round(config["budget"] * tokens_of(first)) * config.get("rounds", 1)
    return Results(
        task=config["task"]["name"],
        model=config["model"],
        test_questions="; ".join(SOURCES.get(source, source) for source in sorted(sources - {""})),
        questions=questions,
        samples=config["test_samples"],
        arms=tuple(_arm(files, arm, config["arms"][arm]["name"], first, budget) for arm in arms),
        models=tuple(
            _model(name, groups, subtasks, {other: evaluated[other] for other in references if other != name})
            for name, groups in evaluated.items()
        ),
    )


def _arm(files: RunDirectory, arm: str, estimator: str, first: Sequence[Group], budget: int) -> ArmResults:
    numbers = files.rounds(arm)
    scores = [files.scores(arm, number).read() for number in numbers]
    resets = [files.resets(arm, number).read() for number in numbers]
    asked = sum(tokens_of(files.fresh(arm, number).read()) for number in numbers if number > 1)
    asked += sum(tokens_of(files.more(arm, number).read()) for number in numbers)
    spent = (
        tokens_of(first) + asked,
        sum(score.tokens for found in scores for score in found),
        sum(map(tokens_of, resets)),
    )
    pairs = [path.read_text(encoding="utf-8") for n in numbers if (path := files.pairs(arm, n)).exists()]
    return ArmResults(
        name=arm,
        estimator=estimator,
        tokens=dict(zip(STAGES, spent, strict=True)),
        budget=budget,
        located=sum(map(len, scores)),
        critical=sum(score.critical_step is not None for found in scores for score in found),
        reset_starts=sum(len({group.start.token_ids for group in groups}) for groups in resets),
        pairs=sum(len(text.splitlines()) for text in pairs) if pairs else None,
    )


def _model(
    name: str, groups: Sequence[Group], subtasks: dict[str, list[int]], others: dict[str, list[Group]]
) -> ModelResults:
    scores = _scores(groups)
    verdicts = [trajectory.score.verdict for group in groups for trajectory in group.trajectories]
    return ModelResults(
        name=name,
        overall=bootstrap_mean(scores),
        subtasks={task: bootstrap_mean([scores[i] for i in rows]) for task, rows in subtasks.items() if task},
        against={other: paired_difference(_scores(theirs), scores) for other, theirs in others.items()},
        verdicts={verdict: verdicts.count(verdict) for verdict in VERDICTS},
        tokens=tokens_of(groups),
    )


def _scores(groups: Sequence[Group]) -> list[list[float | None]]:
    return [[trajectory.score.value for trajectory in group.trajectories] for group in groups]


def write_results(files: RunDirectory, results: Results) -> None:
    """Write `results.json` and `table.md`."""
    write_json(files.results, results)
    write_text(files.path / "table.md", markdown(results))


def percent(interval: Interval, signed: bool = False) -> str:
    """Such as "41.2 [38.0, 44.5]", in percent."""
    if math.isnan(interval.estimate):
        return "-"
    sign = "+" if signed else ""
    estimate, lower, upper = (100 * value for value in (interval.estimate, interval.lower, interval.upper))
    return f"{estimate:{sign}.1f} [{lower:{sign}.1f}, {upper:{sign}.1f}]"


def accuracy_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the accuracy table: a line for each sub-task, then all, then the differences."""
    header = ["accuracy in %", *(model.name for model in results.models)]
    names = list(results.models[0].subtasks) if results.models else []
    rows = [[name, *(percent(model.subtasks[name]) for model in results.models)] for name in names]
    rows.append(["**all questions**", *(percent(model.overall) for model in results.models)])
    compared = {other for model in results.models for other in model.against}
    for other in [model.name for model in results.models if model.name in compared]:
        cells = [percent(m.against[other], signed=True) if other in m.against else "" for m in results.models]
        rows.append([f"minus {other}, paired", *cells])
    return header, rows


def token_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of sampled tokens, a line for each arm. Evaluation is no part of the budget."""
    header = ["sampled tokens", *STAGES, "all", "of budget", "evaluation"]
    header += ["searched", "critical", "reset starts", "pairs"]
    evaluation = {model.name: f"{model.tokens:,}" for model in results.models}
    rows = []
    for arm in results.arms:
        spent = sum(arm.tokens.values())
        counts = [arm.located, arm.critical, arm.reset_starts, "-" if arm.pairs is None else arm.pairs]
        share = f"{spent / arm.budget:.1%}" if arm.budget else "-"
        tokens = [f"{arm.tokens[stage]:,}" for stage in STAGES]
        sampled = [*tokens, f"{spent:,}", share, evaluation.get(arm.name, "-")]
        rows.append([f"{arm.name} ({arm.estimator})", *sampled, *map(str, counts)])
    if BASE in evaluation:
        rows.append([BASE, *[""] * 5, evaluation[BASE], *[""] * 4])
    return header, rows


def origin(results: Results) -> str:
    """One sentence on what was asked of whom."""
    source = f" ({results.test_questions})" if results.test_questions else ""
    return (
        f"Model {results.model} on task {results.task}: {results.questions} test questions{source}, "
        f"{results.samples} samples each at the run's temperature."
    )


def markdown(results: Results) -> str:
    """The tables of a run."""
    parts = ["# Results", "", origin(results), "Intervals are 95%, by bootstrap over questions.", ""]
    for header, rows in (accuracy_rows(results), token_rows(results)):
        lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
        parts += ["| " + " | ".join(cells) + " |" for cells in lines] + [""]
    counts = [
        f"- {model.name}: {', '.join(f'{count} {verdict}' for verdict, count in model.verdicts.items())}"
        for model in results.models
    ]
    return "\n".join([*parts, "Verdicts on all samples:", "", *counts, ""])
