"""The arithmetic of the online methods, on plain tensors.

Axes: G trajectories of one start, T tokens of one completion, (B, L) tokens of a padded batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def normalised_advantages(rewards: Tensor, scale: bool = True) -> Tensor:
    """(G,) reward minus the group's mean, divided by its standard deviation if `scale`.

    Zero where all rewards are equal. The deviation is of the sample (G - 1), with 1e-4 added.
    Source: Shao et al. 2024 (GRPO), arXiv 2402.03300; without `scale`: Liu et al. 2025 (Dr. GRPO), arXiv 2503.20783.
    """
    if len(rewards) and rewards.max() == rewards.min():  # the mean is rounded, and the deviation next to nothing
        return torch.zeros_like(rewards)
    centred = rewards - rewards.mean()
    if not scale or len(rewards) < 2:
        return centred
    return centred / (rewards.std() + 1e-4)


def scaled(advantages: Tensor) -> Tensor:
    """Numbers divided by their deviation (of the sample, with 1e-4 added), not shifted: zero stays zero."""
    return advantages / (advantages.std() + 1e-4) if len(advantages) > 1 else advantages


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    """(G,) reward minus the mean of the others; zero for a group of one, which has no baseline.

    Source: Ahmadian et al. 2024 (RLOO), arXiv 2402.14740, equation 8.
    """
    size = len(rewards)
    if size < 2:
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) * size / (size - 1)


def gae(rewards: Tensor, values: Tensor, discount: float, trace: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over one completion: (T,) advantages and (T,) returns.

    A_t = sum over l of (discount trace)^l delta_{t+l} with delta_t = r_t + discount V_{t+1} - V_t and V_T = 0; the
    return is A_t + V_t. Source: Schulman et al. 2016, arXiv 1506.02438, equation 16.
    """
    advantages = torch.zeros_like(values)
    carried, after = 0.0, 0.0
    for t in reversed(range(len(values))):
        delta = float(rewards[t]) + discount * after - float(values[t])
        carried = delta + discount * trace * carried
        advantages[t] = carried
        after = float(values[t])
    return advantages, advantages + values


def whiten(rows: list[Tensor]) -> list[Tensor]:
    """Shift and scale all numbers of all rows together to mean 0 and deviation 1."""
    flat = torch.cat(rows)
    deviation = flat.std() if len(flat) > 1 else torch.zeros(())
    return [(row - flat.mean()) / (deviation + 1e-8) for row in rows]


def policy_loss(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Clipped surrogate and where the clip holds the gradient back, both of the shape of `log_ratio`.

    -min(rho A, clip(rho, 1 - low, 1 + high) A). Source: Schulman et al. 2017 (PPO), arXiv 1707.06347, equation 7.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - low, 1 + high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    held = ((ratio < 1 - low) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))
    return loss, held


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error of the value or of the value kept within `clip` of the old one, whichever is larger."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def kl_estimate(logps: Tensor, reference: Tensor) -> Tensor:
    """Per token ref/pi - log(ref/pi) - 1: unbiased for KL(pi || ref) under pi, and never negative.

    Source: Schulman 2020, "Approximating KL divergence", the estimator k3.
    """
    log_ratio = reference - logps
    return log_ratio.exp() - log_ratio - 1
