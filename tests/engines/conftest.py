"""Tiny random models of several families, a word tokenizer, and an independent reference for log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 32
EOS = 1
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": None,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: Qwen3Config(**SHAPE),
    "qwen3-tied": lambda: Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "qwen3-sliding": lambda: Qwen3Config(**SHAPE, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen2": lambda: Qwen2Config(**{name: value for name, value in SHAPE.items() if name != "head_dim"}),
    "llama": lambda: LlamaConfig(**SHAPE),
    "llama-biased": lambda: LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "llama3-rope": lambda: LlamaConfig(
        **SHAPE,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=None),
    "mistral-sliding": lambda: MistralConfig(**SHAPE, sliding_window=6),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=None,
        eos_token_id=EOS,
        resid_pdrop=0.5,
    ),
    "gemma2": lambda: Gemma2Config(**SHAPE, sliding_window=6),
    "gemma3": lambda: Gemma3TextConfig(**SHAPE, sliding_window=6, sliding_window_pattern=2),
    "mamba": lambda: MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=4,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=None,
    ),
}


@cache
def tiny_model(family: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]()).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)  # the library's 0.02 makes every next-token distribution near uniform
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def build() -> Callable[[str], Any]:
    """A family's name -> its tiny model, the same object each time."""
    return tiny_model


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": EOS} | {f"w{index}": index for index in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.fixture
def teacher() -> Callable[[Any, tuple[int, ...], tuple[int, ...], float], list[float]]:
    """Log-probabilities of the completion's tokens from one plain forward pass, without cache or batch."""

    def logprobs(
        model: Any, prompt: tuple[int, ...], completion: tuple[int, ...], temperature: float = 1.0
    ) -> list[float]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        scores = (logits.double() / temperature).log_softmax(-1)
        return [float(row[token]) for row, token in zip(scores, completion, strict=True)]

    return logprobs


@pytest.fixture(autouse=True)
def rounding_is_the_same(one_thread: None) -> None:
    """Tiny matrices are slower on several threads, and rounding then depends on their number."""


@pytest.fixture
def never_ends() -> Callable[..., Any]:
    """A copy of a model of the Llama kind that never samples its end-of-sequence token."""

    def copy(model: Any, context: int) -> Any:
        copied = deepcopy(model)
        copied.config.max_position_embeddings = context
        weight = copied.lm_head.weight.data
        biased = torch.nn.Linear(weight.shape[1], weight.shape[0])
        biased.weight.data, biased.bias.data = weight, torch.zeros(weight.shape[0])
        biased.bias.data[EOS] = -1e9
        copied.lm_head = biased
        return copied.eval()

    return copy
