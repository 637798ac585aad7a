"""HFEngine on tiny random models: forked caches, batching, seeds, stopping, and the errors users meet."""

from __future__ import annotations

import random
import weakref
from collections import Counter
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from gpo.engines import decoding, hf, loading
from gpo.engines.draw import NextToken, stream_keys, uniforms
from gpo.engines.hf import HFEngine
from gpo.engines.llama import LlamaDecoder
from gpo.errors import ConfigError, EngineError
from gpo.types import Completion, ModelRef, Request

FORKABLE = (
    "qwen3",
    "qwen3-tied",
    "qwen3-sliding",
    "qwen2",
    "llama",
    "llama-biased",
    "llama3-rope",
    "mistral-sliding",
    "gpt2",
    "gemma3",
)
STORY = (5, 9, 14, 3, 22, 7, 30, 11, 4, 19, 8, 27)
OTHER = (5, 9, 14, 6, 2, 13, 21)


def engine_of(model: Any, tokenizer: Any, **fields: Any) -> HFEngine:
    return HFEngine(model=model, tokenizer=tokenizer, **fields)


def search(n: int = 3, max_tokens: int = 20) -> list[Request]:
    """Every prefix of two sequences that share a beginning."""
    starts = [STORY[:end] for end in range(1, len(STORY) + 1)] + [OTHER[:end] for end in range(4, len(OTHER) + 1)]
    return [Request(start, n, max_tokens, seed) for seed, start in enumerate(starts)]


def tokens_of(completions: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group] for group in completions]


@pytest.mark.parametrize("kernel", ["auto", "library"])
@pytest.mark.parametrize("family", [*FORKABLE, "mamba"])
def test_logprobs_of_forked_prefixes_equal_a_plain_forward_pass(
    family: str, kernel: str, build: Any, teacher: Any, word_tokenizer: Any
) -> None:
    model = build(family)
    requests = search()
    results = engine_of(model, word_tokenizer, max_rows=7, kernel=kernel).generate(requests, logprobs=True)
    for request, group in zip(requests, results, strict=True):
        for completion in group:
            expected = teacher(model, request.token_ids, completion.token_ids)
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "mamba"])
def test_samples_do_not_depend_on_the_batch(family: str, build: Any, word_tokenizer: Any) -> None:
    requests = search()
    whole = tokens_of(engine_of(build(family), word_tokenizer).generate(requests))
    order = random.Random(0).sample(range(len(requests)), len(requests))
    shuffled = tokens_of(engine_of(build(family), word_tokenizer, max_rows=5).generate([requests[i] for i in order]))
    assert [whole[i] for i in order] == shuffled
    alone = [tokens_of(engine_of(build(family), word_tokenizer, max_rows=1).generate([r]))[0] for r in requests]
    assert whole == alone


def test_continuation_i_does_not_depend_on_n(build: Any, word_tokenizer: Any) -> None:
    engine = engine_of(build("qwen3"), word_tokenizer)
    few, many = (tokens_of(engine.generate([Request(STORY, n, 10, 7)]))[0] for n in (2, 9))
    assert few == many[:2]
    assert len(set(many)) > 1


def test_a_batch_smaller_than_its_longest_row_still_ends(build: Any, word_tokenizer: Any) -> None:
    requests = search()
    wide = engine_of(build("qwen3"), word_tokenizer).generate(requests)
    narrow = engine_of(build("qwen3"), word_tokenizer, max_batch_tokens=1).generate(requests)
    assert tokens_of(wide) == tokens_of(narrow)


class CountingModel:
    """Counts the rows of every decoding step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        step = LlamaDecoder.step

        def counted(decoder: LlamaDecoder, tokens: torch.Tensor) -> torch.Tensor:
            self.rows.append(len(tokens))
            return step(decoder, tokens)

        monkeypatch.setattr(LlamaDecoder, "step", counted)


def test_continuations_with_the_same_tokens_share_a_row(
    build: Any, word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = CountingModel(monkeypatch)
    engine = engine_of(build("qwen3"), word_tokenizer)
    greedy = engine.generate([Request(STORY, 50, 10, 0)], temperature=0.0)[0]
    assert set(counting.rows) == {1}
    [path] = {completion.token_ids for completion in greedy}
    prefixes = [STORY + path[:end] for end in range(5)]
    counting.rows.clear()
    again = engine.generate([Request(prefix, 9, 20 - len(prefix), 0) for prefix in prefixes], temperature=0.0)
    assert set(counting.rows) == {1}  # five requests, one path
    assert [{c.token_ids for c in group} for group in again] == [{path[end:8]} for end in range(5)]


def sampled_alone(model: Any, request: Request, continuation: int, temperature: float) -> tuple[int, ...]:
    """One continuation, token by token with a plain forward pass and its own random numbers."""
    ids: tuple[int, ...] = ()
    keys = stream_keys([request.seed], [continuation])
    while len(ids) < request.max_tokens and 1 not in ids:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([request.token_ids + ids])).logits[:, -1]
        number = uniforms(keys, np.array([len(ids)], dtype=np.uint64))
        ids += (int(NextToken(logits, temperature).draw(np.array([0]), number)[0]),)
    return ids


def test_sharing_changes_nothing_that_is_sampled(build: Any, word_tokenizer: Any) -> None:
    model, temperature, n = build("llama"), 0.12, 12
    requests = [Request(request.token_ids, n, 14 - 2 * i % 9, i) for i, request in enumerate(search())]
    together = tokens_of(engine_of(model, word_tokenizer).generate(requests, temperature=temperature))
    paths = {request.token_ids + ids for request, group in zip(requests, together, strict=True) for ids in group}
    assert len(paths) < len(requests) * n * 0.7  # or there would be little to share
    for request, group in zip(requests, together, strict=True):
        assert group == [sampled_alone(model, request, i, temperature) for i in range(n)]


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "mamba"])
def test_prompts_with_too_many_logits_are_not_followed(
    family: str, build: Any, word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(build(family), word_tokenizer)
    followed = engine.generate(search(), logprobs=True)
    monkeypatch.setattr(decoding, "PREFILL_LOGITS", 1)
    plain = engine.generate(search(), logprobs=True)
    assert tokens_of(followed) == tokens_of(plain)
    for one, other in zip((c for g in followed for c in g), (c for g in plain for c in g), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("kernel", ["auto", "library"])
def test_rows_outlive_the_cache_headroom(
    kernel: str, build: Any, teacher: Any, word_tokenizer: Any, never_ends: Any
) -> None:
    model = never_ends(build("llama"), context=300)
    requests = [Request(STORY[:3], 2, 200, 0), Request(STORY, 1, 7, 1), Request(STORY[:1], 1, 150, 2)]
    results = engine_of(model, word_tokenizer, kernel=kernel, max_rows=3).generate(requests, logprobs=True)
    for request, group in zip(requests, results, strict=True):
        for completion in group:
            assert len(completion.token_ids) == request.max_tokens
            assert completion.finish_reason == "length"
            expected = teacher(model, request.token_ids, completion.token_ids)
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)


def test_end_of_sequence_is_kept_where_it_was_sampled_only(build: Any, word_tokenizer: Any) -> None:
    engine = engine_of(build("qwen3"), word_tokenizer)
    completions = [c for group in engine.generate(search(n=20)) for c in group]
    reasons = Counter(completion.finish_reason for completion in completions)
    assert reasons["stop"] > 20
    assert reasons["length"] > 20
    for completion in completions:
        assert (1 in completion.token_ids) == (completion.finish_reason == "stop")
        assert 1 not in completion.token_ids[:-1]
        assert "<eos>" not in completion.text
        assert completion.text.split() == [f"w{t}" if t else "<pad>" for t in completion.token_ids if t != 1]
        assert completion.logprobs is None


def test_temperature_scales_the_logprobs(build: Any, teacher: Any, word_tokenizer: Any) -> None:
    model = build("qwen3")
    [[completion]] = engine_of(model, word_tokenizer).generate(
        [Request(STORY, 1, 9, 3)], temperature=0.7, logprobs=True
    )
    assert completion.logprobs == pytest.approx(teacher(model, STORY, completion.token_ids, 0.7), abs=1e-4)


def test_greedy_equals_the_library_and_states_logprobs_at_temperature_one(
    build: Any, teacher: Any, word_tokenizer: Any
) -> None:
    model = build("qwen3")
    [group] = engine_of(model, word_tokenizer).generate([Request(STORY, 2, 15, 3)], temperature=0.0, logprobs=True)
    prompt = torch.tensor([STORY])
    expected = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=15, do_sample=False, pad_token_id=0
    )
    assert group[0].token_ids == tuple(expected[0, len(STORY) :].tolist()) == group[1].token_ids
    assert group[0].logprobs == pytest.approx(teacher(model, STORY, group[0].token_ids), abs=1e-4)


def test_second_tokens_have_the_distribution_of_the_model(build: Any, word_tokenizer: Any) -> None:
    """Chi-square against the exact two-token distribution; the same statistic accepts the library's own sampling."""
    model, n = build("llama"), 4000
    first = model(input_ids=torch.tensor([STORY])).logits[0, -1].double().softmax(-1)
    extended = torch.tensor([[*STORY, token] for token in range(32)])
    second = model(input_ids=extended).logits[:, -1].double().softmax(-1)
    exact = (first @ second - first[1] * second[1]).detach()  # a sequence that ended at once has no second token

    ours = engine_of(model, word_tokenizer).generate([Request(STORY, n, 2, 11)])[0]
    torch.manual_seed(0)
    prompt = torch.tensor([STORY])
    library = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=2,
        do_sample=True,
        top_k=0,
        num_return_sequences=n,
        pad_token_id=0,
    )[:, len(STORY) :]
    for pairs in (
        [completion.token_ids for completion in ours if len(completion.token_ids) == 2],
        [tuple(pair) for pair in library.tolist() if pair[0] != 1],
    ):
        counts = Counter(pair[1] for pair in pairs)
        observed = torch.tensor([counts[token] for token in range(32)], dtype=torch.float64)
        assert p_value(observed, exact * len(pairs) / exact.sum()) > 0.001
        assert p_value(observed.roll(1), exact * len(pairs) / exact.sum()) < 1e-6


def p_value(observed: torch.Tensor, expected: torch.Tensor) -> float:
    """Chi-square with the rare tokens (expected below 5) in the cell of the most frequent one."""
    cell = torch.where(expected < 5, expected.argmax(), torch.arange(len(expected)))
    merged = (torch.zeros_like(counts).scatter_add_(0, cell, counts) for counts in (observed, expected))
    return float(chisquare(*(counts[cell.unique()].numpy() for counts in merged)).pvalue)


def test_the_context_bounds_a_completion(build: Any, word_tokenizer: Any, never_ends: Any) -> None:
    engine = engine_of(never_ends(build("llama"), context=64), word_tokenizer)
    assert engine.context_length == 64
    [[completion]] = engine.generate([Request(tuple([5] * 60), 1, 100, 0)])
    assert len(completion.token_ids) == 4
    assert completion.finish_reason == "length"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(tuple([5] * 64), 1, 1, 0), "has 64 tokens, expected fewer than the model's context"),
        (Request((), 1, 1, 0), "no tokens"),
        (Request((5, 32), 1, 1, 0), "expected 0 to 31"),
        (Request((-1, 5), 1, 1, 0), "expected 0 to 31"),
        (Request((5,), 0, 1, 0), "n=0"),
        (Request((5,), 1, 0, 0), "max_tokens=0"),
    ],
)
def test_a_request_that_cannot_be_served_is_named(
    request_: Request, message: str, build: Any, word_tokenizer: Any
) -> None:
    with pytest.raises(EngineError, match=f"Request 1 .*{message}"):
        engine_of(build("qwen3"), word_tokenizer).generate([Request((5,), 1, 1, 0), request_])


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_an_impossible_temperature_is_refused(temperature: float, build: Any, word_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="Temperature"):
        engine_of(build("qwen3"), word_tokenizer).generate([Request((5,), 1, 1, 0)], temperature=temperature)


def test_nan_weights_are_reported(word_tokenizer: Any, build: Any) -> None:
    from copy import deepcopy

    model = deepcopy(build("qwen3"))
    model.get_input_embeddings().weight.data[5] = float("nan")
    with pytest.raises(EngineError, match="NaN"):
        engine_of(model, word_tokenizer).generate([Request((5,), 1, 1, 0)])


def test_a_handed_over_model_keeps_its_mode_and_follows_its_training(build: Any, word_tokenizer: Any) -> None:
    from copy import deepcopy

    model = deepcopy(build("qwen3"))
    engine = engine_of(model, word_tokenizer)
    before = tokens_of(engine.generate([Request(STORY, 4, 20, 0)]))
    model.train()
    assert tokens_of(engine.generate([Request(STORY, 4, 20, 0)])) == before
    assert model.training
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(1.0)
    assert tokens_of(engine.generate([Request(STORY, 4, 20, 0)])) != before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kernel", ["auto", "library"])
def test_keys_and_values_of_a_prompt_go_with_its_last_row(
    kernel: str, build: Any, word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = decoding.Decoding.begin
    states: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def counted(self: decoding.Decoding, unread: Any) -> Any:
        before = list(unread)
        rows = begin(self, unread)
        layers = [prompt.layers for prompt in before[: len(before) - len(unread)]]
        states.extend(weakref.ref(each if isinstance(each, torch.Tensor) else each[0][0]) for each in layers)
        alive.append(sum(state() is not None for state in states))
        return rows

    monkeypatch.setattr(decoding.Decoding, "begin", counted)
    requests = [Request((2 + i, 3, 4), 1, 6, i) for i in range(24)]
    engine_of(build("qwen2"), word_tokenizer, max_rows=2, kernel=kernel).generate(requests)
    assert len(states) == 24
    assert max(alive) <= 6  # of rows that are decoded, of those that were, and of those that join


def test_a_batch_on_a_gpu_takes_what_torch_keeps_for_later_and_no_pass_is_larger(
    build: Any, word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(build("qwen2"), word_tokenizer)
    gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, config=engine._network().config)
    monkeypatch.setattr(HFEngine, "_network", lambda self: gpu)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 500)
    position = 2 * 3 * 2 * 8 * 2  # keys and values, layers, heads, head dimension, bytes
    for left, kept, positions, prefill in (
        (20000, 0, 20000, 2),
        (5000, 15000, 20000, 2),
        (0, 0, 1, 1),
        (900000, 0, 900000, 8),
    ):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda device, left=left: (left * 4 * position, 0))
        monkeypatch.setattr("torch.cuda.memory_reserved", lambda device, kept=kept: 500 + kept * 4 * position)
        expected = (decoding.CUDA_ROWS, positions, prefill * decoding.PREFILL_TOKENS, prefill * decoding.PREFILL_LOGITS)
        assert engine.limits == decoding.Limits(*expected)


def test_dropout_is_off_while_sampling(build: Any, teacher: Any, word_tokenizer: Any) -> None:
    model = build("gpt2").train()
    try:
        [[completion]] = engine_of(model, word_tokenizer).generate([Request(STORY, 1, 9, 3)], logprobs=True)
        assert model.training
    finally:
        model.eval()
    assert completion.logprobs == pytest.approx(teacher(model, STORY, completion.token_ids), abs=1e-4)


def test_a_saved_model_samples_as_the_one_in_memory(build: Any, word_tokenizer: Any, tmp_path: Path) -> None:
    for family in ("qwen3", "llama"):
        build(family).save_pretrained(tmp_path / family)
        word_tokenizer.save_pretrained(tmp_path / family)
    requests = search()
    engine = HFEngine(model=str(tmp_path / "qwen3"), device="cpu")
    assert tokens_of(engine.generate(requests)) == tokens_of(
        engine_of(build("qwen3"), word_tokenizer).generate(requests)
    )
    engine.load(ModelRef(tmp_path / "llama", "llama"))
    assert tokens_of(engine.generate(requests)) == tokens_of(
        engine_of(build("llama"), word_tokenizer).generate(requests)
    )


def test_models_that_cannot_be_loaded_are_explained(build: Any, word_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    word_tokenizer.save_pretrained(tmp_path / "broken")
    build("qwen3").save_pretrained(tmp_path / "bare")
    with pytest.raises(EngineError, match=r"There is no model at .*absent.*: expected a directory with"):
        HFEngine(model=tmp_path / "absent")
    with pytest.raises(EngineError, match=r"No tokenizer in .*empty"):
        HFEngine(model=tmp_path / "empty")
    with pytest.raises(EngineError, match=r"No tokenizer in .*bare"):
        HFEngine(model=tmp_path / "bare")
    with pytest.raises(EngineError, match=r"No causal language model in .*broken"):
        HFEngine(model=tmp_path / "broken")
    with pytest.raises(EngineError, match=r"config\.json' is a file: expected the directory of a model"):
        HFEngine(model=tmp_path / "bare" / "config.json", tokenizer=word_tokenizer)
    with pytest.raises(EngineError, match=r"No causal language model in .*empty"):
        HFEngine(model=tmp_path / "bare", tokenizer=word_tokenizer).load(ModelRef(tmp_path / "empty", "empty"))
    with pytest.raises(EngineError, match="Cannot use device 'cuda:7'"):
        HFEngine(model=tmp_path / "bare", tokenizer=word_tokenizer, device="cuda:7")


def test_a_model_too_small_for_a_gpu_stays_on_the_cpu(
    build: Any, word_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepcopy(build("qwen3")).bfloat16().save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = HFEngine(model=tmp_path, tokenizer=word_tokenizer)._network()
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
    monkeypatch.setattr(loading, "SMALL", 0)
    with pytest.raises(EngineError, match="Cannot use device 'cuda'"):
        HFEngine(model=tmp_path, tokenizer=word_tokenizer)


def test_fields_that_cannot_be_used_are_refused(build: Any, word_tokenizer: Any) -> None:
    for fields, message in (
        ({"model": None}, "no model"),
        ({"model": build("qwen3"), "tokenizer": None}, "without a tokenizer"),
        ({"model": build("qwen3"), "max_rows": 0}, "max_rows"),
        ({"model": build("qwen3"), "kernel": "fast"}, "Known: auto, library"),
    ):
        with pytest.raises(ConfigError, match=message):
            HFEngine(**({"tokenizer": word_tokenizer} | fields))


@pytest.mark.parametrize(("small", "given_back"), [(0, 1), (20_000_000, 0)])
def test_what_a_large_model_took_on_a_cpu_is_given_back_after_a_call(
    small: int, given_back: int, build: Any, word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(hf, "SMALL", small)
    monkeypatch.setattr(hf, "give_back_freed_memory", lambda: calls.append(1))
    HFEngine(model=build("llama"), tokenizer=word_tokenizer).generate([Request((5, 9), 1, 3, 0)])
    assert len(calls) == given_back
