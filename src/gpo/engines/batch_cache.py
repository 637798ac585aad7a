"""Attention of rows that decode in step: over a prefix that several of them share, and over each one's own suffix.

A row's keys are those of its prefix, a part of its prompt, and of its suffix, the tokens that it has beyond that. The
prompt is read once for several rows, each of which sees as much of it as it shares. The prefix's attention output then
enters the softmax over the suffix as one more key, whose score is the log of the prefix's sum of exponentials and whose
value is that output:

    softmax([s_prefix, s_suffix]) V = softmax([logsumexp(s_prefix), s_suffix]) [softmax(s_prefix) V_prefix, V_suffix]

The idea of splitting attention this way is that of Hydragen (arXiv 2402.05099).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpo.engines.prefixes import DecodeRow, Layers

SPARE_COLUMNS = 32  # columns to decode into before a batch is laid out again
WIDTH = 16  # rows at most that read a prompt together; more groups of equal size waste less than few of any size
MASKED = -1e30  # finite, so that an empty prefix gets weight 0 and not NaN

flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def groups_of(rows: Sequence[DecodeRow]) -> list[list[int]]:
    """Indices of rows that read a prompt together: those of each prompt in groups of nearly equal size."""
    of_prompt: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        of_prompt.setdefault(id(row.prompt), []).append(index)
    groups = []
    for same in of_prompt.values():
        count = -(-len(same) // WIDTH)
        groups += [same[start::count] for start in range(count)]
    return groups


class SharedPrefixes:
    """Keys and values of G prompts, each read by at most R of the B rows. A smaller group reads for its first again."""

    def __init__(self, rows: Sequence[DecodeRow]) -> None:
        groups = groups_of(rows)
        self.width = max(len(group) for group in groups)
        grid = torch.tensor([group + group[:1] * (self.width - len(group)) for group in groups])  # (G, R)
        self.row_of_slot = grid.flatten()
        self.slot_of_row = torch.empty(len(rows), dtype=torch.long)
        self.slot_of_row[self.row_of_slot] = torch.arange(grid.numel())
        lengths = torch.tensor([row.shared for row in rows])[grid].unsqueeze(-1)
        ends = lengths.amax((1, 2)).tolist()
        padding = torch.arange(max(1, *ends)) >= lengths
        self.mask = torch.where(padding, MASKED, 0.0).unsqueeze(1)  # (G, 1, R, T)
        self.layers: Layers = []  # of (G, kv heads, T, head dimension), right-padded
        prompts = [layers_of(rows[group[0]]) for group in groups]
        for pairs in zip(*prompts, strict=True):
            keys, values = (padded(parts, ends, padding.shape[-1]) for parts in zip(*pairs, strict=True))
            self.layers.append((keys, values))

    def attend(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, heads, d) -> output of the same shape, and log-sum-exp of the scores (B, heads)."""
        keys, values = self.layers[layer]
        heads, size = queries.shape[1:]
        groups, kv_heads = keys.shape[:2]
        slots = queries.index_select(0, self.row_of_slot)
        if self.width == 1:  # where the kernel is slower than matrix products
            by_kv_head = (groups * kv_heads, heads // kv_heads, -1)
            scores = torch.bmm(slots.view(by_kv_head), keys.flatten(0, 1).transpose(1, 2)).view(groups, heads, -1)
            sums = scores.add_(self.mask[:, 0]).logsumexp(-1, keepdim=True)
            output = torch.bmm((scores - sums).exp_().view(by_kv_head), values.flatten(0, 1))
        else:
            grid = slots.view(groups, self.width, kv_heads, -1, size).transpose(1, 2).flatten(2, 3)
            mask = self.mask.repeat_interleave(heads // kv_heads, 2)
            output, sums = flash_attention(grid, keys, values, 0.0, False, attn_mask=mask, scale=1.0)
            split = (groups, kv_heads, self.width, heads // kv_heads)
            output = output.reshape(*split, size).transpose(1, 2)
            sums = sums.reshape(split).transpose(1, 2)
        output, sums = output.reshape(-1, heads, size), sums.reshape(-1, heads)
        return output.index_select(0, self.slot_of_row), sums.index_select(0, self.slot_of_row)


class BatchCache:
    """Rows whose suffixes, however long, end at the same column."""

    def __init__(self, rows: Sequence[DecodeRow], before: BatchCache | None) -> None:
        """Take what rows have of their own from `before`, if they were in it, or from `row.layers`."""
        self.rows, self.prefixes = list(rows), SharedPrefixes(rows)
        self.used = max(row.own for row in rows)
        self.capacity = self.used + min(SPARE_COLUMNS, max(row.end - len(row) for row in rows))
        place = {} if before is None else {id(row): index for index, row in enumerate(before.rows)}
        stay = [(index, place[id(row)]) for index, row in enumerate(rows) if id(row) in place]
        self.suffixes: Layers = []  # of (B, kv heads, capacity, head dimension), left-padded up to `used`
        for layer, pair in enumerate(self.prefixes.layers):
            keys, values = (self.laid(before, stay, layer, part, like) for part, like in enumerate(pair))
            self.suffixes.append((keys, values))
        for row in rows:
            row.layers = None
        padding = torch.arange(self.capacity) < self.used - torch.tensor([row.own for row in rows]).unsqueeze(-1)
        self.mask = torch.where(padding, MASKED, 0.0).view(len(rows), 1, 1, -1) if bool(padding.any()) else None

    def laid(
        self, before: BatchCache | None, stay: list[tuple[int, int]], layer: int, part: int, like: Tensor
    ) -> Tensor:
        """One layer's keys or values of all rows."""
        target = like.new_empty(len(self.rows), like.shape[1], self.capacity, like.shape[-1])
        target[:, :, : self.used] = 0.0  # the padding; a masked NaN would stay one
        if before is not None and stay:
            to, source = torch.tensor(stay).unbind(1)
            span = min(self.used, before.used)
            known = before.suffixes[layer][part][source, :, before.used - span : before.used]
            target[to, :, self.used - span : self.used] = known
        for index, row in enumerate(self.rows):
            if row.layers is not None:
                target[index, :, self.used - row.own : self.used] = row.layers[layer][part]
        return target

    @property
    def room(self) -> int:
        return self.capacity - self.used

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One token of every row: queries (B, heads, d), keys and values (B, kv heads, d) -> (B, heads * d).

        Queries are already scaled. The caller counts `used` up after the last layer.
        """
        end = self.used + 1
        all_keys, all_values = self.suffixes[layer]
        rows, kv_heads = all_keys.shape[:2]
        all_keys[:, :, self.used] = keys
        all_values[:, :, self.used] = values
        shared, sums = self.prefixes.attend(layer, queries)
        by_kv_head = (rows * kv_heads, queries.shape[1] // kv_heads, -1)
        scores = torch.bmm(queries.reshape(by_kv_head), all_keys.flatten(0, 1)[:, :end].transpose(1, 2))
        if self.mask is not None:
            scores.view(rows, kv_heads, -1, end).add_(self.mask[..., :end])
        weights = torch.cat((scores, sums.reshape(by_kv_head)), -1).softmax(-1)
        output = torch.bmm(weights[..., :end], all_values.flatten(0, 1)[:, :end])
        output.addcmul_(weights[..., end:], shared.reshape(by_kv_head))
        return output.view(rows, -1)

    def cut(self, index: int) -> Layers:
        """Keys and values of a row's own tokens, after the last was fed."""
        columns = slice(self.used - len(self.rows[index].tokens), self.used)
        return [(keys[index, :, columns].clone(), values[index, :, columns].clone()) for keys, values in self.suffixes]


def layers_of(row: DecodeRow) -> Layers:
    assert row.prompt.layers is not None, "a prompt is prefilled before rows branch off"
    return row.prompt.layers


def padded(parts: Sequence[Tensor], ends: Sequence[int], longest: int) -> Tensor:
    """The beginnings of tensors (kv heads, at least end, d), padded with zeros: (G, kv heads, longest, d)."""
    laid = parts[0].new_zeros(len(parts), parts[0].shape[0], longest, parts[0].shape[-1])
    for target, part, end in zip(laid, parts, ends, strict=True):
        target[:, :end] = part[:, :end]
    return laid
