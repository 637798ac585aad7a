"""KTO: Kahneman-Tversky optimization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from trl import KTOConfig
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from gpo.errors import ConfigError
from gpo.methods.division import PairRow
from gpo.methods.offline import Offline, pair_row
from gpo.methods.trainers import UnpairedTrainer
from gpo.preferences.dataset import interleave
from gpo.types import Pair, PrefixIn


@dataclass
class KTO(Offline):
    """Raise right completions above a reference point and push wrong ones below it; the two need not be paired.

    With r = log pi(y|x)/ref(y|x) and z = max(0, mean of r over mismatched x, y' of the batch), without gradient:
    L = w_right (1 - sigmoid(beta (r - z))) for right y, w_wrong (1 - sigmoid(beta (z - r))) for wrong y.
    Source: Ethayarajh et al. 2024, arXiv 2402.01306, equation 7.

    Every pair is unrolled into two labelled rows. The rows of a problem are spread over the epoch, those of one start
    are never neighbours, and y' is the completion of another problem of the batch: a sibling's completion is likely
    under x, which would bias z. If all rows of a batch are of one problem, y' is a sibling's.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    _mean_of_rows: ClassVar[bool] = False  # z is of a batch

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("beta")
        if self.batch_size < 2:
            raise ConfigError("KTO compares the rows of a batch: expected batch_size of at least 2, got 1.")

    def _rows(self, pairs: Sequence[Pair], prefix_in: PrefixIn = "prompt") -> list[PairRow]:
        """All epochs in the order of training, two rows a pair. A last row with nothing to mismatch it is left out."""
        random = Random(self._order_seed)
        both = [row for pair in pairs for row in self._unroll(pair, prefix_in)]
        rows = [row for _ in range(self.epochs) for row in interleave(both, random, problem=_problem, start=_start)]
        mismatched = []
        for first in range(0, len(rows), self.batch_size):
            batch = rows[first : first + self.batch_size]
            if len(batch) > 1:
                mismatched += [
                    {**row, "KL_completion_ids": donor["completion_ids"]}
                    for row, donor in zip(batch, mismatch(batch), strict=True)
                ]
        return mismatched

    def _unroll(self, pair: Pair, prefix_in: PrefixIn) -> list[PairRow]:
        both = pair_row(pair, prefix_in)
        start = [*pair.prompt_ids, *pair.prefix_ids]
        shared = {"prompt_ids": both["prompt_ids"], "problem_id": pair.problem_id, "start_ids": start}
        return [
            {**shared, "completion_ids": ids, "label": label, "length": len(both["prompt_ids"]) + len(ids)}
            for ids, label in ((both["chosen_ids"], True), (both["rejected_ids"], False))
        ]

    def _order(self, rows: Sequence[PairRow]) -> list[int]:
        return list(range(len(rows)))

    @property
    def extra_passes(self) -> int:
        """Beside one over the pairs: in each epoch the reference reads rows and mismatches, the policy mismatches."""
        return 3 * self.epochs - 1

    def _trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Any:
        weights = {"desirable_weight": self.desirable_weight, "undesirable_weight": self.undesirable_weight}
        config = KTOConfig(beta=self.beta, **weights, **arguments)
        collator = DataCollatorForUnpairedPreference(pad_token_id=self.policy.tokenizer.pad_token_id or 0)
        return UnpairedTrainer(args=config, data_collator=collator, **kwargs)


def mismatch(batch: Sequence[PairRow]) -> list[PairRow]:
    """For each row another one of the batch, of another problem where possible: the least rotation that does it.

    A rotation, so that each completion is used once: z is then of the same completions as the rewards.
    """
    rotations = [[*batch[-shift:], *batch[:-shift]] for shift in range(1, len(batch))]
    return min(
        rotations, key=lambda donors: sum(_problem(a) == _problem(b) for a, b in zip(batch, donors, strict=True))
    )


def _problem(row: PairRow) -> Any:
    return row["problem_id"]


def _start(row: PairRow) -> Any:
    return (row["problem_id"], *row["start_ids"])
