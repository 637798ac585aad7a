"""Where the tokens of a round go with allocation "stratum"."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from test_budget import group
from test_rounds import contents

from gpo.cli import main
from gpo.config.check import check
from gpo.config.components import Spec
from gpo.config.run import RunConfig
from gpo.errors import ConfigError
from gpo.experiment.allocation import by_worth, expected_variance, rare_outcomes, tokens_for_resets
from gpo.experiment.budget import next_chunk
from gpo.experiment.run import Run
from gpo.experiment.starts import Known, Starts
from gpo.storage.rounds import RoundState
from gpo.types import tokens_of
from toy import toy_config

HERE = Path(__file__).parents[1]
A, B, C = range(3)


def test_rare_successes_and_rare_failures_are_searched_and_nothing_else() -> None:
    groups = [
        group("a", *["wrong"] * 7, "right"),  # rarely: its success
        group("b", *["right"] * 7, "wrong"),  # nearly always: its failure
        group("c", *["right"] * 4, *["wrong"] * 4),
        group("d", *["wrong"] * 8),
        group("e", *["right"] * 8),
        group("f", "failed", "failed"),
        group("g", "right", *["wrong"] * 6, "right"),
    ]
    assert [t.id for t in rare_outcomes(groups, 1)] == ["a7", "b7", "g0"]
    assert [t.id for t in rare_outcomes(groups, 2)] == ["a7", "b7", "g0", "g7"]


def test_groups_of_one_problem_are_one_sample_of_it_the_first_first() -> None:
    now, before = group("a", *["wrong"] * 8), group("a", "right", *["wrong"] * 7)
    assert rare_outcomes([now], 1) == []  # never solved
    assert [t.id for t in rare_outcomes([now, before], 1)] == ["a0"]
    assert rare_outcomes([group("a", *["right"] * 8), before], 1) == []  # it is no longer rare: 9 of 16
    newer = group("a", *["wrong"] * 7, "right")
    assert [t.id for t in rare_outcomes([newer, before], 2)] == ["a7", "a0"]


def test_what_a_start_teaches_is_the_posterior_mean_of_p_times_its_rest() -> None:
    assert expected_variance(0, 0) == 0.125  # of Beta(1/2, 1/2)
    assert expected_variance(4, 8) == pytest.approx(4.5 * 4.5 / 90)
    assert expected_variance(0, 8) == expected_variance(8, 8) == pytest.approx(0.5 * 8.5 / 90)
    assert 0.249 < expected_variance(5000, 10000) < 0.25


def test_tokens_go_to_starts_in_proportion_to_what_they_teach() -> None:
    known = {start: Known(right, 1000, 1000) for start, right in ((A, 500.0), (B, 100.0), (C, 500.0))}
    lengths = {A: 10.0, B: 10.0, C: 20.0}
    due = by_worth([A, B, C], 4, lengths.__getitem__, known.__getitem__)
    turns = [start for start, _ in islice(due, 40_000)]
    rollouts = {start: known[start].sampled + 4 * turns.count(start) for start in (A, B, C)}
    tokens = {start: count * lengths[start] for start, count in rollouts.items()}
    assert tokens[A] == pytest.approx(tokens[C], rel=0.01)
    assert tokens[B] / tokens[A] == pytest.approx(0.09 / 0.25, rel=0.02)


def test_rollouts_that_there_are_already_count() -> None:
    known = {A: Known(4.0, 8, 8), B: Known(50.0, 100, 100)}

    def due(count: int) -> list[tuple[int, int]]:
        return list(islice(by_worth([B, A], 4, lambda start: 10.0, known.__getitem__), count))

    assert due(10) == [(A, 4)] * 10
    known[B] = Known(50.0, 100, 0)  # what is not trained on tells how often it is solved, and no more
    assert [start for start, _ in due(4)] == [B, B, B, A]


def test_what_cannot_be_graded_is_had_all_the_same() -> None:
    """A start whose grader always fails is not tried for ever."""
    rows, others = group("a", "failed", "failed"), group("a", "right")
    starts = Starts([rows.start])
    assert starts.known(starts.add(others, trained=False)) == Known(1.0, 1, 0)
    assert starts.known(starts.add(rows)) == Known(1.0, 1, 2)
    known = {A: Known(0.0, 0, 8), B: Known(2.0, 4, 4)}
    assert next(by_worth([A, B], 4, lambda start: 10.0, known.__getitem__)) == (B, 4)


def test_the_last_chunk_spends_what_is_left_to_within_half_a_rollout() -> None:
    length = {A: 10.0, B: 20.0}.__getitem__
    known = {A: Known(4.0, 8, 8), B: Known(0.0, 8, 8)}.__getitem__

    def chunk(left: int, most: int = 9) -> tuple[list[int], int]:
        return next_chunk(by_worth([A, B], 4, length, known), length, left=left, most=most)

    assert chunk(10_000, most=3) == ([A, A, A], 4)
    assert chunk(41) == ([A], 4)
    assert chunk(39) == ([A], 4)  # 40 tokens: to within half a rollout
    assert chunk(29) == ([A], 3)
    assert chunk(4) == chunk(-20) == ([], 4)
    assert next_chunk(by_worth([], 4, length, known), length, left=100, most=9)[0] == []


def test_resets_get_what_they_teach_and_never_more_than_is_allowed() -> None:
    length = {A: 10.0, B: 30.0}.__getitem__

    def share(at_most: int, right: float = 2.0) -> int:
        known = {A: Known(right, 4, 4), B: Known(1.0, 8, 8)}.__getitem__
        return tokens_for_resets([A], [B], length, known, left=10_000, n=4, at_most=at_most)

    a, b = expected_variance(2, 4), expected_variance(1, 8)
    assert share(10_000) == pytest.approx(10_000 * a / (a + b), rel=0.05)
    assert share(10_000, right=4.0) < share(10_000)
    assert share(3000) == 3000
    assert share(-5) == 0


def stratum_config(**changes: Any) -> RunConfig:
    arms = {"plain": "none", "random": "random_matched", "gpo": "halfway"}
    settings = {"allocation": "stratum", "fresh_least": 0.6, "arms": arms, "rollouts": 8, "budget": 4.0, "rounds": 2}
    return toy_config(**{**settings, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("stratum") / "whole", stratum_config())
    run.all()
    return run


def test_every_arm_keeps_the_budget_and_as_much_fresh_as_stated(finished: Run) -> None:
    for arm in ("plain", "random", "gpo"):
        whole = sum(sum(RoundState.of(finished.files, arm, number).tokens().values()) for number in (1, 2))
        assert whole == pytest.approx(2 * 4 * tokens_of(finished.files.rollouts.read()), rel=0.01)
        for number in (1, 2):
            state = RoundState.of(finished.files, arm, number)
            allowed = finished.allowance(state)
            fresh = tokens_of([*state.rollouts.read(), *state.more.read()])
            if arm == "plain":
                fresh += tokens_of(state.resets.read())  # of the questions, all of them
            assert fresh >= 0.6 * allowed - 20
    searched = RoundState.of(finished.files, "gpo").scores.read()
    assert searched
    assert tokens_of(finished.files.resets("gpo").read())


def test_only_rare_outcomes_are_searched_and_the_baseline_stays_even(finished: Run) -> None:
    first = {t.id: t for g in finished.files.rollouts.read() for t in g.trajectories}
    share = {g.start.problem_id: sum(t.score.right for t in g.trajectories) / 8 for g in finished.files.rollouts.read()}
    for score in finished.files.scores("gpo").read():
        t = first[score.trajectory_id]
        assert share[t.start.problem_id] <= 0.25 if t.score.right else share[t.start.problem_id] > 0.75
    even = [group.start.problem_id for group in finished.files.resets("plain").read()]
    assert max(map(even.count, even)) - min(map(even.count, even)) <= 1
    more = [group.start.problem_id for group in finished.files.more("gpo").read()]
    known = {g.start.problem_id: Known().with_group(g) for g in finished.files.rollouts.read()}
    by_worth = {problem: expected_variance(each.right, each.graded) for problem, each in known.items()}
    assert by_worth[max(more, key=more.count)] > sum(by_worth.values()) / len(by_worth)


def test_a_rare_outcome_is_kept_for_as_many_rounds_as_stated(tmp_path: Path) -> None:
    whole = Run(tmp_path / "run", stratum_config(rounds=3, round_problems=4, buffer=1))
    whole.all()
    ages: dict[int, set[int]] = {}
    for number in (1, 2, 3):
        rows = whole.files.searched("gpo", number)
        ages[number] = {number - 1 - (trajectory.policy_version or 0) for trajectory, _ in rows}
        asked = {group.start.problem_id for group in whole.files.fresh("gpo", number).read()}
        older = [t for t, _ in rows if t.policy_version != number - 1]
        assert all(t.start.problem_id not in asked for t in older)  # 4 of 8 problems a round: a kept one is not asked
        of_older = {t.start.problem_id for t in older}
        resets = whole.files.resets("gpo", number).read()
        assert any(group.start.problem_id in of_older for group in resets) or not older
        assert all(t.policy_version == number - 1 for group in resets for t in group.trajectories)
    again = 0
    for number in (2, 3):  # looked at first where the round before has ended
        before = {score.trajectory_id: score.reset_boundary for score in whole.files.scores("gpo", number - 1).read()}
        for score in whole.files.scores("gpo", number).read():
            if boundary := before.get(score.trajectory_id):
                assert score.counts[boundary] > 0
                again += 1
    assert again
    assert 1 in ages[2] | ages[3]
    assert max(max(each, default=0) for each in ages.values()) == 1
    rows = [json.loads(line) for line in (whole.files.arm("gpo") / "rounds.jsonl").read_text().splitlines()]
    assert [row["buffered"] for row in rows] == [
        sum(t.policy_version != number - 1 for t, _ in whole.files.searched("gpo", number)) for number in (1, 2, 3)
    ]
    assert main(["report", str(tmp_path / "run")]) == 0  # of the last round that has searched, kept ones included


def test_a_prefix_of_an_older_policy_gets_no_loss() -> None:
    check(stratum_config(buffer=1))
    with pytest.raises(ConfigError, match="Take one of both"):
        check(stratum_config(buffer=1, method=Spec("method", "grpo", {"train_prefix": True})))


def test_all_fresh_is_no_search_and_no_reset(tmp_path: Path) -> None:
    run = Run(tmp_path, stratum_config(fresh_least=1.0, rounds=1))
    run.reset("gpo")
    state = RoundState.of(run.files, "gpo")
    assert tokens_of(state.resets.read()) == sum(score.tokens for score in state.scores.read()) == 0
    assert sum(state.tokens().values()) == pytest.approx(run.allowance(state), abs=10)


def test_a_run_that_was_killed_decides_the_same(finished: Run, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from test_allocation_by_stratum import stratum_config; "
        "from gpo.experiment.run import Run; Run(Path(sys.argv[1]), stratum_config()).all()"
    )
    paths = [str(HERE.parent / "src"), str(HERE), str(HERE / "experiment")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "killed")], env=environment)
    while not (tmp_path / "killed/arms/gpo/more.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    Run(tmp_path / "killed", stratum_config()).all()
    assert contents(tmp_path / "killed") == contents(finished.files.path)


def test_some_arms_may_go_by_stratum() -> None:
    config = stratum_config(allocation="gpo, random")
    assert [config.by_stratum(arm) for arm in ("plain", "random", "gpo")] == [False, True, True]
    assert stratum_config().by_stratum("gpo")
    assert not stratum_config(allocation="uniform").by_stratum("gpo")


@pytest.mark.parametrize("change", [{"allocation": "fair"}, {"fresh_least": 1.5}, {"buffer": -1}])
def test_allocations_that_there_are_not_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        RunConfig(**change)


def test_what_could_not_be_graded_is_no_outcome() -> None:
    assert rare_outcomes([group("a", "right", "right", *["failed"] * 6)], 8) == []
    found = rare_outcomes([group("b", "failed", *["right"] * 7, "wrong")], 8)
    assert [t.id for t in found] == ["b8"]


def test_a_turn_that_does_not_fit_goes_to_nobody() -> None:
    def share(left: int) -> int:
        return tokens_for_resets([A], [], lambda start: 10.0, lambda start: Known(), left=left, n=4, at_most=1000)

    assert [share(left) for left in (39, 40, 79)] == [0, 40, 40]
