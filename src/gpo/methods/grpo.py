"""GRPO: group relative policy optimization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from gpo.methods.losses import normalised_advantages
from gpo.methods.online import Online
from gpo.methods.rows import TrainingRow


@dataclass
class GRPO(Online):
    """The clipped surrogate of PPO, with the group of a start as baseline in place of a critic.

    A_i = (R_i - mean R) / (std R + 1e-4) for every token of trajectory i; loss min(rho A, clip(rho) A) per token, with
    beta times the k3 estimate of the KL (times rho with `unbiased_kl`). Groups are per start, so that resets never mix
    with fresh rollouts. A group of equal rewards teaches nothing. Source: Shao et al. 2024, arXiv 2402.03300,
    equation 3. `aggregate` "sequence" is the paper's mean of means, "token" (default, and TRL's) that of DAPO, arXiv
    2503.14476. With step credit A is the step's, over the deviation of all steps of the update in place of the group's.
    """

    scale: bool = True  # divide by the group's standard deviation

    @property
    def _scales_steps(self) -> bool:
        return self.scale

    def _set_advantages(self, rows: Sequence[TrainingRow]) -> None:
        self._set_group_advantages(rows, partial(normalised_advantages, scale=self.scale))
