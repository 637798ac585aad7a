"""Which requests share a computation, and who gets what came of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpo.engines import library
from gpo.engines.library import forkable_layers
from gpo.engines.prefixes import Continuations, DecodeRow, SharedPrompt, shared_prompts
from gpo.images.tokens import FIRST
from gpo.types import Request

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)


@given(st.lists(tokens, max_size=20))
def test_every_sequence_is_a_prefix_of_its_prompt_and_no_prompt_of_another(sequences: list[tuple[int, ...]]) -> None:
    prompts = shared_prompts(sequences)
    assert sorted(request for prompt in prompts for request in prompt.requests) == list(range(len(sequences)))
    for prompt in prompts:
        for request in prompt.requests:
            assert prompt.token_ids[: len(sequences[request])] == sequences[request]
    ids = [prompt.token_ids for prompt in prompts]
    assert not any(one != two and two[: len(one)] == one for one in ids for two in ids)
    assert len(ids) == len(set(ids))
    assert ids == sorted(ids, key=len, reverse=True)


class Words:
    def decode(self, token_ids: tuple[int, ...], *, skip_special_tokens: bool) -> str:
        return " ".join(map(str, token_ids))


def test_continuations_of_one_row_get_the_tokens_after_their_own_beginning() -> None:
    requests = [Request((7, 8), 2, 5, 0), Request((7,), 1, 6, 1)]
    work = Continuations(requests, [5, 6], Words(), logprobs=True)
    row = DecodeRow(SharedPrompt((7, 8), [0, 1], None, [np.nan, -1.0]), 2, [3, 4], [-2.0, -3.0], np.arange(3), 7)
    work.finish(row, np.array([0, 2]), stopped=False)
    work.finish(row.branch(9, -4.0, np.array([1]), 7), np.array([1]), stopped=True)
    [[first, second], [third]] = work.by_request()
    assert (first.token_ids, first.logprobs, first.text, first.finish_reason) == ((3, 4), (-2.0, -3.0), "3 4", "length")
    assert (second.token_ids, second.logprobs, second.finish_reason) == ((3, 4, 9), (-2.0, -3.0, -4.0), "stop")
    assert (third.token_ids, third.logprobs) == ((8, 3, 4), (-1.0, -2.0, -3.0))


HEAD = (5, 9, 14, 3, 22, 7, 8, 11, 30)
TAILS = ((4,), (19, 8, 27, 6), (2, 30, 11, 4, 19))


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral-sliding", "gpt2", "gemma2", "gemma3"])
def test_what_all_prompts_begin_with_is_computed_once(family: str, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = build(family), [SharedPrompt(HEAD + tail) for tail in TAILS]
    layers = forkable_layers(model)
    with torch.no_grad():
        logits, states = library.prefill(model, prompts, 2, layers)
        monkeypatch.setattr(library, "SHARED_LEAST", 8)
        monkeypatch.setattr(library, "WORTH_A_PASS", 8)
        seen: list[tuple[int, ...]] = []
        hook = model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
        )
        once, kept = library.prefill(model, prompts, 2, layers)
        whole, _ = library.prefill(model, prompts, 14, layers)  # logits of all columns: nothing is left out
        hook.remove()
    assert seen == [(1, 9), (3, 5), (3, 14)]
    assert torch.allclose(once, logits, atol=1e-5)
    assert torch.allclose(whole[:, -2:], logits, atol=1e-5)
    for (keys, values), (ours, our_values) in zip(states, kept, strict=True):
        for row, prompt in enumerate(prompts):
            end = len(prompt.token_ids)  # padding behind it is of no use to anybody
            assert torch.allclose(keys[row, :, :end], ours[row, :, :end], atol=1e-5)
            assert torch.allclose(values[row, :, :end], our_values[row, :, :end], atol=1e-5)


def test_common_tokens_are_those_of_all_and_none_with_images() -> None:
    assert library.common([(1, 2, 3), (1, 2), (1, 2, 4)]) == 2
    assert library.common([(1, 2)]) == 2
    assert library.common([(1, 2), (3, 2)]) == 0
    assert library.common([(1, FIRST, 3), (1, FIRST, 4)]) == 0
