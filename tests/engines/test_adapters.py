"""Models with LoRA adapters sample with merged weights where that computes the same, and as they are elsewhere."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from gpo.engines.adapters import is_plain, weight_of
from gpo.engines.hf import HFEngine
from gpo.engines.library import LibraryDecoder
from gpo.engines.llama import LlamaDecoder
from gpo.errors import EngineError
from gpo.methods.grpo import GRPO
from gpo.types import Group, ModelRef, Request, Score, Start, Trajectory

STORY = (5, 9, 14, 3, 22, 7, 30)
REQUESTS = [Request(STORY, 5, 12, 0), Request(STORY[:3], 5, 12, 1)]
HEAD = ["q_proj", "down_proj", "lm_head"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft asks for it
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings"),  # what peft says of adapting a tied head
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
]


def adapted(model: Any, **fields: Any) -> Any:
    """A copy with random adapters, as they would be after training."""
    config = LoraConfig(**{"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | fields)
    torch.manual_seed(1)
    model = get_peft_model(deepcopy(model), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return model.eval()


def assert_samples_as(model: Any, engine: HFEngine, teacher: Any) -> None:
    for request, group in zip(REQUESTS, engine.generate(REQUESTS, logprobs=True), strict=True):
        for completion in group:
            expected = teacher(model, request.token_ids, completion.token_ids)
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("family", "targets"), [("qwen3", "all-linear"), ("qwen2", "all-linear"), ("llama", HEAD), ("qwen3-tied", HEAD)]
)
def test_a_model_in_training_is_sampled_with_the_fused_step_and_keeps_its_adapters(
    family: str, targets: Any, build: Any, teacher: Any, word_tokenizer: Any
) -> None:
    model = adapted(build(family), target_modules=targets).train()
    before = deepcopy(model.state_dict())
    engine = HFEngine(model=model, tokenizer=word_tokenizer)
    assert type(engine.decoder()) is LlamaDecoder
    assert_samples_as(model, engine, teacher)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.neg_()  # an update, which the next sampling follows
    assert_samples_as(model, engine, teacher)
    with model.disable_adapter():
        assert_samples_as(build(family), engine, teacher)


@pytest.mark.parametrize(
    ("family", "targets", "decoder"),
    [
        ("qwen3", "all-linear", LlamaDecoder),
        ("qwen3-tied", HEAD, LlamaDecoder),
        ("gemma3", "all-linear", LibraryDecoder),
        ("gpt2", "all-linear", LibraryDecoder),  # its projections are none that merging knows
    ],
)
def test_a_checkpoint_of_adapters_is_merged(
    family: str, targets: Any, decoder: type, build: Any, teacher: Any, word_tokenizer: Any, tmp_path: Path
) -> None:
    build(family).save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    model = adapted(build(family), target_modules=targets, fan_in_fan_out=family == "gpt2")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapters")
    engine = HFEngine(model=str(tmp_path / "base"), tokenizer=word_tokenizer, device="cpu")
    engine.load(ModelRef(tmp_path / "adapters", "adapters"))
    assert type(engine.decoder()) is decoder
    assert any("lora" in name for name, _ in engine.decoder().model.named_modules()) == (family == "gpt2")
    assert_samples_as(model, engine, teacher)


@pytest.mark.parametrize(
    "fields",
    [{"use_dora": True}, {"lora_bias": True, "target_modules": ["q_proj"]}, {"modules_to_save": ["embed_tokens"]}],
)
def test_what_cannot_be_merged_is_left_to_the_library(
    fields: dict[str, Any], build: Any, teacher: Any, word_tokenizer: Any
) -> None:
    model = adapted(build("qwen2"), **fields)
    engine = HFEngine(model=model, tokenizer=word_tokenizer)
    assert type(engine.decoder()) is LibraryDecoder
    assert_samples_as(model, engine, teacher)


def test_virtual_tokens_are_refused(build: Any, word_tokenizer: Any) -> None:
    model = get_peft_model(deepcopy(build("qwen3")), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(EngineError, match="PROMPT_TUNING; expected LoRA"):
        HFEngine(model=model, tokenizer=word_tokenizer).generate(REQUESTS)


def test_weights_are_merged_in_float32_and_then_cast(build: Any) -> None:
    model = adapted(build("llama"))
    projection = model.get_base_model().model.layers[0].mlp.up_proj.bfloat16()
    assert is_plain(projection)
    up, down = projection.lora_B["default"].weight.double(), projection.lora_A["default"].weight.double()
    exact = projection.weight.double() + 2.0 * up @ down  # alpha / rank
    assert torch.equal(weight_of(projection), exact.bfloat16())


def test_the_first_ratio_of_an_online_update_is_one(build: Any, word_tokenizer: Any) -> None:
    """Sampled from the policy in training, after an update that made its adapters differ from nothing."""
    word_tokenizer.pad_token = "<pad>"
    method = GRPO(deepcopy(build("qwen3")), word_tokenizer, lora=2, learning_rate=0.05)
    for seed, least in ((0, 0.0), (1, 0.01)):
        model = method.policy.model
        engine = HFEngine(model=model, tokenizer=word_tokenizer)
        assert type(engine.decoder()) is LlamaDecoder
        [completions] = engine.generate([Request(STORY, 6, 9, seed)], logprobs=True)
        start = Start("p", STORY)
        rows = [
            Trajectory(str(i), start, c, Score(float(i % 2), "right" if i % 2 else "wrong"), (len(c.token_ids),))
            for i, c in enumerate(completions)
        ]
        moved = sum(float(p.detach().abs().sum()) for name, p in model.named_parameters() if "lora_B" in name)
        assert moved >= least
        metrics = method.update([Group(start, tuple(rows))])
        assert metrics["ratio_error"] < 1e-4
