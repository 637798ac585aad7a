"""What the offline methods (DPO, KTO, SimPO, ORPO) share: pairs in, one pass of training, a checkpoint out."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PrinterCallback, SchedulerType
from trl.trainer.dpo_trainer import DataCollatorForPreference

from gpo.errors import ConfigError, DataError, unknown
from gpo.methods.policy import check_token_ids, checksum, context_length, load_policy, quiet, save_policy
from gpo.methods.trackers import Trackers
from gpo.methods.trainers import MetricsCallback, Row, order_by_length
from gpo.preferences.pairs import build_pairs
from gpo.types import Group, Pair, PrefixIn, Truncated

MORE_PAIRS = "Sample more from each start, raise the temperature, or choose problems that the model solves sometimes."


@dataclass
class Offline(ABC):
    """A method that trains on preference pairs. The reference is the model as it is when `update` is called.

    With a `work_dir` an update that was killed goes on from its last checkpoint when the same update is asked for
    again, and ends with the same weights; `save` clears that directory.
    """

    model: Any  # path, hub id or loaded model
    tokenizer: Any = None  # None: the one beside the model
    _: KW_ONLY
    learning_rate: float = 2e-5
    epochs: int = 1
    batch_size: int = 16  # pairs (KTO: rows) in memory at once
    gradient_accumulation: int = 1  # batches of one step
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    warmup: float = 0.1  # share of the steps
    schedule: str = "linear"  # a learning-rate schedule of transformers
    seed: int = 0
    bf16: bool = False  # autocast; weights stay float32
    gradient_checkpointing: bool = False
    lora: int | None = None  # rank of adapters; None trains all weights
    merge: bool = False  # `save` writes whole weights in place of adapters
    prefix_in: PrefixIn = "prompt"
    max_length: int | None = None  # longer pairs are left out, in tokens; None: what the model takes
    pairs_per_start: int = 16  # as many as of a problem, so that an arm of one start a problem is not short of pairs
    pairs_per_problem: int | None = 16
    max_pairs: int | None = None
    truncated: Truncated = "rejected"
    work_dir: Path | None = None  # checkpoints of an unfinished update
    save_steps: int = 100
    metrics_path: Path | None = None  # JSON lines, one for each step
    trackers: tuple[str, ...] = ()  # get the same: tensorboard, trackio, wandb
    on_step: Callable[[dict[str, float]], None] | None = None  # gets the same, with `steps` to come in all
    updates: int = field(default=0, init=False)
    round_metrics: Mapping[str, float] = field(default_factory=dict, init=False)  # of the run; in every row of metrics

    def __post_init__(self) -> None:
        self.work_dir = Path(self.work_dir) if self.work_dir else None
        self.metrics_path = Path(self.metrics_path) if self.metrics_path else None
        for name in ("learning_rate", "epochs", "batch_size", "gradient_accumulation", "max_grad_norm", "save_steps"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be greater than 0, got {getattr(self, name)}.")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is a share of the steps: expected 0 <= warmup < 1, got {self.warmup}.")
        if self.schedule not in (schedules := [kind.value for kind in SchedulerType]):
            raise unknown("schedule", self.schedule, schedules)
        self._trackers = Trackers(self.trackers, self.metrics_path)

    @cached_property
    def policy(self) -> tuple[Any, Any]:
        """The model in training and its tokenizer."""
        return load_policy(self.model, self.tokenizer, lora=self.lora, seed=self.seed)

    def update(self, groups: Sequence[Group]) -> dict[str, float]:
        """Build pairs of these groups and train on them.

        Raises:
            DataError: no start has both a right and a wrong continuation, and as for `update_pairs`.
        """
        pairs = build_pairs(
            groups,
            self.policy[1],
            pairs_per_start=self.pairs_per_start,
            pairs_per_problem=self.pairs_per_problem,
            max_pairs=self.max_pairs,
            truncated=self.truncated,
            seed=self.seed,
        )
        if not pairs:
            verdicts = [trajectory.score.verdict for group in groups for trajectory in group.trajectories]
            raise DataError(
                f"No usable pair: {len(verdicts)} trajectories from {len(groups)} starts, {verdicts.count('right')} of "
                f"them right, and no start has both a right and a wrong one. {MORE_PAIRS}"
            )
        return self.update_pairs(pairs)

    def update_pairs(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Train on these pairs.

        Returns:
            pairs, pairs_too_long (left out), reset_share (of pairs behind a prefix), critical_advantage (mean over the
            searched parents that the data tell of), steps, trained_tokens, and the mean of each step metric over the
            last tenth of the steps.

        Raises:
            DataError: no pair, none short enough, token ids outside the vocabulary, or a loss that is no number.
        """
        rows, too_long = self._usable(pairs)
        order = self._order(rows)
        of_pairs = {"reset_share": fmean(bool(pair.prefix_ids) for pair in pairs)}
        if advantages := critical_advantages(pairs):
            of_pairs["critical_advantage"] = fmean(advantages)
        with quiet(), self._directory(rows) as (directory, offset):
            metrics = MetricsCallback(
                {"update": self.updates, **of_pairs, **self.round_metrics},
                self.metrics_path,
                offset,
                self._row_is_written,
            )
            trainer = self._trainer(
                self._arguments(directory, len(order)),
                model=self.policy[0],
                processing_class=self.policy[1],
                train_dataset=Dataset.from_list(rows),
                order=order,
                callbacks=[metrics],
            )
            trainer.remove_callback(PrinterCallback)
            try:
                trainer.train(resume_from_checkpoint=last_checkpoint(directory))
            finally:
                _restore_forward(self.policy[0])
        self.updates += 1
        steps = metrics.rows(trainer.state.log_history)
        last = steps[-max(1, len(steps) // 10) :]
        # A batch without a wrong row has no metric of wrong rows.
        keys = sorted({key for row in last for key in row} - {"step"} - metrics.shared.keys())
        means = {key: fmean(row[key] for row in last if key in row) for key in keys}
        trained = float(sum(rows[i]["length"] for i in order))
        counts = {"pairs": float(len(pairs) - too_long), "pairs_too_long": float(too_long), "steps": float(len(steps))}
        return counts | of_pairs | {"trained_tokens": trained} | means

    def save(self, path: Path) -> None:
        """Write the model and its tokenizer to a directory, and forget the checkpoints of the last update."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_policy(*self.policy, path, merge=self.merge)
        if self.work_dir is not None:
            _clear(self.work_dir)
        self._trackers.close()

    def _row_is_written(self, row: dict[str, float], steps: int) -> None:
        self._trackers.log(row)
        if self.on_step is not None:
            self.on_step({**row, "steps": steps})

    @abstractmethod
    def _trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Any:
        """The TRL trainer, given the settings that all share and the parts of the trainer."""

    def _rows(self, pairs: Sequence[Pair]) -> list[Row]:
        """The data set: by default a row for each pair."""
        return [pair_row(pair, self.prefix_in) for pair in pairs]

    def _order(self, rows: Sequence[Row]) -> list[int]:
        """Indices of rows in the order of training, all epochs."""
        return order_by_length([row["length"] for row in rows], self.batch_size, self.epochs, self.seed + self.updates)

    def _usable(self, pairs: Sequence[Pair]) -> tuple[list[Row], int]:
        if not pairs:
            raise DataError(f"No pair to train on: no start has both a right and a wrong continuation. {MORE_PAIRS}")
        model = self.policy[0]
        check_token_ids(
            model, (ids for p in pairs for ids in (p.prompt_ids, p.prefix_ids, p.chosen_ids, p.rejected_ids))
        )
        limit = self.max_length or context_length(model)
        fitting = [pair for pair in pairs if limit is None or _longest(pair) <= limit]
        if not fitting:
            raise DataError(
                f"All {len(pairs)} pairs are longer than {limit} tokens, the shortest {min(map(_longest, pairs))}. "
                "Raise max_length, or sample with fewer tokens."
            )
        return self._rows(fitting), len(pairs) - len(fitting)

    def _arguments(self, directory: Path, rows: int) -> dict[str, Any]:
        steps = math.ceil(rows / (self.batch_size * self.gradient_accumulation))
        return {
            "output_dir": str(directory),
            "per_device_train_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation,
            "num_train_epochs": 1,  # the order holds all epochs
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": self.schedule,
            # The first step of a warm-up has a learning rate of 0: with one step nothing would be trained.
            "warmup_steps": min(math.ceil(self.warmup * steps), steps - 1),
            "max_grad_norm": self.max_grad_norm,
            "weight_decay": self.weight_decay,
            "seed": self.seed,
            "bf16": self.bf16,
            "activation_checkpointing": self.gradient_checkpointing,
            "gradient_checkpointing": None,  # the old name, which TRL sets to True
            "max_length": None,
            "use_cpu": not torch.cuda.is_available(),
            "save_strategy": "no" if self.work_dir is None else "steps",
            "save_steps": self.save_steps,
            "save_total_limit": 1,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "remove_unused_columns": False,
            "train_sampling_strategy": "sequential",
            "precompute_ref_log_probs": True,
        }

    @contextmanager
    def _directory(self, rows: Sequence[Row]) -> Iterator[tuple[Path, int]]:
        """Where checkpoints go, and the size of the metrics file before this update, of this run or the killed one."""
        offset = self.metrics_path.stat().st_size if self.metrics_path and self.metrics_path.exists() else 0
        if self.work_dir is None:
            with tempfile.TemporaryDirectory() as directory:
                yield Path(directory), offset
            return
        self.work_dir.mkdir(parents=True, exist_ok=True)
        state = self.work_dir / "update.json"
        fingerprint = self._fingerprint(rows)
        known = json.loads(state.read_text()) if state.exists() else {}
        if known.get("fingerprint") == fingerprint:
            offset = known["metrics_offset"]
        else:
            _clear(self.work_dir)
            partial = self.work_dir / "update.json.partial"
            partial.write_text(json.dumps({"fingerprint": fingerprint, "metrics_offset": offset}))
            partial.replace(state)
        yield self.work_dir, offset

    def _fingerprint(self, rows: Sequence[Row]) -> str:
        """Tells this update from any other: settings, data and the weights it starts from."""
        apart = {"model", "tokenizer", "work_dir", "save_steps", "metrics_path", "trackers", "on_step", "round_metrics"}
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        text = json.dumps([type(self).__name__, settings, rows, checksum(self.policy[0])], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def critical_advantages(pairs: Sequence[Pair]) -> list[float]:
    """The estimated advantage at the critical step of each searched parent; chosen as extreme among noisy ones."""
    parents = {pair.provenance.get("parent"): pair.provenance for pair in pairs}
    found = []
    for provenance in parents.values():
        step, values = provenance.get("critical_step"), provenance.get("values")
        if step is not None and values is not None and None not in (before_after := values[step : step + 2]):
            found.append(before_after[1] - before_after[0])
    return found


def pair_row(pair: Pair, prefix_in: PrefixIn) -> Row:
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


def last_checkpoint(directory: Path) -> str | None:
    """The newest checkpoint that was written to its end: its state comes last."""
    found = sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def _longest(pair: Pair) -> int:
    return len(pair.prompt_ids) + len(pair.prefix_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


def _clear(work_dir: Path) -> None:
    (work_dir / "update.json").unlink(missing_ok=True)
    for path in work_dir.glob("checkpoint-*"):
        shutil.rmtree(path)


def _restore_forward(model: Any) -> None:
    """Take back the forward that TRL and accelerate put on the model: it would nest from round to round."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for patched in (model, base):
        vars(patched).pop("forward", None)
