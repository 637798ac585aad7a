"""TRL's preference trainers on our token ids.

What differs from TRL: nothing is tokenised, so that no boundary moves and no end of sequence is added; the order of the
rows is given, so that a resumed run sees the same batches; the reference log-probabilities are those of the model as
it is handed over, computed once; what sequences share is computed once, in a batch and for the reference; a batch is
divided over the processes, so that any number of them takes the same steps; nothing is sent to a hub.
"""

# Private names that this file depends on; they are why the versions are bounded:
# TRL's `_prepare_dataset`, `_precompute_ref_logps`, `_compute_kl_logps`, `_metrics`, and the `fused_lm_head` of a
# model's forward with its output; in division.py TRL's `_compute_loss`. TRL's `_send_telemetry` is only switched off.

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback
from trl import DPOTrainer, KTOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from gpo.errors import DataError
from gpo.methods.division import Divided
from gpo.methods.metrics import begin_rows, write_rows
from gpo.methods.processes import gather, shard, turns
from gpo.methods.scoring import Scorer, scoring, without_adapters
from gpo.methods.tree import Scored, pack

REFERENCE_TOKENS = 8192  # computed at once


def _predicted(prompt: Sequence[int], completion: Sequence[int]) -> Scored:
    """A sequence as it is scored: nothing predicts its first token."""
    return (prompt, completion) if prompt else (completion[:1], completion[1:])


class OnTokenIds(Divided):
    """Mixin in front of a TRL trainer: the padded rows that it calls the model for are scored as prefix trees."""

    completions: ClassVar[Mapping[str, str]]  # columns that the model at the start adds: log-probabilities of which ids

    aux_loss_enabled: bool
    _metrics: dict[str, dict[str, list[float]]]  # TRL's: by mode and name, a number for each batch of a step

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        base = without_adapters(self.model)
        forward = base.forward

        def scored(*args: Any, fused_lm_head: bool = False, **inputs: Any) -> Any:
            if fused_lm_head and not self.aux_loss_enabled:
                return self._score_rows(**inputs)
            return forward(*args, **inputs, **({"fused_lm_head": True} if fused_lm_head else {}))

        base.forward = scored

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self._scoring() as self._scorer:
            loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        return loss

    def _scoring(self) -> AbstractContextManager[Any]:
        # The loss that balances experts is a mean over rows of tokens, which TRL's own forward computes.
        return nullcontext() if self.aux_loss_enabled else scoring(self.model, within=True)

    def _score_rows(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **_: Any
    ) -> FusedCausalLMOutput:
        """As TRL's head: 0 where a label is -100. Of the metrics, it serves those that are not left out."""
        scored = labels[:, 1:] != -100
        sizes = zip(input_ids.tolist(), attention_mask.sum(dim=1).tolist(), scored.sum(dim=1).tolist(), strict=True)
        sequences = [(ids[: end - size], ids[end - size : end]) for ids, end, size in sizes]
        logps, entropy = (torch.cat(parts) for parts in zip(*score(self._scorer, sequences), strict=True))
        zeros = logps.new_zeros(scored.shape)
        return FusedCausalLMOutput(
            log_probs=zeros.masked_scatter(scored, logps),
            entropy=zeros.masked_scatter(scored, entropy),
            mean_logits=zeros,
            is_top1=scored,
        )

    def outputs(self, model: Any, batch: Mapping[str, torch.Tensor]) -> Any:
        """`log_probs` and `entropy` of the next tokens, (B, L - 1) nats, 0 outside completions."""
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        return model(**inputs, labels=labels, fused_lm_head=True)

    def note_kl(self, at_start: float, now: float, tokens: float) -> None:
        """Log `kl`, an estimate of KL(start || policy) per completion token in nats.

        (log start(y|x) - log policy(y|x)) / tokens, both sums over the batch: the estimator k1 of Schulman 2020,
        "Approximating KL divergence". It is unbiased for completions sampled by the model at the start at temperature
        1. Ours are picked from such, as many right as wrong ones, and searched starts are over-represented: so it is
        the KL over that mixture, and may be negative.

        Args:
            at_start: log-probability of all completions of the batch by the model at the start, nats.
            now: the same by the policy.
            tokens: of these completions.
        """
        self._metrics["train"]["kl"].append((at_start - now) / tokens)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        # TRL copies adapters to compare with; here the model itself is still what it was at the start.
        if isinstance(self.model, PeftModel) and "ref" in self.model.peft_config:
            self.model.delete_adapter("ref")
        sequences = [_predicted(row["prompt_ids"], row[ids]) for ids in self.completions.values() for row in dataset]
        with torch.no_grad(), self.accelerator.autocast(), scoring(self.model) as scorer:
            shard(self.accelerator, self.model)
            sums = self._sums(scorer, sequences)
        for i, column in enumerate(self.completions):
            dataset = dataset.add_column(column, sums[i * len(dataset) : (i + 1) * len(dataset)])
        return dataset

    def _sums(self, scorer: Scorer, sequences: Sequence[Scored]) -> list[float]:
        """Log-probabilities of sequences, nats; each process looks up those of some batches."""
        known = [i for i, (_, tokens) in enumerate(sequences) if tokens]
        batches = pack([sequences[i] for i in known], REFERENCE_TOKENS, share=scorer.shares)
        mine: list[tuple[int, float]] = []
        for own, batch in turns(self.accelerator, batches):
            logps = batch.split(scorer(batch).logps)
            mine += [(known[i], each.sum().item()) for i, each in zip(batch.sequences, logps, strict=True) if own]
        found = dict(gather(mine))
        return [found.get(i, 0.0) for i in range(len(sequences))]

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        pass


class PairTrainer(OnTokenIds, DPOTrainer):  # type: ignore[misc]
    """DPO: rows have `prompt_ids`, `chosen_ids`, `rejected_ids` and their `length`."""

    completions = MappingProxyType({"ref_chosen_logps": "chosen_ids", "ref_rejected_logps": "rejected_ids"})

    def at_start(self, inputs: Mapping[str, torch.Tensor]) -> float:
        """Log-probability in nats of this process's completions of a batch by the model at the start."""
        return (inputs["ref_chosen_logps"].sum() + inputs["ref_rejected_logps"].sum()).item()

    def _loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = super()._loss(model, inputs)
        means = [self._metrics["train"][f"logps/{side}"][-1] for side in ("chosen", "rejected")]
        at_start, tokens = self.total(self.at_start(inputs), inputs["completion_mask"].sum())
        self.note_kl(at_start, sum(means) * self.rows, tokens)
        return loss


class UnpairedTrainer(OnTokenIds, KTOTrainer):  # type: ignore[misc]
    """KTO: rows have `prompt_ids`, `completion_ids`, `KL_completion_ids`, `label` and their `length`."""

    completions = MappingProxyType({"ref_logps": "completion_ids", "ref_KL_logps": "KL_completion_ids"})

    def _compute_kl_logps(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Such that the mean of what they differ by from the model at the start is that of all rows of the batch."""
        logps: torch.Tensor = super()._compute_kl_logps(model, batch)
        if self.accelerator.num_processes == 1:
            return logps
        (difference,) = self.total((logps - batch["ref_KL_logps"]).sum())
        batch["ref_KL_logps"] = torch.zeros_like(logps)
        return torch.full_like(logps, difference / self.rows)

    def _loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        metrics, labels = self._metrics["train"], inputs["label"].bool()
        seen = {side: len(metrics.get(f"logps/{side}", ())) for side in ("chosen", "rejected")}
        loss = super()._loss(model, inputs)
        metrics["reference_point"].append(metrics["kl"].pop())
        sums = (inputs["ref_logps"].sum(), inputs["completion_mask"].sum(), labels.sum(), (~labels).sum())
        at_start, tokens, *rows = self.total(*sums)
        now = 0.0
        for side, count in zip(("chosen", "rejected"), rows, strict=True):
            if len(metrics.get(f"logps/{side}", ())) > seen[side]:  # a batch may have rows of one kind only
                now += metrics[f"logps/{side}"][-1] * count
        self.note_kl(at_start, now, tokens)
        return loss


class ReferenceFreeTrainer(PairTrainer):
    """A loss of the mean log-probabilities per token of chosen and rejected, in place of DPO's.

    TRL's trainers for SimPO and ORPO are experimental and tokenise on their own; a loss inside the stable one is less.
    The log-probabilities at the start are for the KL in the metrics only.
    """

    def __init__(self, *args: Any, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], **kwargs: Any) -> None:
        self.loss = loss  # (B,), (B,) nats per token -> (B,)
        super().__init__(*args, **kwargs)

    def _loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        outputs, mask = self.outputs(model, inputs), inputs["completion_mask"][:, 1:]
        chosen, rejected = (outputs.log_probs.sum(dim=1) / mask.sum(dim=1)).chunk(2)
        margins = (chosen - rejected).detach()
        per_pair = {
            "logps_per_token/chosen": chosen.detach(),
            "logps_per_token/rejected": rejected.detach(),
            "logps_per_token/margins": margins,
            "logps_per_token/accuracies": (margins > 0).float(),
        }
        sums = (self.at_start(inputs), outputs.log_probs.detach().sum(), outputs.entropy.sum(), mask.sum())
        at_start, now, entropy, tokens, *of_pairs = self.total(*sums, *(each.sum() for each in per_pair.values()))
        self._metrics["train"]["entropy"].append(entropy / tokens)
        for name, value in zip(per_pair, of_pairs, strict=True):
            self._metrics["train"][name].append(value / self.rows)
        self.note_kl(at_start, now, tokens)
        return self.loss(chosen, rejected).mean()


def score(scorer: Scorer, sequences: Sequence[Scored]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(T,) log-probabilities and entropies of each sequence, in nats, in their order."""
    empty = torch.zeros(0, device=scorer.model.device)
    found = [(empty, empty)] * len(sequences)
    known = [i for i, (_, tokens) in enumerate(sequences) if tokens]
    for batch in pack([sequences[i] for i in known], sys.maxsize, share=scorer.shares):
        out = scorer(batch, entropy=True)
        assert out.entropy is not None
        for i, *both in zip(batch.sequences, batch.split(out.logps), batch.split(out.entropy), strict=True):
            found[known[i]] = (both[0], both[1])
    return found


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

    # Zero after a resume, a function of the step, not the same from run to run, or not computed.
    left_out = frozenset({"num_tokens", "epoch", "total_flos", "train_runtime", "train_loss"}) | frozenset(
        {"logits/chosen", "logits/rejected", "mean_token_accuracy"}
    )

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
