"""SimPO: simple preference optimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from trl import DPOConfig

from gpo.errors import ConfigError
from gpo.methods.offline import Offline, pair_collator
from gpo.methods.trainers import ReferenceFreeTrainer


@dataclass
class SimPO(Offline):
    """Raise the mean log-probability per token of chosen over rejected by a target margin, without a reference.

    L = -log sigmoid(beta/|y_w| log pi(y_w|x) - beta/|y_l| log pi(y_l|x) - gamma). No behaviour-cloning term is added,
    which in TRL's CPO trainer takes `cpo_alpha=0`. Source: Meng et al. 2024, arXiv 2405.14734, equation 6.
    """

    beta: float = 2.0
    gamma: float = 1.0  # target margin; the paper finds gamma / beta of about 0.5 good

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0 or self.gamma < 0:
            raise ConfigError(f"Expected beta > 0 and gamma >= 0, got beta {self.beta} and gamma {self.gamma}.")

    def loss(self, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        """(B,) from the mean log-probabilities per token, (B,) each."""
        return -logsigmoid(self.beta * (chosen - rejected) - self.gamma)

    def _trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Any:
        collator = pair_collator(self.policy.tokenizer)
        return ReferenceFreeTrainer(args=DPOConfig(**arguments), data_collator=collator, loss=self.loss, **kwargs)
