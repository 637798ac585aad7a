"""Searches are compared at equal tokens and at equal hit rates, on the same trajectories."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def budgets(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import search_budgets

    return search_budgets


CURVE = np.array([[100, 0.2, 0.4], [300, 0.6, 0.2], [700, 0.8, 0.1]])


def test_between_two_settings_lies_their_mixture(budgets: Any) -> None:
    assert budgets.at(CURVE, 200) == pytest.approx([200, 0.4, 0.3])
    assert budgets.at(CURVE[::-1], 600) == pytest.approx([600, 0.75, 0.125])
    assert budgets.at(CURVE, 9000) == pytest.approx(CURVE[-1])  # it takes its greatest setting
    assert np.isnan(budgets.at(CURVE, 99)).all()


@pytest.mark.parametrize(("hit", "tokens"), [(0.1, 100), (0.4, 200), (0.6, 300), (0.7, 500), (0.8, 700)])
def test_tokens_for_a_hit_rate(budgets: Any, hit: float, tokens: float) -> None:
    assert budgets.needed(CURVE, hit) == pytest.approx(tokens)


def test_a_hit_rate_above_the_curve_is_not_reached(budgets: Any) -> None:
    assert np.isnan(budgets.needed(CURVE, 0.81))


def line(budget: float, tokens: list[float], hit: list[float], questions: list[str]) -> dict[str, Any]:
    return {"budget": budget, "each": {"tokens": tokens, "hit": hit, "regret": hit}, "questions": questions}


def test_resamples_are_paired_and_take_whole_questions(budgets: Any) -> None:
    """Question b has two trajectories; search two costs twice as much on every trajectory, whatever is drawn."""
    questions = ["a", "b", "b", "c"]
    lines = {
        "one": [line(1, [10, 20, 30, 80], [1, 0, 0, 1], questions)],
        "two": [line(1, [20, 40, 60, 160], [1, 0, 0, 1], questions)],
    }
    first, *rest = budgets.resampled(lines, ["one", "two"])
    assert first["one"][0] == pytest.approx([35, 0.5, 0.5])
    assert all(curves["two"][0, 0] == pytest.approx(2 * curves["one"][0, 0]) for curves in rest)
    assert {round(float(curves["one"][0, 0]), 4) for curves in rest} >= {10, 25, 80}  # a, b or c three times


def test_resamples_without_the_number_are_told_as_a_share(budgets: Any) -> None:
    curves = [{"x": np.array([[1.0]])}] * 3 + [{"x": np.array([[np.nan]])}]
    told = budgets.interval(curves, lambda curve: float(curve["x"][0, 0]), ".1f")
    assert told == "1.0 [1.0, 1.0], out of reach in 33.33% of resamples"
    assert budgets.interval(curves[::-1], lambda curve: float(curve["x"][0, 0]), ".1f") == "out of reach"


def test_held_out_questions_are_the_odd_ones(budgets: Any) -> None:
    """The checksums of a, b and c are 0xe8b7be43, 0x71beeff9 and 0x06b9df6f; that of d, 0x98dd4acc, is even."""
    [kept] = budgets.held_out([line(1, [1, 2, 3, 4], [0, 0, 1, 1], ["d", "a", "d", "c"])])
    assert (kept["questions"], kept["each"]["tokens"]) == (["a", "c"], [2, 4])
