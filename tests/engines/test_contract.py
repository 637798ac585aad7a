"""What every rollout engine must do, whatever it samples from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gpo.engines.hf import HFEngine
from gpo.toy import ChainEngine
from gpo.types import Engine, Request

Case = tuple[Engine, tuple[int, ...], tuple[int, ...]]  # an engine and two token sequences that it can continue


@pytest.fixture(params=["chain", "hf", "hf-library", "hf-narrow", "hf-recomputing"])
def case(request: pytest.FixtureRequest, build: Callable[[str], Any], word_tokenizer: Any) -> Case:
    if request.param == "chain":
        engine = ChainEngine()
        return engine, tuple(engine.tokenizer.encode("0\n")), tuple(engine.tokenizer.encode("1\n"))
    model = build("mamba" if request.param == "hf-recomputing" else "qwen3")
    kernel = "library" if request.param == "hf-library" else "auto"
    rows = 2 if request.param == "hf-narrow" else 64
    return HFEngine(model=model, tokenizer=word_tokenizer, kernel=kernel, max_rows=rows), (5, 9, 14, 3), (5, 9)


def test_it_is_an_engine(case: Case) -> None:
    engine, _, _ = case
    assert isinstance(engine, Engine)
    assert engine.context_length > 0
    assert isinstance(engine.tokenizer.eos_token_id, int)


def test_no_requests_no_completions(case: Case) -> None:
    assert case[0].generate([]) == []


def test_completions_come_in_the_order_of_the_requests(case: Case) -> None:
    engine, first, second = case
    requests = [Request(first, 2, 6, 1), Request(second, 5, 3, 2), Request(first, 1, 1, 3)]
    groups = engine.generate(requests)
    assert [len(group) for group in groups] == [2, 5, 1]
    for request, group in zip(requests, groups, strict=True):
        assert engine.generate([request]) == [group]


def test_a_seed_repeats_and_another_differs(case: Case) -> None:
    engine, first, _ = case
    once, again, other = (engine.generate([Request(first, 12, 20, seed)]) for seed in (1, 1, 2))
    assert once == again
    assert once != other
    assert len({completion.token_ids for completion in once[0]}) > 1


def test_it_stops_at_the_end_of_sequence_or_at_the_limit(case: Case) -> None:
    engine, first, _ = case
    eos = engine.tokenizer.eos_token_id
    for limit in (1, 3, 30):
        for completion in engine.generate([Request(first, 40, limit, 0)])[0]:
            assert 1 <= len(completion.token_ids) <= limit
            assert eos not in completion.token_ids[:-1]
            assert completion.finish_reason == ("stop" if completion.token_ids[-1] == eos else "length")
            assert completion.finish_reason == "stop" or len(completion.token_ids) == limit


def test_text_is_the_tokens_without_special_ones(case: Case) -> None:
    engine, first, _ = case
    [completions] = engine.generate([Request(first, 5, 20, 0)])
    for completion in completions:
        assert completion.text == engine.tokenizer.decode(completion.token_ids, skip_special_tokens=True)


def test_logprobs_on_request_one_a_token(case: Case) -> None:
    engine, first, _ = case
    [[plain]] = engine.generate([Request(first, 1, 8, 0)])
    [[scored]] = engine.generate([Request(first, 1, 8, 0)], logprobs=True)
    assert plain.logprobs is None
    assert plain.token_ids == scored.token_ids
    assert scored.logprobs is not None
    assert len(scored.logprobs) == len(scored.token_ids)
    assert all(-20 < logprob <= 1e-6 for logprob in scored.logprobs)


def test_greedy_ignores_the_seed(case: Case) -> None:
    engine, first, _ = case
    [group] = engine.generate([Request(first, 3, 8, 0)], temperature=0.0)
    [other] = engine.generate([Request(first, 1, 8, 99)], temperature=0.0)
    assert {completion.token_ids for completion in group} == {other[0].token_ids}
