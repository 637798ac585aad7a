"""What the engine samples and tells, beside the forward pass and the `generate` of transformers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from gpo.engines.hf import HFEngine
from gpo.engines.library import LibraryDecoder
from gpo.engines.llama import LlamaDecoder
from gpo.rollout.prompting import render
from gpo.types import Request

QUESTION = "Name a fruit."
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def prompt(engine: HFEngine) -> tuple[int, ...]:
    return render([{"role": "user", "content": QUESTION}], engine.tokenizer)


def forward(model: Any, context: tuple[int, ...], ids: tuple[int, ...], temperature: float) -> torch.Tensor:
    """(T, V) log-probabilities from one plain forward pass."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context + ids])).logits[0, len(context) - 1 : -1].double()
    return (logits / temperature).log_softmax(-1)


def test_next_tokens_are_as_frequent_as_the_model_says(engine: HFEngine, plain: Any, prompt: tuple[int, ...]) -> None:
    n = 4000
    [completions] = engine.generate([Request(prompt, n, 1, 7)], temperature=TEMPERATURE)
    counts = Counter(completion.token_ids[0] for completion in completions)
    p = forward(plain, prompt, (0,), TEMPERATURE)[0].exp()
    likely = p.topk(20).indices.tolist()
    assert p[likely].sum() > 0.6
    for token in likely:
        expected, deviation = n * p[token].item(), (n * p[token].item() * (1 - p[token].item())) ** 0.5
        assert abs(counts[token] - expected) < 4.5 * deviation + 1
    rest = n - sum(counts[token] for token in likely)
    other = 1 - p[likely].sum().item()
    assert abs(rest - n * other) < 4.5 * (n * other * (1 - other)) ** 0.5


def test_log_probabilities_are_those_of_a_forward_pass(engine: HFEngine, plain: Any, prompt: tuple[int, ...]) -> None:
    requests = [Request(prompt, 2, 12, 1), Request((*prompt, *engine.tokenizer.encode("A fruit")), 2, 8, 2)]
    for request, completions in zip(
        requests, engine.generate(requests, temperature=TEMPERATURE, logprobs=True), strict=True
    ):
        for completion in completions:
            rows = forward(plain, request.token_ids, completion.token_ids, TEMPERATURE)
            expected = [row[token].item() for row, token in zip(rows, completion.token_ids, strict=True)]
            assert completion.logprobs == pytest.approx(expected, abs=2e-4)
            [told] = engine.logprobs([request.token_ids], [completion.token_ids], temperature=TEMPERATURE)
            assert told == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("kernel", ["auto", "library"])
def test_the_most_probable_response_is_that_of_generate(
    engine: HFEngine, plain: Any, prompt: tuple[int, ...], kernel: str
) -> None:
    """The fused step takes a model of this size in float32; the library's forward pass says the same."""
    ours = HFEngine(plain, engine.tokenizer, kernel=kernel)
    assert isinstance(ours.decoder(), LlamaDecoder if kernel == "auto" else LibraryDecoder)
    [[completion]] = ours.generate([Request(prompt, 1, 16, 0)], temperature=0.0)
    ids = torch.tensor([prompt])
    found = plain.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)[0]
    assert completion.token_ids == tuple(found[len(prompt) :].tolist())


def test_bfloat16_samples_from_nearly_the_same_distribution_and_tells_its_own(
    smollm2: Path, engine: HFEngine, prompt: tuple[int, ...]
) -> None:
    short = HFEngine(str(smollm2), dtype="bfloat16")
    assert not short.repeatable
    assert isinstance(short.decoder(), LibraryDecoder)
    [completions] = short.generate([Request(prompt, 4, 12, 3)], temperature=1.0, logprobs=True)
    told = [nats for completion in completions for nats in completion.logprobs or ()]
    exact = engine.logprobs([prompt] * 4, [completion.token_ids for completion in completions])
    apart = [abs(a - b) for a, b in zip(told, (nats for row in exact for nats in row), strict=True)]
    assert 1e-4 < max(apart) < 1.0
    assert sum(apart) / len(apart) < 0.1
