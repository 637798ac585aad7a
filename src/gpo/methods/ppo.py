"""PPO: proximal policy optimization with a critic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gpo.errors import ConfigError
from gpo.methods.losses import gae, value_loss, whiten
from gpo.methods.online import Online
from gpo.methods.rows import TrainingRow, by_group, joined
from gpo.methods.scoring import Scores
from gpo.types import Trajectory


@dataclass
class PPO(Online):
    """The clipped surrogate with advantages from a critic, a linear head on the policy's last hidden states.

    The reward of a token is -beta log pi/ref (where `kl_in` is "reward"), plus the score at the last one; advantages
    and returns are by GAE. Loss per token: min(rho A, clip(rho) A) + value_coefficient * value loss, clipped around
    the critic's old value. Source: Schulman et al. 2017, arXiv 1707.06347; whitening and the clipped value loss as in
    Huang et al. 2022, "The 37 implementation details of PPO".

    With `monte_carlo` the critic's target at a place from which several trajectories were sampled is their mean score
    in place of the return: the values of the search teach it, for every trajectory that passes there. With step credit
    the advantages are those of the steps; the critic's target is the value behind the step that a token is in.
    """

    kl_in: Literal["loss", "reward"] = "reward"
    discount: float = 1.0
    trace: float = 1.0  # lambda of GAE; below 1 a late reward fades along a long response
    value_clip: float = 0.2
    value_coefficient: float = 0.5
    whiten: bool = True  # advantages to mean 0 and deviation 1 over the update
    monte_carlo: bool = True

    reads_hidden: ClassVar[bool] = True

    @property
    def extra_passes(self) -> int:
        """As of all; and the critic's values."""
        return super().extra_passes + 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be between 0 and 1, got {getattr(self, name)}.")
        if self.value_clip <= 0 or self.value_coefficient < 0:
            got = f"{self.value_clip} and {self.value_coefficient}"
            raise ConfigError(f"Expected value_clip > 0 and value_coefficient >= 0, got {got}.")

    @cached_property
    def head(self) -> torch.nn.Linear:
        """The critic: the success probability before a token, 0 everywhere until the first update."""
        model = self.policy.model
        head = torch.nn.Linear(model.config.get_text_config().hidden_size, 1).to(model.device)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        state = self._saved_state()
        if state is not None:
            head.load_state_dict(state["head"])
        return head

    @torch.no_grad()
    def values(self, trajectories: Sequence[Trajectory]) -> list[tuple[float, ...]]:
        """The critic's (K+1,) values at the boundaries of each trajectory; the last is the score, NaN if it failed."""
        rewards = [math.nan if t.score.value is None else t.score.value for t in trajectories]
        rows = [
            TrainingRow(t.start.prompt_ids, t.response_ids, reward, 0, t.start, None)
            for t, reward in zip(trajectories, rewards, strict=True)
        ]
        self._set_values([row for row in rows if row.tokens])
        return [
            (*(row.values[boundary].item() for boundary in trajectory.boundaries[:-1]), row.reward)
            for row, trajectory in zip(rows, trajectories, strict=True)
        ]

    def _parameters(self) -> list[Tensor]:
        return [*super()._parameters(), *self.head.parameters()]

    def _extra_state(self) -> dict[str, Any]:
        return {"head": self.head.state_dict()}

    def _set_values(self, rows: Sequence[TrainingRow]) -> None:
        self._set("values", self.policy.model, rows, self._critic)

    def _critic(self, out: Scores) -> Tensor:
        assert out.hidden is not None
        values: Tensor = self.head(out.hidden.float())[..., 0]
        return values

    @torch.no_grad()
    def _begin_at_mean(self, rows: Sequence[TrainingRow]) -> None:
        """Let a critic that has learned nothing give the mean score: its first squared error is then the variance."""
        if not any(parameter.any() for parameter in self.head.parameters()):
            self.head.bias.fill_(fmean(row.reward for row in rows))

    def _set_advantages(self, rows: Sequence[TrainingRow]) -> None:
        self._begin_at_mean(rows)
        self._set_values(rows)
        for row in rows:
            rewards = -self._kl_penalty(row)
            rewards[-1] += row.reward
            row.advantages, row.returns = gae(rewards, row.values, self.discount, self.trace)
        if self.monte_carlo:
            _teach_search_values(rows)
        if self.whiten:
            for row, advantages in zip(rows, whiten([row.advantages for row in rows]), strict=True):
                row.advantages = advantages

    def _set_step_advantages(self, rows: Sequence[TrainingRow]) -> None:
        super()._set_step_advantages(rows)
        self._begin_at_mean(rows)
        self._set_values(rows)
        for row in rows:
            values = torch.tensor([step.value for step in row.steps])
            row.returns = values.repeat_interleave(torch.tensor(row.sizes))
        if self.monte_carlo:
            _teach_search_values(rows)

    @property
    def _scales_steps(self) -> bool:
        return self.whiten

    def _extra_loss(self, rows: Sequence[TrainingRow], out: Scores, weight: Tensor) -> tuple[Tensor, dict[str, float]]:
        values = self._critic(out)
        old, returns = joined(rows, "values", values), joined(rows, "returns", values)
        loss = (value_loss(values, old, returns, self.value_clip) * weight).sum()
        error = ((values.detach() - returns) ** 2 * weight).sum().item()
        return self.value_coefficient * loss, {"value_error": error}


def _teach_search_values(rows: Sequence[TrainingRow]) -> None:
    """Put the mean score of the rows that start at a place over the return of every row that passes there."""
    means: dict[int, dict[tuple[int, ...], float]] = {}
    for siblings in by_group(rows):
        if len(siblings) > 1:
            place = siblings[0].start.token_ids
            means.setdefault(len(place), {})[place] = fmean(row.reward for row in siblings)
    for row in rows:
        for length, known in means.items():
            if len(row.context) <= length < len(row.ids) and row.ids[:length] in known:
                row.returns[length - len(row.context)] = known[row.ids[:length]]
