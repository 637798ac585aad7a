"""Attention of rows that decode in step: over a prefix that several of them share, and over each one's own suffix.

A row's keys are those of its prefix, a part of its trunk, and of its suffix, the tokens that it has beyond that. The
trunk is read once for several rows, each of which sees as much of it as it shares. The prefix's attention output then
enters the softmax over the suffix as one more key, whose score is the log of the prefix's sum of exponentials and whose
value is that output:

    softmax([s_prefix, s_suffix]) V = softmax([logsumexp(s_prefix), s_suffix]) [softmax(s_prefix) V_prefix, V_suffix]

The idea of splitting attention this way is that of Hydragen (arXiv 2402.05099).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from gpo.engines.prefixes import Layers, Row

HEADROOM = 64  # columns to decode into before a cohort is laid out again
WIDTH = 8  # rows at most that read a trunk together; more groups of equal size waste less than few of any size
MASKED = -1e30  # finite, so that an empty prefix gets weight 0 and not NaN

flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class SharedPrefixes:
    """Keys and values of G trunks, each read by at most R of the B rows."""

    def __init__(self, layers: Layers, lengths: Tensor, group_of_row: Tensor) -> None:
        self.layers = layers  # of (G, kv heads, T, head dimension), right-padded
        self.lengths = lengths  # (B,) tokens of its trunk that a row shares
        self.group_of_row = group_of_row  # (B,)
        sizes = group_of_row.bincount()
        self.groups, self.width = len(sizes), int(sizes.max())
        rows = torch.arange(len(group_of_row))
        order = group_of_row.argsort(stable=True)
        rank = torch.empty_like(rows)
        rank[order] = rows - (sizes.cumsum(0) - sizes)[group_of_row[order]]
        self.slot_of_row = group_of_row * self.width + rank
        self.row_of_slot = torch.zeros(self.groups * self.width, dtype=torch.long)
        self.row_of_slot[self.slot_of_row] = rows
        self.in_order = len(rows) == len(self.row_of_slot) and bool((self.row_of_slot == rows).all())
        longest = layers[0][0].shape[2]
        self.mask = None  # (G, R, T), an expanded query axis is added at use
        if int(lengths.min()) < longest:
            padding = torch.arange(longest) >= lengths[self.row_of_slot].unsqueeze(-1)
            self.mask = torch.where(padding, MASKED, 0.0).view(self.groups, self.width, longest)

    def attend(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, heads, d) -> output of the same shape, and log-sum-exp of the scores (B, heads)."""
        keys, values = self.layers[layer]
        heads, size = queries.shape[1:]
        kv_heads = keys.shape[1]
        grid = queries if self.in_order else queries[self.row_of_slot]
        grid = grid.view(self.groups, self.width, kv_heads, -1, size).transpose(1, 2).flatten(2, 3)
        mask = None if self.mask is None else self.mask.repeat_interleave(heads // kv_heads, 1).unsqueeze(1)
        output, sums = flash_attention(grid, keys, values, 0.0, False, attn_mask=mask, scale=1.0)
        split = (self.groups, kv_heads, self.width, heads // kv_heads)
        output = output.reshape(*split, size).transpose(1, 2).reshape(-1, heads, size)
        sums = sums.reshape(split).transpose(1, 2).reshape(-1, heads)
        return (output, sums) if self.in_order else (output[self.slot_of_row], sums[self.slot_of_row])

    def select(self, rows: Tensor) -> SharedPrefixes:
        """The same for some of the rows; trunks that none of them needs are dropped."""
        live, group_of_row = torch.unique(self.group_of_row[rows], return_inverse=True)
        lengths, layers = self.lengths[rows], self.layers
        longest = max(1, int(lengths.max()))
        if len(live) < self.groups or longest < layers[0][0].shape[2]:
            layers = [(keys[live, :, :longest], values[live, :, :longest]) for keys, values in layers]
        return SharedPrefixes(layers, lengths, group_of_row)


def concatenate(parts: Sequence[SharedPrefixes]) -> SharedPrefixes:
    if len(parts) == 1:
        return parts[0]
    longest = max(part.layers[0][0].shape[2] for part in parts)

    def joined(tensors: list[Tensor]) -> Tensor:
        return torch.cat([pad(tensor, (0, 0, 0, longest - tensor.shape[2])) for tensor in tensors])

    layers = [
        (joined([keys for keys, _ in same]), joined([values for _, values in same]))
        for same in zip(*(part.layers for part in parts), strict=True)
    ]
    before = torch.tensor([0, *(part.groups for part in parts)]).cumsum(0)
    group_of_row = torch.cat([part.group_of_row + int(start) for part, start in zip(parts, before, strict=False)])
    return SharedPrefixes(layers, torch.cat([part.lengths for part in parts]), group_of_row)


class Cohort:
    """Rows whose suffixes, however long, end at the same column."""

    def __init__(self, rows: list[Row], prefixes: SharedPrefixes, capacity: int, used: int = 0) -> None:
        self.rows, self.prefixes, self.capacity, self.used = rows, prefixes, capacity, used
        self.kv_heads = prefixes.layers[0][0].shape[1]
        shape = (len(rows) * self.kv_heads, capacity)
        self.suffixes = [
            (keys.new_zeros(*shape, keys.shape[-1]), values.new_zeros(*shape, values.shape[-1]))
            for keys, values in prefixes.layers
        ]
        lengths = torch.tensor([row.own for row in rows])
        padding = torch.arange(capacity) < used - lengths.unsqueeze(-1)  # (B, capacity)
        self.mask = None
        if bool(padding.any()):
            self.mask = torch.where(padding, MASKED, 0.0).repeat_interleave(self.kv_heads, 0).unsqueeze(1)

    @property
    def room(self) -> int:
        return self.capacity - self.used

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One token of every row: queries (B, heads, d), keys and values (B, kv heads, d) -> (B, heads * d).

        Queries are already scaled. The caller counts `used` up after the last layer.
        """
        end = self.used + 1
        all_keys, all_values = self.suffixes[layer]
        all_keys[:, self.used] = keys.reshape(-1, keys.shape[-1])
        all_values[:, self.used] = values.reshape(-1, values.shape[-1])
        shared, sums = self.prefixes.attend(layer, queries)
        by_kv_head = (all_keys.shape[0], queries.shape[1] // self.kv_heads, -1)
        scores = torch.bmm(queries.reshape(by_kv_head), all_keys[:, :end].transpose(1, 2))
        if self.mask is not None:
            scores += self.mask[:, :, :end]
        weights = torch.cat((scores, sums.reshape(by_kv_head)), -1).softmax(-1)
        output = torch.bmm(weights[..., :end], all_values[:, :end])
        output.addcmul_(weights[..., end:], shared.reshape(by_kv_head))
        return output.view(len(self.rows), -1)

    def put(self, index: int, row: Row) -> None:
        """Write what a row has of its own, if it does."""
        begin = index * self.kv_heads
        for pair, known in zip(self.suffixes, row.layers or (), strict=False):
            for target, source in zip(pair, known, strict=True):
                target[begin : begin + self.kv_heads, self.used - row.own : self.used] = source
        row.layers = None

    def cut(self, index: int) -> Layers:
        """Keys and values of a row's own tokens, after the last was fed."""
        heads = slice(index * self.kv_heads, (index + 1) * self.kv_heads)
        columns = slice(self.used - len(self.rows[index].tokens), self.used)
        return [(keys[heads, columns].clone(), values[heads, columns].clone()) for keys, values in self.suffixes]


def branch_off(rows: list[Row]) -> Cohort:
    """The cohort of new rows. Neighbours of the same trunk read it together."""
    groups: list[list[Row]] = []
    for row in rows:
        if not groups or groups[-1][0].trunk is not row.trunk or len(groups[-1]) == WIDTH:
            groups.append([])
        groups[-1].append(row)
    shared = [max(row.shared for row in group) for group in groups]
    longest = max(1, *shared)
    joined = []
    for layer, pair in enumerate(groups[0][0].trunk.layers or ()):
        laid = tuple(like.new_zeros(len(groups), like.shape[0], longest, like.shape[-1]) for like in pair)
        for index, (group, end) in enumerate(zip(groups, shared, strict=True)):
            known = group[0].trunk.layers
            assert known is not None, "a trunk is prefilled before rows branch off"
            for target, source in zip(laid, known[layer], strict=True):
                target[index, :, :end] = source[:, :end]
        joined.append((laid[0], laid[1]))
    group_of_row = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(group) for group in groups]))
    prefixes = SharedPrefixes(joined, torch.tensor([row.shared for row in rows]), group_of_row)
    used = max(row.own for row in rows)
    cohort = Cohort(rows, prefixes, used + headroom(rows), used)
    for index, row in enumerate(rows):
        cohort.put(index, row)
    return cohort


def merge(cohorts: Sequence[Cohort], alive: set[int]) -> Cohort | None:
    """One cohort of the rows whose id() is in `alive`, with room to go on; None if there are none."""
    stay = [torch.tensor([i for i, row in enumerate(cohort.rows) if id(row) in alive]) for cohort in cohorts]
    parts = [(cohort, rows) for cohort, rows in zip(cohorts, stay, strict=True) if len(rows)]
    if not parts:
        return None
    rows = [cohort.rows[i] for cohort, selected in parts for i in selected.tolist()]
    used = max(row.own for row in rows)
    prefixes = concatenate([cohort.prefixes.select(selected) for cohort, selected in parts])
    merged = Cohort(rows, prefixes, used + headroom(rows), used)
    start = 0
    for cohort, selected in parts:
        flat = (selected.unsqueeze(-1) * cohort.kv_heads + torch.arange(cohort.kv_heads)).flatten()
        span = min(used, cohort.used)
        for new, old in zip(merged.suffixes, cohort.suffixes, strict=True):
            for target, source in zip(new, old, strict=True):
                target[start : start + len(flat), used - span : used] = source[flat, cohort.used - span : cohort.used]
        start += len(flat)
    return merged


def headroom(rows: Sequence[Row]) -> int:
    return min(HEADROOM, max(row.end - len(row) for row in rows))
