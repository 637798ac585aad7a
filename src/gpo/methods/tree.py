"""Token sequences that share prefixes, laid out so that each shared token is computed once.

Axes: N nodes of a packed row, S scored tokens of all sequences of a batch, T scored tokens of one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from gpo.errors import DataError

Ids = tuple[int, ...]
Scored = tuple[Sequence[int], Sequence[int]]  # the context, which carries no loss, and the tokens (T,) that do


@dataclass(frozen=True, eq=False)
class Tree:
    """The nodes of a forest, depth first: what hangs below node j are the nodes j to ends[j] - 1.

    So node j is an ancestor of node i, or i itself, if and only if j <= i < ends[j].
    """

    token_ids: tuple[int, ...]  # (N,)
    depths: tuple[int, ...]  # (N,) 0 at a root
    ends: tuple[int, ...]  # (N,)


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Sequences that go through the model together. Tensors are on the CPU.

    With a `tree` there is one row, and its columns are the tree's nodes; without one each sequence is a row of its own,
    padded on the right. The last token of a sequence predicts nothing and is no input, unless another one goes on.
    """

    sequences: tuple[int, ...]  # which of the packed sequences these are, in their order
    sizes: list[int]  # T of each sequence
    token_ids: Tensor  # (rows, columns)
    positions: Tensor  # (rows, columns) number of tokens before this one in its sequence
    lengths: Tensor  # (rows,) columns that are not padding
    predictors: Tensor  # (S,) index into the flattened (rows, columns) of what predicts each scored token
    targets: Tensor  # (S,) token ids, sequence after sequence
    tree: Tree | None = None

    def split(self, values: Tensor) -> list[Tensor]:
        """(S, ...) numbers of the scored tokens as (T, ...) for each sequence."""
        return list(torch.split(values, self.sizes))


def pack(sequences: Sequence[Scored], max_tokens: int, *, share: bool = True) -> list[PackedBatch]:
    """Lay sequences out in batches of at most `max_tokens` computed tokens.

    Sequences that agree from their first token on share nodes, those of scored tokens as well: such a node has the
    gradients of all its sequences. Neighbours in sorted order go to the same batch; where the budget cuts a tree,
    what its parts share is computed in each of them. A sequence that is larger than the budget has a batch to itself.

    Args:
        share: False gives padded rows, sorted by length, for a model whose attention does not take a tree.

    Raises:
        DataError: a sequence without context, whose first token nothing predicts, or without a token to score.
    """
    for index, (context, tokens) in enumerate(sequences):
        if not context or not tokens:
            raise DataError(
                f"Sequence {index} has {len(context)} tokens of context and {len(tokens)} to score; expected at least "
                "one of each. Leave out empty completions, and begin an empty prompt with the tokenizer's BOS."
            )
    inputs = [(*context, *tokens)[:-1] for context, tokens in sequences]
    layout, parts = (_lay_tree, _trees) if share else (_lay_rows, _rows)
    return [layout(sequences, inputs, part) for part in parts(inputs, max_tokens)]


def common_prefix(left: Ids, right: Ids) -> int:
    """The number of tokens with which both begin."""
    size = min(len(left), len(right))
    if left[:size] == right[:size]:
        return size
    return next(i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)


def grow(sequences: Sequence[Ids]) -> tuple[Tree, dict[Ids, list[int]]]:
    """The tree of some sequences, and for each of them its nodes from the root on."""
    ids: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    path: list[int] = []
    paths: dict[Ids, list[int]] = {}
    previous: Ids = ()
    for sequence in sorted(set(sequences)):
        shared = common_prefix(previous, sequence)
        for node in path[shared:]:
            ends[node] = len(ids)
        path = [*path[:shared], *range(len(ids), len(ids) + len(sequence) - shared)]
        ids += sequence[shared:]
        depths += range(shared, len(sequence))
        ends += [0] * (len(sequence) - shared)
        paths[sequence] = path
        previous = sequence
    for node in path:
        ends[node] = len(ids)
    return Tree(tuple(ids), tuple(depths), tuple(ends)), paths


def _trees(inputs: Sequence[Ids], max_tokens: int) -> Iterator[list[int]]:
    part: list[int] = []
    nodes, previous = 0, Ids()
    for i in sorted(range(len(inputs)), key=lambda i: inputs[i]):
        added = len(inputs[i]) - common_prefix(previous, inputs[i])
        if part and nodes + added > max_tokens:
            yield part
            part, nodes, added = [], 0, len(inputs[i])
        part.append(i)
        nodes, previous = nodes + added, inputs[i]
    if part:
        yield part


def _rows(inputs: Sequence[Ids], max_tokens: int) -> Iterator[list[int]]:
    part: list[int] = []
    for i in sorted(range(len(inputs)), key=lambda i: len(inputs[i])):
        if part and (len(part) + 1) * len(inputs[i]) > max_tokens:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def _lay_tree(sequences: Sequence[Scored], inputs: Sequence[Ids], part: Sequence[int]) -> PackedBatch:
    tree, paths = grow([inputs[i] for i in part])
    return PackedBatch(
        sequences=tuple(part),
        sizes=[len(sequences[i][1]) for i in part],
        token_ids=torch.tensor([tree.token_ids]),
        positions=torch.tensor([tree.depths]),
        lengths=torch.tensor([len(tree.token_ids)]),
        predictors=torch.tensor([node for i in part for node in paths[inputs[i]][len(sequences[i][0]) - 1 :]]),
        targets=torch.tensor([token for i in part for token in sequences[i][1]]),
        tree=tree,
    )


def _lay_rows(sequences: Sequence[Scored], inputs: Sequence[Ids], part: Sequence[int]) -> PackedBatch:
    lengths = torch.tensor([len(inputs[i]) for i in part])
    columns = int(lengths.max())
    firsts = accumulate([columns] * (len(part) - 1), initial=0)
    return PackedBatch(
        sequences=tuple(part),
        sizes=[len(sequences[i][1]) for i in part],
        token_ids=torch.tensor([[*inputs[i], *[0] * (columns - len(inputs[i]))] for i in part]),
        positions=torch.arange(columns).expand(len(part), -1),
        lengths=lengths,
        predictors=torch.tensor(
            [
                node
                for i, first in zip(part, firsts, strict=True)
                for node in range(first + len(sequences[i][0]) - 1, first + len(inputs[i]))
            ]
        ),
        targets=torch.tensor([token for i in part for token in sequences[i][1]]),
    )
