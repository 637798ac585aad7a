"""Which requests share a computation, and who gets what came of it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpo.engines.prefixes import Continuations, DecodeRow, SharedPrompt, shared_prompts
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
