"""From random numbers to rows: where continuations leave a prompt, and where they part from one another.

What a continuation draws depends on its own random numbers and on the distribution of the next token, which is the same
for all that have the same tokens so far. Computing that distribution once for all of them changes nothing that is
sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpo.engines.draw import NextToken, uniforms
from gpo.engines.prefixes import Continuations, DecodeRow, IndexArray, SharedPrompt


def follow_prompt(
    prompt: SharedPrompt, following: NextToken, first: int, work: Continuations, stops: frozenset[int]
) -> list[DecodeRow]:
    """Draw for every continuation along its prompt until it leaves it; the rows that branch off.

    `following` holds the distributions of the tokens at positions `first` to the prompt's length.
    """
    # No completion has tokens of images, whose ids are above the vocabulary.
    ids = torch.tensor(prompt.token_ids).clamp(max=following.scores.shape[-1] - 1)
    ends = np.isin(prompt.token_ids, sorted(stops))
    positions = torch.arange(len(ids) - first)
    prompt.logprobs = [nan] * first + following.logprobs(positions, ids[first:]).tolist()
    members, places, numbers = [], [], []
    for request in prompt.requests:
        mine = work.of(request)
        begin, limit = int(work.begin[mine[0]]), int(work.end[mine[0]] - work.begin[mine[0]])
        number = uniforms(work.keys[mine, None], np.arange(len(ids) - begin + 1, dtype=np.uint64))  # (n, tokens)
        stays = following.draws(positions[begin - first :], ids[begin:], number[:, :-1]) & ~ends[begin:]
        stays[:, limit - 1 :] = False  # the last one that it may draw
        left = np.where(stays.all(axis=1), stays.shape[1], stays.argmin(axis=1)) if stays.size else np.zeros_like(mine)
        members.append(mine)
        places.append(begin - first + left)
        numbers.append(number[np.arange(len(mine)), left])
    who, place = np.concatenate(members), np.concatenate(places)
    token = following.draw(place, np.concatenate(numbers))
    rows = []
    for where, drawn, logprob, chosen in grouped(following, place, token):
        stem = DecodeRow(prompt, first + where, [], [], who[:0], 0)
        rows += settle(stem, drawn, logprob, who[chosen], work, stops)
    return rows


def unfollowed(prompt: SharedPrompt, work: Continuations) -> list[DecodeRow]:
    """The rows of a prompt's requests at their beginning: the last token of each request is fed first."""
    rows = []
    for request in prompt.requests:
        members = work.of(request)
        begin = int(work.begin[members[0]])
        end = int(work.end[members].max())
        rows.append(DecodeRow(prompt, begin - 1, [prompt.token_ids[begin - 1]], [nan], members, end))
    prompt.logprobs = [nan] * len(prompt.token_ids)
    return rows


def grouped(following: NextToken, place: IndexArray, token: IndexArray) -> Iterator[tuple[int, int, float, IndexArray]]:
    """Each distinct (place, token) with its log-probability and the indices that have it."""
    order = np.lexsort((token, place))
    place, token = place[order], token[order]
    starts = np.flatnonzero(np.diff(place, prepend=-1) | np.diff(token, prepend=-1))
    where, drawn = place[starts], token[starts]
    logprobs = following.logprobs(torch.from_numpy(where), torch.from_numpy(drawn)).tolist()
    runs = np.split(order, starts[1:])
    return zip(where.tolist(), drawn.tolist(), logprobs, runs, strict=True)


def settle(
    stem: DecodeRow, token: int, logprob: float, members: IndexArray, work: Continuations, stops: frozenset[int]
) -> list[DecodeRow]:
    """The row of those that drew `token` after `stem`, if any of them goes on; the others are finished."""
    row = stem.branch(token, logprob, members, int(work.end[members].max()))
    done = np.full(len(members), token in stops) | (work.end[members] == len(row))
    if done.any():
        work.finish(row, members[done], stopped=token in stops)
        row.members = members[~done]
    return [row] if len(row.members) else []


class DecodeBatch:
    """Rows (B) that are decoded in step, and the continuations (M) that are the same as one of them so far."""

    def __init__(self, rows: Sequence[DecodeRow], work: Continuations, stops: frozenset[int]) -> None:
        self.rows, self.work, self.stops = list(rows), work, stops
        self.sizes = np.array([len(row.members) for row in rows], dtype=np.int64)
        self.members: IndexArray = np.concatenate([np.zeros(0, dtype=np.int64), *(row.members for row in rows)])
        self.place: IndexArray = np.repeat(np.arange(len(rows)), self.sizes)
        lengths = np.repeat(np.array([len(row) for row in rows], dtype=np.int64), self.sizes)
        self.position = (lengths - work.begin[self.members]).astype(np.uint64)
        self.left = work.end[self.members] - lengths
        self.keys = work.keys[self.members]
        self.all_stops = np.array(sorted(stops), dtype=np.int64)

    @property
    def alive(self) -> int:
        """Rows that a continuation still follows; the others go on computing until the batch is arranged anew."""
        return int((self.sizes > 0).sum())

    def survivors(self) -> list[DecodeRow]:
        for row, end, size in zip(self.rows, np.cumsum(self.sizes).tolist(), self.sizes.tolist(), strict=True):
            row.members = self.members[end - size : end]
        return [row for row in self.rows if len(row.members)]

    def advance(self, following: NextToken, cut: Callable[[int], Any]) -> tuple[Tensor, list[DecodeRow]]:
        """Draw every continuation's next token; the next inputs (B,) and the rows that branch off.

        A row goes on with the token that its first continuation drew. `cut(b)` is asked for the keys and values of row
        b, the token that was fed last included.
        """
        token = following.draw(self.place, uniforms(self.keys, self.position))
        first = np.minimum(np.cumsum(self.sizes) - self.sizes, len(self.members) - 1)
        main = token[first]
        self.position += np.uint64(1)
        self.left -= 1
        parts = token != main[self.place]
        leaves = parts | np.isin(token, self.all_stops) | (self.left == 0)
        branches: list[DecodeRow] = []
        if leaves.any():
            chosen = np.flatnonzero(leaves)
            for where, drawn, logprob, run in grouped(following, self.place[chosen], token[chosen]):
                for row in settle(self.rows[where], drawn, logprob, self.members[chosen[run]], self.work, self.stops):
                    row.layers = cut(where)
                    branches.append(row)
            for name in ("members", "place", "position", "left", "keys"):
                setattr(self, name, getattr(self, name)[~leaves])
            self.sizes = np.bincount(self.place, minlength=len(self.rows))
        inputs = torch.from_numpy(main)
        logprobs = following.logprobs(torch.arange(len(main)), inputs).tolist()
        for row, drawn, logprob in zip(self.rows, main.tolist(), logprobs, strict=True):
            row.tokens.append(drawn)
            row.logprobs.append(logprob)
        return inputs, branches
