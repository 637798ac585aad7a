"""Decoding with the library's own forward pass: any causal language model of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from gpo.engines.prefixes import DecodeRow, Layers, SharedPrompt
from gpo.images.tokens import has_images

SHARED_LEAST = 64  # tokens that all prompts of a pass must begin with for these to have a pass of their own
WORTH_A_PASS = 1024  # tokens that need not be computed again, for a pass over what all prompts begin with
HEADROOM = 64  # columns to decode into before the cache is laid out again


class BatchDecoder(Protocol):
    """Holds a batch of rows and feeds the model one token of each at a time."""

    patience: float  # as many rows for each row of the batch wait to join before it is arranged anew

    def prefill(self, prompts: Sequence[SharedPrompt], keep: int) -> Tensor:
        """Compute prompts in one pass; the logits (G, keep, V) after the last `keep` columns.

        Trunks are padded on the right to the longest.
        """
        ...

    @property
    def room(self) -> int:
        """Steps that can be made before the next `arrange`."""
        ...

    def arrange(self, rows: Sequence[DecodeRow]) -> None:
        """Make `rows` the batch: first rows that were in it, then new ones, which branch off their prompts."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Feed the next token (B,) of every row; the logits (B, V) of the one after."""
        ...

    def cut(self, index: int) -> Any:
        """Keys and values of a row's tokens beyond its prompt, the one that was fed last included."""
        ...


class Columns(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a cache whose rows end at one column, written in place: (B, heads, capacity, head dimension).

    Unlike the library's sliding-window layers it keeps every column, so that any prefix can be cut out of it; the
    mask does the sliding.
    """

    is_sliding = False

    keys: Any  # Tensor; None until the first update, as the library has it
    values: Any

    def __init__(self, used: int = 0, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__()
        self.used, self.keys, self.values = used, keys, values
        self.is_initialized = keys is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values, self.is_initialized = key_states, value_states, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self.used + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        else:
            self.keys[:, :, self.used : end] = key_states
            self.values[:, :, self.used : end] = value_states
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used + query_length, 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return -1


def forkable_layers(model: Any) -> int | None:
    """How many attention layers the model caches, or None if its state is more than keys and values by position."""
    if getattr(model, "_is_stateful", False) or "past_key_values" not in inspect.signature(model.forward).parameters:
        return None
    layers = DynamicCache(config=model.config).layers
    if not layers or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return None
    return len(layers)


def prefill(model: Any, prompts: Sequence[SharedPrompt], keep: int, layers: int | None) -> tuple[Tensor, Layers]:
    """What `BatchDecoder.prefill` says, and keys and values of all prompts (G, heads, T, head dimension) by layer.

    Without `layers`, the number of those that can be forked, there are none.

    A causal model's state at a token does not depend on what follows, so padding needs no mask. What all prompts begin
    with, such as few-shot examples, is computed once.
    """
    accepted = inspect.signature(model.forward).parameters
    extra: dict[str, Any] = {"logits_to_keep": keep} if "logits_to_keep" in accepted else {}
    tokens = torch.zeros(len(prompts), max(len(prompt.token_ids) for prompt in prompts), dtype=torch.long)
    for index, prompt in enumerate(prompts):
        tokens[index, : len(prompt.token_ids)] = torch.tensor(prompt.token_ids)
    tokens = tokens.to(model.device)
    if layers is None:
        if "use_cache" in accepted:
            extra["use_cache"] = False
        whole: Tensor = model(input_ids=tokens, **extra).logits
        return whole[:, -keep:], []
    first = min(common([prompt.token_ids for prompt in prompts]), tokens.shape[1] - keep)
    cache = Cache(layers=[Columns() for _ in range(layers)])
    if first >= SHARED_LEAST and first * (len(prompts) - 1) >= WORTH_A_PASS:
        model(input_ids=tokens[:1, :first], past_key_values=cache, use_cache=True, **extra)
        cache = Cache(layers=[repeated(layer, *tokens.shape) for layer in cache.layers])
        tokens = tokens[:, first:]
    logits: Tensor = model(input_ids=tokens, past_key_values=cache, use_cache=True, **extra).logits[:, -keep:]
    return logits, [(layer.keys, layer.values) for layer in cache.layers]


def common(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all sequences begin with; none where there are images, which a pass has to see whole."""
    if any(map(has_images, sequences)):
        return 0
    least, most = min(sequences), max(sequences)  # what these two share, those between them do too
    return next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), min(len(least), len(most)))


def repeated(layer: Any, rows: int, columns: int) -> Columns:
    """A layer of a cache of one row as one of several, with room for more columns."""
    pair = []
    for states in (layer.keys, layer.values):
        laid = states.new_empty(rows, states.shape[1], columns, states.shape[3])
        laid[:, :, : layer.used] = states
        pair.append(laid)
    return Columns(layer.used, *pair)


AlikeRows = tuple[int, Sequence[Tensor]]  # their number, and the pieces (heads, t, head dimension) they begin with


def left_padded(kept: Tensor | None, runs: Sequence[AlikeRows], used: int, capacity: int) -> Tensor:
    """One layer's keys or values (B, heads, capacity, head dimension), every row ending at column `used`.

    First the kept rows (b, heads, t, head dimension), then those of each run.
    """
    like = runs[0][1][0] if runs else kept
    assert like is not None, "a batch has rows"
    row = 0 if kept is None else len(kept)
    size = row + sum(n for n, _ in runs)
    laid = like.new_zeros(size, like.shape[-3], capacity, like.shape[-1])
    if kept is not None:
        laid[:row, :, used - kept.shape[2] : used] = kept
    for n, pieces in runs:
        end = used
        for piece in reversed(pieces):
            laid[row : row + n, :, end - piece.shape[1] : end] = piece
            end -= piece.shape[1]
        row += n
    return laid


def beginning(run: Sequence[DecodeRow]) -> tuple[int, list[Layers]]:
    """How many rows, and what is known of them: a part of their prompt, and what they have of their own."""
    prompt, shared, own = run[0].prompt.layers, run[0].shared, run[0].layers
    assert prompt is not None, "a prompt is prefilled before rows branch off"
    part = [(keys[:, :shared], values[:, :shared]) for keys, values in prompt]
    return len(run), [part] if own is None else [part, own]


class LibraryDecoder:
    """Rows are left-padded to end at one column of a preallocated cache."""

    patience = 1 / 12

    def __init__(self, model: Any, layers: int) -> None:
        self.model, self.layers = model, layers
        self.rows: list[DecodeRow] = []
        self.cache = Cache(layers=[Columns() for _ in range(layers)])
        self.capacity = 0
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def prefill(self, prompts: Sequence[SharedPrompt], keep: int) -> Tensor:
        logits, layers = prefill(self.model, prompts, keep, self.layers)
        for index, prompt in enumerate(prompts):
            end = len(prompt.token_ids)
            prompt.layers = [(keys[index, :, :end], values[index, :, :end]) for keys, values in layers]
        return logits

    @property
    def room(self) -> int:
        return self.capacity - int(self.cache.get_seq_length())

    def arrange(self, rows: Sequence[DecodeRow]) -> None:
        place = {id(row): index for index, row in enumerate(self.rows)}
        kept = [row for row in rows if id(row) in place]
        new = [row for row in rows if id(row) not in place]
        self.rows = kept + new
        assert self.rows == list(rows), "rows that stay come before rows that are new"
        used = max(row.cached for row in rows)
        self.capacity = used + min(HEADROOM, max(row.end - len(row) for row in rows))
        alike = groupby(new, key=lambda row: (id(row.prompt), row.shared, id(row.layers)))
        begun = [beginning(list(run)) for _, run in alike]
        stay = torch.tensor([place[id(row)] for row in kept], dtype=torch.long, device=self.model.device)
        for index, old in enumerate(self.cache.layers):
            pair = []
            for part, tensor in enumerate((old.keys, old.values)):
                kept_part = None if tensor is None else tensor[stay, :, max(0, old.used - used) : old.used]
                runs = [(n, [piece[index][part] for piece in pieces]) for n, pieces in begun]
                pair.append(left_padded(kept_part, runs, used, self.capacity))
            self.cache.layers[index] = Columns(used, *pair)
        lengths = torch.tensor([row.cached for row in rows], device=self.model.device)
        self.positions = lengths.unsqueeze(-1)
        columns = torch.arange(self.capacity, device=self.model.device)
        self.mask = (columns >= used - self.positions).long()
        for row in new:
            row.layers = None

    def step(self, tokens: Tensor) -> Tensor:
        used = self.cache.get_seq_length()
        extra = {"position_ids": self.positions} if self.takes_positions else {}
        output = self.model(
            input_ids=tokens.unsqueeze(-1),
            attention_mask=self.mask[:, : used + 1],
            past_key_values=self.cache,
            use_cache=True,
            **extra,
        )
        self.positions = self.positions + 1
        logits: Tensor = output.logits[:, -1]
        return logits

    def cut(self, index: int) -> Layers:
        end = int(self.cache.get_seq_length())
        begin = end - len(self.rows[index].tokens)
        return [
            (layer.keys[index, :, begin:end].clone(), layer.values[index, :, begin:end].clone())
            for layer in self.cache.layers
        ]


class RecomputingDecoder:
    """Feeds the whole sequence again at each step: slow, and right for any model whose state cannot be forked."""

    patience = 1 / 12
    room = 1 << 30

    def __init__(self, model: Any) -> None:
        self.model = model
        self.extra = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def prefill(self, prompts: Sequence[SharedPrompt], keep: int) -> Tensor:
        return prefill(self.model, prompts, keep, None)[0]

    def arrange(self, rows: Sequence[DecodeRow]) -> None:
        self.sequences = [list(row.token_ids[:-1]) for row in rows]

    def step(self, tokens: Tensor) -> Tensor:
        for sequence, token in zip(self.sequences, tokens.tolist(), strict=True):
            sequence.append(token)
        longest = max(map(len, self.sequences))
        padded = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in self.sequences])
        logits = self.model(input_ids=padded.to(self.model.device), **self.extra).logits
        last = torch.tensor([len(sequence) - 1 for sequence in self.sequences], device=logits.device)
        chosen: Tensor = logits[torch.arange(len(last), device=logits.device), last]
        return chosen

    def cut(self, index: int) -> None:
        return None
