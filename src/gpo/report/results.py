"""What a run found: accuracy of the models, paired differences, tokens. Read from the run directory alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpo.errors import DataError
from gpo.report.clean import counted, one_line
from gpo.report.strata import OF_STRATA, Stratum, right_samples, strata
from gpo.statistics import Interval, bootstrap_mean, paired_difference
from gpo.storage.directory import BASE, RunDirectory, answers_of, model_name
from gpo.storage.files import read_json, read_rows, write_json, write_text
from gpo.storage.rounds import RoundState, Sampled, Searched, sampled_by
from gpo.types import Group, Verdict, tokens_of

STAGES = ("rollout", "locate", "reset")
SOURCES = {"bbh": "real BBH questions", "generated": "generated, not real ones: no data folder and no hub was found"}
VERDICTS: tuple[Verdict, ...] = ("right", "wrong", "ungradable", "failed")
NAME = 80  # characters of a name in a table
INTERVALS = (
    "Intervals are 95%, by bootstrap over questions; Clopper and Pearson's where all came out alike. "
    "They cover the choice of questions and the sampling of answers, not the training: another seed may differ by more."
)


@dataclass(frozen=True, slots=True)
class ModelResults:
    """One evaluated model. Accuracy is the share of right samples; one whose grade failed is left out."""

    name: str
    overall: Interval
    mean_score: Interval | None  # None where every score is 0 or 1, so that it is the accuracy
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
    located: int  # trajectories searched; none of an arm that takes them as they come
    critical: int  # of them with a critical step
    reset_starts: int  # behind a step; a first step's reset is the question again
    pairs: int | None  # None before they are built
    untrained: tuple[int, ...]  # rounds whose update found nothing to learn
    rounds: int  # begun


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
    strata: tuple[Stratum, ...]  # by how often the model before training solves a question
    horizons: tuple[Stratum, ...]  # by how many steps it takes


def asked(sources: set[str], split: str) -> str:
    """Where the test questions come from; development questions are generated on purpose."""
    named = SOURCES if split == "test" else {"generated": "generated for development"}
    return "; ".join(named.get(source, source) for source in sorted(sources - {""}))


def summarize(files: RunDirectory) -> Results:
    """Compute the results of what a run directory holds so far. Models are compared on what all of them were asked.

    Raises:
        DataError: a file cannot be used, or its rows do not fit those of another.
    """
    config = files.config()
    if missing := {"arms", "task", "budget", "test_samples"} - config.keys():
        raise DataError(f"{files.path / 'config.json'} lacks {', '.join(sorted(missing))}. Put it back as it was.")
    arms, samples = list(config["arms"]), config["test_samples"]
    first = files.rollouts.read()
    problems = files.problems("test") or []
    answered = {name: answers_of(files.evaluation(name), problems, samples) for name in (BASE, *arms)}
    questions = min((len(groups) for groups in answered.values() if groups), default=0)
    evaluated = {name: groups[:questions] for name, groups in answered.items() if groups}
    subtasks: dict[str, list[int]] = {}
    for i, problem in enumerate(problems[:questions]):
        subtasks.setdefault(problem.subtask, []).append(i)
    references = [name for name in (BASE, *arms[:1]) if name in evaluated]
    sources = {str(problem.metadata.get("source", "")) for problem in problems}
    budget = round(config["budget"] * tokens_of(first)) * config.get("rounds", 1)
    buffer = config.get("buffer", 0)
    base = evaluated.get(BASE, [])
    by_share, by_steps = strata(first, base, evaluated if base else {})
    return Results(
        task=config["task"]["name"],
        model=model_name(config),
        test_questions=asked(sources, config.get("test_split", "test")),
        questions=questions,
        samples=samples,
        arms=tuple(_arm(files, arm, config["arms"][arm]["name"], budget, buffer) for arm in arms),
        models=tuple(
            _model(name, groups, subtasks, {other: evaluated[other] for other in references if other != name})
            for name, groups in evaluated.items()
        ),
        strata=by_share,
        horizons=by_steps,
    )


def _arm(files: RunDirectory, arm: str, estimator: str, budget: int, buffer: int) -> ArmResults:
    numbers = files.rounds(arm)
    searched, resets, asked = _by_round(files, arm, numbers, buffer)
    spent = (sum(s.tokens for s in asked), sum(s.tokens for s in searched), sum(s.tokens for s in resets))
    pairs = [len(read_rows(path)) for number in numbers if (path := files.pairs(arm, number)).exists()]
    training = {number: _training(files, arm, number) for number in numbers}
    _check_sampled(files, arm, training)
    return ArmResults(
        name=arm,
        estimator=estimator,
        tokens=dict(zip(STAGES, spent, strict=True)),
        budget=budget,
        located=0 if estimator == "none" else sum(each.trajectories for each in searched),
        critical=sum(each.critical for each in searched),
        reset_starts=sum(each.inside for each in resets),
        pairs=sum(pairs) if pairs else None,
        untrained=tuple(number for number, metrics in training.items() if metrics.get("skipped")),
        rounds=len(numbers),
    )


def _by_round(
    files: RunDirectory, arm: str, numbers: Sequence[int], buffer: int
) -> tuple[list[Searched], list[Sampled], list[Sampled]]:
    """What the searches of an arm came to, its resets, and all that it asked: each round is in memory for a while."""
    searched, resets, asked = [], [], []
    for number in numbers:
        files.searched(arm, number)  # refuses results that fit no trajectory
        if number == 1:
            files.resets(arm).read()  # as plots and pages do, so that it stays in memory, too
        state = RoundState.of(files, arm, number)
        searched.append(state.scores.summary(Searched.of))
        resets.append(state.resets.summary(Sampled.of))
        asked += [state.rollouts.summary(Sampled.of), state.more.summary(Sampled.of)]
        if number - buffer > 1:
            files.forget(arm, number - buffer)
    return searched, resets, asked


def _training(files: RunDirectory, arm: str, number: int) -> Mapping[str, Any]:
    """The metrics of a round's training; empty before it."""
    path = files.arm(arm, number) / "training.json"
    metrics = read_json(path) if path.exists() else None
    return metrics if isinstance(metrics, Mapping) else {}


def _check_sampled(files: RunDirectory, arm: str, training: Mapping[int, Mapping[str, Any]]) -> None:
    """Raises: DataError if rounds hold something else now than when they were trained: a file was cut at a chunk."""
    noted = sampled_by(files, arm, max(training))
    for number, metrics in training.items():
        for name, found in noted[number - 1].items():
            if metrics.get(name, found) != found:
                raise DataError(
                    f"{files.arm(arm, number)}: the files of {arm!r} have {found} {name.replace('_', ' ')} up to round "
                    f"{number}, and its model was trained when there were {metrics[name]}. Put the files back as they "
                    "were, or start a new run."
                )


def _model(
    name: str, groups: Sequence[Group], subtasks: dict[str, list[int]], others: dict[str, list[Group]]
) -> ModelResults:
    partial = any(t.score.value not in (0, 1, None) for group in groups for t in group.trajectories)
    right = right_samples(groups)
    return ModelResults(
        name=name,
        overall=bootstrap_mean(right),
        mean_score=bootstrap_mean([[t.score.value for t in g.trajectories] for g in groups]) if partial else None,
        subtasks={task: bootstrap_mean([right[i] for i in rows]) for task, rows in subtasks.items() if task},
        against={other: paired_difference(right_samples(theirs), right) for other, theirs in others.items()},
        verdicts=count_verdicts(groups),
        tokens=tokens_of(groups),
    )


def count_verdicts(groups: Sequence[Group]) -> dict[str, int]:
    verdicts = [t.score.verdict for group in groups for t in group.trajectories]
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}


def write_results(files: RunDirectory, results: Results) -> None:
    """Write `results.json` and `table.md`."""
    write_json(files.results, results)
    write_text(files.path / "table.md", markdown(results))


def percent(interval: Interval, signed: bool = False) -> str:
    """Such as "41.2 [38.0, 44.5]", in percent."""
    if math.isnan(interval.estimate):
        return "-"
    sign = "+" if signed else ""
    values = (interval.estimate, interval.lower, interval.upper)
    estimate, lower, upper = (round(100 * value, 1) + 0.0 for value in values)  # no -0.0
    return f"{estimate:{sign}.1f} [{lower:{sign}.1f}, {upper:{sign}.1f}]"


def accuracy_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the accuracy table: a line for each sub-task, then all, the differences, and what is odd."""
    models = results.models
    header = ["accuracy in %", *(one_line(model.name, NAME) for model in models)]
    names = list(models[0].subtasks) if models else []
    rows = [[one_line(name, NAME), *(percent(model.subtasks[name]) for model in models)] for name in names]
    rows.append(["**all questions**", *(percent(model.overall) for model in models)])
    compared = {other for model in models for other in model.against}
    for other in [model.name for model in models if model.name in compared]:
        cells = [percent(m.against[other], signed=True) if other in m.against else "" for m in models]
        rows.append([f"minus {one_line(other, NAME)}, paired", *cells])
    if any(model.mean_score for model in models):
        rows.append(["mean score", *("" if m.mean_score is None else percent(m.mean_score) for m in models)])
    trained = {arm.name: not_trained(arm) for arm in results.arms if arm.untrained}
    if trained.keys() & {model.name for model in models}:
        rows.append(["training", *(trained.get(model.name, "") for model in models)])
    return header, rows


def strata_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows: accuracy by how often the model before training solves a question, then by its steps."""
    models = [one_line(model.name, NAME) for model in results.models] if any(s.test for s in results.strata) else []
    rows = [
        [each.name, str(each.training), str(each.test), *map(percent, each.models.values())]
        for each in (*results.strata, *results.horizons)
        if each.training or each.test
    ]
    return ["before training", "training questions", "test questions", *models], rows


def not_trained(arm: ArmResults) -> str:
    """Such as "not trained: no usable pair"; "" for a model that every round has trained."""
    if not arm.untrained:
        return ""
    rounds = f" in rounds {', '.join(map(str, arm.untrained))} of {arm.rounds}" if arm.rounds > 1 else ""
    return f"not trained{rounds}: {'equal rewards' if arm.pairs is None else 'no usable pair'}"


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
        rows.append([one_line(f"{arm.name} ({arm.estimator})", NAME), *sampled, *map(str, counts)])
    if BASE in evaluation:
        rows.append([BASE, *[""] * 5, evaluation[BASE], *[""] * 4])
    return header, rows


def origin(results: Results) -> str:
    """One sentence on what was asked of whom."""
    source = f" ({one_line(results.test_questions, 300)})" if results.test_questions else ""
    model, task = one_line(results.model, 300), one_line(results.task, NAME)
    if not results.questions:
        return f"Model {model} on task {task}: no test questions were asked."
    return (
        f"Model {model} on task {task}: {counted(results.questions, 'test question')}{source}, "
        f"{counted(results.samples, 'sample')} each at the run's temperature."
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |" for cells in lines)


def markdown(results: Results) -> str:
    """The tables of a run."""
    parts = ["# Results", "", origin(results), *([INTERVALS] if results.models else []), ""]
    accuracy = [(accuracy_rows(results), "")] if results.models else []
    for table, note in (*accuracy, (strata_rows(results), OF_STRATA), (token_rows(results), "")):
        parts += [markdown_table(*table), "", *([note, ""] if note and results.models else [])] if table[1] else []
    counts = [
        f"- {one_line(model.name, NAME)}: " + ", ".join(f"{n} {verdict}" for verdict, n in model.verdicts.items())
        for model in results.models
    ]
    verdicts = ["Verdicts on all samples:", "", *counts, ""] if counts else []
    return "\n".join([*parts, *verdicts])
