"""Step credit on toy processes, whose values are known."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from gpo.preferences.credit import (
    StepTree,
    as_meant,
    as_written,
    grow,
    preferences,
    probability_of_more,
    values_along,
)
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.toy import CHOICE_A, ChainEngine, ChainTask, random_process
from gpo.types import Completion, Group, Score, Start, Trajectory


def sampler(seed: int, sample_seed: int = 0) -> tuple[Sampler, Start, ChainEngine]:
    engine = ChainEngine(processes=(random_process(seed, decisions=4, choices=2),))
    task = ChainTask()
    problem = task.problems("train")[0]
    sample = Sampler(engine, task, {problem.id: problem}, seed=sample_seed)
    return sample, question_start(problem, task, engine.tokenizer), engine


def true_values(trajectory: Trajectory, engine: ChainEngine) -> list[float]:
    """(K + 1,) of the decisions that the response took, and its score."""
    process = engine.processes[0]
    values, state = [process.values[0][0]], 0
    for k, token in enumerate(t for t in trajectory.response_ids if t >= CHOICE_A):
        state = process.successors[k][state][token - CHOICE_A]
        values.append(process.values[k + 1][state])
    return [*values, float(trajectory.score.right)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 50), st.integers(1, 20), st.floats(0, 5))
def test_the_credits_of_a_response_sum_to_its_score_minus_the_value_of_the_question(
    seed: int, n: int, strength: float
) -> None:
    sample, start, _ = sampler(seed)
    [group] = sample([start], n)
    resets = sample([t.prefix(k) for t in group.trajectories[:2] for k in (1, 2)], 3)
    [tree] = grow([group, *resets]).values()
    root = fmean(t.score.value for t in group.trajectories if t.score.value is not None)
    for trajectory in [t for g in (group, *resets) for t in g.trajectories]:
        reward = trajectory.score.value
        assert reward is not None
        assert sum(tree.advantages(trajectory, strength)) == pytest.approx(reward - root)


def test_values_of_nodes_are_unbiased_whether_rollouts_pass_or_start_there() -> None:
    """Planted: rollouts that a reset sampled, counted for the prefixes before it, would bias the question's value."""
    errors: dict[int, list[float]] = {}
    for seed in range(60):
        sample, start, engine = sampler(3, seed)
        [group] = sample([start], 40)
        resets = sample([group.trajectories[0].prefix(k) for k in (1, 2, 3)], 20)
        [tree] = grow([group, *resets]).values()
        path = tree.path(group.trajectories[0])
        for k, (node, true) in enumerate(zip(path.values(), true_values(group.trajectories[0], engine), strict=True)):
            errors.setdefault(k, []).append(node.total / node.count - true)
    for k in range(4):
        assert abs(fmean(errors[k])) < 0.03, k


def test_a_node_is_shrunk_towards_the_one_before_it() -> None:
    sample, start, _ = sampler(1)
    [group] = sample([start], 30)
    tree = next(iter(grow([group]).values()))
    for trajectory in group.trajectories:
        nodes = list(tree.path(trajectory).values())
        shrunk, raw = (list(values_along(tree.path(trajectory), strength).values()) for strength in (2.0, 0.0))
        for k in range(1, len(nodes) - 1):
            assert min(raw[k], shrunk[k - 1]) - 1e-9 <= shrunk[k] <= max(raw[k], shrunk[k - 1]) + 1e-9
            assert raw[k] == pytest.approx(nodes[k].total / nodes[k].count)
        assert values_along(tree.path(trajectory), 100.0)[len(trajectory.response_ids)] in (0.0, 1.0)


def test_a_response_of_thousands_of_steps_is_no_trouble() -> None:
    sample, start, _ = sampler(2)
    [[trajectory]] = [group.trajectories for group in sample([start], 1)]
    ids = (5,) * 5000
    long = replace(
        trajectory, completion=replace(trajectory.completion, token_ids=ids), step_ends=tuple(range(1, 5001))
    )
    [tree] = grow([Group(start, (long,))]).values()
    assert len(tree.advantages(long, 2.0)) == 5000


def test_what_was_sampled_begins_where_its_prefix_ends_whatever_the_segmenter_says() -> None:
    sample, start, _ = sampler(2)
    [group] = sample([start], 4)
    [reset] = sample([group.trajectories[0].prefix(1)], 4)
    kept = len(reset.start.prefix_ids)
    uncut = [replace(t, step_ends=tuple(end for end in t.step_ends if end > kept)) for t in reset.trajectories]
    [tree] = grow([group, Group(reset.start, tuple(uncut))]).values()
    node = tree.path(uncut[0])[kept]
    assert node.starts
    assert node.count >= 4


def test_prefixes_are_given_back_to_the_token() -> None:
    sample, start, _ = sampler(2)
    [group] = sample([start], 10)
    tree = next(iter(grow([group]).values()))
    for trajectory in group.trajectories:
        for end, node in tree.path(trajectory).items():
            assert node.prefix_ids == trajectory.response_ids[:end]


def test_preferences_point_to_the_better_step() -> None:
    """As often as they say: of pairs that are better with probability c, about a share c is."""
    told: list[tuple[float, bool]] = []
    counts = {0.95: 0, 0.6: 0}
    for seed in range(40):
        sample, start, engine = sampler(seed)
        [group] = sample([start], 40)
        reset = sample([group.trajectories[0].prefix(1)], 20)
        tree = next(iter(grow([group, *reset]).values()))
        of_node = {
            id(n): v
            for each in (group, *reset)
            for t in each.trajectories
            for n, v in zip(tree.path(t).values(), true_values(t, engine), strict=True)
        }
        for certainty in counts:
            found = [
                p
                for each in preferences(tree, strength=2, certainty=certainty, starts_only=False, most=99)
                for p in each
            ]
            counts[certainty] += len(found)
            assert all(pair.gain > 0 and certainty <= pair.certainty <= 1 for pair in found)
        differences = [(p.certainty, of_node[id(p.better)] - of_node[id(p.worse)]) for p in found]
        told += [(certainty, difference > 0) for certainty, difference in differences if difference]
        behind = [p for each in preferences(tree, strength=2, certainty=0.6, starts_only=True, most=99) for p in each]
        assert {len(p.node.prefix_ids) for p in behind} <= {0, len(group.trajectories[0].prefix(1).prefix_ids)}
    assert counts[0.6] > counts[0.95] > 40
    assert abs(fmean(right for _, right in told) - fmean(certainty for certainty, _ in told)) < 0.1


def test_steps_in_other_words_are_one_step_if_the_task_says_so() -> None:
    sample, start, _ = sampler(4)
    [group] = sample([start], 50)
    every = StepTree("0", start.prompt_ids, wording=len)  # all steps of a length are one
    for trajectory in group.trajectories:
        every.add(trajectory)
    apart = next(iter(grow([group]).values()))
    assert len(list(every.nodes())) < len(list(apart.nodes()))
    assert every.root.count == apart.root.count == 50


def test_a_failed_grade_tells_nothing() -> None:
    from gpo.types import Score

    sample, start, _ = sampler(4)
    [group] = sample([start], 1)
    [trajectory] = group.trajectories
    failed = Trajectory("x", start, trajectory.completion, Score(None, "failed"), trajectory.step_ends)
    tree = next(iter(grow([Group(start, (failed,))]).values()))
    assert tree.root.count == 0


@given(st.floats(0.5, 20), st.floats(0.5, 20), st.floats(0.5, 20), st.floats(0.5, 20))
@settings(max_examples=25, deadline=None)
def test_the_probability_of_more_is_that_of_an_integral(a: float, b: float, c: float, d: float) -> None:
    from scipy.integrate import quad

    exact = quad(lambda y: beta.pdf(y, c, d) * beta.sf(y, a, b), 0, 1, limit=200)[0]
    assert probability_of_more((a, b), (c, d)) == pytest.approx(exact, abs=0.02)


def test_a_prefix_that_no_rollout_passed_is_worth_what_the_one_before_it_is() -> None:
    """A reset behind two steps, without the response that it was cut from."""
    start = Start("p", (1,), (2, 3))
    rollouts = tuple(
        Trajectory(f"{token}", start, Completion((token,), "", "stop"), Score(value, verdict), (1, 2, 3))
        for token, value, verdict in ((4, 1.0, "right"), (5, 0.0, "wrong"))
    )
    [tree] = grow([Group(start, rollouts)]).values()
    for strength in (0.0, 2.0):
        assert list(values_along(tree.path(rollouts[0]), strength).values()) == pytest.approx([0.5, 0.5, 0.5, 1.0])


LETTERS = {1: "a = ", 2: "so ", 3: "3", 4: "4", 5: "\n"}


class Letters:
    eos_token_id = 0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        raise NotImplementedError

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(LETTERS.get(token, "") for token in token_ids)


def test_steps_that_mean_the_same_share_their_credit() -> None:
    """Planted: without merging each wording has its own single rollout."""
    start = Start("p", (9,))
    responses = [((1, 3, 5), 1.0), ((2, 3, 5), 0.0), ((1, 4, 5), 0.0)]
    trajectories = [
        Trajectory(str(i), start, Completion((*ids, 4, 0), "", "stop"), Score(right, "right"), (3, 5))
        for i, (ids, right) in enumerate(responses)
    ]

    def number(step: str) -> Hashable:
        return step.strip()[-1]

    [apart] = grow([Group(start, tuple(trajectories))]).values()
    [merged] = grow([Group(start, tuple(trajectories))], as_meant(number, Letters())).values()
    assert (len(apart.root.children), len(merged.root.children)) == (3, 2)
    first, second = (merged.advantages(trajectory, 0.0) for trajectory in trajectories[:2])
    assert first[0] == second[0] == pytest.approx(1 / 2 - 1 / 3)
    assert apart.advantages(trajectories[0], 0.0)[0] == pytest.approx(1 - 1 / 3)


def test_a_step_that_ends_the_response_is_not_one_that_goes_on() -> None:
    wording = as_meant(lambda step: step, Letters())
    assert wording((3, 0)) != wording((3,))
    assert as_meant(None, Letters()) is as_written


def answered(*scores: tuple[int, float], prefix: tuple[int, ...] = ()) -> Group:
    """Rollouts of one step of one token each, behind a prefix of such steps."""
    start, ends = Start("p", (1,), prefix), tuple(range(1, len(prefix) + 2))
    return Group(
        start,
        tuple(
            Trajectory(
                str(i), start, Completion((token,), "", "stop"), Score(right, "right" if right else "wrong"), ends
            )
            for i, (token, right) in enumerate(scores)
        ),
    )


def test_a_response_that_was_cut_off_is_shrunk_like_any_prefix() -> None:
    group = answered((2, 0.0), (3, 1.0))
    cut, whole = group.trajectories
    cut = replace(cut, completion=replace(cut.completion, finish_reason="length"))
    [tree] = grow([Group(group.start, (cut, whole))]).values()
    assert list(values_along(tree.path(cut), 1.0).values()) == pytest.approx([0.5, 0.25])
    assert list(values_along(tree.path(whole), 1.0).values()) == pytest.approx([0.5, 1.0])


def test_the_certainty_of_a_pair_is_by_the_value_before_it_as_a_prior() -> None:
    [tree] = grow([answered((2, 1.0), (2, 1.0), (2, 1.0), (3, 0.0))]).values()
    [[pair]] = preferences(tree, strength=2.0, certainty=0.5, starts_only=False, most=9)
    better, worse = (3 + 2 * 0.75, 2 * 0.25), (2 * 0.75, 1 + 2 * 0.25)
    assert pair.gain == pytest.approx(4.5 / 5 - 1.5 / 3)
    assert pair.certainty == pytest.approx(probability_of_more(*((a + 0.5, b + 0.5) for a, b in (better, worse))))


def test_the_surest_pair_comes_first_and_then_steps_that_are_in_none() -> None:
    right = {2: 3, 3: 1, 4: 4, 5: 0}  # of four rollouts that took the step
    [tree] = grow([answered(*((step, float(i < n)) for step, n in right.items() for i in range(4)))]).values()
    [found] = preferences(tree, strength=0.0, certainty=0.5, starts_only=False, most=2)
    assert [(pair.better.step, pair.worse.step) for pair in found] == [((4,), (5,)), ((2,), (3,))]


def test_a_step_that_no_rollout_took_is_in_no_pair() -> None:
    """One that a reset kept, whose response is not there."""
    [tree] = grow([answered((2, 0.0), (3, 1.0)), answered((6, 1.0), prefix=(4, 5))]).values()
    for strength in (0.0, 2.0):
        [[pair]] = preferences(tree, strength=strength, certainty=0.0, starts_only=False, most=9)
        assert (pair.better.step, pair.worse.step) == ((3,), (2,))
