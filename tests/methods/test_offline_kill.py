"""Offline training that is killed at a bad moment ends as if it had not been: weights, optimizer, order, metrics."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policy import make_model, make_pairs, make_tokenizer, same, state

from gpo.methods.dpo import DPO
from gpo.methods.kto import KTO
from gpo.methods.offline import Offline
from gpo.methods.orpo import ORPO
from gpo.methods.simpo import SimPO
from gpo.methods.trainers import OnTokenIds
from gpo.methods.update_checkpoint import last_checkpoint
from gpo.types import RoundContext

# A forked process has none of the OpenMP threads that its parent has begun, and would wait for them.
pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-3, "epochs": 2, "save_steps": 2, "warmup": 0.5}

PAIRS = make_pairs(12)


def method(kind: type[Offline], **more: Any) -> Offline:
    return kind(make_model(), make_tokenizer(), **{**SETTINGS, **more})


def told(directory: Path, **more: Any) -> RoundContext:
    return RoundContext(work_dir=directory / "work", metrics_path=directory / "metrics.jsonl", **more)


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(kind: type[Offline], directory: Path, at: str, more: dict[str, Any]) -> None:
    """In a process of its own: killed behind step 5, or while the checkpoint of step 4 is being written."""
    made = method(kind, **more)
    step = 0

    def on_step(row: dict[str, float]) -> None:
        nonlocal step
        step = round(row["step"])
        if at == "step" and step == 5:
            die()

    save = torch.save

    def dying_save(*arguments: Any, **settings: Any) -> None:
        save(*arguments, **settings)
        if at == "checkpoint" and step == 4:
            die()

    torch.save = dying_save
    made.update(PAIRS, told(directory, on_step=on_step))


def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """The token ids of every batch that is trained on from now."""
    seen: list[list[list[int]]] = []
    for trainer in OnTokenIds.__subclasses__():
        compute = trainer.compute_loss  # type: ignore[attr-defined]

        def spy(self: Any, model: Any, inputs: Any, *rest: Any, _compute: Any = compute, **more: Any) -> Any:
            seen.append(inputs["input_ids"].tolist())
            return _compute(self, model, inputs, *rest, **more)

        monkeypatch.setattr(trainer, "compute_loss", spy)
    return seen


def alike(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(alike(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(alike(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


@pytest.mark.parametrize(
    ("kind", "at", "more"),
    [
        (DPO, "step", {}),
        (DPO, "checkpoint", {}),
        (DPO, "step", {"lora": 2}),
        (DPO, "step", {"gradient_accumulation": 2, "batch_size": 2}),
        (KTO, "step", {}),
        (SimPO, "step", {}),
        (ORPO, "checkpoint", {"lora": 2}),
    ],
)
def test_a_kill_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Offline], at: str, more: dict[str, Any]
) -> None:
    whole = method(kind, **more)
    seen = batches(monkeypatch)
    expected = whole.update(PAIRS, told(tmp_path / "whole"))
    order = list(seen)

    process = multiprocessing.get_context("fork").Process(
        target=train_and_die, args=(kind, tmp_path / "killed", at, more)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    checkpoint = last_checkpoint(tmp_path / "killed" / "work")
    assert checkpoint is not None
    done = int(checkpoint.rpartition("-")[2])
    assert done == (4 if at == "step" else 2)

    resumed = method(kind, **more)
    seen.clear()
    assert resumed.update(PAIRS, told(tmp_path / "killed")) == expected
    assert seen == order[done * more.get("gradient_accumulation", 1) :]
    assert same(state(whole.policy.model), state(resumed.policy.model))
    metrics = [tmp_path / name / "metrics.jsonl" for name in ("whole", "killed")]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()
    ends = [Path(str(last_checkpoint(tmp_path / name / "work"))) for name in ("whole", "killed")]
    assert ends[0].name == ends[1].name
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        left, right = (torch.load(end / name, weights_only=False) for end in ends)
        if name == "rng_state.pth":  # numpy's is an array
            left, right = left["cpu"], right["cpu"]
        assert alike(left, right), name
