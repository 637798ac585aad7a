"""The value head on states whose values are known, cross-fitting, and the critic as a prior of the adaptive search."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from toy_chain import Unused, exact_values, first_rollouts, make_sampler, mistake_chain
from transformers import LlamaConfig, LlamaForCausalLM

from gpo.errors import ConfigError
from gpo.estimators import states
from gpo.estimators.adaptive import Adaptive
from gpo.estimators.branches import Branches
from gpo.estimators.critic import Critic, Head, trained_head
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.estimators.tally import Tally
from gpo.toy import ChainEngine
from gpo.types import Evidence, Group, StepScores, Trajectory

ENGINE = ChainEngine(tuple(mistake_chain([0.1] * 3 + [0.4] + [0.1] * 2) for _ in range(24)))


class Oracle(torch.nn.Module):
    """A model whose hidden state at a token is the logit of the exact value after it, and noise."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0  # that went through it

    def get_decoder(self) -> Any:
        return self

    def forward(self, input_ids: Any, use_cache: bool) -> Any:
        self.rows += len(input_ids)
        return SimpleNamespace(last_hidden_state=torch.tensor([self._states(ids) for ids in input_ids.tolist()]))

    def _states(self, ids: list[int]) -> list[tuple[float, float]]:
        prompt = ids.index(1) + 1
        end = ids.index(0) + 1  # padding is the same token
        values = [ENGINE.value(ids[: min(n, end)]) if n >= prompt else 0.5 for n in range(1, len(ids) + 1)]
        return list(zip(logit(np.clip(values, 0.02, 0.98)), np.sin(np.arange(len(ids))), strict=True))


def evidence_of(trajectories: Sequence[Trajectory], scores: Sequence[StepScores] = ()) -> Evidence:
    return Evidence(tuple(Group(t.start, (t,)) for t in trajectories), tuple(scores))


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
    scores = Critic(Oracle(), rule="drop", l2=0.1)(trajectories, Unused())
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


def test_values_of_searches_before_make_it_better() -> None:
    trajectories = first_rollouts(ENGINE, 2)
    scores = MonteCarlo(rollouts=8)(trajectories, make_sampler(ENGINE))

    def error(evidence: Evidence) -> float:
        pairs = zip(Critic(Oracle())(trajectories, Unused(), evidence), trajectories, strict=True)
        return float(np.mean([abs(np.array(s.values) - exact_values(ENGINE, t)).mean() for s, t in pairs]))

    assert error(evidence_of(trajectories, scores)) < 0.8 * error(evidence_of(trajectories))


def test_it_learns_from_the_round_and_not_from_the_chunk() -> None:
    trajectories = first_rollouts(ENGINE, 4)
    evidence = evidence_of(trajectories)
    whole = Critic(Oracle())(trajectories, Unused(), evidence)
    critic = Critic(Oracle())
    chunks = [trajectories[begin : begin + 2] for begin in range(0, len(trajectories), 2)]
    assert [score for chunk in chunks for score in critic(chunk, Unused(), evidence)] == whole
    # Two trajectories alone leave every value at the prior's one half; the round's tell sure from lost.
    inner = np.array([value for score in whole[:2] for value in score.values[:-1]])
    assert np.abs(inner - 0.5).max() > 0.2
    alone = [value for score in critic(trajectories[:2], Unused()) for value in score.values[:-1]]
    assert alone == pytest.approx([0.5] * len(alone))


def test_states_of_a_trajectory_are_computed_once() -> None:
    trajectories = first_rollouts(ENGINE, 3)
    model = Oracle()
    critic = Critic(model)
    for begin in range(0, len(trajectories), 4):
        critic(trajectories[begin : begin + 4], Unused(), evidence_of(trajectories))
    assert model.rows <= len(trajectories)
    longer = replace(trajectories[0], step_ends=trajectories[0].step_ends[:2])  # the same id, another place
    assert len(critic.states([longer])[0]) == 3
    critic.model = Oracle()  # another model has states of its own
    critic.states(trajectories[:2])
    assert critic.model.rows == 2


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    trajectories = first_rollouts(ENGINE, 1)
    monkeypatch.setattr(states, "KEPT", 3 * 16)  # three trajectories of eight boundaries and two numbers
    critic = Critic(Oracle())
    expected = Critic(Oracle()).states(trajectories)
    assert all((ours == theirs).all() for ours, theirs in zip(critic.states(trajectories), expected, strict=True))
    assert len(critic._states._kept) <= 3


def test_states_of_a_batch_are_those_of_each_alone() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    chains = ChainEngine(tuple(mistake_chain([0.1] * k) for k in range(1, 7)))
    trajectories = first_rollouts(chains, 2)
    together = states.computed(model, trajectories)
    for trajectory, found in zip(trajectories, together, strict=True):
        ids = torch.tensor([[*trajectory.start.prompt_ids, *trajectory.response_ids]])
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        at = [len(trajectory.start.prompt_ids) + boundary - 1 for boundary in trajectory.boundaries]
        assert found == pytest.approx(hidden[at].detach().numpy(), abs=1e-5)


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
    branches = Branches([Tally(trajectory)])
    branches.lean(0, np.array([0.9, 1.0]), 4.0)
    assert (branches.sums[0, 0], branches.counts[0, 0]) == pytest.approx((3.6, 4.0))
    values, _ = branches.draw(np.array([0]), 20_000, [np.random.default_rng(0)], surprise=0.999, concentration=1.0)
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
    hits, fewer = found(rollouts=1, critic="fitted", model=Oracle(), trust=5.0)
    assert fewer < 0.9 * tokens
    assert hits > plain - 0.03


def test_adaptive_with_a_critic_needs_a_model() -> None:
    with pytest.raises(ConfigError, match="model"):
        Adaptive(critic="fitted")(first_rollouts(ENGINE, 1), make_sampler(ENGINE))
    with pytest.raises(ConfigError, match="critic='some'"):
        Adaptive(critic="some")


@pytest.mark.parametrize("settings", [{"l2": 0.0}, {"folds": 1}, {"rule": "x"}, {"model": None}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Critic"):
        Critic(**({"model": Oracle()} | settings))


def test_a_trained_head_is_read_once_and_anew_where_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, read = tmp_path / "training.pt", torch.load
    loads: list[Any] = []
    monkeypatch.setattr(torch, "load", lambda *given, **options: loads.append(options) or read(*given, **options))
    for number, bias in enumerate((1.0, 2.0)):
        torch.save({"head": {"weight": torch.ones(1, 3), "bias": torch.tensor([bias])}, "optimizer": {}}, file)
        os.utime(file, ns=(number, number))
        for _ in range(2):
            found = trained_head(str(tmp_path))
            assert found is not None
            assert (found[0].tolist(), found[1]) == ([1.0] * 3, bias)
    assert [each["mmap"] for each in loads] == [True, True]
    assert trained_head(tmp_path / "none") is None
