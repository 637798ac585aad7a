"""What test_processes trains in several processes: `python -m train_together FOLDER CASE...`, started by accelerate."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from test_online import mixed_groups
from tiny_policy import make_model, make_pairs, make_tokenizer

from gpo.methods import update_checkpoint
from gpo.methods.dpo import DPO
from gpo.methods.grpo import GRPO
from gpo.methods.kto import KTO
from gpo.methods.orpo import ORPO
from gpo.methods.ppo import PPO
from gpo.methods.processes import is_sharded
from gpo.methods.training import Training
from gpo.types import ModelRef, RoundContext


@dataclass(frozen=True)
class Case:
    """A method, and how often it is updated. Its last batches are uneven, and smaller than the processes."""

    kind: Callable[..., Training]
    settings: dict[str, Any] = field(default_factory=dict)
    updates: int = 1

    @property
    def data(self) -> Any:
        return make_pairs(9) if self.kind in (DPO, KTO, ORPO) else mixed_groups()


CASES = {
    "dpo": Case(DPO, {"batch_size": 4, "save_steps": 1}),
    "dpo-accumulated": Case(DPO, {"batch_size": 2, "gradient_accumulation": 4}),
    "dpo-adapters": Case(DPO, {"batch_size": 4, "lora": 2, "merge": True}),
    "kto": Case(KTO, {"batch_size": 7}),
    "kto-accumulated": Case(KTO, {"batch_size": 3, "gradient_accumulation": 2}),
    "orpo": Case(ORPO, {"batch_size": 4}),
    "grpo": Case(GRPO, {"beta": 0.1, "minibatches": 2, "max_tokens": 16}, updates=2),
    "ppo": Case(PPO, {"beta": 0.1, "minibatches": 2, "epochs": 2}, updates=2),
    "ppo-adapters": Case(PPO, {"beta": 0.1, "lora": 2}, updates=2),
}


def train(name: str, start: Path, folder: Path) -> tuple[Training, list[dict[str, float]]]:
    """Train a case and save it in a folder; the metrics of its updates."""
    case = CASES[name]
    method: Any = case.kind(learning_rate=1e-3, **case.settings)
    model = ModelRef(start, "start")
    context = RoundContext(model, reference=model, work_dir=folder / "work", metrics_path=folder / "metrics.jsonl")
    metrics = [method.update(case.data, context) for _ in range(case.updates)]
    method.save(folder / "model")
    return method, metrics


def start_model(path: Path) -> Path:
    make_model().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        # Of these the first process is always due to save by its clock, and the others never.
        due = name in ("dpo-accumulated", "grpo", "ppo") and os.environ.get("RANK", "0") == "0"
        update_checkpoint.SAVE_SECONDS = 0.0 if due else 3600.0
        method, metrics = train(name, folder / "start", folder / name)
        process, processes = method.accelerator.process_index, method.accelerator.num_processes
        told = {"processes": processes, "sharded": is_sharded(method.policy.model), "metrics": metrics}
        torch.save(told, folder / f"{name}-{process}.pt")
