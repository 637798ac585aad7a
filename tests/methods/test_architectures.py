"""Training causal language models of several families: dropout, capped logits, learned positions, tied heads."""

import math
from typing import Any

import pytest
import torch
import transformers
from tiny_policy import completion_logps, make_pairs, make_tokenizer

from gpo.methods.dpo import DPO
from gpo.methods.simpo import SimPO

SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3": SMALL,
    "Gemma2": {**SMALL, "final_logit_softcapping": 2.0},  # logits are capped behind the head
    "Phi3": SMALL,
    "GPTNeoX": SMALL,
    "GPT2": {"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "resid_pdrop": 0.5},
    "OPT": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.5},  # no module, a rate in a field
}


def make(family: str) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{"initializer_range": 0.2, **FAMILIES[family]})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_loss_is_that_of_the_model(family: str) -> None:
    model, (pair,) = make(family), make_pairs(1)
    context = pair.prompt_ids + pair.prefix_ids
    with torch.no_grad():
        good, bad = (
            completion_logps(model, context, ids).mean().item() for ids in (pair.chosen_ids, pair.rejected_ids)
        )
    method = SimPO(model, make_tokenizer(), beta=1.0, gamma=0.5, warmup=0.0)
    assert method.update([pair])["loss"] == pytest.approx(math.log1p(math.exp(-(good - bad - 0.5))), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_raise_the_margin_with_recomputed_activations(family: str) -> None:
    settings = {"batch_size": 4, "learning_rate": 1e-2, "epochs": 4, "warmup": 0.0}
    method = DPO(make(family), make_tokenizer(), lora=2, gradient_checkpointing=True, **settings)  # type: ignore[arg-type]
    assert method.update(make_pairs(8))["rewards/margins"] > 0.1


def test_a_mixture_of_experts_trains_with_the_loss_that_balances_them() -> None:
    torch.manual_seed(0)
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    model = transformers.AutoModelForCausalLM.from_config(transformers.Qwen3MoeConfig(**SMALL, **experts)).eval()
    method = DPO(model, make_tokenizer(), batch_size=4, learning_rate=1e-2, epochs=4, warmup=0.0)
    metrics = method.update(make_pairs(8))
    assert metrics["aux_loss"] > 0.5
    assert metrics["rewards/margins"] > 0.1
