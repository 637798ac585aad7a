"""The posterior over values: its bookkeeping by hand, its laws by the toy engine, its width by coverage."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
from toy_chain import exact_values, first_rollouts, make_sampler, mistake_chain

from gpo.estimators.branches import Branches, follow_probabilities
from gpo.estimators.tally import Tally
from gpo.toy import ChainEngine, random_process
from gpo.types import Completion, Group, Score, Start, Trajectory

QUESTION = Start("q", (9,))
PRIOR = {"surprise": 0.3, "concentration": 20.0}


def response(tokens, ends, value=1.0, *, start=QUESTION, logprobs=None) -> Trajectory:
    verdict = "failed" if value is None else "right" if value else "wrong"
    completion = Completion(tuple(tokens), "", "stop", logprobs)
    return Trajectory("t", start, completion, Score(value, verdict), tuple(ends))


def generators(n: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(n)]


def test_follow_probabilities_are_products_over_the_tokens_of_a_step() -> None:
    logprobs = (log(0.5), log(0.5), log(0.2), 0.0)
    assert follow_probabilities(response([1, 2, 3, 4], [2, 3, 4], logprobs=logprobs)) == pytest.approx([0.25, 0.2, 1])
    assert follow_probabilities(response([1, 2, 3, 4], [2, 3, 4])) == [0.0, 0.0, 0.0]
    kept = replace(QUESTION, prefix_ids=(7, 8))
    reset = response([1, 2], [1, 3, 4], start=kept, logprobs=(log(0.5), log(0.2)))
    assert follow_probabilities(reset) == pytest.approx([0.0, 0.0, 0.2])
    odd = (float("nan"), float("-inf"), 1e-7, -10_000.0)  # not known, impossible, rounded above 1, underflowing
    assert follow_probabilities(response([1, 2, 3, 4], [1, 2, 3, 4], logprobs=odd)) == [0.0, 0.0, 1.0, 0.0]


def test_a_rollout_counts_once_where_it_leaves() -> None:
    ours = response([1, 2, 3, 4], [1, 2, 3, 4], logprobs=(log(0.5),) * 4)
    branches = Branches([Tally(ours)])
    rollouts = [
        response([5], [1], 1.0),
        response([1, 2, 5], [1, 2, 3], 1.0),
        response([1, 2, 6], [1, 2, 3], 0.0),
        response([1, 2, 3, 4], [1, 2, 3, 4], 1.0),  # reproduces all: R is known
        response([1, 5], [1, 2], None),  # not graded
    ]
    branches.add(0, 0, rollouts)
    assert branches.counts.tolist() == [[1, 0, 2, 0]]
    assert branches.sums.tolist() == [[1, 0, 1, 0]]
    # Without log-probabilities it counts where it starts.
    blind = Branches([Tally(replace(ours, completion=replace(ours.completion, logprobs=None)))])
    blind.add(0, 0, rollouts)
    assert blind.counts.tolist() == [[4, 0, 0, 0]]


def test_the_law_of_leaving() -> None:
    long = response([1, 2, 3], [1, 2, 3], logprobs=(log(0.5), log(0.2), 0.0))
    short = response([1], [1], logprobs=(log(0.5),))
    law = Branches([Tally(long), Tally(short)]).leave()
    assert law[0] == pytest.approx(np.array([[0.5, 0.4, 0.0], [0.0, 0.8, 0.0], [0.0, 0.0, 0.0]]))
    assert law[1] == pytest.approx(np.array([[0.5, 0.0, 0.0], [0.0] * 3, [0.0] * 3]))


def test_the_law_of_leaving_where_a_step_is_unknown_or_next_to_impossible() -> None:
    """A step of probability 0 is always left, whatever surrounds it; a quotient of products would make it 0 / 0."""
    blind = Branches([Tally(response([1, 2, 3], [1, 2, 3]))])
    assert blind.leave()[0].tolist() == np.eye(3).tolist()
    middle = response([1, 2, 3], [1, 2, 3], logprobs=(log(0.5), -10_000.0, log(0.2)))
    assert Branches([Tally(middle)]).leave()[0] == pytest.approx(
        np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.8]])
    )
    denormal = response([1, 2, 3], [1, 2, 3], logprobs=(log(0.5), -740.0, log(0.2)))
    law = Branches([Tally(denormal)]).leave()[0]
    assert law.sum(axis=1) == pytest.approx([1.0, 1.0, 0.8])
    kept = response([2, 3], [1, 2, 3], start=replace(QUESTION, prefix_ids=(1,)), logprobs=(log(0.5), log(0.2)))
    assert Branches([Tally(kept)]).leave()[0] == pytest.approx(
        np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.4], [0.0, 0.0, 0.8]])
    )


def test_the_same_end_bounds_the_values() -> None:
    half = (log(0.5), log(0.5), 0.0)
    right, wrong, ungraded = (response([1, 2, 3], [1, 2, 3], value, logprobs=half) for value in (1.0, 0.0, None))
    branches = Branches([Tally(t) for t in (right, wrong, ungraded)])
    assert [b.tolist() for b in branches.bounds(0)] == [[0.25, 0.5, 1.0, 1.0], [1.0] * 4]
    assert [b.tolist() for b in branches.bounds(1)] == [[0.0] * 4, [0.75, 0.5, 0.0, 0.0]]
    assert [b.tolist() for b in branches.bounds(2)] == [[0.0] * 4, [1.0] * 4]


def test_draws_obey_the_model() -> None:
    engine = ChainEngine(tuple(random_process(seed) for seed in range(3)))
    trajectories = first_rollouts(engine, 2, logprobs=True)
    branches = Branches([Tally(t) for t in trajectories])
    values, branch = branches.draw(np.arange(6), 64, generators(6), **PRIOR)
    follow = branches.follow[:, None, :]
    assert values[:, :, :-1] == pytest.approx(follow * values[:, :, 1:] + (1 - follow) * branch)
    assert (values[:, :, -1] == branches.rewards[:, None]).all()
    assert (np.abs(np.diff(values, axis=2)) <= 1 - follow + 1e-9).all()
    for row, trajectory in enumerate(trajectories):  # the bound is a fact about the exact values too
        advantages = np.diff(exact_values(engine, trajectory))
        assert (np.abs(advantages) <= 1 - branches.follow[row] + 1e-9).all()


def test_one_step_is_the_conjugate_posterior() -> None:
    # p = 0: V_0 = U_0, R = 1 and the prior mixture with e = 0.1 is known in closed form.
    branches = Branches([Tally(response([1], [1]))])
    branches.add(0, 0, [response([2], [1], float(i < 3)) for i in range(10)])
    values, _ = branches.draw(np.array([0]), 40_000, generators(1), **PRIOR)
    u = (np.arange(20_000) + 0.5) / 20_000
    from scipy.stats import beta

    density = (0.7 * beta.pdf(u, 20.1, 0.1) + 0.3 * beta.pdf(u, 0.5, 0.5)) * u**3 * (1 - u) ** 7
    assert values[0, :, 0].mean() == pytest.approx((u * density).sum() / density.sum(), abs=0.005)


def test_two_steps_weigh_paths_by_all_their_evidence() -> None:
    # U_1 has no rollouts of its own; what was seen of U_0 must move it, through V_1. Independent: rejection sampling.
    ours = response([1, 2], [1, 2], 0.0, logprobs=(log(0.5), log(0.5)))
    branches = Branches([Tally(ours)])
    branches.add(0, 0, [response([3], [1], 1.0) for _ in range(3)])
    values, branch = branches.draw(np.array([0]), 40_000, generators(1), **PRIOR)

    rng = np.random.default_rng(1)

    def prior(after: np.ndarray) -> np.ndarray:
        near = rng.beta(20 * after + 0.1, 20 * (1 - after) + 0.1)
        return np.where(rng.random(len(after)) < 0.7, near, rng.beta(0.5, 0.5, len(after)))

    u1 = prior(np.zeros(400_000))
    u0 = prior(0.5 * u1)
    weights = u0**3
    assert branch[0, :, 1].mean() == pytest.approx(np.average(u1, weights=weights), abs=0.02)
    assert values[0, :, 0].mean() == pytest.approx(np.average(0.25 * u1 + 0.5 * u0, weights=weights), abs=0.02)
    assert branch[0, :, 1].mean() > np.average(u1) + 0.04  # the tally did move it


def test_many_rollouts_bring_the_exact_values() -> None:
    engine = ChainEngine((mistake_chain([0.2, 0.4, 0.1]), random_process(4)))
    trajectories = first_rollouts(engine, 1, logprobs=True)
    branches = Branches([Tally(t) for t in trajectories])
    sample = make_sampler(engine)
    for row, trajectory in enumerate(trajectories):
        for boundary in range(len(trajectory.step_ends)):
            branches.add(row, boundary, sample([trajectory.prefix(boundary)], 300)[0].trajectories)
    values, _ = branches.draw(np.arange(2), 256, generators(2), **PRIOR)
    for row, trajectory in enumerate(trajectories):
        truth = exact_values(engine, trajectory)
        assert values[row].mean(axis=0)[: len(truth)] == pytest.approx(truth, abs=0.05)


def test_an_ungraded_trajectory_has_an_open_end() -> None:
    branches = Branches([Tally(response([1], [1], None))])
    values, _ = branches.draw(np.array([0]), 2000, generators(1), **PRIOR)
    assert values[0, :, 1].std() == pytest.approx(1 / 12**0.5, abs=0.02)


def test_rows_are_drawn_alone_that_have_fewer_steps_than_others() -> None:
    """Those with more may be settled: nothing is drawn for their steps."""
    both = Branches([Tally(response([1, 2, 3], [1, 2, 3])), Tally(response([1], [1]))])
    alone = Branches([Tally(response([1], [1]))])
    values, branch = both.draw(np.array([1]), 50, generators(1), **PRIOR)
    expected, expected_branch = alone.draw(np.array([0]), 50, generators(1), **PRIOR)
    assert values[0, :, :2] == pytest.approx(expected[0])
    assert branch[0, :, :1] == pytest.approx(expected_branch[0])


def test_a_rollout_counts_for_every_trajectory_that_has_its_prefix_and_goes_on_behind_it() -> None:
    half = (log(0.5),) * 3
    branches = Branches([Tally(response([1, *rest], [1, 2, 3], logprobs=half)) for rest in ((2, 3), (5, 3))])
    for prefix, more in (((1,), (2, 9)), ((1, 2), (9,)), ((1, 2, 3), (9,))):
        start = replace(QUESTION, prefix_ids=prefix)
        branches.share(Group(start, (response(more, [len(prefix) + len(more)], start=start),)))
    assert branches.counts.tolist() == [[0, 0, 2], [0, 1, 0]]
    told = [tally.scores(None, "before", 0.95).counts[:3] for tally in branches.tallies]
    assert told == [(0, 1, 2), (0, 1, 0)]  # the first of them passes the boundary behind its second token


def test_a_step_whose_probability_is_not_known_stops_only_the_rollouts_from_before_it() -> None:
    kept = replace(QUESTION, prefix_ids=(1,))
    branches = Branches([Tally(response([2, 3], [1, 2, 3], start=kept, logprobs=(log(0.5),) * 2))])
    branches.add(0, 1, [response([2, 9], [1, 2, 3], start=kept)])
    branches.add(0, 0, [response([1, 2, 9], [1, 2, 3])])
    assert branches.counts.tolist() == [[1, 0, 1]]


def test_what_a_critic_says_counts_as_much_as_the_step_may_be_left() -> None:
    def leaned(value: float) -> tuple[float, float]:
        branches = Branches([Tally(response([1], [1], logprobs=(log(0.25),)))])
        branches.lean(0, np.array([value, 0.2]), 4.0)  # its last value is not asked: the score is known
        return float(branches.sums[0, 0]), float(branches.counts[0, 0])

    assert leaned(0.7) == pytest.approx((3 * (0.7 - 0.25) / 0.75, 3))  # V_0 = 0.25 + 0.75 U_0
    assert leaned(0.1) == pytest.approx((0, 3))  # no U_0 fits: the nearest does
