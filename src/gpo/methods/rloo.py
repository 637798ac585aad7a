"""RLOO: REINFORCE leave-one-out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from gpo.methods.losses import leave_one_out_advantages
from gpo.methods.online import Online
from gpo.methods.rows import TrainingRow


@dataclass
class RLOO(Online):
    """REINFORCE on whole completions, with the mean reward of the start's other trajectories as baseline.

    A_i = R_i - mean of R_j, j not i; R is less beta times log pi/ref of the completion where `kl_in` is "reward". The
    ratio is of the whole completion and is clipped as in PPO; in the first step of an update it is 1, and the gradient
    is A_i grad log pi(y_i). Source: Ahmadian et al. 2024, arXiv 2402.14740, equation 8, which has no ratio. With step
    credit the steps take the place of completions.
    """

    kl_in: Literal["loss", "reward"] = "reward"
    aggregate: Literal["token", "sequence"] = "sequence"

    ratio_of: ClassVar[Literal["token", "sequence"]] = "sequence"

    def _set_advantages(self, rows: Sequence[TrainingRow]) -> None:
        self._set_group_advantages(rows, leave_one_out_advantages)
