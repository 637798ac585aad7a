import math

import pytest
import torch

from gpo.methods.losses import (
    gae,
    kl_estimate,
    leave_one_out_advantages,
    normalised_advantages,
    policy_loss,
    value_loss,
    whiten,
)


def close(values: torch.Tensor, expected: list[float]) -> None:
    assert values.tolist() == pytest.approx(expected, abs=1e-6)


def test_gae_by_hand() -> None:
    # delta = [0 + .9*.4 - .5, 0 + .9*.2 - .4, 1 - .2] = [-.14, -.22, .8]; discount * trace = .45
    advantages, returns = gae(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.4, 0.2]), 0.9, 0.5)
    close(advantages, [-0.14 + 0.45 * (-0.22 + 0.45 * 0.8), -0.22 + 0.45 * 0.8, 0.8])
    close(returns, [0.5 - 0.14 + 0.45 * 0.14, 0.4 + 0.14, 1.0])


def test_gae_limits() -> None:
    rewards, values = torch.tensor([0.1, 0.2, 1.0]), torch.tensor([0.5, 0.4, 0.2])
    close(gae(rewards, values, 1.0, 1.0)[1], [1.3, 1.2, 1.0])
    close(gae(rewards, values, 1.0, 0.0)[0], [0.0, 0.0, 0.8])


def test_group_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    close(normalised_advantages(rewards), [0.75 / 0.5001, *[-0.25 / 0.5001] * 3])
    close(normalised_advantages(rewards, scale=False), [0.75, -0.25, -0.25, -0.25])
    close(leave_one_out_advantages(rewards), [1.0, -1 / 3, -1 / 3, -1 / 3])


def test_groups_without_a_difference_teach_nothing() -> None:
    for rewards in (torch.ones(4), torch.zeros(1)):
        close(normalised_advantages(rewards), [0.0] * len(rewards))
        close(leave_one_out_advantages(rewards), [0.0] * len(rewards))


def test_policy_loss_is_held_only_where_the_clip_binds() -> None:
    ratio = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    advantages = torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0])
    loss, held = policy_loss(ratio.log(), advantages, 0.2, 0.3)
    close(loss, [-2.0, -2.6, 3.0, -1.0, 1.6])
    assert held.tolist() == [False, True, False, False, True]


def test_the_gradient_stops_where_it_is_held() -> None:
    log_ratio = torch.tensor([1.5, 1.1]).log().requires_grad_()
    policy_loss(log_ratio, torch.ones(2), 0.2, 0.2)[0].sum().backward()
    assert log_ratio.grad is not None
    close(log_ratio.grad, [0.0, -1.1])


def test_value_loss_is_the_larger_of_clipped_and_not() -> None:
    values, old, returns = torch.tensor([1.0, 0.1, 0.5]), torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1.0, 1.0, 0.0])
    close(value_loss(values, old, returns, 0.2), [0.5 * 0.3**2, 0.5 * 0.9**2, 0.5 * 0.5**2])


def test_the_kl_estimate_is_unbiased_and_never_negative() -> None:
    pi, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    estimate = kl_estimate(pi.log(), reference.log())
    assert (estimate >= 0).all()
    exact = sum(p * math.log(p / q) for p, q in zip(pi.tolist(), reference.tolist(), strict=True))
    assert (pi * estimate).sum().item() == pytest.approx(exact, abs=1e-6)


def test_whitening_is_over_all_rows_together() -> None:
    rows = whiten([torch.tensor([1.0, 2.0]), torch.tensor([3.0])])
    close(torch.cat(rows), [-1.0, 0.0, 1.0])
    close(whiten([torch.tensor([4.0])])[0], [0.0])


def test_equal_rewards_have_no_advantage_whatever_rounding_does() -> None:
    for value, size in ((0.7, 7), (0.3, 8)):
        assert not normalised_advantages(torch.full((size,), value)).any()


def test_each_side_of_the_clip_has_its_own_bound() -> None:
    ratio, advantages = torch.tensor([1.25, 1.35, 0.85, 0.75]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss, held = policy_loss(ratio.log(), advantages, 0.2, 0.3)
    close(loss, [-1.25, -1.3, 0.85, 0.8])
    assert held.tolist() == [False, True, False, True]


def test_a_value_is_kept_near_the_old_one_from_below_too() -> None:
    close(value_loss(torch.tensor([0.1]), torch.tensor([0.5]), torch.tensor([0.0]), 0.2), [0.5 * 0.3**2])
