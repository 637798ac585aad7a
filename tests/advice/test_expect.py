"""Which arm is chosen, and that nothing is promised which was not measured."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_pilot import SEARCHED, asked, pilot

from gpo.advice.expect import NEAR, Evidence, expect, known_evidence, pooled
from gpo.storage.chunks import Chunks
from gpo.suites.outcome import Outcome
from gpo.suites.suite import read_suite
from gpo.suites.table import contrasts

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
ROW = Evidence("dpo", True, "m", 0.6, 0.04, 0.02, 0.06, 5, 100, "somewhere")


@pytest.mark.parametrize(
    ("suite", "file", "count"),
    [
        ("regimes", "regimes", 18),
        ("benchmarks/suites/rare.toml", "rare", 2),
        ("benchmarks/suites/online_rate.toml", "online_rate", 3),
        ("benchmarks/suites/online_fours.toml", "online_fours", 1),
        ("benchmarks/suites/confirm.toml", "confirm", 3),
        ("benchmarks/suites/confirm_short.toml", "confirm_short", 4),
        ("benchmarks/suites/confirm_online.toml", "confirm_online", 3),
    ],
)
def test_the_evidence_of_suites_is_what_their_cells_say(suite: str, file: str, count: int) -> None:
    outcomes = Chunks(RESULTS / f"{file}.jsonl", Outcome).read()
    where = str(RESULTS.parents[1] / suite) if "/" in suite else suite
    found = {(c.regime, c.method, c.arm): c for c in contrasts(read_suite(where), outcomes) if c.other == "plain"}
    rows = [row for row in known_evidence() if f"results/{file}.jsonl" in row.where]
    assert len(rows) == count
    for row in rows:
        regime, method = row.where.split()[-2:]
        contrast = found[regime, method, "halfway" if row.by_stratum else "gpo"]
        told = contrast.difference
        assert (row.difference, row.lower, row.upper) == tuple(
            round(x, 3) for x in (told.estimate, told.lower, told.upper)
        )
        assert (row.seeds, row.questions) == (contrast.seeds, told.n)


def test_what_was_measured_with_another_allocation_does_not_count() -> None:
    seen = pilot(*[asked(5, 3)] * 4)
    stratum = replace(ROW, by_stratum=True, difference=-0.02, lower=-0.03, upper=-0.01)
    assert expect(seen, True, [ROW, stratum]).search
    assert not expect(seen, True, [ROW, stratum], by_stratum=True).search
    assert expect(seen, True, [ROW], by_stratum=True).measured is None


def test_what_was_measured_of_the_method_itself_decides_where_there_is_any() -> None:
    seen = pilot(*[asked(5, 3)] * 4)
    evidence = [ROW, replace(ROW, method="orpo", difference=-0.02, lower=-0.03, upper=-0.01)]
    assert not expect(seen, True, evidence, method="orpo").search
    assert expect(seen, True, evidence, method="dpo").measured == pooled([ROW])
    for other in ("kto", None):
        assert expect(seen, True, evidence, method=other).measured == pooled(evidence)


def test_what_ships_is_a_tie_near_its_base() -> None:
    found = expect(pilot(*[asked(5, 3)] * 4), True, known_evidence(), method="dpo")
    assert found.measured is not None
    assert found.tie
    assert found.measured.lower < 0 < found.measured.upper
    assert (
        found.measured.n
        == sum(row.method == "dpo" and abs(row.base - 5 / 8) <= NEAR for row in known_evidence() if not row.by_stratum)
        == 3
    )


def test_pooling_weighs_by_precision_and_a_single_seed_counts_for_less() -> None:
    other = replace(ROW, difference=-0.02, lower=-0.06, upper=0.02)
    assert pooled([ROW, ROW]).estimate == pytest.approx(0.04)
    assert pooled([ROW, other]).estimate == pytest.approx((0.04 * 4 - 0.02) / 5)
    assert pooled([replace(ROW, seeds=1)]).upper > ROW.upper == pytest.approx(pooled([ROW]).upper)


def test_seeds_that_agree_by_luck_leave_what_seeds_do() -> None:
    found = pooled([replace(ROW, lower=0.039, upper=0.041)])
    assert found.upper - found.estimate == pytest.approx(1.96 * 0.02 / 5**0.5, rel=1e-3)


def test_a_tie_takes_plain_sampling_though_the_estimate_is_larger() -> None:
    found = expect(pilot(*[asked(5, 3)] * 4), True, [replace(ROW, lower=-0.02, upper=0.1)])
    assert (found.search, found.tie) == (False, True)


def test_a_measured_difference_decides_and_far_ones_do_not() -> None:
    seen = pilot(*[asked(5, 3)] * 4)
    ahead = expect(seen, True, [ROW])
    assert (ahead.search, ahead.tie) == (True, False)
    behind = expect(seen, True, [replace(ROW, difference=-0.02, lower=-0.03, upper=-0.01)])
    assert (behind.search, behind.tie) == (False, False)
    for evidence in ([replace(ROW, base=0.9)], [replace(ROW, pairs=False)], []):
        assert expect(seen, True, evidence).measured is None


def test_where_nothing_was_measured_rare_success_takes_the_search_if_the_rule_does() -> None:
    rare, common = pilot(*[asked(1, 7)] * 4, searched=(SEARCHED,)), pilot(*[asked(7, 1)] * 4, searched=(SEARCHED,))
    found = expect(rare, True, [])
    assert found.rule == pytest.approx((0.25 / 30) / (7 / 56 / 50))
    assert found.search
    assert not found.tie
    assert "nothing was measured" in found.reason
    assert not expect(common, True, []).search
    assert not expect(pilot(*[asked(1, 7)] * 4), True, []).search  # nothing was searched


def test_what_seeds_do_is_added_to_one_or_two_of_them_and_is_the_least_of_more() -> None:
    measured, of_seed = (0.04 / (2 * 1.959964)) ** 2, 0.02**2
    assert ROW.variance == pytest.approx(max(measured, of_seed / 5))
    assert replace(ROW, lower=0.0399, upper=0.0401).variance == pytest.approx(of_seed / 5)
    assert replace(ROW, seeds=2).variance == pytest.approx(measured + of_seed / 2)
    assert replace(ROW, lower=0.0399, upper=0.0401, pairs=False).variance == pytest.approx(0.03**2 / 5)


def test_rare_success_takes_no_search_where_its_places_teach_less_than_the_questions() -> None:
    sure = replace(SEARCHED, value=0.99)
    assert not expect(pilot(*[asked(1, 7)] * 4, searched=(sure,)), True, []).search
