"""The judge of advice, on outcomes whose verdict is plain."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_expect import ROW
from test_pilot import SEARCHED, asked, pilot

from gpo.suites.outcome import ArmOutcome, Outcome
from gpo.suites.suite import Cell, Suite

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from advise import judge, told

SUITE = Suite("s", "s", (0, 1), {"dpo": {"problems": "10"}}, {"bbh": {}})
SEEN = pilot(*[asked(5, 3)] * 4, searched=(SEARCHED,))


def outcome(seed: int, gain: float, sampled: int = 10_000) -> Outcome:
    plain, ours = [0.5] * 50, [0.5 + gain + 0.01 * (q % 3 - 1) for q in range(50)]
    arms = tuple(ArmOutcome(n, tuple(r), sampled, 9_000, {}) for n, r in (("plain", plain), ("gpo", ours)))
    cell = Cell("bbh", "dpo", seed)
    questions = tuple(map(str, range(50)))
    return Outcome("s", cell, SUITE.options(cell), questions, 4, tuple(plain), arms, 1000, "0")


@pytest.mark.parametrize(("gain", "right"), [(0.1, True), (-0.1, False), (0.0, True)])
def test_a_choice_is_right_if_it_is_the_best_or_within_the_interval(gain: float, right: bool) -> None:
    rows = [outcome(seed, gain) for seed in (0, 1)]
    found = judge(SUITE, rows, "bbh", "dpo", SEEN, [replace(ROW, base=0.6)])
    assert found is not None
    assert found.chosen == "gpo"
    assert found.right is right
    assert found.sampled["plain"] == pytest.approx(2.5 * 10 * 8 * 50 / 10_000)
    said = told([found])
    assert said[-1] == "1 rows cannot tell 80% from much less."


def test_costs_off_by_more_than_a_fifth_are_told() -> None:
    close = judge(SUITE, [outcome(0, 0.1, 10_500)], "bbh", "dpo", SEEN, [ROW])
    far = judge(SUITE, [outcome(0, 0.1, 13_000)], "bbh", "dpo", SEEN, [ROW])
    assert close is not None
    assert far is not None
    trained = close.trained
    assert replace(close, trained={}).costs
    assert not replace(far, trained={}).costs
    assert set(trained) == {"plain", "gpo"}


def test_a_row_without_cells_is_not_judged() -> None:
    assert judge(SUITE, [], "bbh", "dpo", SEEN, []) is None
