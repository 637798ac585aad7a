"""Log-probabilities of given tokens are those that sampling told, whatever the batch and the bounds of a pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_adapters import adapted
from test_hf import FORKABLE, STORY, engine_of, search

from gpo.engines import decoding
from gpo.engines.hf import HFEngine
from gpo.errors import ConfigError, EngineError
from gpo.types import Completion, Request

TEMPERATURES = [0.0, 0.7, 1.0]


def sampled(engine: HFEngine, temperature: float = 1.0) -> tuple[list[tuple[int, ...]], list[Completion]]:
    """Contexts, and what was sampled behind each."""
    requests = search()
    groups = engine.generate(requests, temperature=temperature, logprobs=True)
    pairs = [(r.token_ids, c) for r, group in zip(requests, groups, strict=True) for c in group]
    return [context for context, _ in pairs], [completion for _, completion in pairs]


def assert_told_again(engine: HFEngine, temperature: float = 1.0) -> None:
    contexts, completions = sampled(engine, temperature)
    found = engine.logprobs(contexts, [c.token_ids for c in completions], temperature=temperature)
    for nats, completion in zip(found, completions, strict=True):
        assert nats == pytest.approx(completion.logprobs, abs=1e-4)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("family", [*FORKABLE, "mamba"])
def test_they_are_what_sampling_told(family: str, temperature: float, build: Any, word_tokenizer: Any) -> None:
    assert_told_again(engine_of(build(family), word_tokenizer), temperature)


@pytest.mark.parametrize("bounds", [(1, 1 << 25), (8192, 1), (40, 32 * 5), (8192, 32 * 70)])
@pytest.mark.parametrize("family", ["qwen3", "qwen3-sliding", "gemma3", "gpt2", "mamba"])
def test_they_do_not_depend_on_the_bounds_of_a_pass(
    family: str, bounds: tuple[int, int], build: Any, word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(build(family), word_tokenizer)
    contexts, completions = sampled(engine)
    continuations = [completion.token_ids for completion in completions]
    whole = engine.logprobs(contexts, continuations)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", bounds[0])
    monkeypatch.setattr(decoding, "PREFILL_LOGITS", bounds[1])
    for one, other in zip(whole, engine.logprobs(contexts, continuations), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_logits_of_a_pass_stay_within_the_bound(
    build: Any, word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes = build("qwen3"), []
    handle = model.lm_head.register_forward_hook(lambda module, given, logits: sizes.append(logits.numel()))
    try:
        engine = engine_of(model, word_tokenizer)
        monkeypatch.setattr(decoding, "PREFILL_LOGITS", 32 * 6)
        engine.logprobs([STORY[:1], STORY[:3]], [STORY[1:], STORY[3:]])
    finally:
        handle.remove()
    assert sum(sizes) == 32 * 2 * 11
    assert max(sizes) == 32 * 6


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("qwen3", {}),
        ("qwen3", {"use_dora": True}),
        ("qwen3", {"target_modules": ["q_proj", "lm_head"]}),
        ("gpt2", {"fan_in_fan_out": True}),
    ],
)
def test_adapters_count(family: str, fields: dict[str, Any], build: Any, teacher: Any, word_tokenizer: Any) -> None:
    model = adapted(build(family), **fields).train()
    engine = engine_of(model, word_tokenizer)
    assert_told_again(engine)
    assert model.training
    [nats] = engine.logprobs([STORY[:4]], [STORY[4:]])
    assert nats == pytest.approx(teacher(model.eval(), STORY[:4], STORY[4:]), abs=1e-4)
    assert nats != pytest.approx(teacher(build(family), STORY[:4], STORY[4:]), abs=1e-2)


def test_nothing_is_asked_nothing_is_told(build: Any, word_tokenizer: Any) -> None:
    engine = engine_of(build("qwen3"), word_tokenizer)
    assert engine.logprobs([], []) == []
    [none, some] = engine.logprobs([STORY, STORY], [(), (5,)])
    assert none == ()
    assert len(some) == 1


def test_the_context_may_be_filled(build: Any, word_tokenizer: Any) -> None:
    engine = engine_of(build("qwen3"), word_tokenizer)
    [nats] = engine.logprobs([[5] * 10], [[6] * 54])
    assert len(nats) == 54
    with pytest.raises(EngineError, match=r"Sequence 0 has 10 \+ 55 tokens, expected at most 64"):
        engine.logprobs([[5] * 10], [[6] * 55])


@pytest.mark.parametrize(
    ("contexts", "continuations", "message"),
    [
        ([[5]], [], "Got 1 contexts and 0 continuations"),
        ([[5], []], [[6], [6]], "Sequence 1 has no tokens"),
        ([[5]], [[32]], "expected 0 to 31"),
        ([[-1]], [[3]], "expected 0 to 31"),
    ],
)
def test_what_cannot_be_told_is_an_error(
    contexts: Any, continuations: Any, message: str, build: Any, word_tokenizer: Any
) -> None:
    with pytest.raises(EngineError, match=message):
        engine_of(build("qwen3"), word_tokenizer).logprobs(contexts, continuations)


def test_an_impossible_temperature_is_refused(build: Any, word_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="Temperature"):
        engine_of(build("qwen3"), word_tokenizer).logprobs([[5]], [[6]], temperature=-1.0)


def test_nan_weights_are_reported(build: Any, word_tokenizer: Any) -> None:
    from copy import deepcopy

    model = deepcopy(build("qwen3"))
    model.get_input_embeddings().weight.data[5] = float("nan")
    with pytest.raises(EngineError, match="NaN"):
        engine_of(model, word_tokenizer).logprobs([[5, 6]], [[6]])


def test_weights_in_bfloat16_are_summed_in_float32(build: Any, word_tokenizer: Any) -> None:
    from copy import deepcopy

    engine = engine_of(deepcopy(build("qwen3")).bfloat16(), word_tokenizer)
    assert not engine.repeatable
    [nats] = engine.logprobs([STORY[:1]], [STORY[1:]])
    with torch.no_grad():
        rows = engine.decoder().model(input_ids=torch.tensor([STORY])).logits[0, :-1].float().log_softmax(-1)
    assert nats == pytest.approx([float(row[t]) for row, t in zip(rows, STORY[1:], strict=True)], abs=1e-5)
    [[completion]] = engine.generate([Request(STORY, 1, 5, 0)], logprobs=True)
    assert completion.logprobs is not None
