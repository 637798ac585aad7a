"""What a report concludes, on numbers worked out by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from gpo.errors import DataError
from gpo.report.compare import compare
from gpo.report.kinds import JOINED, Kinds
from gpo.report.losses import check_choice, halves, question_losses, rank_losses
from gpo.report.places import by_kind, by_length, by_position
from gpo.report.reading import Reading, read_run
from gpo.statistics import wilson
from gpo.storage.directory import RunDirectory
from gpo.types import Verdict
from written_run import NAN, Written, write_run

KINDS = Kinds([])
STEPS = ["Add 1 and 2", "Carry 3", "So 4"]


def read(path: Path, *questions: Written) -> Reading:
    return read_run(RunDirectory(write_run(path, questions)))


def test_a_kind_costs_what_is_lost_at_its_steps_times_the_share_of_wrong_rollouts(tmp_path: Path) -> None:
    reading = read(tmp_path, Written("q", STEPS, [0.8, 0.9, 0.3, 0.0], others=["right", "right", "wrong"]))
    losses = question_losses(reading.searched, reading.success("p0"), KINDS)
    # Half of the rollouts are wrong; the steps lose -0.1, 0.6 and 0.3.
    assert losses == pytest.approx({"Add # and #": -0.05, "Carry #": 0.3, "So #": 0.15})
    assert sum(losses.values()) == pytest.approx(0.5 * 0.8)


def test_steps_that_a_search_did_not_tell_apart_are_of_one_kind(tmp_path: Path) -> None:
    reading = read(tmp_path, Written("q", STEPS, [0.8, NAN, 0.3, 0.0]))
    assert question_losses(reading.searched, reading.success("p0"), KINDS) == pytest.approx({JOINED: 0.5, "So #": 0.3})


def test_kinds_are_ranked_on_one_half_and_measured_on_the_other(tmp_path: Path) -> None:
    ranking = Written("q", STEPS, [0.9, 0.8, 0.2, 0.0])  # loses .1, .6, .2
    measured = Written("r", STEPS, [0.6, 0.5, 0.4, 0.0])  # loses .1, .1, .4
    reading = read(tmp_path, ranking, measured, ranking, measured)
    losses = rank_losses(reading, KINDS)
    assert [kind.kind for kind in losses.kinds] == ["Carry #", "So #", "Add # and #"]
    assert [kind.ranked_by for kind in losses.kinds] == pytest.approx([0.6, 0.2, 0.1])
    assert [kind.loss.estimate for kind in losses.kinds] == pytest.approx([0.1, 0.4, 0.1])
    assert (losses.questions, losses.accuracy) == (2, 0.0)
    assert losses.lost == pytest.approx(0.6)
    assert [kind.questions for kind in losses.kinds] == [2, 2, 2]


def test_questions_that_are_always_right_cost_nothing_and_count(tmp_path: Path) -> None:
    rows = [Written("q", STEPS, [1.0, 1.0, 1.0, 1.0], verdict="right") for _ in range(2)]
    rows += [Written("q", STEPS, [0.5, 0.5, 0.5, 0.0]) for _ in range(4)]
    losses = rank_losses(read(tmp_path, *rows), KINDS)
    # Questions always right cost nothing and stay in the count: accuracy is over them too.
    assert losses.questions == 3
    assert [kind.kind for kind in losses.kinds] == ["So #"]


def test_a_question_that_the_round_has_not_asked_has_nothing_to_lose(tmp_path: Path) -> None:
    reading = read(tmp_path, *[Written("q", STEPS, [0.9, 0.8, 0.2, 0.0]) for _ in range(4)])
    without = replace(reading, first=[group for group in reading.first if group.start.problem_id != "p1"])
    assert rank_losses(reading, KINDS).questions == 2
    assert rank_losses(without, KINDS).questions == 1


def test_halves_alternate_within_each_sub_task(tmp_path: Path) -> None:
    reading = read(tmp_path, *[Written("q", STEPS, [0.5, 0.5, 0.5, 0.0], task=task) for task in "aabba"])
    assert halves(reading.searched) == (["p0", "p2", "p4"], ["p1", "p3"])


def test_critical_steps_stand_beside_chance(tmp_path: Path) -> None:
    values = [0.5, 0.5, 0.5, 0.5, 0.5, 0.0]
    rows = [Written("q", ["Add 1", "Add 2", "Add 3", "Add 4", "So 5"], values, critical=k) for k in (0, 0, 1, 4)]
    searched = read(tmp_path, *rows, Written("one step has no choice", ["a"], [0.5, 0.0], critical=0)).searched
    position = by_position(searched)
    assert [share.critical.estimate for share in position] == [0.5, 0.25, 0, 0, 0.25]
    assert [share.chance for share in position] == pytest.approx([0.2] * 5)
    length = {share.name: share for share in by_length(searched)}
    assert length["half to once"].critical.estimate == 1
    assert length["half to once"].chance == pytest.approx(1)
    [kind] = by_kind(searched, KINDS)
    assert (kind.name, kind.critical.estimate, kind.critical.n) == ("Add #", 0.75, 4)
    assert kind.chance == pytest.approx(0.8)


def test_as_many_kinds_as_steps_take_no_interval_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("gpo.report.places.wilson", lambda hits, n: asked.append(hits) or wilson(hits, n))
    rows = [Written("q", [f"{'ab'[i % 2]}{chr(97 + i)} x", "So 5", "end"], [0.5, 0.5, 0.5, 0.0], 0) for i in range(20)]
    searched = read(tmp_path, *rows, rows[0]).searched
    [kind] = by_kind(searched, KINDS)
    assert (kind.name, kind.critical) == ("aa x", wilson(2, 21))
    assert sorted(asked) == [0, 1, 2]


def test_the_searchs_value_is_checked_by_rollouts_that_it_did_not_see(tmp_path: Path) -> None:
    fresh: list[tuple[str, Verdict]] = [("a", "right"), ("b", "right"), ("c", "right"), ("d", "wrong")]
    row = Written("q", STEPS, [0.5, 0.25, 1.0, 0.0], critical=1, fresh={1: fresh})
    found = check_choice(read(tmp_path, row, row, Written("r", STEPS, [0.5, 0.5, 0.5, 0.0], critical=0)).searched)
    assert (found.searched, found.fresh.estimate, found.difference.estimate) == (0.25, 0.75, 0.5)
    assert found.trajectories == 2
    assert check_choice([]).trajectories == 0


def test_a_critical_step_is_mended_new_or_stays_by_its_kind(tmp_path: Path) -> None:
    values, flat = [0.5, 0.75, 1.0, 0.0], [0.5, 0.5, 0.5, 0.0]
    first = [
        Written("q", STEPS, values, critical=1),
        Written("r", STEPS, values, critical=0, others=["wrong"]),
        Written("s", STEPS, values, critical=0),
        Written("nothing critical", STEPS, flat, critical=0),
        Written("only before", STEPS, values, critical=0),
    ]
    second = [
        Written("q", ["Carry 9", "Halve 2", "So 4"], values, critical=0),
        Written("r", STEPS, values, critical=1, others=["right"]),
        Written("s", STEPS, flat, critical=0),
        Written("nothing critical", STEPS, flat, critical=0),
        Written("only after", STEPS, values, critical=0),
    ]
    found = compare(read(tmp_path / "a", *first), read(tmp_path / "b", *second), KINDS)
    assert found.questions == 4
    assert found.difference.estimate == 0.125
    r, q, s = found.changed
    assert (r.problem_id, r.before, r.after) == ("p1", 0.0, 0.5)
    assert [step.text for step in r.mended] == ["Add 1 and 2"]
    assert [step.text for step in r.new] == ["Carry 3"]
    assert ([step.text for step in q.kept], q.mended, q.new) == (["Carry 9"], (), ())
    assert ([step.text for step in s.mended], s.new, s.kept) == (["Add 1 and 2"], (), ())
    assert [found.count(what) for what in ("mended", "new", "kept")] == [2, 1, 1]
    assert (found.before, found.after, found.rounds) == ("a (gpo)", "b (gpo)", False)


def test_runs_without_a_question_in_common_are_not_compared(tmp_path: Path) -> None:
    row = [0.5, 0.5, 0.5, 0.0]
    before, after = read(tmp_path / "a", Written("q", STEPS, row)), read(tmp_path / "b", Written("r", STEPS, row))
    with pytest.raises(DataError, match="no sampled question in common"):
        compare(before, after, KINDS)
