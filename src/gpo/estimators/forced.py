"""Log-probabilities of texts forced behind prefixes of a sequence, whose tokens are computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

Ids = tuple[int, ...]
Forced = tuple[int, Ids, Ids]  # tokens of the sequence that are kept (at least 1), a phrase, what is scored behind it

PASS_KEYS = 1 << 16  # of all rows of a pass together


def forced_logprobs(model: Any, ids: Ids, rows: Sequence[Forced]) -> list[float]:
    """For each row the nats of its last tokens, given the kept part of `ids` and the phrase.

    The sequence goes through the model once, and the rows attend to its keys and values. A model whose cache does not
    keep every position (a sliding window, a recurrent state) computes each row from its beginning.
    """
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    found: list[float] = []
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            cache = DynamicCache(config=model.config)
            shared = all(type(layer) is DynamicLayer for layer in cache.layers)
            if shared:
                model.get_decoder()(
                    input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True
                )
            for part in _parts(rows, len(ids)):
                # The last kept token is fed again: it is what predicts where the phrase is empty.
                begins = [kept - 1 if shared else 0 for kept, _, _ in part]
                tails = [
                    (*ids[begin:kept], *phrase, *scored)[:-1]
                    for begin, (kept, phrase, scored) in zip(begins, part, strict=True)
                ]
                longest = max(map(len, tails))
                tokens = torch.tensor([tail + (0,) * (longest - len(tail)) for tail in tails], device=model.device)
                inputs: dict[str, Any] = {"input_ids": tokens}
                if shared:
                    begin = torch.tensor(begins, device=model.device)[:, None]
                    seen = torch.arange(len(ids), device=model.device)[None] < begin
                    own = deepcopy(cache)
                    own.batch_repeat_interleave(len(part))
                    inputs |= {
                        "attention_mask": torch.cat([seen, torch.ones_like(tokens, dtype=torch.bool)], 1).long(),
                        "position_ids": begin + torch.arange(longest, device=model.device)[None],
                        "past_key_values": own,
                    }
                logits = model(**inputs).logits
                for row, tail, (_, _, scored) in zip(logits, tails, part, strict=True):
                    last = row[len(tail) - len(scored) : len(tail)].float().log_softmax(-1)
                    found.append(float(last.gather(-1, torch.tensor(scored, device=model.device)[:, None]).sum()))
    finally:
        model.train(training)
    return found


def _parts(rows: Sequence[Forced], length: int) -> Iterator[Sequence[Forced]]:
    size = max(1, PASS_KEYS // length)
    for begin in range(0, len(rows), size):
        yield rows[begin : begin + size]
