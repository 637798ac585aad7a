"""Training on a GPU: the loss of a first step, weights that move, and what is saved. Skipped where there is none."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tiny_policy import make_model, make_pairs, make_tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

from gpo.config.registry import lookup
from gpo.types import Completion, Group, ModelRef, Pair, Score, Start, Trajectory

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


@pytest.mark.parametrize("bf16", [False, True])
def test_long_trees_of_several_prompts_have_gradients(bf16: bool, tmp_path: Path) -> None:
    """Behind another root a node sees none of the keys with which its tile begins."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=48, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    draw = Random(0)
    ids = [tuple(draw.choices(range(40), k=size)) for size in (300, 301, 303) for _ in range(3)]
    pairs = [Pair(f"p{i}", prompt, (), prompt[:90], ids[i - 1][:77], "", "", "", "") for i, prompt in enumerate(ids)]
    for name in ("dpo", "orpo"):
        metrics = lookup("method", name)(str(tmp_path), lora=8, bf16=bf16, batch_size=16).update(pairs)
        assert math.isfinite(metrics["grad_norm"])
        assert metrics["grad_norm"] > 0
