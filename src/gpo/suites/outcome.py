"""What is kept of a finished cell of a suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from gpo import __version__
from gpo.advice.cost import shape_of
from gpo.config.components import made
from gpo.config.models import resolve_model, search_of
from gpo.config.options import resolve
from gpo.estimators.matched import MatchedRandom
from gpo.experiment.reuse import arms_alike
from gpo.report.results import summarize
from gpo.report.strata import horizons, shares
from gpo.storage.directory import BASE, RunDirectory
from gpo.storage.files import read_json
from gpo.storage.rounds import RoundState
from gpo.suites.suite import Cell, Options
from gpo.types import Stage


@dataclass(frozen=True)
class RoundOutcome:
    """What an arm's model made of the training questions of a round, before it trained on them."""

    tokens: int  # that the arm had sampled in the rounds before
    right: tuple[float | None, ...]  # (Q,) as in `ArmOutcome`; every arm is asked the same questions


@dataclass(frozen=True)
class ArmOutcome:
    """What an arm got and took. Shares are of the samples of a question; one without a graded sample is None."""

    name: str
    right: tuple[float | None, ...]  # (Q,)
    sampled_tokens: int
    trained_tokens: int | None  # None where the method does not tell
    seconds: dict[str, float]  # by stage; what another run sampled for it is counted
    rounds: tuple[RoundOutcome, ...] = ()  # where there are several

    @property
    def training_seconds(self) -> float:
        """Of what the arm's model took; its evaluation is the measurement."""
        return sum(seconds for stage, seconds in self.seconds.items() if stage not in ("evaluate", "report"))


@dataclass(frozen=True)
class Outcome:
    """A finished cell. The arms are those that it trained."""

    suite: str
    cell: Cell
    options: Options
    questions: tuple[str, ...]  # (Q,) ids of what was asked
    samples: int  # of each question
    base: tuple[float | None, ...]  # (Q,) of the model before training
    trained: tuple[ArmOutcome, ...]
    parameters: int | None  # of the model; None where its files do not tell
    version: str
    steps: tuple[float | None, ...] = ()  # (Q,) of the responses of the model before training, on average

    @property
    def arms(self) -> dict[str, ArmOutcome]:
        """The arms that it trained, by name."""
        return {arm.name: arm for arm in self.trained}


def flops(outcome: Outcome, arm: ArmOutcome) -> float | None:
    """2 N for each sampled token, and 6 N for each trained one; 4 N under adapters: frozen weights have no gradient.

    2 N more where activations are computed twice. As `gpo.advice.cost.operations` has it, without the prompts and
    prefixes that sampling reads, passes without gradients (a reference, a critic's values) and the adapters' own.
    """
    if outcome.parameters is None or arm.trained_tokens is None:
        return None
    method = method_of(outcome.options)
    of_token = 6.0 if getattr(method, "lora", None) is None else 4.0
    of_token += 2.0 * getattr(method, "gradient_checkpointing", False)
    return outcome.parameters * (2.0 * arm.sampled_tokens + of_token * arm.trained_tokens)


def method_of(options: Options) -> Any:
    """The method that a run with these options has."""
    return made("method", resolve(options).method)


def mean_right(right: Sequence[float | None]) -> float:
    """Over the questions with a graded sample; NaN where there is none."""
    known = [x for x in right if x is not None]
    return fmean(known) if known else nan


def outcome_of(
    suite: str, cell: Cell, options: Options, files: RunDirectory, arms: Sequence[str], source: Path | None = None
) -> Outcome:
    """What a finished run has found; `source` is the run whose first rollouts it took, and what else it could."""
    results = summarize(files)
    tokens = {arm.name: sum(arm.tokens.values()) for arm in results.arms}
    problems = files.problems("test") or []
    base = files.evaluation(BASE).read()
    return Outcome(
        suite=suite,
        cell=cell,
        options=options,
        questions=tuple(problem.id for problem in problems),
        samples=results.samples,
        base=shares(base),
        trained=tuple(
            ArmOutcome(
                name=arm,
                right=shares(files.evaluation(arm).read()),
                sampled_tokens=tokens[arm],
                trained_tokens=_trained(files, arm),
                seconds=_seconds(files, arm, options, source),
                rounds=_rounds(files, arm),
            )
            for arm in arms
        ),
        parameters=None if (shape := shape_of(resolve_model(resolve(options)))) is None else shape.parameters,
        version=__version__,
        steps=horizons(base),
    )


def _rounds(files: RunDirectory, arm: str) -> tuple[RoundOutcome, ...]:
    numbers = files.rounds(arm)
    if len(numbers) < 2:
        return ()
    spent = accumulate(sum(RoundState.of(files, arm, number).tokens().values()) for number in numbers)
    before = [0, *spent][: len(numbers)]
    return tuple(
        RoundOutcome(tokens, shares(files.fresh(arm, number).read()))
        for tokens, number in zip(before, numbers, strict=True)
    )


def _seconds(files: RunDirectory, arm: str, options: Options, source: Path | None) -> dict[str, float]:
    """By stage, with what was taken over: samples of another run, and the search whose price a control pays."""
    config = resolve(options)
    spent = dict(files.events.seconds_of(arm))
    places = [files] if source is None else [files, RunDirectory(source)]
    if source is not None:
        taken = arm in arms_alike(resolve({}, places[1].config()), config)
        stages = {Stage.ROLLOUT, Stage.LOCATE, Stage.RESET} if taken else {Stage.ROLLOUT}
        before = places[1].events.seconds_of(arm)
        spent |= {stage: max(before[stage], spent.get(stage, 0.0)) for stage in stages if stage in before}
    estimator = search_of(config, arm)
    if isinstance(estimator, MatchedRandom):
        search = max(each.events.seconds_of_search(estimator.arm) for each in places)
        spent[Stage.LOCATE] = spent.get(Stage.LOCATE, 0.0) + search
    return {stage: round(seconds, 1) for stage, seconds in spent.items()}


def _trained(files: RunDirectory, arm: str) -> int | None:
    """Tokens that went through the model in training, of all rounds."""
    paths = [files.arm(arm, number) / "training.json" for number in files.rounds(arm)]
    metrics = [read_json(path) for path in paths if path.exists()]
    told = [row.get("trained_tokens", 0 if row.get("skipped") else None) for row in metrics]
    return None if not told or None in told else round(sum(told))
