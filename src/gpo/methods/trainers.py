"""TRL's preference trainers on our token ids.

What differs from TRL: nothing is tokenised, so that no boundary moves and no end of sequence is added; the order of the
rows is given, so that a resumed run sees the same batches; the reference log-probabilities are those of the model as
it is handed over, computed once in batches of even length; nothing is sent to a hub.
"""

# Private names that this file, and this file alone, depends on; they are why the versions are bounded:
# TRL's `_prepare_dataset`, `_precompute_ref_logps`, `_compute_loss`, `_metrics`, and the `fused_lm_head` of a model's
# forward; transformers' `_get_train_sampler`. TRL's `_send_telemetry` is only switched off.

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import DPOTrainer, KTOTrainer

from gpo.errors import DataError
from gpo.methods.metrics import begin_rows, write_rows

PairRow = dict[str, Any]  # what TRL's collators take, and what belongs to it


class _Order(Sampler[int]):
    def __init__(self, order: Sequence[int]) -> None:
        self.order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


class OnTokenIds:
    """Mixin in front of a TRL trainer; a subclass says in `reference` what the frozen model adds to each row."""

    data_collator: Any
    model: Any
    accelerator: Any
    args: Any
    _metrics: dict[str, dict[str, list[float]]]  # TRL's: by mode and name, a number for each batch of a step

    def __init__(self, *args: Any, order: Sequence[int], **kwargs: Any) -> None:
        self.order = order  # indices into the dataset, all epochs one after the other
        super().__init__(*args, **kwargs)

    def reference(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Columns of (B,) numbers that the model at the start adds to the rows of this batch."""
        raise NotImplementedError

    def outputs(self, model: Any, batch: Mapping[str, torch.Tensor], prefix: str = "") -> Any:
        """`log_probs` and `entropy` of the next tokens, (B, L - 1) nats; `log_probs` is 0 outside completions."""
        ids = batch[f"{prefix}input_ids"]
        labels = ids.masked_fill(batch[f"{prefix}completion_mask"] == 0, -100)
        inputs = {"input_ids": ids, "attention_mask": batch[f"{prefix}attention_mask"]}
        return model(**inputs, labels=labels, fused_lm_head=True)

    def sequence_logps(self, model: Any, batch: Mapping[str, torch.Tensor], prefix: str = "") -> torch.Tensor:
        """(B,) log-probability in nats of each completion."""
        logps: torch.Tensor = self.outputs(model, batch, prefix).log_probs.sum(dim=1)
        return logps

    def note_kl(self, at_start: float, now: float, mask: torch.Tensor) -> None:
        """Log `kl`, an estimate of KL(start || policy) per completion token in nats.

        (log start(y|x) - log policy(y|x)) / tokens, both sums over the batch: the estimator k1 of Schulman 2020,
        "Approximating KL divergence". It is unbiased for completions sampled by the model at the start at temperature
        1. Ours are picked from such, as many right as wrong ones, and searched starts are over-represented: so it is
        the KL over that mixture, and may be negative.

        Args:
            at_start: log-probability of all completions of the batch by the model at the start, nats.
            now: the same by the policy.
            mask: 1 for each completion token.
        """
        self._metrics["train"]["kl"].append((at_start - now) / mask.sum().item())

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        return _Order(self.order)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        # TRL copies adapters to compare with; here the model itself is still what it was at the start.
        if isinstance(self.model, PeftModel) and "ref" in self.model.peft_config:
            self.model.delete_adapter("ref")
        lengths = dataset["length"]
        rows = sorted(range(len(dataset)), key=lengths.__getitem__)
        columns: dict[str, list[float]] = {}
        for first in range(0, len(rows), batch_size):
            chunk = rows[first : first + batch_size]
            batch = {k: v.to(self.args.device) for k, v in self.data_collator([dataset[i] for i in chunk]).items()}
            with torch.no_grad(), self.accelerator.autocast():
                added = self.reference(batch)
            for column, values in added.items():
                target = columns.setdefault(column, [math.nan] * len(rows))
                for i, value in zip(chunk, values.tolist(), strict=True):
                    target[i] = value
        for column, numbers in columns.items():
            dataset = dataset.add_column(column, numbers)
        return dataset

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        pass


class PairTrainer(OnTokenIds, DPOTrainer):  # type: ignore[misc]
    """DPO: rows have `prompt_ids`, `chosen_ids`, `rejected_ids` and their `length`."""

    def reference(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        chosen, rejected = self.sequence_logps(self.model, batch).chunk(2)
        return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def at_start(self, inputs: Mapping[str, torch.Tensor]) -> float:
        """Log-probability in nats of all completions of a batch by the model at the start."""
        return (inputs["ref_chosen_logps"].sum() + inputs["ref_rejected_logps"].sum()).item()

    def _compute_loss(self, model: Any, inputs: Mapping[str, torch.Tensor], return_outputs: bool) -> torch.Tensor:
        loss: torch.Tensor = super()._compute_loss(model, inputs, return_outputs)
        means = [self._metrics["train"][f"logps/{side}"][-1] for side in ("chosen", "rejected")]
        self.note_kl(self.at_start(inputs), sum(means) * len(inputs["ref_chosen_logps"]), inputs["completion_mask"])
        return loss


class UnpairedTrainer(OnTokenIds, KTOTrainer):  # type: ignore[misc]
    """KTO: rows have `prompt_ids`, `completion_ids`, `KL_completion_ids`, `label` and their `length`."""

    def reference(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        matched, mismatched = (self.sequence_logps(self.model, batch, prefix) for prefix in ("", "KL_"))
        return {"ref_logps": matched, "ref_KL_logps": mismatched}

    def _compute_loss(self, model: Any, inputs: Mapping[str, torch.Tensor], return_outputs: bool) -> torch.Tensor:
        metrics, labels = self._metrics["train"], inputs["label"]
        seen = {side: len(metrics.get(f"logps/{side}", ())) for side in ("chosen", "rejected")}
        loss: torch.Tensor = super()._compute_loss(model, inputs, return_outputs)
        metrics["reference_point"].append(metrics["kl"].pop())
        now = 0.0
        for side, rows in (("chosen", labels.sum().item()), ("rejected", (~labels.bool()).sum().item())):
            if len(metrics.get(f"logps/{side}", ())) > seen[side]:  # a batch may have rows of one kind only
                now += metrics[f"logps/{side}"][-1] * rows
        self.note_kl(inputs["ref_logps"].sum().item(), now, inputs["completion_mask"])
        return loss


class ReferenceFreeTrainer(PairTrainer):
    """A loss of the mean log-probabilities per token of chosen and rejected, in place of DPO's.

    TRL's trainers for SimPO and ORPO are experimental and tokenise on their own; a loss inside the stable one is less.
    The log-probabilities at the start are for the KL in the metrics only.
    """

    def __init__(self, *args: Any, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], **kwargs: Any) -> None:
        self.loss = loss  # (B,), (B,) nats per token -> (B,)
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: Mapping[str, torch.Tensor], return_outputs: bool) -> torch.Tensor:
        outputs, mask = self.outputs(model, inputs), inputs["completion_mask"][:, 1:]
        chosen, rejected = (outputs.log_probs.sum(dim=1) / mask.sum(dim=1)).chunk(2)
        margins = (chosen - rejected).detach()
        metrics = {
            "entropy": (outputs.entropy.detach() * mask).sum() / mask.sum(),
            "logps_per_token/chosen": chosen.detach().mean(),
            "logps_per_token/rejected": rejected.detach().mean(),
            "logps_per_token/margins": margins.mean(),
            "logps_per_token/accuracies": (margins > 0).float().mean(),
        }
        for name, value in metrics.items():
            self._metrics["train"][name].append(value.item())
        self.note_kl(self.at_start(inputs), outputs.log_probs.detach().sum().item(), mask)
        return self.loss(chosen, rejected).mean()


def order_by_length(lengths: Sequence[int], batch_size: int, epochs: int, seed: int) -> list[int]:
    """Row indices of all epochs, shuffled, with rows of about equal length in the same batch.

    Within a window of 32 batches of one epoch the rows are sorted by length and cut into batches, which are then
    shuffled. What is left of an epoch joins the next one, so that only the very last batch may be smaller.
    """
    random = Random(seed)
    order: list[int] = []
    left: list[int] = []
    for _ in range(epochs):
        rows = list(range(len(lengths)))
        random.shuffle(rows)
        rows = left + rows
        left = []
        for first in range(0, len(rows), 32 * batch_size):
            window = sorted(rows[first : first + 32 * batch_size], key=lengths.__getitem__)
            whole = len(window) // batch_size * batch_size
            batches = [window[i : i + batch_size] for i in range(0, whole, batch_size)]
            random.shuffle(batches)
            order += [i for batch in batches for i in batch]
            left = window[whole:]
    return order + left


class MetricsCallback(TrainerCallback):  # type: ignore[misc]
    """Writes the metrics of every step as a JSON line, reports them, and stops at a loss that is no number.

    The rows of this update are begun anew with what the checkpoint knows, so that steps done twice are there once.
    """

    # Zero after a resume, a function of the step, or not the same from run to run.
    left_out = frozenset({"num_tokens", "epoch", "total_flos", "train_runtime", "train_loss"})

    def __init__(
        self,
        update: int,
        shared: Mapping[str, float],
        path: Path | None,
        on_row: Callable[[dict[str, float], int], None],
    ) -> None:
        self.update, self.path = update, path
        self.shared = {"update": update, **shared}  # the same in every row of this update
        self.on_row = on_row  # gets each row that was written, and the number of steps in all

    def rows(self, history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
        return [
            {**self.shared, "step": entry["step"]}
            | {key: entry[key] for key in sorted(entry) if key not in self.left_out and key != "step"}
            for entry in history
            if "loss" in entry
        ]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.path is not None:
            begin_rows(self.path, self.update)
            write_rows(self.path, self.rows(state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        for row in self.rows([{**logs, "step": state.global_step}]):
            for key in ("loss", "grad_norm"):
                if not math.isfinite(row.get(key, 0.0)):
                    raise DataError(
                        f"The {key} of step {state.global_step} is {row[key]}. Lower learning_rate (now "
                        f"{args.learning_rate:g}) or max_grad_norm, train without bf16, or check the model's weights."
                    )
            if self.path is not None:
                write_rows(self.path, [row])
            self.on_row(row, state.max_steps)
