"""ORPO: odds-ratio preference optimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from trl import DPOConfig

from gpo.methods.offline import Offline, pair_collator
from gpo.methods.trainers import ReferenceFreeTrainer


@dataclass
class ORPO(Offline):
    """Imitate chosen, and raise its odds over those of rejected, without a reference.

    With p = exp(mean log-probability per token) and odds = p / (1 - p):
    L = -log p(y_w|x) - beta log sigmoid(log odds(y_w|x) - log odds(y_l|x)).
    The first term counts the completion's tokens, each sequence alike (TRL: prompt tokens too, each token alike).
    Source: Hong et al. 2024, arXiv 2403.07691, equations 6 and 7; beta is its lambda.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("beta")

    def loss(self, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        """(B,) from the mean log-probabilities per token, (B,) each."""
        return -chosen - self.beta * logsigmoid(_log_odds(chosen) - _log_odds(rejected))

    def _trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Any:
        collator = pair_collator(self.policy.tokenizer)
        return ReferenceFreeTrainer(args=DPOConfig(**arguments), data_collator=collator, loss=self.loss, **kwargs)


def _log_odds(logp: torch.Tensor) -> torch.Tensor:
    # A probability that rounds to 1 has infinite odds and no gradient.
    logp = logp.clamp(max=-1e-6)
    return logp - torch.log(-torch.expm1(logp))
