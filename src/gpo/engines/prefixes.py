"""What requests share: prompts, the rows that branch off them, and the continuations that follow a row.

Continuations whose tokens are the same so far are one row: they share its forward pass, and each draws its next token
with its own random numbers. Those that draw another one branch off (see `branching`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gpo.engines.draw import stream_keys
from gpo.types import Completion, Request

Layers = list[tuple[Tensor, Tensor]]  # for each layer the keys and values, (heads, tokens, head dimension)
IndexArray = NDArray[np.int64]


@dataclass(slots=True, eq=False)
class SharedPrompt:
    """A token sequence that no request extends. Requests that are a prefix of it take its keys and values."""

    token_ids: tuple[int, ...]
    requests: list[int] = field(default_factory=list)  # in increasing order
    layers: Any = None  # keys and values as the decoder has them; none before prefill and where no state can be forked
    logprobs: list[float] = field(default_factory=list)  # of the tokens, NaN where nothing is sampled


@dataclass(slots=True, eq=False)
class DecodeRow:
    """A sequence while it is decoded: the beginning of a prompt, and then tokens, the last of which is next fed."""

    prompt: SharedPrompt
    shared: int  # tokens of the prompt that it begins with
    tokens: list[int]
    logprobs: list[float]
    members: IndexArray  # the continuations that are this sequence so far
    end: int  # tokens that the longest of them may come to, the prompt's included
    layers: Any = None  # while it waits: keys and values beyond the prompt's, as the decoder has them

    @property
    def token_ids(self) -> tuple[int, ...]:
        return (*self.prompt.token_ids[: self.shared], *self.tokens)

    def __len__(self) -> int:
        return self.shared + len(self.tokens)

    @property
    def own(self) -> int:
        """Tokens beyond the prompt's whose keys and values are known: all but the one that is the next input."""
        return len(self.tokens) - 1

    @property
    def cached(self) -> int:
        return self.shared + self.own

    def branch(self, token: int, logprob: float, members: IndexArray, end: int) -> DecodeRow:
        return DecodeRow(self.prompt, self.shared, [*self.tokens, token], [*self.logprobs, logprob], members, end)


class Continuations:
    """All that is asked for, one entry for each continuation (M), and what came of it."""

    def __init__(
        self, requests: Sequence[Request], limits: Sequence[int], tokenizer: Any, *, logprobs: bool = False
    ) -> None:
        sizes = [request.n for request in requests]
        self.tokenizer, self.logprobs = tokenizer, logprobs
        self.bounds = [0, *np.cumsum(sizes).tolist()]  # continuations bounds[r] to bounds[r + 1] are of request r
        self.keys = stream_keys(
            [request.seed for request in requests for _ in range(request.n)], [i for n in sizes for i in range(n)]
        )
        self.begin: IndexArray = np.repeat([len(request.token_ids) for request in requests], sizes)
        self.end: IndexArray = self.begin + np.repeat(np.array(limits, dtype=np.int64), sizes)
        self.completions: list[Completion | None] = [None] * self.bounds[-1]

    def of(self, request: int) -> IndexArray:
        return np.arange(self.bounds[request], self.bounds[request + 1])

    def by_request(self) -> list[list[Completion]]:
        """What came of each request, once all is finished."""
        done = [completion for completion in self.completions if completion is not None]
        assert len(done) == len(self.completions), "every continuation is finished"
        return [done[begin:end] for begin, end in pairwise(self.bounds)]

    def finish(self, row: DecodeRow, members: IndexArray, *, stopped: bool) -> None:
        """Take a row's tokens for the completions of `members`; those that began at the same place share an object."""
        ids = row.token_ids
        logprobs = (*row.prompt.logprobs[: row.shared], *row.logprobs)
        begins = self.begin[members]
        for begin in np.unique(begins).tolist():
            completion = Completion(
                token_ids=ids[begin:],
                text=self.tokenizer.decode(ids[begin:], skip_special_tokens=True),
                finish_reason="stop" if stopped else "length",
                logprobs=logprobs[begin:] if self.logprobs else None,
            )
            for member in members[begins == begin].tolist():
                self.completions[member] = completion


def shared_prompts(sequences: Sequence[tuple[int, ...]]) -> list[SharedPrompt]:
    """The prompts of some sequences, longest first; sequences that are prefixes of the same longest one share it.

    In sorted order a sequence that is a prefix of any other is a prefix of its successor.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__, reverse=True)
    prompts: list[SharedPrompt] = []
    previous: tuple[int, ...] = ()
    for index in order:
        sequence = sequences[index]
        if not prompts or previous[: len(sequence)] != sequence:
            prompts.append(SharedPrompt(sequence))
        prompts[-1].requests.append(index)
        previous = sequence
    for prompt in prompts:
        prompt.requests.sort()
    return sorted(prompts, key=lambda prompt: -len(prompt.token_ids))
