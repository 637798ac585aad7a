"""Token sequences that share prefixes, laid out so that each shared token is computed once.

Axes: N nodes of a packed row, S scored tokens of all sequences of a batch, T scored tokens of one sequence.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from gpo.errors import ConfigError, DataError

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

    @property
    def computed(self) -> int:
        """Tokens that the model computes, padding included."""
        return self.token_ids.numel()

    def split(self, values: Tensor) -> list[Tensor]:
        """(S, ...) numbers of the scored tokens as (T, ...) for each sequence."""
        return list(torch.split(values, self.sizes))

    def sum(self, values: Tensor) -> Tensor:
        """(S,) numbers of the scored tokens added up for each sequence."""
        sizes = torch.tensor(self.sizes, device=values.device)
        owners = torch.arange(len(sizes), device=values.device).repeat_interleave(sizes)
        return values.new_zeros(len(sizes)).index_add(0, owners, values)


def pack(sequences: Sequence[Scored], max_tokens: int, *, share: bool = True, together: int = 1) -> list[PackedBatch]:
    """Lay sequences out in batches of at most `max_tokens` computed tokens.

    Sequences that agree from their first token on share nodes, those of scored tokens as well: such a node has the
    gradients of all its sequences. Neighbours in sorted order go to the same batch; where the budget cuts a tree,
    what its parts share is computed in each of them.

    Args:
        share: False gives padded rows, sorted by length, for a model whose attention does not take a tree.
        together: every run of so many sequences stays in one batch, as 2 for chosen, rejected, chosen, rejected. A run
            that is larger than the budget has a batch to itself.

    Raises:
        DataError: a sequence without context, whose first token nothing predicts, or without a token to score.
        ConfigError: the number of sequences is no multiple of `together`, or a number below 1.
    """
    if max_tokens < 1 or together < 1 or len(sequences) % together:
        raise ConfigError(
            f"Expected max_tokens and together of at least 1 and runs of {together} sequences, got max_tokens "
            f"{max_tokens} and {len(sequences)} sequences."
        )
    for index, (context, tokens) in enumerate(sequences):
        if not context or not tokens:
            raise DataError(
                f"Sequence {index} has {len(context)} tokens of context and {len(tokens)} to score; expected at least "
                "one of each. Leave out empty completions, and begin an empty prompt with the tokenizer's BOS."
            )
    inputs = [(*context, *tokens)[:-1] for context, tokens in sequences]
    runs = [tuple(range(first, first + together)) for first in range(0, len(inputs), together)]
    layout, parts = (_lay_tree, _trees) if share else (_lay_rows, _rows)
    return [layout(sequences, inputs, part) for part in parts(inputs, runs, max_tokens)]


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


def _trees(inputs: Sequence[Ids], runs: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    part: list[int] = []
    nodes, known = 0, list[Ids]()  # of the part, the latter sorted
    for run in sorted(runs, key=lambda run: inputs[run[0]]):
        added = _insert(known, [inputs[i] for i in run])
        if part and nodes + added > max_tokens:
            yield part
            part, nodes, known = [], 0, []
            added = _insert(known, [inputs[i] for i in run])
        part += run
        nodes += added
    if part:
        yield part


def _insert(known: list[Ids], sequences: Sequence[Ids]) -> int:
    """Put sequences into a sorted list; how many nodes that adds to its tree."""
    added = 0
    for sequence in sequences:
        place = bisect(known, sequence)
        shared = max((common_prefix(other, sequence) for other in known[max(0, place - 1) : place + 1]), default=0)
        added += len(sequence) - shared
        insort(known, sequence)
    return added


def _rows(inputs: Sequence[Ids], runs: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    part: list[int] = []
    for longest, run in sorted((max(len(inputs[i]) for i in run), run) for run in runs):
        if part and (len(part) + len(run)) * longest > max_tokens:
            yield part
            part = []
        part += run
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
