"""What all methods share: their settings, the model in training and where it comes from, the number of an update."""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal

from accelerate import Accelerator
from peft import PeftModel

from gpo.errors import ConfigError
from gpo.methods.metrics import begin_rows, write_rows
from gpo.methods.policy import Policy, checksum, context_length, load_policy, model_card, save_policy
from gpo.methods.processes import join
from gpo.methods.trackers import Trackers
from gpo.types import ModelRef, RoundContext

FULL_RATE, ADAPTER_RATE = 1e-6, 1e-5  # default learning rates: TRL's, and ten times that (docs/methods.md)
LOADED = ("policy", "optimizer", "frozen", "head")  # what comes from a model

logger = logging.getLogger(__name__)


@dataclass
class Training(ABC):
    """A method that trains a model of its own, or the one of the round where it has none.

    A model in memory that is the method's own is trained in place; that of a round is copied. An update goes on with
    the model that the one before has left, until a round names another.
    """

    model: Any = None  # path, hub id or loaded model; None: that of the round
    tokenizer: Any = None  # None: the one beside the model
    _: KW_ONLY
    learning_rate: float | None = None  # None: 1e-6 for all weights, 1e-5 for adapters
    epochs: int = 1
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    seed: int | None = None  # of new adapters and of the order of rows; None: that of the run, 0 without one
    bf16: bool = False  # autocast; weights stay float32
    gradient_checkpointing: bool = False
    lora: int | None = None  # rank of adapters; None trains all weights
    merge: bool = False  # `save` writes whole weights in place of adapters, after the last round
    max_length: int | None = None  # what is longer is left out, in tokens; None: what the model takes
    save_steps: int = 100  # between checkpoints of an unfinished update, which is saved every four minutes too
    trackers: tuple[str, ...] = ()  # get the rows of metrics too: tensorboard, trackio, wandb

    trains_on: ClassVar[Literal["pairs", "groups"]]

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not isfinite(value):
                raise ConfigError(f"{name} must be a finite number, got {value}.")
        self._positive("learning_rate", "epochs", "max_grad_norm", "save_steps", "lora")
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight_decay must be at least 0, got {self.weight_decay}.")
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(
                f"max_length must hold a prompt and one token: expected at least 2 tokens, got {self.max_length}."
            )
        self.updates = 0  # that the model in training has behind it, as far as it is known
        self._context = RoundContext()
        self._round_model: ModelRef | None = None
        self._trackers = Trackers(self.trackers)

    @cached_property
    def accelerator(self) -> Accelerator:
        """The device, and the other processes if there are any."""
        return join(own_update=self.trains_on == "groups")

    @cached_property
    def policy(self) -> Policy:
        """The model in training, its tokenizer and the type of its checkpoint.

        Raises:
            ConfigError: neither the method nor the round has a model.
            EngineError: it cannot be loaded.
        """
        if self.model is not None:
            ref, own = ModelRef(self.model, str(self.model), tokenizer=self.tokenizer), True
        elif self._round_model is not None:
            ref, own = self._round_model, False
        else:
            raise ConfigError(f"No model to train: give {type(self).__name__}(model=...), or a round that has one.")
        _ = self.accelerator  # how weights are read depends on it
        return load_policy(ref, own=own, lora=self.lora, seed=self.seed or 0, images=self._context.images)

    @property
    def rate(self) -> float:
        """The learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return ADAPTER_RATE if isinstance(self.policy.model, PeftModel) else FULL_RATE

    @property
    def merges(self) -> bool:
        """Whether `save` merges adapters: a later round goes on with them."""
        return self.merge and self._context.last

    @property
    def _writes(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self.accelerator.is_main_process)

    def _save(self, path: Path | str, state: Mapping[str, Any] | None = None) -> None:
        """Write the model and its tokenizer to a directory, and forget what an unfinished update has left."""
        card = model_card(self.policy.model, type(self).__name__, self._context)
        exact = not self._context.last
        save_policy(self.policy, Path(path), write=self._writes, merge=self.merges, exact=exact, state=state, card=card)
        if self._writes and self._context.work_dir is not None:
            self._clear(self._context.work_dir)
        self.accelerator.wait_for_everyone()
        self._trackers.close()

    @abstractmethod
    def _clear(self, work_dir: Path) -> None:
        """Remove the checkpoints of an update."""

    def _positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be greater than 0, got {value}.")

    @property
    def _source(self) -> Any:
        """Where the model comes from."""
        return self.model if self.model is not None else self._round_model and self._round_model.source

    def _begin(self, context: RoundContext) -> None:
        self._context = context
        if self.model is None and context.model is not None and context.model != self._round_model:
            self._round_model, self.updates = context.model, 0
            for name in LOADED:
                vars(self).pop(name, None)
        self.updates = max(self.updates, context.number - 1)

    def _limit(self) -> int | None:
        """Longest sequence in tokens that is trained on; None: no limit is known."""
        return self.max_length or context_length(self.policy.model)

    def _begin_rows(self) -> None:
        if self._writes and self._context.metrics_path is not None:
            begin_rows(self._context.metrics_path, self.updates)

    def _write_row(self, metrics: Mapping[str, float]) -> None:
        """Write the row of a whole update, and hand it to the trackers."""
        if not self._writes:
            return
        row = {"update": self.updates, **self._context.sampled, **metrics}
        if self._context.metrics_path is not None:
            write_rows(self._context.metrics_path, [row])
        self._trackers.log(row, self._context.metrics_path, self._context.settings)

    def _fingerprint(self, *data: Any) -> str:
        """Tells this update from any other: settings, data and the weights it starts from."""
        apart = {"model", "tokenizer", "save_steps", "trackers"}
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        about = [type(self).__name__, settings, self.updates, self._context.temperature]
        text = json.dumps([*about, *data, checksum(self.policy.model)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
