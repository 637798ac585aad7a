"""Training on a GPU: the loss of a first step, weights that move, and what is saved. Skipped where there is none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policy import make_model, make_pairs, make_tokenizer

from gpo.config.registry import lookup
from gpo.types import Completion, Group, ModelRef, Score, Start, Trajectory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def groups() -> list[Group]:
    found = []
    for pair in make_pairs(6):
        start = Start(pair.problem_id, pair.prompt_ids, pair.prefix_ids)
        rows = [
            Trajectory(
                f"{pair.problem_id}-{i}",
                start,
                Completion(ids, "", "stop"),
                Score(right, "right" if right else "wrong"),
                (len(ids),),
            )
            for i, (ids, right) in enumerate(((pair.chosen_ids, 1.0), (pair.rejected_ids, 0.0)))
        ]
        found.append(Group(start, tuple(rows)))
    return found


@pytest.mark.parametrize(
    "settings", [{}, {"lora": 4}, {"lora": 4, "bf16": True}, {"gradient_checkpointing": True}], ids=str
)
@pytest.mark.parametrize("name", ["dpo", "kto", "simpo", "orpo", "ppo", "grpo", "rloo"])
def test_an_update_trains_and_saves(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    method: Any = lookup("method", name)(str(tmp_path / "model"), learning_rate=1e-2, epochs=2, **settings)
    data = groups() if method.trains_on == "groups" else make_pairs(12)
    before = {key: value.detach().clone() for key, value in method.policy.model.named_parameters()}
    metrics = method.update(data)
    assert math.isfinite(metrics["loss"])
    assert all(value.is_cuda for value in method.policy.model.parameters())
    now = method.policy.model.named_parameters()
    assert any(not torch.equal(value.cpu(), before[key].cpu()) for key, value in now)
    method.save(tmp_path / "saved")
    again: Any = lookup("method", name)(**settings)
    again._round_model = ModelRef(str(tmp_path / "saved"), "saved")
    for key, value in again.policy.model.state_dict().items():
        assert torch.allclose(value.cpu(), method.policy.model.state_dict()[key].cpu(), atol=1e-6), key
