"""How the online methods train: accumulation, checkpointing, bf16, adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_online import METHODS, mixed_groups, run
from tiny_policy import completion_logps, make_model, make_tokenizer, same, state
from transformers import AutoModelForCausalLM

from gpo.engines.hf import HFEngine
from gpo.methods.grpo import GRPO
from gpo.methods.online import Online
from gpo.types import ModelRef, Request


def close(left: list[torch.Tensor], right: list[torch.Tensor], tolerance: float = 2e-6) -> bool:
    return all(torch.allclose(a, b, atol=tolerance, rtol=0) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("kind", METHODS)
def test_accumulated_gradients_are_those_of_one_batch(kind: type[Online]) -> None:
    methods = [run(kind, make_model(), mixed_groups(), max_tokens=size)[0] for size in (1, 8, 8192)]
    weights = [state(method.policy.model) for method in methods]
    # AdamW's first step is the sign of the gradient: compare what was accumulated.
    gradients = [[p.grad for p in method._parameters()] for method in methods]
    assert close(gradients[0], gradients[2])
    assert close(gradients[1], gradients[2])
    assert not same(weights[2], state(make_model()))


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("lora", [None, 2])
def test_checkpointing_of_activations_changes_nothing(kind: type[Online], lora: int | None) -> None:
    settings = {"lora": lora, "epochs": 2}
    methods = [
        run(kind, make_model(), mixed_groups(), gradient_checkpointing=on, **settings)[0] for on in (False, True)
    ]
    assert close(*([p.grad for p in method._parameters()] for method in methods))
    assert methods[1].policy.model.is_activation_checkpointing


@pytest.mark.parametrize("kind", METHODS)
def test_bf16_computes_roughly_the_same_with_float32_weights(kind: type[Online]) -> None:
    results = [run(kind, make_model(), mixed_groups(), bf16=on) for on in (False, True)]
    assert {p.dtype for p in results[1][0].policy.model.parameters()} == {torch.float32}
    losses = [metrics["loss"] for _, metrics in results]
    assert losses[1] == pytest.approx(losses[0], abs=0.02)
    gradients = [torch.cat([p.grad.flatten() for p in method._parameters()]) for method, _ in results]
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
    assert not torch.equal(*gradients)


def start(path: Path) -> Path:
    make_model().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", METHODS)
def test_adapters_are_saved_sampled_from_trained_further_and_merged(tmp_path: Path, kind: type[Online]) -> None:
    settings: dict[str, Any] = {"lora": 2, "learning_rate": 1e-2, "minibatches": 2}
    whole = kind(start(tmp_path / "start"), **settings)
    whole.update(mixed_groups())
    whole.save(tmp_path / "adapters")
    assert not (tmp_path / "adapters" / "model.safetensors").exists()
    frozen = whole.policy.model.get_base_model().state_dict()
    assert torch.equal(frozen["lm_head.base_layer.weight"] if "lm_head.base_layer.weight" in frozen else
                       frozen["lm_head.weight"], make_model().lm_head.weight)  # fmt: skip

    prompt = (1, 2, 3)
    engine = HFEngine(tmp_path / "start")
    engine.load(ModelRef(tmp_path / "adapters", "adapters"))
    sampled = engine.generate([Request(prompt, 1, 8, 0)], logprobs=True)[0][0]
    with torch.no_grad():
        expected = completion_logps(whole.policy.model, prompt, sampled.token_ids)
    assert torch.tensor(sampled.logprobs) == pytest.approx(expected, abs=1e-4)
    with torch.no_grad():
        assert (completion_logps(make_model(), prompt, sampled.token_ids) - expected).abs().max() > 1e-3

    further = kind(tmp_path / "adapters", **settings)
    assert further.update(mixed_groups()) == whole.update(mixed_groups())
    assert same(state(further.policy.model), state(whole.policy.model))

    further.merge = True
    further.save(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    with torch.no_grad():
        merged_logps = completion_logps(merged, prompt, sampled.token_ids)
        assert merged_logps == pytest.approx(completion_logps(whole.policy.model, prompt, sampled.token_ids), abs=1e-4)


def test_the_group_of_a_reset_never_mixes_with_a_fresh_one() -> None:
    """Planted: with one baseline over both groups the fresh advantages would change with the reset rewards."""
    method = GRPO(make_model(), make_tokenizer())
    fresh, reset = mixed_groups()
    rows, _ = method._rows([fresh, reset])
    alone, _ = method._rows([fresh])
    for each in (rows, alone):
        method._look_up(each)
        method._set_advantages(each)
    assert {row.group for row in rows if row.start.prefix_ids}.isdisjoint(row.group for row in alone)
    together = [row.advantages for row in rows if not row.start.prefix_ids]
    assert same(together, [row.advantages for row in alone])
