"""Log-probabilities of given tokens, in passes whose logits stay within a bound whatever the vocabulary is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from gpo.engines.draw import check_finite
from gpo.engines.library import forkable_layers


def teacher_forced(
    model: Any,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    temperature: float,
    tokens: int,
    logits: int,
) -> list[tuple[float, ...]]:
    """(T,) nats for each continuation.

    Args:
        model: of transformers, in evaluation mode, without gradients.
        tokens: of one pass, padding included; a longer sequence is a pass of its own.
        logits: of one pass; a single column of a pass may need more.
    """
    found: list[tuple[float, ...]] = [()] * len(contexts)
    lengths = [len(context) + len(rest) for context, rest in zip(contexts, continuations, strict=True)]
    waiting = sorted((index for index, rest in enumerate(continuations) if rest), key=lengths.__getitem__)
    while waiting:
        longest = lengths[waiting[-1]]
        count = min(len(waiting), max(1, tokens // longest))
        rows, waiting = waiting[-count:], waiting[:-count]
        ids = torch.zeros(count, longest, dtype=torch.long)
        for place, index in enumerate(rows):
            ids[place, : lengths[index]] = torch.tensor([*contexts[index], *continuations[index]])
        first = min(len(contexts[index]) for index in rows)
        nats = token_logprobs(model, ids.to(model.device), first, temperature, logits)
        for place, index in enumerate(rows):
            begin = len(contexts[index]) - first
            found[index] = tuple(nats[place, begin : lengths[index] - first].tolist())
    return found


def token_logprobs(model: Any, ids: Tensor, first: int, temperature: float, logits: int) -> Tensor:
    """Log-probabilities (B, T - first) of the tokens from column `first` of (B, T) on, in float64.

    Rows are padded on the right: a causal model's state at a token does not depend on what follows.
    """
    width = max(1, logits // (len(ids) * int(model.get_input_embeddings().num_embeddings)))
    parts = []
    for begin, raw in logits_of(model, ids[:, :-1], first - 1, width):
        scores = raw.float() if temperature in (0.0, 1.0) else raw.float() / temperature
        total = scores.logsumexp(-1)
        check_finite(total)
        # Tokens of images, whose ids are above the vocabulary, are in the context of their row.
        following = ids[:, begin + 1 : begin + 1 + scores.shape[1]].clamp(max=scores.shape[-1] - 1)
        parts.append(scores.gather(-1, following.unsqueeze(-1)).squeeze(-1).double() - total.double())
    return torch.cat(parts, 1).cpu()


def logits_of(model: Any, ids: Tensor, first: int, width: int) -> Iterator[tuple[int, Tensor]]:
    """(column, logits (B, at most width, V) from that column on), from column `first` to the last.

    A pass goes on from the keys and values of the one before, where the model has such.
    """
    accepted = inspect.signature(model.forward).parameters
    last = ids.shape[1]
    cache = DynamicCache(config=model.config) if forkable_layers(model) is not None else None
    extra: dict[str, Any] = {"use_cache": cache is not None} if "use_cache" in accepted else {}
    if cache is not None:
        extra["past_key_values"] = cache
    known = 0
    for begin in range(first, last, width):
        end = min(begin + width, last)
        if "logits_to_keep" in accepted:
            extra["logits_to_keep"] = end - begin
        scores: Tensor = model(input_ids=ids[:, known:end], **extra).logits[:, begin - end :]
        known = end if cache is not None else 0
        yield begin, scores
