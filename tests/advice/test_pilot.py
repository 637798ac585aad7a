"""What a pilot sees, and what it foretells of a run."""

import json
from math import isnan, log
from pathlib import Path

import numpy as np
import pytest

from gpo.advice.pilot import Asked, Pilot, Searched, pilot_of, step_chances
from gpo.advice.work import Training, kinds, pairs_of, prior_of, search_rollouts, searches, work_of
from gpo.config.options import resolve
from gpo.storage.codec import from_json
from gpo.toy import ChainTokenizer
from gpo.types import Completion, Group, Score, Start, StepScores, Trajectory

DEMO = json.loads(Path(__file__).with_name("demo.json").read_text())
MORE = {"locate_share": "0.4", "reset_turns": "0"}  # of a search and of resets than by default


def asked(right: int, wrong: int, **more: object) -> Asked:
    values = {"prompt": 10, "response": 50.0, "steps": 5.0, "kinds_right": (1,) * right, "kinds_wrong": (1,) * wrong}
    return Asked(id="q", right=right, wrong=wrong, **values | more)  # type: ignore[arg-type]


def pilot(*questions: Asked, searched: tuple[Searched, ...] = ()) -> Pilot:
    return Pilot(questions, searched, (), float("nan"), 150.0, "gpo")


SEARCHED = Searched(tokens=200, rollouts=8, rollout_tokens=25.0, prefix=20, tail=30, value=0.5)


def trajectory(number: int, tokens: str, chances: tuple[float, ...]) -> Trajectory:
    """Two steps of two tokens and an end; `chances` of the tokens."""
    ids = tuple(ChainTokenizer().encode(tokens))
    right = tokens.endswith("Y")
    score = Score(float(right), "right" if right else "wrong", tokens[-1])
    completion = Completion(ids, tokens, "stop", tuple(map(log, chances)))
    return Trajectory(str(number), Start("q", (5, 1)), completion, score, (2, 4, len(ids)))


def test_a_pilot_sees_strata_horizon_and_shared_paths() -> None:
    rows = (
        trajectory(0, "a\nb\nY", (0.5, 1, 0.8, 1, 1)),
        trajectory(1, "a\nc\nN", (0.5, 1, 0.2, 1, 1)),
        trajectory(2, "a\nb\nY", (0.5, 1, 0.8, 1, 1)),
    )
    scores = StepScores(
        "1", (0.6, 0.7, 0.25, 0.0), (4, 4, 4, 1), (0,) * 4, (1,) * 4, (0.1, -0.45, -0.25), 1, 1, 9,
        (Group(rows[1].prefix(1), (trajectory(3, "b\nY", (0.8, 1, 1)), trajectory(4, "c\nN", (0.2, 1, 1)))),),
    )  # fmt: skip
    found = pilot_of([Group(rows[0].start, rows)], ChainTokenizer(), [scores], "gpo")
    assert found is not None
    (question,) = found.asked
    assert (question.right, question.wrong, question.kinds_right, question.kinds_wrong) == (2, 1, (2,), (1,))
    assert found.strata == {"never": 0, "rarely": 0, "sometimes": 1, "nearly always": 0, "always": 0}
    assert (found.prompt, found.response, found.steps) == (2, 5, 3)
    assert question.variance == pytest.approx(np.var([1, 1, 0], ddof=1))
    assert found.repeats == pytest.approx((0.5, 0.8, 1, 0.5, 0.2, 1, 0.5, 0.8, 1))
    # From the question, a rollout passes boundary 0, boundary 1 half of the time, boundary 2 with .4, .1 and .4.
    assert found.reached == pytest.approx(np.mean([1.9, 1.6, 1.9]) / 3)
    assert found.weight == 5 + 3 + 1
    assert found.search_tokens == 9
    assert found.tail == 3
    assert found.reset_practice == pytest.approx(0.7 * 0.3 / 3)
    assert question.searched_pairs is not None
    assert pilot_of([], ChainTokenizer()) is None


def test_without_log_probabilities_nothing_is_said_of_shared_paths() -> None:
    one = trajectory(0, "a\nb\nY", (1, 1, 1, 1, 1))
    bare = Trajectory("0", one.start, Completion(one.completion.token_ids, "", "stop"), one.score, one.step_ends)
    assert step_chances(bare) is None
    found = pilot_of([Group(bare.start, (bare,))], ChainTokenizer())
    assert found is not None
    assert isnan(found.repeat)
    assert isnan(found.fresh_practice)  # one response has no variance
    assert step_chances(one) == pytest.approx((1, 1, 1))


def test_different_responses_grow_as_a_known_population_lets_them() -> None:
    """Twenty equally likely responses; eight draws tell about how many sixteen more will have."""
    rng = np.random.default_rng(0)
    said, true = [], []
    for _ in range(300):
        drawn = rng.integers(20, size=24)
        counts = tuple(int(n) for n in np.unique(drawn[:8], return_counts=True)[1])
        said.append(kinds(counts, 16))
        true.append(len(set(drawn)))
    assert np.mean(said) == pytest.approx(np.mean(true), rel=0.15)
    assert kinds((8,), 16) == 1  # always the same
    assert kinds((), 16) == 16


def test_pairs_of_a_question_are_those_of_its_more_frequent_outcome() -> None:
    prior = (1.0, 1.0)
    assert pairs_of(asked(3, 5), 0, 16, prior) == 5
    assert pairs_of(asked(3, 5), 0, 4, prior) == 4
    assert pairs_of(asked(8, 0), 0, 16, prior) == 0
    expected = sum(
        weight * min(16, max(kinds((1,) * 8, 8 - k), k)) for k, weight in enumerate(_wrong_among_more()) if k
    )
    assert pairs_of(asked(8, 0), 16, 16, prior) == pytest.approx(expected)


def _wrong_among_more() -> list[float]:
    """P(k of 8 more are wrong) by Polya's urn with 9 right and 1 wrong."""
    found = np.zeros(9)
    found[0] = 1.0
    for drawn in range(8):
        after = np.zeros(9)
        for k in range(drawn + 1):
            wrong = (1 + k) / (10 + drawn)
            after[k] += found[k] * (1 - wrong)
            if k < 8:
                after[k + 1] += found[k] * wrong
        found = after
    return [float(x) for x in found]


def test_the_prior_of_questions_that_differ_is_weak_and_of_those_alike_strong() -> None:
    apart = prior_of([asked(8, 0), asked(0, 8)] * 8)
    alike = prior_of([asked(4, 4)] * 16)
    assert sum(apart) < 1
    assert sum(alike) > 16
    assert apart[0] == pytest.approx(apart[1])


def test_all_arms_sample_what_the_budget_says_and_the_search_its_share() -> None:
    config = resolve({"problems": "100", "budget": "2.5", "rounds": "2"})
    seen = pilot(asked(4, 4), asked(8, 0), searched=(SEARCHED,))
    training = Training(pairs=True, epochs=2)
    works = {arm: work_of(config, arm, 100, seen, training) for arm in config.arms}
    for work in works.values():
        assert work.tokens == pytest.approx(2 * 2.5 * 100 * 8 * 50)
        assert work.trained == 2 * work.scored > 0
    assert works["plain"].sampled["locate"] == 0
    assert works["gpo"].sampled["locate"] == pytest.approx(0.08 * works["gpo"].tokens)
    assert works["gpo"].details["searched"] == pytest.approx(works["gpo"].sampled["locate"] / 200)
    cheap = pilot(asked(4, 4), searched=(Searched(5, 1, 5.0, 20, 30, 0.5),))
    few = work_of(config, "gpo", 100, cheap, training)
    assert few.details["searched"] == 2 * 100 * 4  # all that may be searched, in each round
    half = resolve({"problems": "100", "reset_fraction": "0.1"})
    assert work_of(half, "gpo", 100, seen, training).sampled["more"] > 0


def test_tokens_by_stratum_leave_as_many_to_the_questions_as_is_stated() -> None:
    seen, training = pilot(asked(4, 4), searched=(SEARCHED,)), Training(pairs=True, epochs=2)
    options = {"problems": "100", "budget": "2.5", "allocation": "stratum"}
    for least in (0.6, 0.9):
        work = work_of(resolve({**options, "fresh_least": str(least)}), "gpo", 100, seen, training)
        fresh = work.sampled["rollout"] + work.sampled["more"]
        assert fresh >= least * work.tokens - 1
        assert work.sampled["locate"] > 0
    even = work_of(resolve({**options, "fresh_least": "0.6"}), "plain", 100, seen, training)
    assert even.sampled["locate"] == 0


def test_a_search_that_was_not_tried_takes_what_its_settings_say() -> None:
    """Not tried, it was foretold to take nothing."""
    seen, training = pilot(asked(4, 4), asked(8, 0)), Training(pairs=True)
    options = {"problems": "10", "budget": "9", "arms": "plain,random,gpo", "arms.gpo": "monte_carlo", **MORE}
    for rollouts in (1, 2):
        config = resolve({**options, "arms.gpo.rollouts": str(rollouts)})
        for arm in ("gpo", "random"):  # which repeats it
            work = work_of(config, arm, 10, seen, training)
            assert work.sampled["locate"] == 10 * 4 * rollouts * 150
    assert search_rollouts(resolve({"arms.gpo": "adaptive", "arms.gpo.rollouts": "5"}), "gpo") == 2
    assert search_rollouts(resolve({"arms.gpo": "entropy"}), "gpo") == 0


def test_pairs_of_a_question_without_a_cap_are_as_many_as_its_rollouts_have() -> None:
    training = Training(pairs=True)
    config = resolve({"problems": "10", "pairs.per_problem": "none", "pairs.per_start": "3", "rollouts": "2", **MORE})
    cheap = Searched(tokens=50, rollouts=2, rollout_tokens=25.0, prefix=20, tail=30, value=0.5)
    seen = pilot(asked(1, 1, searched_pairs=9), asked(1, 1), searched=(cheap,))  # every question is searched
    assert work_of(config, "gpo", 10, seen, training).details["pairs"] == 5 * 9 + 5 * 2 * 3


def test_prompts_are_read_once_for_each_turn_of_a_reset_start() -> None:
    seen, training = pilot(asked(4, 4), searched=(SEARCHED,)), Training(pairs=True, epochs=2)
    few, many = (
        work_of(resolve({"problems": "100", "reset_rollouts": n, **MORE}), "random", 100, seen, training)
        for n in ("16", "2")
    )
    assert few.prompts < many.prompts


def test_an_online_method_trains_on_every_trajectory() -> None:
    config = resolve({"problems": "100", "budget": "2.0", "method": "grpo"})
    work = work_of(config, "plain", 100, pilot(asked(4, 4)), Training.of(config))
    assert work.trained == pytest.approx(2.0 * 100 * 8 * (10 + 50))
    assert work.scored == work.trained  # four steps an update: the policy before it is looked up
    assert work.details["trajectories"] == 1600


@pytest.mark.parametrize(("name", "found"), [("none", False), ("random_unsearched", False), ("adaptive", True)])
def test_which_arms_search(name: str, found: bool) -> None:
    assert searches(name) is found


@pytest.mark.parametrize("arm", ["plain", "random", "gpo"])
def test_a_pilot_foretells_what_a_run_counted(arm: str) -> None:
    """16 of the 24 questions of a run of the embedded reasoner; DPO."""
    config = resolve({"problems": "24", "test_problems": "36", **MORE})
    seen, counted = from_json(Pilot, DEMO["pilot"]), DEMO["counted"][arm]
    work = work_of(config, arm, 24, seen, Training.of(config))
    assert work.tokens == pytest.approx(counted["sampled"], rel=0.2)
    assert work.trained == pytest.approx(counted["trained"], rel=0.2)
    assert 2 * work.tokens + 6 * work.trained == pytest.approx(2 * counted["sampled"] + 6 * counted["trained"], rel=0.2)
    if arm == "gpo":
        assert work.details["searched"] == pytest.approx(counted["searched"], rel=0.3)
