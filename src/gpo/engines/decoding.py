"""Decoding all that is asked for in one batch, which is refilled as rows finish."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Self

import torch

from gpo.engines.branching import DecodeBatch, follow_prompt, unfollowed
from gpo.engines.draw import NextToken
from gpo.engines.library import BatchDecoder
from gpo.engines.loading import vocabulary_of
from gpo.engines.prefixes import Continuations, DecodeRow, SharedPrompt

PREFILL_TOKENS = 8192  # of one prefill pass, padding included
PREFILL_LOGITS = 1 << 25  # of one prefill pass; a prompt that would need more is not followed
CUDA_PREFILL = 8  # times as many of both at most
ROWS, CUDA_ROWS = 256, 1024
BATCH_TOKENS = 1 << 18
CUDA_SHARE = 4  # keys and values of a batch take one part in so many of the memory that is free


@dataclass(frozen=True)
class Limits:
    """How much is computed at once."""

    rows: int
    positions: int  # of all rows of a batch
    prefill_tokens: int  # of one pass, padding included
    prefill_logits: int

    @classmethod
    def of(cls, model: Any, max_rows: int | None, max_positions: int | None) -> Self:
        """What a model's device takes; a prefill pass has at most as many positions as a batch may have."""
        cuda = model.device.type == "cuda"
        positions = max_positions or BATCH_TOKENS
        if max_positions is None and cuda:
            positions = max(1, free_bytes(model.device) // CUDA_SHARE // cached_bytes(model))
        times = max(1, min(CUDA_PREFILL, positions // PREFILL_TOKENS)) if cuda else 1
        rows = max_rows or (CUDA_ROWS if cuda else ROWS)
        return cls(rows, positions, PREFILL_TOKENS * times, PREFILL_LOGITS * times)


@dataclass
class Decoding:
    """The continuations of one call."""

    decoder: BatchDecoder
    model: Any
    work: Continuations
    stops: frozenset[int]
    temperature: float
    limits: Limits

    def finish(self, unread: deque[SharedPrompt]) -> None:
        """Finish all continuations. Prompts are taken away, so that their keys and values go with their last row."""
        decoder, most = self.decoder, self.limits.rows
        waiting: deque[DecodeRow] = deque()
        batch = DecodeBatch([], self.work, self.stops)
        while True:
            alive = batch.alive
            joining = most - alive if unread else min(len(waiting), most - alive)
            if not alive or not decoder.room or alive < len(batch.rows) * 3 / 4 or joining > alive * decoder.patience:
                rows = batch.survivors()
                while True:
                    self.admit(waiting, rows)
                    if waiting or not unread or len(rows) >= most:
                        break
                    waiting += self.begin(unread)
                if not rows:
                    return
                decoder.arrange(rows)
                batch = DecodeBatch(rows, self.work, self.stops)
                tokens = torch.tensor([row.tokens[-1] for row in rows])
            following = NextToken(decoder.step(tokens.to(self.model.device)), self.temperature)
            tokens, branches = batch.advance(following, decoder.cut)
            waiting.extendleft(branches)

    def begin(self, unread: deque[SharedPrompt]) -> list[DecodeRow]:
        """Prefill some prompts and follow them; the rows that branch off."""
        vocabulary, limits = vocabulary_of(self.model), self.limits
        longest = len(unread[0].token_ids)
        prompts: list[SharedPrompt] = []
        keep = rows = 0
        while unread and (len(prompts) + 1) * longest <= max(longest, limits.prefill_tokens) and rows < limits.rows:
            first = min(int(self.work.begin[self.work.bounds[r]]) for r in unread[0].requests)
            needed = max(keep, longest - first + 1)
            if prompts and needed * vocabulary * (len(prompts) + 1) > limits.prefill_logits:
                break
            keep = needed
            prompts.append(unread.popleft())
            rows += sum(len(self.work.of(request)) for request in prompts[-1].requests)
        follows = keep * vocabulary * len(prompts) <= limits.prefill_logits
        logits = self.decoder.prefill(prompts, keep if follows else 1)
        if not follows:
            return [row for prompt in prompts for row in unfollowed(prompt, self.work)]
        found: list[DecodeRow] = []
        first = longest - keep + 1  # the token that the first of these logits is about
        for prompt, scores in zip(prompts, logits, strict=True):
            following = NextToken(scores[: len(prompt.token_ids) - first + 1], self.temperature)
            found += follow_prompt(prompt, following, first, self.work, self.stops)
        return found

    def admit(self, waiting: deque[DecodeRow], rows: list[DecodeRow]) -> None:
        """Move waiting rows to the batch while it stays within its bounds; one row always fits."""
        longest = max((row.end for row in rows), default=0)
        while waiting and len(rows) < self.limits.rows:
            longest = max(longest, waiting[0].end)
            if rows and longest * (len(rows) + 1) > self.limits.positions:
                return
            rows.append(waiting.popleft())


def free_bytes(device: torch.device) -> int:
    """What a GPU has left, and what torch keeps of it for later: most of what an earlier batch has taken."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def cached_bytes(model: Any) -> int:
    """Keys and values of one position in all layers of a model."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)
