"""What the arms of a suite are run with: the settings that they were tuned to, and the budgets that match them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import isnan
from statistics import fmean

from gpo.config.options import resolve
from gpo.errors import ConfigError
from gpo.suites.outcome import Outcome, flops, mean_right
from gpo.suites.suite import Cell, Phase, Suite

Row = tuple[str, str, str]  # regime, method and arm
Tuned = tuple[tuple[str, str], ...]


def settings(suite: Suite, outcomes: Sequence[Outcome]) -> dict[Row, Tuned]:
    """What each arm is tested with, by regime, method and arm: what it was tuned to, and its matched budget.

    Without an arm of which not all is known yet.
    """
    best = chosen(suite, outcomes)
    if suite.matched == "tokens":
        return best
    return {
        row: (*best.get(row, ()), ("budget", budget))
        for row, budget in budgets(suite, outcomes).items()
        if row in best or not suite.tuning
    }


def cells_of(suite: Suite, outcomes: Sequence[Outcome], seed: int, phase: Phase = "test") -> list[Cell]:
    """The cells of a seed: arms that have the same settings are one run."""
    found = settings(suite, outcomes) if phase == "test" else chosen(suite, outcomes)
    cells = []
    for regime, method in product(suite.regimes, suite.methods):
        if not suite.tuning and (phase != "test" or suite.matched == "tokens"):
            cells.append(Cell(regime, method, seed, phase))
            continue
        arms: dict[Tuned, list[str]] = {}
        for arm in resolve(suite.options(Cell(regime, method, seed))).arms:
            arms.setdefault(found[regime, method, arm], []).append(arm)
        cells += [Cell(regime, method, seed, phase, tuned, tuple(names)) for tuned, names in arms.items()]
    return cells


def present(suite: Suite, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The tests among the outcomes that the suite would run now: of its seeds, with the arms' settings of now.

    What was found with settings that were the best once, or for seeds that are no longer of the suite, does not count.
    """
    of_arm = settings(suite, outcomes)
    return [
        row
        for row in outcomes
        if row.cell.phase == "test"
        and row.cell.seed in suite.seeds
        and all(
            of_arm.get((row.cell.regime, row.cell.method, arm), row.cell.tuned) == row.cell.tuned for arm in row.arms
        )
    ]


def chosen(suite: Suite, outcomes: Sequence[Outcome]) -> dict[Row, Tuned]:
    """For each regime, method and arm the settings with the best accuracy on development questions; ties: the first.

    Only rows whose every combination has finished count.
    """
    cells = list(suite.tuning_cells())
    done = {row.cell: row for row in outcomes}
    best: dict[Row, tuple[float, Tuned]] = {}
    for regime, method in dict.fromkeys((cell.regime, cell.method) for cell in cells):
        ours = [cell for cell in cells if (cell.regime, cell.method) == (regime, method)]
        if not all(cell in done for cell in ours):
            continue
        for tuned in dict.fromkeys(cell.tuned for cell in ours):
            rows = [done[cell] for cell in ours if cell.tuned == tuned]
            for arm in rows[0].arms:
                accuracy = fmean(mean_right(row.arms[arm].right) for row in rows)
                key = (regime, method, arm)
                if key not in best or isnan(best[key][0]) or accuracy > best[key][0]:
                    best[key] = (accuracy, tuned)
    return {key: tuned for key, (_, tuned) in best.items()}


def budgets(suite: Suite, outcomes: Sequence[Outcome]) -> dict[Row, str]:
    """For each regime, method and arm the budget with which it takes as much as the dearest arm of its row.

    What the arms take is that of the matching phase, where all have one budget; it is taken to grow with the budget.

    Raises:
        ConfigError: an arm's FLOPs are not known.
    """
    taken: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    for row in outcomes:
        if row.cell.phase == "matching":
            for name, arm in row.arms.items():
                cost = arm.training_seconds if suite.matched == "seconds" else flops(row, arm)
                if not cost:
                    raise ConfigError(
                        f"The suite {suite.name} is to match {suite.matched}, and what {name} takes in "
                        f"{row.cell.name} is not known. Match tokens instead."
                    )
                taken.setdefault((row.cell.regime, row.cell.method), {})[name] = resolve(row.options).budget, cost
    return {
        (*row, name): f"{budget * max(most for _, most in arms.values()) / cost:.2f}"
        for row, arms in taken.items()
        for name, (budget, cost) in arms.items()
    }
