"""DPO: direct preference optimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trl import DPOConfig

from gpo.errors import ConfigError, unknown
from gpo.methods.offline import Offline, pair_collator
from gpo.methods.trainers import PairTrainer

OF_BATCHES = ("aot", "aot_unpaired", "sft")  # losses that are no means over pairs
# Of TRL's, those that take no other setting than beta.
LOSSES = (
    "aot", "aot_unpaired", "apo_down", "apo_zero", "bco_pair", "discopop", "hinge", "ipo", "nca_pair", "robust",
    "sft", "sigmoid", "sigmoid_norm", "sppo_hard",
)  # fmt: skip


@dataclass
class DPO(Offline):
    """Raise the margin of chosen over rejected, measured against the reference.

    L = -log sigmoid(beta (log pi(y_w|x)/ref(y_w|x) - log pi(y_l|x)/ref(y_l|x))), log-probabilities summed over tokens.
    With `prefix_in="completion"` the shared prefix cancels in the margin, so that it changes nothing.
    Source: Rafailov et al. 2023, arXiv 2305.18290, equation 7; other losses as TRL defines them.
    """

    beta: float = 0.1
    loss_type: str = "sigmoid"  # a loss of TRL's DPOTrainer

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("beta")
        if self.loss_type not in LOSSES:
            raise unknown("loss_type", self.loss_type, LOSSES)

    def _trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Any:
        if self.accelerator.num_processes > 1 and self.loss_type in OF_BATCHES:
            raise ConfigError(
                f"The loss {self.loss_type!r} is of a whole batch and cannot be divided over "
                f"{self.accelerator.num_processes} processes. Train in one, or choose another loss_type."
            )
        config = DPOConfig(beta=self.beta, loss_type=[self.loss_type], **arguments)
        return PairTrainer(args=config, data_collator=pair_collator(self.policy.tokenizer), **kwargs)
