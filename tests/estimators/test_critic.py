"""The value head on states whose values are known, cross-fitting, and the critic as a prior of the adaptive search."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from toy_chain import exact_values, first_rollouts, make_sampler, mistake_chain

from gpo.errors import ConfigError
from gpo.estimators.adaptive import Adaptive
from gpo.estimators.branches import Branches
from gpo.estimators.critic import Critic, Head
from gpo.estimators.evidence import Evidence
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.toy import ChainEngine

ENGINE = ChainEngine(tuple(mistake_chain([0.1] * 3 + [0.4] + [0.1] * 2) for _ in range(24)))


class Oracle(torch.nn.Module):
    """A model whose hidden state at a token is the logit of the exact value after it, and noise."""

    device = torch.device("cpu")

    def get_input_embeddings(self) -> None:
        return None

    def forward(self, input_ids: Any, output_hidden_states: bool) -> Any:
        rows = []
        for ids in input_ids.tolist():
            values = []
            for end in range(1, len(ids) + 1):
                prompt = ids.index(1) + 1
                values.append(ENGINE.value(ids[:end]) if end >= prompt else 0.5)
            states = logit(np.clip(values, 0.02, 0.98))
            rows.append(np.column_stack([states, np.sin(np.arange(len(ids)))]))
        return SimpleNamespace(hidden_states=[torch.tensor(np.array(rows))])


def test_the_head_recovers_a_known_law() -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(4000, 3))
    truth = expit(states @ np.array([1.5, -1.0, 0.0]) + 0.5)
    right = rng.binomial(8, truth)
    head = Head.fit(states, right.astype(float), np.full(4000, 8.0), 1.0)
    values, lower, upper = head.values(states[:500], 0.95)
    assert np.abs(values - truth[:500]).max() < 0.03
    assert np.mean((lower <= truth[:500]) & (truth[:500] <= upper)) > 0.9
    assert (upper - lower).max() < 0.06


def test_without_examples_every_value_is_the_priors() -> None:
    head = Head.fit(np.zeros((0, 2)), np.zeros(0), np.zeros(0), 1.0)
    values, lower, upper = head.values(np.ones((3, 2)), 0.95)
    assert values.tolist() == [0.5] * 3
    assert (lower < 0.1).all()
    assert (upper > 0.9).all()


def test_first_rollouts_alone_teach_it_the_values() -> None:
    trajectories = first_rollouts(ENGINE, 8)
    scores = Critic(Oracle(), rule="drop", l2=0.1)(trajectories, lambda starts, n: pytest.fail("no rollouts"))
    error = [
        abs(np.array(s.values) - exact_values(ENGINE, t)).mean() for s, t in zip(scores, trajectories, strict=True)
    ]
    assert np.mean(error) < 0.12
    wrong = [(s, t) for s, t in zip(scores, trajectories, strict=True) if not t.score.right]
    hits = [s.critical_step == np.argmin(np.diff(exact_values(ENGINE, t))) for s, t in wrong]
    assert np.mean(hits) > 0.9
    for score, trajectory in zip(scores, trajectories, strict=True):
        assert score.values[-1] == score.lower[-1] == score.upper[-1] == trajectory.score.value
        assert sum(score.advantages) == pytest.approx(trajectory.score.value - score.values[0])
        assert set(score.counts[:-1]) == {0}
        assert score.tokens == 0


def test_a_question_does_not_teach_the_head_that_judges_it() -> None:
    trajectories = first_rollouts(ENGINE, 4)
    critic = Critic(Oracle())
    before = critic(trajectories, make_sampler(ENGINE))
    own = [
        replace(t, score=replace(t.score, value=1 - t.score.value)) if t.start.problem_id == "0" else t
        for t in trajectories
    ]
    after = critic(own, make_sampler(ENGINE))
    of_question = [i for i, t in enumerate(trajectories) if t.start.problem_id == "0"]
    assert all(before[i].values[:-1] == after[i].values[:-1] for i in of_question)
    assert any(a.values[:-1] != b.values[:-1] for a, b in zip(before, after, strict=True))


def test_values_seen_before_make_it_better() -> None:
    trajectories = first_rollouts(ENGINE, 2)
    taught = Critic(Oracle())
    others = first_rollouts(ENGINE, 6, seed=5)
    taught.learn(others, MonteCarlo(rollouts=8)(others, make_sampler(ENGINE)))

    def error(critic: Critic) -> float:
        pairs = zip(critic(trajectories, make_sampler(ENGINE)), trajectories, strict=True)
        return float(np.mean([abs(np.array(s.values) - exact_values(ENGINE, t)).mean() for s, t in pairs]))

    assert error(taught) < 0.8 * error(Critic(Oracle()))


def test_a_head_for_other_questions_knows_the_values_of_boundaries() -> None:
    critic = Critic(Oracle(), l2=0.1)
    taught = critic.head([t for t in first_rollouts(ENGINE, 8) if int(t.start.problem_id) < 20])
    other = [t for t in first_rollouts(ENGINE, 4) if int(t.start.problem_id) >= 20]
    values = [taught.values(states, 0.95)[0] for states in critic.states(other)]
    errors = [np.abs(v - exact_values(ENGINE, t))[:-1].mean() for v, t in zip(values, other, strict=True)]
    assert np.mean(errors) < 0.12


def test_leaning_on_a_critic_moves_the_prior_by_its_trust() -> None:
    """One step that is never taken twice (p = 0): U_0 = V_0, so its prior is Beta(1/2 + t v, 1/2 + t (1 - v))."""
    trajectory = replace(first_rollouts(ENGINE, 1)[0], step_ends=(3,))
    branches = Branches([Evidence(trajectory)])
    branches.lean(0, np.array([0.9, 1.0]), 4.0)
    assert (branches.sums[0, 0], branches.counts[0, 0]) == pytest.approx((3.6, 4.0))
    values, _ = branches.draw(np.array([0]), 20_000, np.random.default_rng(0), surprise=0.999, concentration=1.0)
    assert values[0, :, 0].mean() == pytest.approx(4.1 / 5, abs=0.01)


def test_a_good_critic_saves_the_adaptive_search_tokens() -> None:
    """At small budgets: with many rollouts both find every critical step, and the critic saves next to nothing."""
    trajectories = [t for t in first_rollouts(ENGINE, 6, logprobs=True) if not t.score.right]
    truth = [np.diff(exact_values(ENGINE, t)).argmin() for t in trajectories]

    def found(**settings: Any) -> tuple[float, int]:
        hits, tokens = [], 0
        for seed in range(3):
            sample = replace(make_sampler(ENGINE), seed=seed)
            scores = Adaptive(rule="drop", seed=seed, **settings)(trajectories, sample)
            hits += [score.critical_step == step for score, step in zip(scores, truth, strict=True)]
            tokens += sample.tokens
        return float(np.mean(hits)), tokens

    plain, tokens = found(rollouts=2)
    hits, fewer = found(rollouts=1, critic=Critic(Oracle(), l2=0.1), trust=5.0)
    assert fewer < 0.9 * tokens
    assert hits >= plain


@pytest.mark.parametrize("settings", [{"l2": 0.0}, {"folds": 1}, {"rule": "x"}, {"model": None}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Critic"):
        Critic(**({"model": Oracle()} | settings))
