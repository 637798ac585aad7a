"""How often people chose the step that a search chose.

The measure of the GPO paper (arXiv 2509.16456): of the people who marked a step of a solution, the share that marked
the critical step; in the paper 44 to 88% over five problems and 50 people. Here it stands beside chance (one step in
K, drawn evenly), with a Wilson interval for each solution and a bootstrap interval over solutions.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpo.annotate.marks import Mark
from gpo.errors import DataError
from gpo.statistics import Interval, bootstrap_mean, wilson
from gpo.storage.directory import RunDirectory
from gpo.types import StepScores


@dataclass(frozen=True, slots=True)
class ItemAgreement:
    """One solution. `none` (no step stands out) counts as a choice that is not the search's."""

    item: str
    steps: int
    critical: int | None  # 0-based; None if the search found none
    people: int
    share: Interval  # of them who chose the critical step; where it found none, who said that none stands out
    top_two: float  # share who chose one of the two steps with the largest |advantage|
    favourite: int | None  # what most people chose; None: that no step stands out
    chance: float  # of a step drawn evenly


@dataclass(frozen=True, slots=True)
class Agreement:
    """One estimator against all annotators. Means are over solutions."""

    arm: str
    estimator: str
    items: tuple[ItemAgreement, ...]
    share: Interval
    top_two: Interval
    chance: float


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that the command says."""

    annotators: int
    marks: int  # that chose a step or said that none stands out
    inattentive: tuple[str, ...]  # annotators left out because they failed most of their attention checks
    alpha: float  # Krippendorff's, nominal; 1 full agreement, 0 as by chance, NaN where nobody shares an item
    arms: tuple[Agreement, ...]


def agreement(marks: Iterable[Mark], arm: str, estimator: str, scores: Iterable[StepScores]) -> Agreement:
    """Compare what people chose with what a search chose, on the trajectories that both looked at.

    Raises:
        DataError: there is no such trajectory, or a mark is beyond its last step.
    """
    chosen: dict[str, list[int | None]] = defaultdict(list)
    for mark in marks:
        if mark.kind != "skip":
            chosen[mark.item].append(mark.step)
    items = [_item(score, chosen[score.trajectory_id]) for score in scores if score.trajectory_id in chosen]
    if not items:
        raise DataError(f"Nobody has marked a trajectory that arm {arm!r} searched. Let people mark some: gpo annotate")
    return Agreement(
        arm,
        estimator,
        tuple(items),
        bootstrap_mean([[item.share.estimate] for item in items]),
        bootstrap_mean([[item.top_two] for item in items]),
        sum(item.chance for item in items) / len(items),
    )


def _item(score: StepScores, chosen: Sequence[int | None]) -> ItemAgreement:
    steps = len(score.advantages)
    for step in chosen:
        if step is not None and not 0 <= step < steps:
            raise DataError(f"A mark of {score.trajectory_id} is on step {step}, expected 0 to {steps - 1}.")
    known = [k for k, advantage in enumerate(score.advantages) if not math.isnan(advantage)]
    largest = sorted(known, key=lambda k: -abs(score.advantages[k]))[:2]
    counts = Counter(chosen)
    return ItemAgreement(
        score.trajectory_id,
        steps,
        score.critical_step,
        len(chosen),
        wilson(counts[score.critical_step], len(chosen)),
        sum(counts[k] for k in largest) / len(chosen),
        counts.most_common(1)[0][0],
        1 / steps,
    )


def alpha(marks: Iterable[Mark]) -> float:
    """Krippendorff's alpha among annotators: nominal, over step numbers and "no step stands out".

    1 - D_o / D_e, with n_uc the marks of value c on item u, m_u their sum (items with m_u < 2 are left out), n_c and n
    the sums over items: D_o = sum_u (m_u^2 - sum_c n_uc^2) / (m_u - 1) / n, D_e = (n^2 - sum_c n_c^2) / (n (n - 1)).

    NaN where no item has two marks, or where all marks are the same one.

    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    counts: dict[str, Counter[int | None]] = defaultdict(Counter)
    for mark in marks:
        if mark.kind != "skip":
            counts[mark.item][mark.step] += 1
    paired = [steps for steps in counts.values() if steps.total() > 1]
    all_paired = sum(paired, Counter[int | None]())
    n, expected = all_paired.total(), _unlike(all_paired)
    if not expected:
        return math.nan
    observed = sum(_unlike(steps) / (steps.total() - 1) for steps in paired)
    return 1 - observed * (n - 1) / expected


def _unlike(counts: Counter[int | None]) -> int:
    """Ordered pairs of marks with different values."""
    return int(counts.total() ** 2 - sum(count**2 for count in counts.values()))


def attentive(marks: Sequence[Mark], checks: Mapping[str, int]) -> tuple[list[Mark], tuple[str, ...]]:
    """The marks on solutions of those who passed at least half of their attention checks, and who did not."""
    passed: dict[str, list[bool]] = defaultdict(list)
    for mark in marks:
        if mark.item in checks and mark.kind != "skip":
            passed[mark.annotator].append(mark.step == checks[mark.item])
    failed = tuple(sorted(name for name, results in passed.items() if sum(results) < len(results) / 2))
    return [mark for mark in marks if mark.item not in checks and mark.annotator not in failed], failed


def study(files: RunDirectory, marks: Sequence[Mark], checks: Mapping[str, int] | None = None) -> Study:
    """All arms of a run that searched something, against the same marks.

    Raises:
        DataError: there are no marks, or none of them on a trajectory that was searched.
    """
    kept, inattentive = attentive(marks, checks or {})
    counted = [mark for mark in kept if mark.kind != "skip"]
    estimators = {name: str(arm["name"]) for name, arm in files.config()["arms"].items()}
    items = {mark.item for mark in counted}
    searched = {arm: files.scores(arm).read() for arm in estimators}
    found = []
    for arm, estimator in estimators.items():
        scores = [score for score in searched[arm] if score.trajectory_id in items]
        if any(score.critical_step is not None for score in scores):
            found.append(agreement(kept, arm, estimator, scores))
    if not found:
        known = {score.trajectory_id for scores in searched.values() for score in scores}
        raise DataError(f"{files.path} {_nothing(items, known, inattentive)} Let people mark some: gpo annotate")
    return Study(len({m.annotator for m in counted}), len(counted), inattentive, alpha(counted), tuple(found))


def _nothing(items: set[str], searched: set[str], inattentive: Sequence[str]) -> str:
    """Why there is nothing to compare."""
    if not items and inattentive:
        left_out = ", ".join(map(repr, inattentive))
        return f"has no marks but those of {left_out}, left out for failing more than half of their attention checks."
    if not items:
        return "has no marks."
    if items & searched:
        return "has marks on trajectories in which no search found a critical step, and on no others."
    return f"has marks on trajectories that no arm searched: {_some(items)}. Searched were {_some(searched)}."


def _some(names: set[str]) -> str:
    shown = ", ".join(map(repr, sorted(names)[:3])) or "none"
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
