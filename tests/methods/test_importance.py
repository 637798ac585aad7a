"""Rollouts of a sampler whose log-probabilities are not those of the policy in training."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_online import METHODS, group, mixed_groups, run
from test_online import told as told_reference
from tiny_policy import completion_logps, make_model, same, state

from gpo.errors import ConfigError
from gpo.methods.grpo import GRPO
from gpo.methods.online import Online
from gpo.methods.rloo import RLOO
from gpo.methods.rows import group_by_start
from gpo.types import Group, Trajectory


def told(t: Trajectory, nats: float) -> Trajectory:
    """With log-probabilities that are off by as many nats a token."""
    logprobs = tuple(logprob + nats for logprob in t.completion.logprobs or ())
    return replace(t, completion=replace(t.completion, logprobs=logprobs))


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def weighted_loss(model: Any, groups: list[Group], cap: float, *, whole: bool) -> torch.Tensor:
    """-w rho A, one sequence at a time, in a first step: rho is 1, w is min(policy / sampler, cap)."""
    terms = []
    for g in groups:
        rewards = torch.tensor([t.score.value or 0.0 for t in g.trajectories])
        for t, reward in zip(g.trajectories, rewards, strict=True):
            logps = completion_logps(model, g.start.token_ids, t.completion.token_ids)
            log_weight = logps.detach() - torch.tensor(t.completion.logprobs)
            rho = (logps - logps.detach()).sum().exp() if whole else (logps - logps.detach()).exp()
            weight = (log_weight.sum() if whole else log_weight).exp().clamp(max=cap)
            centred = reward - rewards.mean()
            advantage = centred * len(rewards) / (len(rewards) - 1) if whole else centred / (rewards.std() + 1e-4)
            terms.append(-weight * rho * advantage)
    return torch.stack(terms).mean() if whole else torch.cat(terms).mean()


@pytest.mark.parametrize("kind", [GRPO, RLOO])
@pytest.mark.parametrize("cap", [1.05, 20.0])
def test_the_loss_and_its_gradient_have_the_truncated_weight_of_the_sampler(kind: type[Online], cap: float) -> None:
    model, sampler = make_model(), make_model()
    with torch.no_grad():
        for p in sampler.parameters():
            p.add_(0.01 * torch.randn_like(p))
    groups = mixed_groups(sampler)
    loss = weighted_loss(model, groups, cap, whole=kind is RLOO)
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients(model, loss)))
    _, metrics = run(kind, copy.deepcopy(model), groups, importance_cap=cap)
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["ratio_error"] > 0.01
    assert (metrics["importance_capped"] > 0) == (cap < 1.5)


@pytest.mark.parametrize("kind", METHODS)
def test_a_sampler_that_is_the_policy_changes_nothing(kind: type[Online]) -> None:
    """Whether its log-probabilities are taken, corrected or not told: the same weights after four steps."""
    settings = {"minibatches": 2, "epochs": 2}
    groups = mixed_groups(make_model())
    taken, metrics = run(kind, make_model(), groups, importance_cap=None, **settings)
    corrected, _ = run(kind, make_model(), groups, **settings)
    untold, _ = run(kind, make_model(), mixed_groups(), **settings)
    for method in (corrected, untold):
        for a, b in zip(state(method.policy.model), state(taken.policy.model), strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    assert metrics["importance_capped"] == 0
    assert metrics["clip_fraction"] >= 0


def test_an_only_step_takes_the_policy_from_its_own_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    looked_up = Online._set

    def count(self: Online, name: str, model: Any, rows: Any) -> None:
        calls.append(name)
        looked_up(self, name, model, rows)

    monkeypatch.setattr(Online, "_set", count)
    groups = mixed_groups(make_model())
    once, _ = run(GRPO, make_model(), groups)
    assert calls == []
    monkeypatch.setattr(GRPO, "_look_up", lambda self, rows: self._set("old", self.policy.model, rows))
    looked, _ = run(GRPO, make_model(), groups)
    assert calls == ["old"]
    assert same(state(once.policy.model), state(looked.policy.model))


def test_the_clip_is_around_the_policy_before_the_update_and_not_around_the_sampler() -> None:
    """A sampler that is far off would hold every gradient back in the first step."""
    model = make_model()
    g = group([1, 2], [], ([3, 4], 1.0), ([5, 6], 0.0), model=model)
    off = (-math.log(1.5), math.log(1.5))  # nats a token
    changed = Group(g.start, tuple(told(t, nats) for t, nats in zip(g.trajectories, off, strict=True)))
    _, held = run(GRPO, copy.deepcopy(model), [changed], importance_cap=None)
    _, metrics = run(GRPO, copy.deepcopy(model), [changed])
    assert held["clip_fraction"] == 1
    assert metrics["clip_fraction"] == 0
    assert metrics["grad_norm"] > 0


def test_a_cap_that_is_no_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match="importance_cap must be greater than 0, got 0"):
        run(GRPO, make_model(), mixed_groups(), importance_cap=0.0)


def test_what_the_engine_told_is_taken_of_the_trained_tokens_only() -> None:
    groups = mixed_groups(make_model())
    for row in group_by_start(groups, train_prefix=True):  # it told nothing of a prefix
        assert (row.sampled is None) == bool(row.start.prefix_ids)
    for row in group_by_start(groups, credit="step"):
        assert row.sampled is not None
        assert len(row.sampled) == len(row.tokens) == 1


def told_off(nats: tuple[float, float], model: Any) -> Group:
    """Two and three tokens, of which the engine has told log-probabilities that are off by so many nats each."""
    g = group([1, 2], [], ([3, 4], 1.0), ([5, 6, 7], 0.0), model=model)
    return Group(g.start, tuple(told(t, each) for t, each in zip(g.trajectories, nats, strict=True)))


def test_the_clip_upwards_may_be_another_one() -> None:
    model = make_model()
    changed = told_off((-math.log(1.5), math.log(1.5)), model)  # ratios 1.5 and 2/3
    settings = {"importance_cap": None, "clip": 0.2, "clip_high": 0.6}
    _, metrics = run(GRPO, copy.deepcopy(model), [changed], **settings)
    assert metrics["clip_fraction"] == pytest.approx(3 / 5)


def test_the_largest_error_of_all_batches_is_told() -> None:
    model = make_model()
    for nats in ((-math.log(1.5), 0.0), (0.0, -math.log(1.5))):
        _, metrics = run(GRPO, copy.deepcopy(model), [told_off(nats, model)], max_tokens=4)
        assert metrics["ratio_error"] == pytest.approx(0.5, abs=1e-4)


def test_the_kl_in_the_loss_is_of_each_token_and_has_the_weight_of_the_sampler() -> None:
    """RLOO, whose ratio and weight are of the completion: rho of the KL is the token's all the same."""
    model, sampler, reference = make_model(), make_model(), make_model()
    with torch.no_grad():
        for p, q in zip(sampler.parameters(), reference.parameters(), strict=True):
            p.add_(0.01 * torch.randn_like(p))
            q.mul_(0.9)
    groups, terms = mixed_groups(sampler), []
    for t in (t for g in groups for t in g.trajectories):
        context, ids = t.start.token_ids, t.completion.token_ids
        logps, ref = completion_logps(model, context, ids), completion_logps(reference, context, ids).detach()
        weight = (logps.detach() - torch.tensor(t.completion.logprobs)).sum().exp()
        k3 = (ref - logps).exp() - (ref - logps) - 1
        terms.append((weight * (logps - logps.detach()).exp() * k3).mean())
    loss = weighted_loss(model, groups, 20.0, whole=True) + 0.5 * torch.stack(terms).mean()
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients(model, loss)))
    settings = {"beta": 0.5, "kl_in": "loss", "importance_cap": 20.0}
    _, metrics = run(RLOO, copy.deepcopy(model), groups, told_reference(reference), **settings)
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
