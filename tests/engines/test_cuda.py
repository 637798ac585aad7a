"""The engine on a GPU: the contract, the numbers of the CPU, and batches that fit its memory."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from gpo.engines.contract import CHECKS, Check
from gpo.engines.decoding import CUDA_ROWS
from gpo.engines.hf import HFEngine
from gpo.engines.library import LibraryDecoder
from gpo.engines.llama import LlamaDecoder
from gpo.types import Request

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

CONTEXTS = [(5, 9, 14, 3), (5, 9), (5, 9, 14) * 20]
REQUESTS = [Request(ids, 6, 12, seed) for seed, ids in enumerate(CONTEXTS)]


def on_gpu(model: Any, tokenizer: Any, dtype: torch.dtype = torch.float32, **fields: Any) -> HFEngine:
    return HFEngine(model=deepcopy(model).to("cuda", dtype), tokenizer=tokenizer, **fields)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Check, family: str, dtype: torch.dtype, build: Any, word_tokenizer: Any) -> None:
    check(on_gpu(build(family), word_tokenizer, dtype), CONTEXTS)


@pytest.mark.parametrize("kernel", ["auto", "library"])
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "mistral"])
def test_tokens_and_log_probabilities_are_those_of_the_cpu(
    family: str, kernel: str, build: Any, word_tokenizer: Any
) -> None:
    model = build(family)
    engine = on_gpu(model, word_tokenizer, kernel=kernel)
    assert type(engine.decoder()) is (LlamaDecoder if kernel == "auto" else LibraryDecoder)
    found = engine.generate(REQUESTS, logprobs=True)
    expected = HFEngine(model=model, tokenizer=word_tokenizer).generate(REQUESTS, logprobs=True)
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.token_ids == b.token_ids
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_in_bfloat16_the_fused_step_is_as_near_to_float32_as_the_library(
    family: str, build: Any, word_tokenizer: Any
) -> None:
    model = build(family)
    exact = HFEngine(model=model, tokenizer=word_tokenizer)
    errors = {}
    for kernel in ("auto", "library"):
        found = on_gpu(model, word_tokenizer, torch.bfloat16, kernel=kernel).generate(REQUESTS, logprobs=True)
        rows = [(r.token_ids, c) for r, group in zip(REQUESTS, found, strict=True) for c in group]
        nats = exact.logprobs([ids for ids, _ in rows], [c.token_ids for _, c in rows])
        told = torch.tensor([x for _, c in rows for x in c.logprobs or ()])
        errors[kernel] = float((told - torch.tensor([x for row in nats for x in row])).pow(2).mean().sqrt())
    assert errors["auto"] < 1.5 * errors["library"] + 1e-3
    assert errors["library"] < 0.2


def test_a_batch_takes_no_more_than_its_share_of_the_memory(build: Any, word_tokenizer: Any) -> None:
    engine = on_gpu(build("qwen2"), word_tokenizer)
    limits = engine.limits
    free, _ = torch.cuda.mem_get_info()
    assert limits.rows == CUDA_ROWS
    assert limits.positions * 2 * 3 * 2 * 8 * 4 <= free  # keys and values, layers, heads, head dimension, bytes
    narrow = HFEngine(model=engine.model, tokenizer=word_tokenizer, max_rows=3, max_batch_tokens=5).limits
    assert (narrow.rows, narrow.positions) == (3, 5)


def test_closing_gives_memory_back(build: Any, word_tokenizer: Any) -> None:
    before = torch.cuda.memory_allocated()
    engine = on_gpu(build("qwen2"), word_tokenizer)
    engine.generate(REQUESTS)
    assert torch.cuda.memory_allocated() > before
    engine.model = None
    engine.close()
    assert torch.cuda.memory_allocated() <= before
