"""What the offline methods (DPO, KTO, SimPO, ORPO) share: pairs in, one pass of training, a checkpoint out."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset
from transformers import PrinterCallback, SchedulerType
from trl.trainer.dpo_trainer import DataCollatorForPreference

from gpo.errors import ConfigError, unknown
from gpo.images.tokenizer import text_tokenizer
from gpo.methods.division import PairRow
from gpo.methods.policy import check_token_ids, quiet
from gpo.methods.scoring import without_adapters
from gpo.methods.trainers import MetricsCallback, order_by_length
from gpo.methods.training import Training, logger
from gpo.methods.update_checkpoint import SyncedCheckpoints, last_checkpoint
from gpo.storage.files import write_text
from gpo.types import Pair, PrefixIn, RoundContext

DEFAULT = RoundContext()
MORE_PAIRS = "Sample more from each start, raise the temperature, or choose problems that the model solves sometimes."


@dataclass
class Offline(Training):
    """A method that trains on preference pairs. The reference is the model as it is when `update` is called.

    With a `work_dir` an update that was killed goes on from its last checkpoint when the same update is asked for
    again, and ends with the same weights; `save` clears that directory.
    """

    _: KW_ONLY
    batch_size: int = 16  # pairs (KTO: rows) in memory at once
    gradient_accumulation: int = 1  # batches of one step
    warmup: float = 0.1  # share of the steps
    schedule: str = "linear"  # a learning-rate schedule of transformers

    trains_on: ClassVar[Literal["pairs"]] = "pairs"
    _mean_of_rows: ClassVar[bool] = True  # whether the batches of a step may as well be one

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("batch_size", "gradient_accumulation")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is a share of the steps: expected 0 <= warmup < 1, got {self.warmup}.")
        if self.schedule not in (schedules := [kind.value for kind in SchedulerType]):
            raise unknown("schedule", self.schedule, schedules)

    def update(self, pairs: Iterable[Pair], context: RoundContext = DEFAULT) -> dict[str, float]:
        """Train on these pairs. Where none is usable the model stays as it is.

        Returns:
            pairs, pairs_too_long (left out), reset_share (of pairs behind a prefix), critical_advantage (mean over the
            searched parents that the data tell of), steps, trained_tokens, and the mean of each step metric over the
            last tenth of the steps. Without a usable pair: skipped (1), pairs (0), pairs_too_long and steps (0).

        Raises:
            ConfigError: there is no model.
            DataError: token ids outside the vocabulary, or a loss that is no number.
        """
        self._begin(context)
        pairs = list(pairs)
        fitting = self._usable(pairs)
        too_long = float(len(pairs) - len(fitting))
        if not fitting:
            metrics = {"skipped": 1.0, "pairs": 0.0, "pairs_too_long": too_long, "steps": 0.0}
            self._begin_rows()
            self._write_row(metrics)
            self.updates += 1
            return metrics
        rows = self._rows(fitting, context.pairing.prefix_in)
        order = self._order(rows)
        of_pairs = {"reset_share": fmean(bool(pair.prefix_ids) for pair in fitting)}
        if advantages := critical_advantages(fitting):
            of_pairs["critical_advantage"] = fmean(advantages)
        model, tokenizer, _ = self.policy
        with quiet(), self._directory(rows) as directory:
            shared = {**of_pairs, **context.sampled}
            path = context.metrics_path if self._writes else None
            metrics_of_steps = MetricsCallback(self.updates, shared, path, self._row_is_written)
            trainer = self._trainer(
                self._arguments(directory, len(order)),
                model=model,
                processing_class=text_tokenizer(tokenizer),
                train_dataset=Dataset.from_list(rows),
                order=order,
                callbacks=[metrics_of_steps, SyncedCheckpoints()],
            )
            trainer.remove_callback(PrinterCallback)
            try:
                trainer.train(resume_from_checkpoint=last_checkpoint(directory))
            finally:
                _restore_forward(model)
        self.updates += 1
        steps = metrics_of_steps.rows(trainer.state.log_history)
        last = steps[-max(1, len(steps) // 10) :]
        # A batch without a wrong row has no metric of wrong rows.
        keys = sorted({key for row in last for key in row} - {"step"} - metrics_of_steps.shared.keys())
        means = {key: fmean(row[key] for row in last if key in row) for key in keys}
        trained = float(sum(rows[i]["length"] for i in order))
        counts = {"pairs": float(len(fitting)), "pairs_too_long": too_long, "steps": float(len(steps))}
        return counts | of_pairs | {"trained_tokens": trained} | means

    def save(self, path: Path | str) -> None:
        """Write the model and its tokenizer to a directory, and forget the checkpoints of the last update."""
        self._save(path)

    def _row_is_written(self, row: dict[str, float], steps: int) -> None:
        if self._writes:
            self._trackers.log(row, self._context.metrics_path, self._context.settings)
        if self._context.on_step is not None:
            self._context.on_step({**row, "steps": steps})

    @abstractmethod
    def _trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Any:
        """The TRL trainer, given the settings that all share and the parts of the trainer."""

    def _rows(self, pairs: Sequence[Pair], prefix_in: PrefixIn = "prompt") -> list[PairRow]:
        """The data set: by default a row for each pair."""
        return [pair_row(pair, prefix_in) for pair in pairs]

    @property
    def _order_seed(self) -> int:
        """Of the order of rows in this round; no round of another seed has the same."""
        return ((self.seed or 0) << 16) + self.updates

    def _order(self, rows: Sequence[PairRow]) -> list[int]:
        """Indices of rows in the order of training, all epochs."""
        return order_by_length([row["length"] for row in rows], self.batch_size, self.epochs, self._order_seed)

    def _usable(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs that the model takes; the log says why there are none."""
        if not pairs:
            logger.warning("No pair to train on: no start has both a right and a wrong continuation. %s", MORE_PAIRS)
            return []
        check_token_ids(
            self.policy.model,
            (ids for p in pairs for ids in (p.prompt_ids, p.prefix_ids, p.chosen_ids, p.rejected_ids)),
        )
        limit = self._limit()
        fitting = [pair for pair in pairs if limit is None or _longest(pair) <= limit]
        if not fitting:
            logger.warning(
                "All %d pairs are longer than %s tokens, the shortest %d. Raise max_length, or sample fewer tokens.",
                *(len(pairs), limit, min(map(_longest, pairs))),
            )
        return fitting

    def _arguments(self, directory: Path, rows: int) -> dict[str, Any]:
        steps = math.ceil(rows / (self.batch_size * self.gradient_accumulation))
        together = self._together()
        return {
            "output_dir": str(directory),
            "per_device_train_batch_size": self.batch_size * together,  # rows of all processes, see division.py
            "gradient_accumulation_steps": self.gradient_accumulation // together,
            "num_train_epochs": 1,  # the order holds all epochs
            "learning_rate": self.rate,
            "lr_scheduler_type": self.schedule,
            # The first step of a warm-up has a learning rate of 0: with one step nothing would be trained.
            "warmup_steps": min(math.ceil(self.warmup * steps), steps - 1),
            "max_grad_norm": self.max_grad_norm,
            "weight_decay": self.weight_decay,
            "seed": self.seed or 0,
            "bf16": self.bf16,
            "activation_checkpointing": self.gradient_checkpointing,
            "gradient_checkpointing": None,  # the old name, which TRL sets to True
            "max_length": None,
            "use_cpu": not torch.cuda.is_available(),
            "save_strategy": "no" if self._context.work_dir is None else "steps",
            "save_steps": self.save_steps,
            "save_total_limit": None,  # SyncedCheckpoints removes them
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "remove_unused_columns": False,
            "precompute_ref_log_probs": True,
        }

    def _together(self) -> int:
        """How many batches of a step are one that the processes share, so that each has about one in memory."""
        most = min(self.accelerator.num_processes, self.gradient_accumulation) if self._mean_of_rows else 1
        return max(count for count in range(1, most + 1) if self.gradient_accumulation % count == 0)

    @contextmanager
    def _directory(self, rows: Sequence[PairRow]) -> Iterator[Path]:
        """Where checkpoints go; those of another update are removed."""
        work_dir = self._context.work_dir
        if work_dir is None:
            with tempfile.TemporaryDirectory() as directory:
                yield Path(directory)
            return
        # A checkpoint of shards is in other files than one of whole weights.
        data = [rows, "shards"] if self.accelerator.is_fsdp2 else [rows]
        state, known = work_dir / "update.json", json.dumps({"fingerprint": self._fingerprint(*data)}) + "\n"
        if self._writes and (not state.exists() or state.read_bytes() != known.encode()):
            self._clear(work_dir)
            write_text(state, known)
        self.accelerator.wait_for_everyone()
        yield work_dir

    def _clear(self, work_dir: Path) -> None:
        (work_dir / "update.json").unlink(missing_ok=True)
        for path in work_dir.glob("checkpoint-*"):
            shutil.rmtree(path)


def critical_advantages(pairs: Sequence[Pair]) -> list[float]:
    """The estimated advantage at the critical step of each searched parent; chosen as extreme among noisy ones."""
    parents = {pair.provenance.get("parent"): pair.provenance for pair in pairs}
    found = []
    for provenance in parents.values():
        step, values = provenance.get("critical_step"), provenance.get("values")
        if step is not None and values is not None and None not in (before_after := values[step : step + 2]):
            found.append(before_after[1] - before_after[0])
    return found


def pair_row(pair: Pair, prefix_in: PrefixIn) -> PairRow:
    """Token ids as TRL's collator takes them: what is in the prompt carries no loss."""
    shared = pair.prefix_ids
    trained = shared if prefix_in == "completion" else ()
    row = {
        "prompt_ids": [*pair.prompt_ids, *(() if trained else shared)],
        "chosen_ids": [*trained, *pair.chosen_ids],
        "rejected_ids": [*trained, *pair.rejected_ids],
    }
    return {**row, "length": 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])}


def pair_collator(tokenizer: Any) -> Any:
    """TRL's collator; the padding token is masked, so that any id will do."""
    return DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id or 0)


def _longest(pair: Pair) -> int:
    return len(pair.prompt_ids) + len(pair.prefix_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


def _restore_forward(model: Any) -> None:
    """Take back the forward that TRL and accelerate put on the model: it would nest from round to round."""
    for patched in (model, without_adapters(model)):
        vars(patched).pop("forward", None)
