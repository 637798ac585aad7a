"""Questions by how often the model solves them before training, and by how many steps it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from gpo.statistics import HORIZONS, STRATA, Bins, Interval, binned, bootstrap_mean
from gpo.types import Group

OF_STRATA = (
    "How often a question was solved is told by the answers of base itself, which gains and loses there by luck, and "
    "so does a model that hardly moved, since all answer with the same random numbers: compare the trained models with "
    "each other, where they moved alike."
)


@dataclass(frozen=True, slots=True)
class Stratum:
    """Questions that are alike, and what each model makes of those of the test."""

    name: str
    training: int  # questions of the first rollouts
    test: int
    models: dict[str, Interval]  # accuracy; empty before anything is evaluated


def right_samples(groups: Sequence[Group]) -> list[list[float | None]]:
    """1, 0 or None (failed) for each sample of each question."""
    return [[None if t.score.verdict == "failed" else float(t.score.right) for t in g.trajectories] for g in groups]


def shares(groups: Sequence[Group]) -> tuple[float | None, ...]:
    """How often each question is solved; None without a graded sample."""
    graded = [[right for right in samples if right is not None] for samples in right_samples(groups)]
    return tuple(round(fmean(samples), 4) if samples else None for samples in graded)


def horizons(groups: Sequence[Group]) -> tuple[float | None, ...]:
    """Mean number of steps of the responses to each question; None without a response."""
    steps = [[len(trajectory.step_ends) for trajectory in group.trajectories] for group in groups]
    return tuple(round(fmean(each), 2) if each else None for each in steps)


def strata(
    first: Sequence[Group], base: Sequence[Group], answers: Mapping[str, Sequence[Group]]
) -> tuple[tuple[Stratum, ...], tuple[Stratum, ...]]:
    """By share solved and by steps; every stratum is there, also one without questions.

    What the model before training shows of test questions decides their stratum, so that its own accuracy there is no
    fair measure: the lucky ones are among the often solved. Nor is that of a model that hardly moved, which answers
    with the same random numbers. `gpo compare` tells strata by the answers of other seeds.

    Args:
        first: first rollouts of the training questions.
        base: answers of the model before training to the test questions.
        answers: of every model, to the same questions.
    """
    right = {name: right_samples(groups) for name, groups in answers.items()}

    def table(bins: Bins, training: Sequence[float | None], test: Sequence[float | None]) -> tuple[Stratum, ...]:
        of_training, of_test = binned(training, bins), binned(test, bins)
        return tuple(
            Stratum(
                name,
                len(of_training[name]),
                len(of_test[name]),
                {model: bootstrap_mean([samples[i] for i in of_test[name]]) for model, samples in right.items()},
            )
            for name, _ in bins
        )

    return table(STRATA, shares(first), shares(base)), table(HORIZONS, horizons(first), horizons(base))
