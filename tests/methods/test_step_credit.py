"""Step credit online: who gets which advantage, worked out by hand, and what it does to loss and mask."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from test_online import METHODS, mixed_groups, run
from tiny_policy import completion_logps, make_model, make_tokenizer, same, state

from gpo.errors import ConfigError
from gpo.methods.grpo import GRPO
from gpo.methods.losses import scaled
from gpo.methods.online import Online
from gpo.methods.ppo import PPO
from gpo.methods.rloo import RLOO
from gpo.methods.rows import TrainingRow, group_by_start
from gpo.types import Completion, Credit, Group, PairSettings, RoundContext, Score, Start, Trajectory

PROMPT = (1, 2)
A, B, C, D, E = (3, 4), (5,), (6, 7, 8), (9,), (10, 11)  # steps


def rollout(kept: int, reward: float, *steps: tuple[int, ...]) -> Trajectory:
    """A response of these steps, of which so many were kept."""
    prefix, tokens = (tuple(t for step in part for t in step) for part in (steps[:kept], steps[kept:]))
    ends, length = [], 0
    for step in steps:
        length += len(step)
        ends.append(length)
    start = Start("p", PROMPT, prefix)
    score = Score(reward, "right" if reward else "wrong")
    return Trajectory(f"{steps}", start, Completion(tokens, "", "stop"), score, tuple(ends))


def groups() -> list[Group]:
    """Values without shrinking, from the question: 1/2; behind A: 3/4; behind B: 0; behind A, C: 1; behind A, D: 0.

    A is passed by one rollout from the question (right) and is the start of three: right, right, wrong.
    """
    fresh = (rollout(0, 1.0, A, C), rollout(0, 0.0, B, E))
    reset = (rollout(1, 1.0, A, C), rollout(1, 1.0, A, C), rollout(1, 0.0, A, D))
    return [Group(each[0].start, each) for each in (fresh, reset)]


def context(credit: Credit, strength: float = 0.0, **more: Any) -> RoundContext:
    return RoundContext(credit=credit, pairing=PairSettings(strength=strength), **more)


def prepared(kind: type[Online], credit: Credit, strength: float = 0.0, **settings: Any) -> list[TrainingRow]:
    """The rows of `groups` with their advantages."""
    method = kind(make_model(), make_tokenizer(), **settings)
    method._begin(context(credit, strength))
    rows, _ = method._rows(groups())
    assert method._give_advantages(rows)
    return rows


def plain(rows: Sequence[TrainingRow]) -> list[list[float]]:
    return [[round(a, 5) for a in row.advantages.tolist()] for row in rows]


@pytest.mark.parametrize(("kind", "settings"), [(RLOO, {}), (GRPO, {"scale": False}), (PPO, {"whiten": False})])
def test_each_sampled_step_has_its_own_advantage(kind: type[Online], settings: dict[str, Any]) -> None:
    rows = prepared(kind, "tree", **settings)
    assert [row.tokens for row in rows] == [A + C, B + E, C, C, D]
    first, second = 3 / 4 - 1 / 2, 1 - 3 / 4
    assert plain(rows) == [
        [first] * 2 + [second] * 3,
        [-0.5, 0.0, 0.0],
        [second] * 3,
        [second] * 3,
        [-0.75],
    ]


def test_step_credit_trains_on_the_first_sampled_step_only() -> None:
    rows = prepared(RLOO, "step")
    assert [row.tokens for row in rows] == [A, B, C, C, D]
    assert plain(rows) == [[0.25] * 2, [-0.5], [0.25] * 3, [0.25] * 3, [-0.75]]


def test_values_are_shrunk_towards_the_prefix() -> None:
    """With strength 2: behind A (3 + 2 * 1/2) / (4 + 2) = 2/3, behind B (0 + 1) / 3 = 1/3; ends are what they are."""
    rows = prepared(RLOO, "tree", 2.0)
    assert plain(rows)[:2] == [
        [pytest.approx(1 / 6, abs=1e-5)] * 2 + [pytest.approx(1 / 3, abs=1e-5)] * 3,
        [pytest.approx(-1 / 6, abs=1e-5)] + [pytest.approx(-1 / 3, abs=1e-5)] * 2,
    ]


@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_the_advantages_of_a_response_sum_to_its_reward_less_the_value_of_the_question(strength: float) -> None:
    rows = group_by_start(groups(), credit="tree", strength=strength)
    for row in rows:
        if not row.start.prefix_ids:
            assert sum(step.advantage for step in row.steps) == pytest.approx(row.reward - 1 / 2)


def test_a_step_that_the_start_lies_within_has_the_tokens_behind_the_start() -> None:
    start = Start("p", PROMPT, A + C[:1])
    inside = Trajectory("i", start, Completion(C[1:] + D, "", "stop"), Score(1.0, "right"), (2, 5, 6))
    (row,) = group_by_start([Group(start, (inside,))], credit="tree")
    assert row.sizes == [2, 1]


def test_grpo_and_ppo_scale_by_the_deviation_of_all_steps() -> None:
    steps = torch.tensor([0.25, 0.25, -0.5, 0.0, 0.25, 0.25, -0.75])
    expected = [0.25 / (steps.std().item() + 1e-4), -0.75 / (steps.std().item() + 1e-4)]
    for kind in (GRPO, PPO):
        rows = prepared(kind, "tree")
        assert [rows[0].advantages[0].item(), rows[4].advantages[0].item()] == pytest.approx(expected)
    assert scaled(torch.tensor([3.0])).item() == 3.0


def logps(model: Any, row: TrainingRow) -> torch.Tensor:
    return completion_logps(model, row.context, row.tokens)


@pytest.mark.parametrize("credit", ["step", "tree"])
@pytest.mark.parametrize(("kind", "settings"), [(GRPO, {}), (RLOO, {}), (GRPO, {"aggregate": "sequence"})])
def test_the_gradient_is_that_of_the_formula(kind: type[Online], credit: Credit, settings: dict[str, Any]) -> None:
    """At ratio 1: the mean over tokens (GRPO) or over steps (RLOO, and its ratio) of A grad log pi."""
    rows = prepared(kind, credit, **settings)
    model, expected = make_model(), torch.zeros(())
    for row in rows:
        parts = zip(logps(model, row).split(row.sizes), row.advantages.split(row.sizes), strict=True)
        for part, advantages in parts:
            if kind is RLOO:
                expected = expected - part.sum() * advantages[0]
            else:
                expected = expected - (part * advantages).sum() / (len(part) if settings else 1)
    counted = sum(len(row.tokens) if kind is GRPO and not settings else len(row.sizes) for row in rows)
    # The ratio of a step has no mean over its tokens; the weight of a token is a share of its step.
    (expected / counted).backward()
    method, metrics = run(kind, make_model(), groups(), context(credit), **settings, max_grad_norm=1e9)
    assert metrics["loss_tokens"] == sum(len(row.tokens) for row in rows)
    for mine, theirs in zip(method._parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_tokens_behind_the_step_change_nothing() -> None:
    """Planted: rollouts that differ behind the first step only, with the same rewards, give the same weights."""
    other = [
        Group(g.start, tuple(rollout(0, t.score.value or 0.0, A if t.score.value else B, D) for t in g.trajectories))
        for g in groups()[:1]
    ]
    models = [run(GRPO, make_model(), each, context("step"))[0].policy.model for each in (groups()[:1], other)]
    assert same(*map(state, models))
    models = [run(GRPO, make_model(), each, context("tree"))[0].policy.model for each in (groups()[:1], other)]
    assert not same(*map(state, models))


def test_the_kl_of_a_step_is_taken_from_its_reward() -> None:
    method = RLOO(make_model(), make_tokenizer(), beta=0.5)
    method._begin(context("tree"))
    rows, _ = method._rows(groups())
    for row in rows:
        row.old = torch.zeros(len(row.tokens))
        row.reference = torch.full((len(row.tokens),), -0.1)
    method._set_step_advantages(rows)
    assert plain(rows)[0] == pytest.approx([0.25 - 0.1] * 2 + [0.25 - 0.15] * 3)


def test_the_critic_learns_the_value_behind_each_step() -> None:
    rows = prepared(PPO, "tree", monte_carlo=False)
    assert rows[0].returns.tolist() == pytest.approx([0.75] * 2 + [1.0] * 3)
    taught = prepared(PPO, "tree")
    assert taught[0].returns.tolist() == pytest.approx([0.5, 0.75, 2 / 3, 1.0, 1.0])  # means of those that start there


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("credit", ["step", "tree"])
def test_each_method_trains_on_steps_and_equal_rewards_teach_nothing(kind: type[Online], credit: Credit) -> None:
    _, metrics = run(kind, make_model(), groups(), context(credit, 2.0), minibatches=2, lora=2)
    assert math.isfinite(metrics["loss"])
    equal = [Group(g.start, tuple(rollout(0, 1.0, A, s) for s in (C, D))) for g in groups()[:1]]
    model = make_model()
    _, metrics = run(kind, model, equal, context(credit))
    assert metrics["skipped"] == 1
    assert same(state(model), state(make_model()))


@pytest.mark.parametrize("kind", METHODS)
def test_the_credit_of_tails_is_that_of_no_credit(kind: type[Online]) -> None:
    methods = [run(kind, make_model(), mixed_groups(), each) for each in (RoundContext(), context("tail", 2.0))]
    assert methods[0][1] == methods[1][1]
    assert same(*(state(method.policy.model) for method, _ in methods))


def test_a_trained_prefix_and_step_credit_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="leave one of the two out"):
        run(GRPO, make_model(), groups(), context("tree"), train_prefix=True)


def test_steps_that_mean_the_same_have_one_advantage() -> None:
    """C and D say the same: behind A there is one way to go on, right three times of four."""
    method = RLOO(make_model(), make_tokenizer())
    tokenizer = method.policy.tokenizer
    same = {tokenizer.decode(C): "on", tokenizer.decode(D): "on"}
    method._begin(context("tree", meaning=lambda step: same.get(step, step)))
    rows, _ = method._rows(groups())
    alike = {row.steps[-1].value for row in rows if row.tokens in (C, D) or row.tokens == A + C}
    assert alike == {3 / 4}
