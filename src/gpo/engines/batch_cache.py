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

from gpo.engines.prefixes import DecodeRow

SPARE_COLUMNS, CUDA_SPARE_COLUMNS = 32, 128  # columns to decode into before a batch is laid out again
WIDTH = 16  # rows at most that read a prompt together; more groups of equal size waste less than few of any size
MASKED = -1e30  # finite, so that an empty prefix gets weight 0 and not NaN

flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def replayed(states: Tensor) -> bool:
    """Whether steps are recorded."""
    return states.is_cuda


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

    def __init__(self, rows: Sequence[DecodeRow], repeats: int) -> None:
        groups = groups_of(rows)
        self.width = max(len(group) for group in groups)
        grid = torch.tensor([group + group[:1] * (self.width - len(group)) for group in groups])  # (G, R)
        lengths = torch.tensor([row.shared for row in rows])[grid].unsqueeze(-1)
        ends = lengths.amax((1, 2)).tolist()
        padding = torch.arange(max(1, *ends)) >= lengths
        prompts: list[Tensor] = [rows[group[0]].prompt.layers for group in groups]
        self.states = padded(prompts, ends, padding.shape[-1])  # (layers, 2, G, kv heads, T, head dimension)
        device = self.states.device
        self.row_of_slot = grid.flatten().to(device)
        self.slot_of_row = torch.empty(len(rows), dtype=torch.long, device=device)
        self.slot_of_row[self.row_of_slot] = torch.arange(grid.numel(), device=device)
        mask = torch.where(padding, MASKED, 0.0).unsqueeze(1).to(device)
        self.mask = mask.repeat_interleave(repeats, 2)  # (G, 1, R * heads / kv heads, T)
        self.fused = device.type == "cpu" and self.states.dtype == torch.float32 and self.width > 1

    def attend(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, heads, d) -> output of the same shape, and log-sum-exp of the scores (B, heads)."""
        keys, values = self.states[layer]
        heads, size = queries.shape[1:]
        groups, kv_heads = keys.shape[:2]
        slots = queries.index_select(0, self.row_of_slot)
        split = (groups, kv_heads, self.width, heads // kv_heads)
        if self.width == 1:
            grid = slots.view(groups, kv_heads, -1, size)
        else:
            grid = slots.view(groups, self.width, kv_heads, -1, size).transpose(1, 2).flatten(2, 3)
        if self.fused:
            output, sums = flash_attention(grid, keys, values, 0.0, False, attn_mask=self.mask, scale=1.0)
        else:  # with one row for each prompt the kernel is slower than matrix products, and it is one for CPUs
            by_kv_head = grid.flatten(0, 1)
            scores = scores_of(by_kv_head, keys.flatten(0, 1)).view(groups, kv_heads, -1, keys.shape[2])
            weights, sums = softmax_and_sums(scores.add_(self.mask))
            output = torch.bmm(weights.to(values.dtype).flatten(0, 1), values.flatten(0, 1))
        output = output.reshape(*split, size).transpose(1, 2).reshape(-1, heads, size)
        sums = sums.reshape(split).transpose(1, 2).reshape(-1, heads)
        return output.index_select(0, self.slot_of_row), sums.index_select(0, self.slot_of_row)


class BatchCache:
    """Rows whose suffixes, however long, end at the same column.

    On a GPU nothing that a step computes depends on a number that Python holds, so that steps can be replayed as a
    graph: keys are written to the column that a tensor names, and columns behind it are masked.
    """

    def __init__(self, rows: Sequence[DecodeRow], before: BatchCache | None, repeats: int) -> None:
        """Take what rows have of their own from `before`, if they were in it, or from `row.layers`.

        `repeats` is the number of heads for each head of keys and values.
        """
        self.rows, self.prefixes = list(rows), SharedPrefixes(rows, repeats)
        self.used = max(row.own for row in rows)
        self.on_gpu = replayed(self.prefixes.states)
        spare = CUDA_SPARE_COLUMNS if self.on_gpu else SPARE_COLUMNS
        self.capacity = self.used + min(spare, max(row.end - len(row) for row in rows))
        place = {} if before is None else {id(row): index for index, row in enumerate(before.rows)}
        stay = [(index, place[id(row)]) for index, row in enumerate(rows) if id(row) in place]
        self.suffixes = self.laid(before, stay)
        for row in rows:
            row.layers = None
        padding = torch.arange(self.capacity) < self.used - torch.tensor([row.own for row in rows]).unsqueeze(-1)
        mask = torch.where(padding, MASKED, 0.0).view(len(rows), 1, 1, -1)
        self.mask = mask.to(self.suffixes.device) if bool(padding.any()) or self.on_gpu else None
        if self.on_gpu:
            self.columns = torch.arange(self.capacity, device=self.suffixes.device)
            self.column = torch.tensor([self.used], device=self.suffixes.device)

    def laid(self, before: BatchCache | None, stay: list[tuple[int, int]]) -> Tensor:
        """Keys and values (layers, 2, B, kv heads, capacity, head dimension), left-padded up to `used`."""
        like = self.prefixes.states
        target = like.new_empty(*like.shape[:2], len(self.rows), like.shape[3], self.capacity, like.shape[-1])
        target[..., : self.capacity if self.on_gpu else self.used, :] = 0.0  # a masked NaN would stay one
        if before is not None and stay:
            to, source = torch.tensor(stay, device=like.device).unbind(1)
            span = min(self.used, before.used)
            # It is copied twice, a layer at a time: all of them at once took as much memory again.
            for ours, known in zip(target, before.suffixes, strict=True):
                ours[:, to, :, self.used - span : self.used] = known[:, source, :, before.used - span : before.used]
        for index, row in enumerate(self.rows):
            if row.layers is not None:
                target[:, :, index, :, self.used - row.own : self.used] = row.layers
        return target

    @property
    def room(self) -> int:
        return self.capacity - self.used

    def begin(self) -> None:
        """Once for each step, before its first layer."""
        if self.on_gpu:
            assert self.mask is not None
            self.seen = self.mask.masked_fill(self.columns > self.column, MASKED)
        elif self.mask is not None:
            self.seen = self.mask

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One token of every row: queries (B, heads, d), keys and values (B, kv heads, d) -> (B, heads * d).

        Queries are already scaled.
        """
        all_keys, all_values = self.suffixes[layer]
        rows, kv_heads = all_keys.shape[:2]
        if self.on_gpu:
            end = self.capacity
            all_keys.index_copy_(2, self.column, keys.unsqueeze(2))
            all_values.index_copy_(2, self.column, values.unsqueeze(2))
        else:
            end = self.used + 1
            all_keys[:, :, self.used] = keys
            all_values[:, :, self.used] = values
        shared, sums = self.prefixes.attend(layer, queries)
        by_kv_head = (rows * kv_heads, queries.shape[1] // kv_heads, -1)
        scores = scores_of(queries.reshape(by_kv_head), all_keys.flatten(0, 1)[:, :end])
        if self.mask is not None:
            scores.view(rows, kv_heads, -1, end).add_(self.seen[..., :end])
        weights = torch.cat((scores, sums.reshape(by_kv_head)), -1).softmax(-1)
        weights = weights.to(values.dtype)
        output = torch.bmm(weights[..., :end], all_values.flatten(0, 1)[:, :end])
        output.addcmul_(weights[..., end:], shared.reshape(by_kv_head))
        return output.view(rows, -1)

    def end(self) -> None:
        """Once for each step, behind its last layer; `used` is counted up by the caller."""
        if self.on_gpu:
            self.column += 1

    def cut(self, index: int) -> Tensor:
        """Keys and values (layers, 2, kv heads, tokens, d) of a row's own tokens, after the last was fed."""
        columns = slice(self.used - len(self.rows[index].tokens), self.used)
        return self.suffixes[:, :, index, :, columns].clone()


def scores_of(queries: Tensor, keys: Tensor) -> Tensor:
    """(G, R, d) and (G, T, d) to (G, R, T), in float32 where the arguments are of a shorter type."""
    if queries.dtype in (torch.float32, torch.float64):
        return torch.bmm(queries, keys.transpose(1, 2))
    if queries.is_cuda:
        return torch.bmm(queries, keys.transpose(1, 2), out_dtype=torch.float32)
    return torch.bmm(queries.float(), keys.float().transpose(1, 2))


def softmax_and_sums(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax over the last axis, and the log of the sum of exponentials (..., 1)."""
    if not scores.is_cuda:
        sums = scores.logsumexp(-1, keepdim=True)
        return (scores - sums).exp_(), sums
    weights = scores.softmax(-1)  # one kernel; log-sum-exp takes five
    return weights, scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()


def padded(parts: Sequence[Tensor], ends: Sequence[int], longest: int) -> Tensor:
    """The beginnings of states (layers, 2, kv heads, at least end, d), padded with zeros, side by side."""
    layers, two, heads, _, size = parts[0].shape
    laid = parts[0].new_zeros(layers, two, len(parts), heads, longest, size)
    for group, (part, end) in enumerate(zip(parts, ends, strict=True)):
        laid[:, :, group, :, :end] = part[..., :end, :]
    return laid
