"""Attention to the ancestors in a tree, for models of transformers that let their attention be chosen.

The nodes of a tree are in depth-first order. A run of consecutive nodes, a tile, attends to the ancestors of its first
node and to itself, and to nothing else: an ancestor of a later node that lies before the tile is one of the first node
too. So a tile's keys are gathered, as many as its first node is deep and the tile is long, and the cost is that of each
sequence's own attention, not of all nodes with all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

from gpo.errors import EngineError
from gpo.methods.tree import Tree

NAME = "gpo_tree"  # of this attention in transformers
SMALLEST_TILE = 64  # nodes
MASKED = -1e30  # finite, and far from the least number, which a kernel's factor would make infinite
TILES_PER_PATH = 8  # a longer tile gathers keys less often, and computes more of itself in vain


@dataclass(eq=False)
class Tiles:
    """Which keys the tiles of a packed row attend to: tiles of about as many keys are one block of work.

    The row is padded to whole tiles with nodes that attend to themselves.
    """

    size: int  # nodes of a tile
    count: int
    blocks: Sequence[tuple[Tensor, Tensor]]  # tiles (t,) of the row, and their keys (t, K) as nodes, -1 for none
    order: Tensor  # (count,) where the blocks, one after the other, have each tile of the row
    depths: Tensor  # (count * size,)
    ends: Tensor  # (count * size,)
    windows: set[int | None] = field(default_factory=set)  # that attention was asked for: the model's sliding windows
    _masks: dict[Any, list[Tensor]] = field(default_factory=dict)

    def masks(self, window: int | None, dtype: torch.dtype) -> list[Tensor]:
        """For each block (t, 1, size, K): whether a node attends to a key; as 0 or `MASKED` if not boolean."""
        self.windows.add(window)
        if (window, dtype) not in self._masks:
            self._masks[window, dtype] = [self._mask(*block, window, dtype) for block in self.blocks]
        return self._masks[window, dtype]

    def _mask(self, tiles: Tensor, keys: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
        nodes = tiles[:, None, None] * self.size + torch.arange(self.size, device=tiles.device)[:, None]
        keys = keys[:, None]
        seen = (keys >= 0) & (keys <= nodes) & (nodes < self.ends[keys])
        if window is not None:
            seen &= self.depths[nodes] - self.depths[keys] < window
        if dtype == torch.bool:
            return seen[:, None]
        least = max(MASKED, torch.finfo(dtype).min)
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, least)[:, None]


def tile(tree: Tree, device: torch.device) -> Tiles:
    """Cut a tree's row into tiles."""
    size = SMALLEST_TILE
    while size * TILES_PER_PATH < max(tree.depths):
        size *= 2
    count = -(-len(tree.ends) // size)
    padding = range(len(tree.ends), count * size)
    ends = [*tree.ends, *(node + 1 for node in padding)]
    depths = [*tree.depths, *(0 for _ in padding)]
    keys = _keys(tree, size, count)
    tiles = sorted(range(count), key=lambda t: len(keys[t]))
    blocks = []
    for width, block in groupby(tiles, key=lambda t: _rounded(len(keys[t]), size)):
        members = list(block)
        rows = [keys[t] + [-1] * (width - len(keys[t])) for t in members]
        blocks.append((torch.tensor(members, device=device), torch.tensor(rows, device=device)))
    order = torch.tensor(tiles, device=device).argsort()
    return Tiles(size, count, blocks, order, torch.tensor(depths, device=device), torch.tensor(ends, device=device))


def _keys(tree: Tree, size: int, count: int) -> list[list[int]]:
    """For each tile the ancestors of its first node, and its own nodes."""
    keys: list[list[int]] = []
    path: list[int] = []
    for node, depth in enumerate(tree.depths):
        del path[depth:]
        if node % size == 0:
            keys.append([*path, *range(node, node + size)])
        path.append(node)
    assert len(keys) == count
    return keys


def _rounded(keys: int, size: int) -> int:
    """The next of the widths size * (1, 1.5, 2, 3, 4, 6, 8, ...)."""
    width = size
    while width < keys:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return width


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    tree: Tiles | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as models of transformers call it: heads (1, H, N, D) to (1, N, H, D).

    Raises:
        EngineError: the model does not hand the tree on, or wants of its attention what this one does not do.
    """
    refused = sorted(name for name in ("s_aux", "position_bias", "head_mask") if options.get(name) is not None)
    if tree is None or query.shape[0] != 1 or key.shape[2] != query.shape[2] or refused:
        raise EngineError(
            f"{type(module).__name__} attends to a tree and got none, or cannot. Call the model through its scorer, or "
            "outside of the `with scoring(model)` block."
        )
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        wanted = torch.get_autocast_dtype(kind)
        query, key, value = query.to(wanted), key.to(wanted), value.to(wanted)
    heads, kept = query.shape[1], key.shape[1]
    repeats = heads // kept
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # The fused kernel knows no cap. In bfloat16 it is half as fast as the products by themselves on a CPU, and on a GPU
    # its gradients were no numbers, it seems where a node sees none of the first keys of its tile.
    fused = softcap is None and query.dtype not in (torch.bfloat16, torch.float16)
    masks = tree.masks(sliding_window, torch.bool if fused else query.dtype)
    queries = _cut(query, tree).view(tree.count, kept, repeats * tree.size, -1)
    keys, values = (states[0].transpose(0, 1).flatten(1) for states in (key, value))
    outputs = []
    for (tiles, nodes), mask in zip(tree.blocks, masks, strict=True):
        q = queries if len(tree.blocks) == 1 else queries.index_select(0, tiles)
        k, v = (_gather(states, nodes, kept) for states in (keys, values))
        repeated = mask if repeats == 1 else mask.repeat(1, 1, repeats, 1)
        if fused:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=repeated, dropout_p=dropout, scale=scaling)
        else:
            scores = (q * scaling) @ k.transpose(-1, -2)
            if softcap is not None:
                scores = (scores / softcap).tanh() * softcap
            weights = torch.softmax(scores + repeated, dim=-1, dtype=torch.float32).to(v.dtype)
            out = F.dropout(weights, dropout) @ v
        outputs.append(out.reshape(len(tiles), heads, tree.size, -1))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return joined.index_select(0, tree.order).transpose(1, 2).reshape(1, tree.count * tree.size, heads, -1), None


def _cut(query: Tensor, tree: Tiles) -> Tensor:
    """(1, H, N, D) to (tiles, H, size, D)."""
    return query[0].reshape(query.shape[1], tree.count, tree.size, -1).transpose(0, 1).contiguous()


def _gather(states: Tensor, nodes: Tensor, heads: int) -> Tensor:
    """(N, H * D) to (tiles, H, K, D); what a mask hides is any node."""
    return states.index_select(0, nodes.clamp(min=0).flatten()).view(*nodes.shape, heads, -1).transpose(1, 2)


AttentionInterface.register(NAME, attend)
