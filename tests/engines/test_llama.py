"""The fused decoding step equals the library's forward pass, and steps aside where it would not."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from gpo.engines import batch_cache
from gpo.engines.hf import HFEngine
from gpo.engines.library import BatchDecoder, LibraryDecoder, RecomputingDecoder
from gpo.engines.llama import LlamaDecoder, is_supported
from gpo.engines.prefixes import DecodeRow, shared_prompts

PREFIXES = ((5, 9, 14, 3, 22), (5, 9, 14), (5,), (7, 8, 2, 30, 11, 4, 19, 8, 27))


def rows_of(decoder: BatchDecoder, *prefixes: tuple[int, ...], n: int = 2) -> list[DecodeRow]:
    """n rows that begin with each of the prefixes and then part from it."""
    rows = []
    for prompt in shared_prompts(prefixes):
        decoder.prefill([prompt], 1)
        for request in prompt.requests:
            rows += [
                DecodeRow(prompt, len(prefixes[request]), [2 + (5 * i + request) % 30], [], np.arange(1), 50)
                for i in range(n)
            ]
    return rows


def advance(decoder: BatchDecoder, rows: list[DecodeRow], steps: int) -> torch.Tensor:
    """Feed every row its last token and then tokens that depend on the row; the last logits (B, V)."""
    with torch.no_grad():
        for _ in range(steps):
            logits = decoder.step(torch.tensor([row.tokens[-1] for row in rows]))
            for row in rows:
                row.tokens.append((7 * row.shared + 5 * row.tokens[0] + 3 * len(row.tokens)) % 30 + 2)
    return logits


def branched(decoder: BatchDecoder, rows: list[DecodeRow], index: int) -> DecodeRow:
    """A row that is another one but for its last token."""
    row = rows[index]
    branch = DecodeRow(row.prompt, row.shared, [*row.tokens[:-1], 2 + row.tokens[-1] % 30], [], np.arange(1), 50)
    row.tokens.pop()  # as it is when branches are cut: after the step, before the token that was drawn
    branch.layers = decoder.cut(index)
    row.tokens.append(branch.tokens[-1] - 1 if branch.tokens[-1] > 2 else 31)
    return branch


@pytest.mark.parametrize(
    "family", ["qwen3", "qwen3-tied", "qwen2", "llama", "llama3-rope"]
)  # the families that the fused step serves
@pytest.mark.parametrize("on_gpu", [False, True])
def test_logits_equal_the_library_through_compaction_and_refill(
    family: str, on_gpu: bool, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And as they are computed on a GPU, where a tensor says which column is next."""
    monkeypatch.setattr(batch_cache, "replayed", lambda states: on_gpu)
    model = build(family)
    assert is_supported(model)
    decoders = LlamaDecoder(model), LibraryDecoder(model, 3), RecomputingDecoder(model)
    histories = []
    with torch.no_grad():
        for decoder in decoders:
            rows = rows_of(decoder, *PREFIXES)
            decoder.arrange(rows)
            logits = [advance(decoder, rows, 3)]
            for drop, joins in ((slice(1, 4), PREFIXES[1:3]), (slice(0, 2), PREFIXES[3:]), (slice(0, 5), ())):
                branches = [branched(decoder, rows, index) for index in (0, len(rows) - 1)]
                rows = [row for row in rows if row not in rows[drop]] + branches + rows_of(decoder, *joins, n=3)
                decoder.arrange(rows)
                logits.append(advance(decoder, rows, 2))
            histories.append(logits)
    for fused, library, plain in zip(*histories, strict=True):
        assert torch.allclose(fused, plain, atol=1e-4, rtol=0)
        assert torch.allclose(library, plain, atol=1e-4, rtol=0)


def test_a_prompt_is_stored_once_for_twelve_rows(build: Any) -> None:
    decoder = LlamaDecoder(build("qwen3"))
    with torch.no_grad():
        decoder.arrange(rows_of(decoder, *PREFIXES, n=8))
    assert decoder.cache is not None
    keys, _ = decoder.cache.prefixes.states[0]
    assert keys.shape == (3, 2, 9, 8)  # groups of rows, kv heads, longest prompt, head dimension


@pytest.mark.parametrize("family", ["qwen3-sliding", "mistral-sliding", "llama-biased", "gpt2", "gemma3", "mamba"])
def test_other_architectures_are_left_to_the_library(family: str, build: Any) -> None:
    assert not is_supported(build(family))


def test_what_changes_the_forward_pass_is_left_to_the_library(build: Any) -> None:
    model = deepcopy(build("llama"))
    assert is_supported(model)
    assert not is_supported(deepcopy(model).bfloat16())

    class Adapter(torch.nn.Linear):
        """What peft puts in the place of a projection."""

    adapted = deepcopy(model)
    adapted.model.layers[1].self_attn.q_proj = Adapter(32, 32, bias=False)
    assert not is_supported(adapted)
    other = deepcopy(model)
    other.config.hidden_act = "gelu"
    assert not is_supported(other)
    spread = deepcopy(model)
    spread.model.layers[1].to("meta")  # as another GPU is, or what was left on the disk
    assert not is_supported(spread)
    rotated = deepcopy(model)
    rotated.config.rope_parameters["rope_type"] = "dynamic"
    assert not is_supported(rotated)


def test_a_large_model_is_left_to_the_library(monkeypatch: pytest.MonkeyPatch, build: Any, word_tokenizer: Any) -> None:
    monkeypatch.setattr("gpo.engines.llama.LARGEST", 1000)
    assert type(HFEngine(build("qwen2"), word_tokenizer).decoder()) is LibraryDecoder


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_a_shorter_type_folds_nothing_into_its_weights(family: str, build: Any) -> None:
    """As on a GPU: matrix products in place of the CPU's kernel, scores in float32, norms as they are."""
    model = build(family)
    short = deepcopy(model).bfloat16()
    exact, fused, library = LlamaDecoder(model), LlamaDecoder(short), LibraryDecoder(short, 3)
    assert not fused.folds
    found = []
    for decoder in (exact, fused, library):
        with torch.no_grad():
            rows = rows_of(decoder, *PREFIXES)
            decoder.arrange(rows)
            first = advance(decoder, rows, 3)
            rows = [row for row in rows if row is not rows[1]] + [branched(decoder, rows, 0)]
            decoder.arrange(rows)
            found.append(torch.cat((first, advance(decoder, rows, 2))).float())
    errors = [float((each - found[0]).pow(2).mean().sqrt()) for each in found[1:]]
    assert errors[0] < 1.5 * errors[1]
